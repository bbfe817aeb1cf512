"""From cached images to groups: canonical order, shuffled slots, passes."""

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from data.cache import FeatureCache
from data.cache_merge import merge
from data.errors import InputError
from data.manifest import Manifest
from data.shards import patient_hash
from data.views import VIEWS
from extract.heads import HeadConfig
from fusion.config import FusionConfig, GroupingConfig
from fusion.grouping import (
    UNKNOWN,
    cached_manifest,
    evaluation_views,
    make_groups,
    shuffled_slots,
    single_images,
    slots_in_order,
    training_views,
)
from fusion.inference import forward, predict_groups
from fusion.model import FusionModel, ModelConfig
from fusion.passes import make_passes
from fusion.train import refuse_trained_patients
from tests.make_data import CLASSES, make_cache, make_manifest

CONFIG = FusionConfig(
    batch_size=4, model=ModelConfig(width=24, depth=1, num_heads=3, head=HeadConfig(width=18, num_heads=2))
)


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path, num_studies=23, max_views=5)


@pytest.fixture
def cache(tmp_path, manifest):
    return make_cache(tmp_path / "cache", manifest)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return FusionModel(CONFIG.model, (3, 2, 5), len(CLASSES)).eval()


def renamed(manifest, order):
    """The same images, listed in another order."""
    return Manifest(manifest.images.iloc[order].reset_index(drop=True), manifest.labels[order], CLASSES, manifest.root)


def test_views_are_ordered_by_type_then_content(manifest, cache):
    groups = make_groups(manifest, cache, GroupingConfig())
    for types, ordinals in zip(groups.view_types, groups.ordinals, strict=True):
        keys = list(zip(types.tolist(), cache.index.content[ordinals].tolist(), strict=True))
        assert keys == sorted(keys)


def test_the_order_of_files_changes_no_prediction(manifest, cache, model):
    shuffled = renamed(manifest, np.random.default_rng(1).permutation(len(manifest)))
    accelerator, values = Accelerator(cpu=True), []
    for table in (manifest, shuffled):
        groups = make_groups(table, cache, GroupingConfig())
        logits = predict_groups(CONFIG, groups, cache, model, accelerator)
        values.append(dict(zip(groups.ids, logits, strict=True)))
    assert values[0].keys() == values[1].keys()
    for group, logits in values[0].items():
        np.testing.assert_allclose(values[1][group], logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_packing_changes_no_prediction(manifest, cache, model, limit):
    groups = make_groups(manifest, cache, GroupingConfig())
    config = FusionConfig(batch_size=4, max_views_per_forward=limit, model=CONFIG.model)
    together = predict_groups(config, groups, cache, model, Accelerator(cpu=True))
    for g in range(len(groups)):
        ordinals, types, slots, _ = (torch.from_numpy(part)[None] for part in evaluation_views(groups, g, 16))
        maps = torch.from_numpy(cache.read(ordinals[0].numpy())).float()[None]
        with torch.inference_mode():
            alone = model(maps, types, slots)[0].numpy()
        np.testing.assert_allclose(together[g], alone, rtol=0, atol=1e-5 * max(1, np.abs(alone).max()))


@pytest.mark.parametrize("limit", [1, 4, 6, 0])
def test_passes_hold_every_group_once_with_all_its_views(manifest, cache, limit):
    groups = make_groups(manifest, cache, GroupingConfig(by="patient"))
    numbers = np.random.default_rng(0).permutation(len(groups))[:9]
    views = [evaluation_views(groups, int(n), 16) for n in numbers]
    passes = list(make_passes(CONFIG.model, numbers, views, limit))
    assert sorted(np.concatenate([one.groups for one in passes])) == sorted(numbers)
    assert (len(passes) == 1) == (limit == 0)
    for one, following in zip(passes, [*passes[1:], None], strict=True):
        assert len(one) <= limit or len(one.groups) == 1 or not limit
        assert following is None or len(one) + groups.num_views[following.groups[0]] > limit, "the next one fitted in"
        assert Counter(groups.num_views[one.groups].tolist()) == {size: count for count, size in one.buckets}
        for g, own in one.spans():
            of_group = evaluation_views(groups, g, 16)
            for name in ("ordinals", "variants", "view_types", "slots"):
                assert getattr(one, name)[own].tolist() == getattr(of_group, name).tolist()


def test_slots_are_drawn_without_replacement_and_all_come_up():
    rng = np.random.default_rng(0)
    seen = Counter()
    for _ in range(400):
        slots = shuffled_slots(3, 7, rng)
        assert len(set(slots.tolist())) == 3
        seen.update(slots.tolist())
    assert set(seen) == set(range(7))
    assert max(seen.values()) < 1.5 * min(seen.values())


@pytest.mark.parametrize(
    "draw", [lambda n: shuffled_slots(n, 7, np.random.default_rng(0)), lambda n: slots_in_order(n, 7)]
)
def test_more_views_than_slots_use_every_slot_in_rounds(draw):
    counts = Counter(draw(17).tolist())
    assert set(counts) == set(range(7))
    assert set(counts.values()) <= {2, 3}


def test_training_views_are_a_function_of_seed_epoch_and_group(manifest, cache):
    groups = make_groups(manifest, cache, GroupingConfig())
    config = GroupingConfig(view_dropout=0.5)
    draws = [training_views(groups, 4, config, 16, seed, epoch) for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))]
    assert all(np.array_equal(a, b) for a, b in zip(draws[0], draws[1], strict=True))
    assert any(not np.array_equal(draws[0][2], other[2]) for other in draws[2:])


