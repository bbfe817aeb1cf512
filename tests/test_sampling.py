"""Samplers visit items as often as their papers say, spread over the epoch, the same on any number of processes."""

import math
from collections import Counter

import numpy as np
import pytest
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

import extract.train
import fusion.train
from data.config import parse_config
from data.errors import InputError
from data.order import derive_seed, epoch_batches, rank_share
from data.sampling import (
    SamplerConfig,
    coded_copies,
    epoch_draws,
    epoch_length,
    expected_visits,
    spread,
    whole_visits,
)
from extract.config import ExtractConfig
from extract.images import augmented_requests
from extract.train import DEMO
from extract.trial import trial_config
from fusion.config import FusionConfig, GroupingConfig
from fusion.grouping import make_groups, training_views
from fusion.trial import count
from tests.launch import run
from tests.make_data import make_cache, make_manifest, make_run

KINDS = ("repeat_factor", "class_aware", "square_root", "co_occurrence", "repeat_factor_as_coded")
PROPER = KINDS[:-1]
N, C = 403, 5
SHARES = (0.5, 0.2, 0.08, 0.03, 0.01)
SOURCES = ["north" if n % 3 else "south" for n in range(N)]


def long_tail(seed=0):
    """Several labels per item, some items without any, some labels unknown or soft."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((N, C)) < SHARES).astype(np.float32)
    labels[rng.random((N, C)) < 0.05] = np.nan
    labels[rng.random((N, C)) < 0.02] = 0.4
    return labels


def config_of(kind, **options):
    return SamplerConfig(kind=kind, threshold=0.1, **options)


def flat(batches):
    return np.concatenate([draws.items for draws in batches]), np.concatenate([draws.copies for draws in batches])


def slow_expected(kind, labels, threshold):
    """One item after the other, from the definitions."""
    positives = [[c for c in range(C) if labels[n, c] > 0.5] for n in range(len(labels))]
    size = Counter(c for own in positives for c in own)
    size["none"] = sum(not own for own in positives)
    if kind == "repeat_factor":
        factor = {c: max(1.0, math.sqrt(threshold / (size[c] / len(labels)))) for c in range(C) if size[c]}
        return [max([1.0, *(factor[c] for c in own)]) for own in positives]
    classes = [c for c in size if size[c]]
    total = sum(math.sqrt(size[c]) for c in classes)
    weights = []
    for own in positives:
        own = own or ["none"]
        if kind == "square_root":
            weights.append(sum(math.sqrt(size[c]) / total / size[c] for c in own))
        elif kind == "class_aware":
            weights.append(sum(1 / len(classes) / size[c] for c in own))
        else:
            every = sum(1 / size[c] for c in own)
            weights.append(sum((1 / size[c]) * (1 / size[c]) / every for c in own))
    return [len(labels) * weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("kind", PROPER)
def test_expected_visits_equal_a_slow_loop(kind):
    found = expected_visits(config_of(kind), long_tail(), SOURCES)
    np.testing.assert_allclose(found, slow_expected(kind, long_tail(), 0.1), rtol=1e-12)


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (1, 4), (23, 7), (64, 1), (403, 32)])
def test_without_a_sampler_the_order_is_the_plain_one_and_every_visit_a_first(count, batch_size):
    found = epoch_draws(SamplerConfig(), long_tail()[:count], SOURCES[:count], batch_size, 3, 2)
    wanted = epoch_batches(count, batch_size, 3, 2)
    assert len(found) == len(wanted)
    for draws, batch in zip(found, wanted, strict=True):
        assert np.array_equal(draws.items, batch)
        assert draws.items.dtype == batch.dtype
        assert not draws.copies.any()


@pytest.mark.parametrize("kind", PROPER)
def test_items_are_visited_as_often_as_expected_and_never_more_than_rounding_allows(kind):
    labels, epochs = np.tile(long_tail(), (8, 1)), 200  # many, for rounding up the sum adds less than one visit in all
    expected = expected_visits(config_of(kind), labels, SOURCES * 8)
    visits = np.zeros((epochs, 8 * N))
    for epoch in range(epochs):
        items, _ = flat(epoch_draws(config_of(kind), labels, SOURCES * 8, 64, seed=1, epoch=epoch))
        visits[epoch] = np.bincount(items, minlength=8 * N)
    low, high = np.floor(expected + 1e-9), np.ceil(expected - 1e-9)
    assert ((visits >= low) & (visits <= high)).all()
    part = expected - np.floor(expected)
    drawn = (part > 1e-6) & (part < 1 - 1e-6)
    assert drawn.sum() > 20
    z = (visits.mean(0) - expected)[drawn] / np.sqrt(part * (1 - part) / epochs)[drawn]
    assert (z**2).mean() == pytest.approx(1, abs=0.25), "chi-square over the items"
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_always_has_the_same_length_in_near_equal_batches(kind):
    config = config_of(kind)
    length = epoch_length(config, long_tail(), SOURCES)
    assert (length > N) == kind.startswith("repeat") or length == N
    for epoch in range(20):
        batches = epoch_draws(config, long_tail(), SOURCES, 32, seed=5, epoch=epoch)
        sizes = [len(draws) for draws in batches]
        assert sum(sizes) == length
        assert len(batches) == -(-length // 32)
        assert max(sizes) <= 32
        assert max(sizes) - min(sizes) <= 1


def one_label_each(counts):
    labels = np.zeros((sum(counts), len(counts)), dtype=np.float32)
    labels[np.arange(len(labels)), np.repeat(np.arange(len(counts)), counts)] = 1
    return labels


def test_class_aware_gives_single_labels_equal_shares_and_square_root_halves_the_exponent():
    labels = one_label_each([900, 100, 25, 9])
    for kind, shares in (("class_aware", [1, 1, 1, 1]), ("square_root", [30, 10, 5, 3])):
        expected = expected_visits(config_of(kind), labels, [""] * len(labels)) @ labels
        np.testing.assert_allclose(expected, 1034 * np.array(shares) / sum(shares))


def test_repeat_factors_are_those_of_the_paper():
    labels = one_label_each([90_000, 8_100, 1_600, 225, 64, 11])  # of 100,000
    found = expected_visits(SamplerConfig(kind="repeat_factor", threshold=0.01), labels, [""] * len(labels))
    frequency = labels.mean(0)
    np.testing.assert_allclose((found @ labels) / labels.sum(0), np.maximum(1, np.sqrt(0.01 / frequency)), rtol=1e-6)


def test_with_co_occurrence_several_equally_rare_labels_count_as_one_and_a_common_one_adds_nothing():
    labels = np.zeros((1000, 3), dtype=np.float32)
    labels[:900, 0] = 1
    labels[900:904, 1] = labels[904:908, 2] = 1  # one rare label
    labels[908:912, 1:] = 1  # both
    labels[0, 1] = labels[1, 2] = 1  # a common one and a rare one
    found = expected_visits(config_of("co_occurrence"), labels, [""] * 1000)
    plain = expected_visits(config_of("class_aware"), labels, [""] * 1000)
    assert found[908] == pytest.approx(found[900])
    assert found[0] == pytest.approx(found[900], rel=0.03)
    assert plain[908] == pytest.approx(2 * plain[900])
    drawn = [np.where(labels > 0, visits[:, None], 0).sum(0) for visits in (np.ones(1000), plain, found)]
    assert drawn[0].max() / drawn[0].min() > 50
    assert all(each.max() / each.min() < 3 for each in drawn[1:])


def test_unknown_and_low_soft_labels_are_no_positives():
    labels, hidden = long_tail(), long_tail()
    hidden[np.isnan(labels) | (labels == np.float32(0.4))] = 0
    for kind in KINDS:
        a, b = (flat(epoch_draws(config_of(kind), values, SOURCES, 16, 0, 0)) for values in (labels, hidden))
        assert np.array_equal(a, b)


def next_is_same(items, wanted):
    """Share of the draws of some items that are followed by the same item."""
    follows = items[:-1][np.isin(items[:-1], wanted)] == items[1:][np.isin(items[:-1], wanted)]
    return follows.mean()


@pytest.fixture(scope="module")
def geometric():
    """26 classes, one label each, from 5,500 images to 5: the CXR-LT tail at a tenth of its size."""
    labels = one_label_each([round(5500 * (51 / 55000) ** (c / 25)) for c in range(26)])
    share = labels.sum(0) / len(labels)
    return labels, np.flatnonzero(labels[:, share < 0.0004].any(axis=1))


def test_copies_are_never_neighbours_while_the_published_way_puts_them_side_by_side(geometric):
    labels, tail = geometric
    sources = [""] * len(labels)
    coded = SamplerConfig(kind="repeat_factor_as_coded")
    items, _ = flat(epoch_draws(coded, labels, sources, 64, 0, 0))
    assert next_is_same(items, tail) == pytest.approx(0.84, abs=0.02)
    copies = coded_copies(labels, 0.01)[tail]
    assert next_is_same(items, tail) == pytest.approx(1 - len(tail) / copies.sum(), abs=0.01)
    for kind in PROPER:
        batches = epoch_draws(SamplerConfig(kind=kind), labels, sources, 64, 0, 0)
        items, copies = flat(batches)
        assert copies[np.isin(items, tail)].max() >= 1
        assert next_is_same(items, tail) == 0
        assert (items[1:] != items[:-1]).all()
        if np.bincount(items).max() <= len(batches):
            assert all(len(np.unique(draws.items)) == len(draws) for draws in batches)


def test_the_published_frequency_and_rounding_are_kept_as_they_are():
    labels = one_label_each([600, 250, 100, 50])
    labels[:600, 1] = 1  # counts 600, 850, 100, 50: their sum is 1,600, of 1,000 images
    found = coded_copies(labels, 0.2)
    wanted = [round(min(10, math.sqrt(0.2 / (n / 1600)))) if n / 1600 < 0.2 else 1 for n in (850, 850, 100, 50)]
    assert found[[0, 600, 850, 950]].tolist() == wanted
    assert coded_copies(labels, 0.2 * 100 / 1600 / 0.2 * 2.2).max() == 2, "1.48 becomes 1, 2.1 becomes 2"
    assert coded_copies(one_label_each([10_000, 1]), 1.0).max() == 10


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 5))
def test_visits_are_spread_as_evenly_as_possible(visits, batch_size, seed):
    visits = np.array([*visits, 3])
    num_batches = -(-int(visits.sum()) // batch_size)
    batches = spread(visits, num_batches, np.random.default_rng(seed))
    table = np.array([np.bincount(batch, minlength=len(visits)) for batch in batches])
    assert np.array_equal(table.sum(0), visits)
    assert (table.max(0) - table.min(0) <= 1).all(), "at most one per batch, or equally many"
    assert np.ptp(table.sum(1)) <= 1
    for batch in batches:
        if 2 * np.bincount(batch).max() < len(batch):
            assert (batch[1:] != batch[:-1]).all()
    whole = np.concatenate(batches)
    if num_batches > 1 and min(map(len, batches)) > 1 and visits.max() <= num_batches:
        assert (whole[1:] != whole[:-1]).all()


def test_the_few_visits_of_an_item_lie_far_apart():
    visits = np.ones(1000, dtype=int)
    visits[:40] = 4
    gaps = []
    for seed in range(20):
        batches = spread(visits, 70, np.random.default_rng(seed))
        steps = [[step for step, batch in enumerate(batches) if item in batch] for item in range(40)]
        gaps += [min(np.diff(own)) for own in steps]
    assert np.median(gaps) >= 70 / 4 / 2.7
    assert min(gaps) >= 1


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.floats(0, 7), min_size=1, max_size=40), st.integers(0, 5))
def test_rounding_keeps_every_number_within_one_and_the_sum(expected, seed):
    expected = np.array(expected)
    found = whole_visits(expected, np.random.default_rng(seed))
    assert (np.abs(found - expected) < 1 + 1e-6).all()
    assert expected.sum() - 1e-5 <= found.sum() < expected.sum() + 1 + 1e-5
    whole = expected == np.round(expected)
    assert np.array_equal(found[whole], expected[whole])


def test_rounding_is_right_on_average_for_the_most_unequal_numbers_too():
    expected = np.array([0.05, 0.95, 2.3, 0.7])
    drawn = [whole_visits(expected, np.random.default_rng(seed)) for seed in range(3000)]
    np.testing.assert_allclose(np.mean(drawn, axis=0), expected, atol=4 * 0.5 / 3000**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_changes_with_seed_and_epoch_and_with_nothing_else(kind):
    def order(seed, epoch):
        return flat(epoch_draws(config_of(kind), long_tail(), SOURCES, 16, seed, epoch))[0].tolist()

    first = order(1, 0)
    np.random.default_rng(9).random(5)
    assert order(1, 0) == first
    assert order(2, 0) != first
    assert order(1, 1) != first


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_processes", [2, 3])
def test_the_shares_of_all_processes_are_the_global_batches_copy_by_copy(kind, num_processes):
    batches = epoch_draws(config_of(kind), long_tail(), SOURCES, 16, 0, 0)
    cost = np.random.default_rng(0).integers(1, 5, N)
    for draws in batches:
        for weights in (None, cost[draws.items]):
            shares = [rank_share(draws, rank, num_processes, weights) for rank in range(num_processes)]
            assert sorted(zip(*flat(shares), strict=True)) == sorted(zip(draws.items, draws.copies, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_copies_of_an_item_are_numbered_in_the_order_of_the_epoch(kind):
    items, copies = flat(epoch_draws(config_of(kind), long_tail(), SOURCES, 16, 0, 0))
    assert copies.max() >= 1
    for item in np.unique(items):
        assert copies[items == item].tolist() == list(range((items == item).sum()))


@pytest.mark.parametrize("kind", ["none", *PROPER])
def test_a_mix_gives_each_source_its_share_of_every_epoch(kind):
    plain, config = config_of(kind), config_of(kind, mix={"north": 0.25, "south": 0.75})
    length = epoch_length(config, long_tail(), SOURCES)
    assert abs(length - epoch_length(plain, long_tail(), SOURCES)) <= 1
    north = np.array(SOURCES) == "north"
    shares = [north[flat(epoch_draws(config, long_tail(), SOURCES, 16, 0, epoch))[0]].mean() for epoch in range(100)]
    assert np.mean(shares) == pytest.approx(0.25, abs=0.005)
    assert np.ptp(shares) < 0.1
    expected = [expected_visits(choice, long_tail(), SOURCES) for choice in (plain, config)]
    for part in (north, ~north):
        ratio = expected[1][part] / expected[0][part]
        np.testing.assert_allclose(ratio, ratio[0])
    none = epoch_draws(config_of(kind, mix={"north": 1.0, "south": 0.0}), long_tail(), SOURCES, 16, 0, 0)
    assert north[flat(none)[0]].all()


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ({"north": 1.0}, "source 'south' is missing; the training set has north, south"),
        ({"north": 0.5, "south": 0.2, "east": 0.3}, "no training item of source 'east'"),
    ],
)
def test_a_mix_of_other_sources_is_refused_by_name(mix, message):
    with pytest.raises(InputError, match=message):
        epoch_draws(SamplerConfig(mix=mix), long_tail(), SOURCES, 16, 0, 0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"mix": {"a": 0.5, "b": 0.6}},
        {"mix": {"a": 1.5, "b": -0.5}},
        {"kind": "repeat_factor_as_coded", "mix": {"a": 1.0}},
    ],
)
def test_impossible_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=r"sampler\.(threshold|mix)"):
        SamplerConfig(**wrong)


def test_a_mix_is_read_from_a_file_and_from_the_command_line(tmp_path):
    (tmp_path / "mix.yaml").write_text("sampler: {kind: class_aware, mix: {mimic: 0.7, 'NIH 14': 0.3}}\n")
    for words in (["--config", str(tmp_path / "mix.yaml")], ["--sampler.mix", '{"mimic": 0.7, "NIH 14": 0.3}']):
        config, resolved = parse_config(ExtractConfig, DEMO, words)
        assert config.sampler.mix == {"mimic": 0.7, "NIH 14": 0.3}
        assert "NIH 14: 0.3" in resolved


def test_a_second_visit_is_augmented_differently_and_a_first_one_as_ever():
    draws = epoch_draws(config_of("class_aware"), long_tail(), SOURCES, 16, 0, 0)[-1]
    requests = augmented_requests(draws, seed=4, epoch=2)
    assert [row for row, _ in requests] == draws.items.tolist()
    assert draws.copies.any()
    for (row, seed), copy in zip(requests, draws.copies, strict=True):
        assert (seed == derive_seed("augment", 4, 2, row)) == (copy == 0)
    every = [
        request
        for part in epoch_draws(config_of("class_aware"), long_tail(), SOURCES, 16, 0, 0)
        for request in augmented_requests(part, 4, 2)
    ]
    assert len(set(every)) == len(every)


def test_a_group_has_other_slots_and_views_at_its_second_visit(tmp_path):
    manifest = make_manifest(tmp_path)
    groups = make_groups(manifest, make_cache(tmp_path / "cache", manifest), GroupingConfig())
    assert groups.sources == ["made up"] * len(groups)
    config = GroupingConfig(view_dropout=0.5)
    visits = [training_views(groups, 5, config, 16, 0, 0, 1, copy) for copy in (0, 0, 1, 2)]
    same = [all(np.array_equal(a, b) for a, b in zip(visits[0], other, strict=True)) for other in visits]
    assert same == [True, True, False, False]


def test_a_trial_visits_each_image_once_and_estimates_the_epochs_of_the_full_run(tmp_path):
    config = ExtractConfig(sampler=SamplerConfig(kind="repeat_factor", threshold=0.9))
    assert trial_config(config, tmp_path).sampler == SamplerConfig()
    manifest = make_manifest(tmp_path, num_studies=60)
    stage_two = FusionConfig(sampler=SamplerConfig(kind="repeat_factor", threshold=0.9))
    counts, plain = count(manifest, stage_two), count(manifest, FusionConfig())
    train = manifest.of_split("train")
    assert plain.images["train"] == len(train)
    assert counts.images["train"] == epoch_length(stage_two.sampler, train.labels, train.images["source"].tolist())
    assert counts.images["train"] > plain.images["train"]
    assert counts.groups["train"] > plain.groups["train"]
    assert (counts.groups["val"], counts.images["test"]) == (plain.groups["val"], plain.images["test"])


@pytest.mark.slow
def test_with_a_sampler_a_killed_run_goes_on_mid_epoch_to_the_same_bits(tmp_path, monkeypatch):
    options = ["--sampler.kind", "class_aware", "--loss.kind", "ldam", "--loss.reweight_after", "0.5"]
    options += ["--epochs", "2", "--save_steps", "1"]
    for name in ("whole", "killed"):
        make_run(tmp_path / name)
    for stage, module, more in (
        ("extract", extract.train, []),
        ("fusion", fusion.train, ["--retrain_single", "false"]),
    ):
        run(stage, tmp_path / "whole", *options, *more)
        real, calls = module.take_step, []

        def dying(*arguments, real=real, calls=calls):
            calls.append(0)
            if len(calls) > 4:
                raise KeyboardInterrupt
            real(*arguments)

        monkeypatch.setattr(module, "take_step", dying)
        with pytest.raises(SystemExit):
            run(stage, tmp_path / "killed", *options, *more)
        monkeypatch.setattr(module, "take_step", real)
        run(stage, tmp_path / "killed", *options, *more)
        folder = "stage_one" if stage == "extract" else "fusion"
        weights = [
            safetensors.torch.load_file(tmp_path / name / folder / "last" / "model.safetensors")
            for name in ("whole", "killed")
        ]
        assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])