def test_view_dropout_always_leaves_a_view_and_hides_types_as_often_as_asked(manifest, cache):
    groups = make_groups(manifest, cache, GroupingConfig())
    config = GroupingConfig(view_dropout=0.6, type_dropout=0.25)
    kept, hidden, known = 0, 0, 0
    for epoch in range(60):
        for g in range(len(groups)):
            ordinals, types, slots, _ = training_views(groups, g, config, 16, 0, epoch)
            assert len(ordinals) == len(types) == len(slots) >= 1
            assert set(ordinals) <= set(groups.ordinals[g])
            kept += len(ordinals)
            told = {o: t for o, t in zip(groups.ordinals[g], groups.view_types[g], strict=True)}
            for ordinal, view_type in zip(ordinals, types, strict=True):
                if told[ordinal] != UNKNOWN:
                    known, hidden = known + 1, hidden + (view_type == UNKNOWN)
    assert 0.4 < kept / (60 * groups.num_views.sum()) < 0.65
    assert hidden / known == pytest.approx(0.25, abs=0.04)


def test_training_draws_every_cached_variant_and_evaluation_the_plain_map(manifest, cache):
    groups = make_groups(manifest, cache, GroupingConfig())
    config = GroupingConfig()
    draws = [training_views(groups, g, config, 16, 0, epoch, num_variants=3) for g in range(9) for epoch in range(60)]
    again = [training_views(groups, g, config, 16, 0, epoch, num_variants=3) for g in range(9) for epoch in range(60)]
    counts = Counter(np.concatenate([views.variants for views in draws]).tolist())
    assert set(counts) == {0, 1, 2}
    assert max(counts.values()) < 1.3 * min(counts.values())
    for a, b in zip(draws, again, strict=True):
        assert a.variants.tolist() == b.variants.tolist()
    for g in range(9):
        alone, drawn = training_views(groups, g, config, 16, 0, 0), draws[60 * g]
        assert not alone.variants.any()
        for name in ("ordinals", "view_types", "slots"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(drawn, name))
        plain = training_views(groups, g, GroupingConfig(draw_variants=False), 16, 0, 0, num_variants=3)
        assert not plain.variants.any()
        assert not evaluation_views(groups, g, 16).variants.any()


def test_uint8_maps_give_nearly_the_same_logits_and_each_variant_its_own(tmp_path, manifest, model):
    accelerator = Accelerator(cpu=True)
    logits = {}
    for dtype in ("float16", "uint8"):
        cache = make_cache(tmp_path / dtype, manifest, dtype=dtype, variants=("plain", "flip"))
        groups = make_groups(manifest, cache, GroupingConfig())
        logits[dtype] = predict_groups(CONFIG, groups, cache, model, accelerator)
        (one,) = make_passes(CONFIG.model, np.arange(1), [evaluation_views(groups, 0, 16)])
        maps = {}
        for variant in (0, 1):
            stored = cache.read_stored(one.ordinals, np.full(len(one), variant))
            with torch.inference_mode():
                maps[variant] = forward(model, one, stored, cache.identity, accelerator).numpy()
        np.testing.assert_allclose(maps[0][0], logits[dtype][0], atol=1e-5)
        assert np.abs(maps[1] - maps[0]).max() > 1e-3
    assert 0 < np.abs(logits["uint8"] - logits["float16"]).max() < 0.02


def test_patient_groups_hold_all_images_of_a_patient(manifest, cache):
    groups = make_groups(manifest, cache, GroupingConfig(by="patient"))
    patients = manifest.images["patient_id"].to_numpy(dtype=str)
    for patient, rows in zip(groups.ids, groups.rows, strict=True):
        assert sorted(rows.tolist()) == np.flatnonzero(patients == patient).tolist()


def test_single_images_are_groups_of_one_with_their_groups_labels(manifest, cache):
    groups = make_groups(manifest, cache, GroupingConfig())
    singles = single_images(groups)
    assert len(singles) == len(manifest)
    assert (singles.num_views == 1).all()
    for rows, labels, types in zip(singles.rows, singles.labels, singles.view_types, strict=True):
        np.testing.assert_array_equal(labels, manifest.labels[rows[0]])
        assert VIEWS[types[0]] == manifest.images["view"].iat[rows[0]]


def test_an_image_that_changed_its_study_since_caching_is_named(manifest, cache):
    moved = renamed(manifest, np.arange(len(manifest)))
    moved.images.loc[5, "study_id"] = "s999"
    with pytest.raises(InputError, match=r"image i\d+\.\d has study_id s999, the cache was made with"):
        cached_manifest(moved, cache)


def test_validating_on_a_patient_the_backbone_was_trained_on_is_refused(manifest, cache):
    patient = manifest.images.loc[manifest.images["split"] == "test", "patient_id"].iat[0]
    cache.record["trained_patients"] = [patient_hash(patient, cache.identity.weights_sha256)]
    with pytest.raises(
        InputError, match=f"1 patients of val or test were in the backbone's training set, first {patient}"
    ):
        refuse_trained_patients(manifest, cache)


def test_only_the_backbone_that_made_a_map_must_not_have_seen_its_patient(tmp_path, manifest):
    held_out = sorted(set(manifest.images.loc[manifest.images["split"] != "train", "patient_id"]))
    trained = sorted(set(manifest.images.loc[manifest.images["split"] == "train", "patient_id"]))
    make_cache(tmp_path / "a", manifest, weights="0a", trained=trained[::2])
    make_cache(tmp_path / "b", manifest, weights="0b", trained=[*trained[1::2], held_out[-1]])
    merge([tmp_path / "a", tmp_path / "b"], tmp_path / "ab")
    cache = FeatureCache(tmp_path / "ab")
    refuse_trained_patients(manifest, cache)  # val and test come from a, which has not seen them
    merge([tmp_path / "b", tmp_path / "a"], tmp_path / "ba")
    cache = FeatureCache(tmp_path / "ba")
    refuse_trained_patients(manifest, cache)  # b has seen one of them, whose maps come from a
    ordinals = np.flatnonzero(cache.index.patient_id == held_out[-1])
    assert (cache.index.fold[ordinals] == 1).all()
    cache.index.fold[ordinals] = 0
    with pytest.raises(InputError, match=f"1 patients of val or test were in .* training set, first {held_out[-1]}"):
        refuse_trained_patients(manifest, cache)
