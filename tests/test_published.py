"""The published wiring has the published sizes and faults, and trains as ours does; ours passes the same checks."""

import importlib
import math
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from data.runs import Log
from extract.heads import HeadConfig
from extract.observe import measure_parts
from extract.resume import StopSignal
from fusion.config import FusionConfig, GroupingConfig
from fusion.dry_run import parts_of
from fusion.grouping import evaluation_views, make_groups, training_views
from fusion.inference import predict_groups
from fusion.model import FusionModel, ModelConfig
from fusion.passes import Views, make_passes
from fusion.published import MAX_VIEWS, PublishedFusion, rowless_code
from fusion.train import build_state, plan_steps, train_one_epoch, training_batches
from tests.launch import ROOT
from tests.make_data import make_cache, make_manifest

H, W, D, C = 6, 4, 5, 3
HEAD = HeadConfig(width=18, num_heads=2)
KINDS = {"published": PublishedFusion, "fusion": FusionModel}
CONFIGS = {
    kind: ModelConfig(kind=kind, width=24, num_heads=3, depth=2, token_stride=2, num_slots=6, head=HEAD)
    for kind in KINDS
}
FAULTY = [("published", True), ("fusion", False)]


def build(kind):
    torch.manual_seed(0)
    model = KINDS[kind](CONFIGS[kind], (H, W, D), C).eval()
    torch.nn.init.normal_(getattr(model, "slot_embedding", getattr(model, "segment_embedding", None)))
    return model


def group(*ordinals):
    return Views(np.array(ordinals), np.zeros(len(ordinals), int), np.arange(len(ordinals)), np.zeros_like(ordinals))


@torch.no_grad()
def logits_of(model, kind, views, seed=1):
    """Logits of groups of images with random maps, computed as in one step of training."""
    bank = torch.randn(20, H, W, D, generator=torch.Generator().manual_seed(seed))
    logits = torch.full((len(views), C), float("nan"))
    (one,) = make_passes(CONFIGS[kind], np.arange(len(views)), views)
    logits[one.groups] = model(bank[torch.from_numpy(one.ordinals)], one.view_types, one.slots, one.buckets)
    assert not logits.isnan().any()
    return logits


def differs(a, b):
    """Far beyond rounding, or (False) within it; asserts that it is one or the other."""
    largest = float((a - b).abs().max())
    assert largest > 1e-3 or largest < 1e-5
    return largest > 1e-3


def test_it_has_the_published_number_of_parameters():
    config = ModelConfig(kind="published", width=768, num_heads=8, token_stride=2, head=HeadConfig(width=768))
    with torch.device("meta"):
        model = PublishedFusion(config, (32, 32, 768), 26)
    parts = {"project": 5_309_184, "blocks": 11_027_968, "head": 6_146_074}
    for name, wanted in parts.items():
        assert sum(p.numel() for p in model.get_submodule(name).parameters()) == wanted
    assert (model.padding.numel(), model.segment_embedding.numel()) == (768, 3_072)
    assert sum(p.numel() for p in model.parameters()) == 71_940_218 - 49_453_152  # without the backbone


@pytest.mark.parametrize(("kind", "faulty"), FAULTY)
def test_a_groups_logits_depend_on_its_neighbours_as_published_only(kind, faulty):
    model = build(kind)
    with_one, with_another = (logits_of(model, kind, [group(0, 1), group(*mates)]) for mates in ((2, 3), (4, 5)))
    assert differs(with_one[0], with_another[0]) == faulty
    assert differs(logits_of(model, kind, [group(0, 1)])[0], with_one[0]) == faulty


@pytest.mark.parametrize(("kind", "faulty"), FAULTY)
def test_a_groups_logits_depend_on_what_absent_views_hold_as_published_only(kind, faulty):
    """Published: the padding vector is attended to. Ours has none: its buckets are as wide as their groups."""
    model, views = build(kind), [group(0, 1), group(2, 3, 4)]
    before = logits_of(model, kind, views)
    fillers = [p for name, p in model.named_parameters() if name == "padding"]
    for filler in fillers:
        torch.nn.init.normal_(filler)
    assert differs(before, logits_of(model, kind, views)) == faulty
    (one,) = make_passes(CONFIGS[kind], np.arange(2), views)
    assert one.buckets == (((2, MAX_VIEWS),) if faulty else ((1, 2), (1, 3)))
    assert bool((one.slots < 0).any()) == faulty


@pytest.mark.parametrize(("kind", "faulty"), FAULTY)
def test_rows_can_be_exchanged_unnoticed_as_published_only(kind, faulty):
    """Rows of the projected map, for a convolution sees the order of the rows below it."""
    model, views = build(kind), [group(0, 1), group(2, 3, 4)]
    before = logits_of(model, kind, views)
    hook = model.project.register_forward_hook(lambda _, __, out: out.flip(-3))
    assert differs(before, logits_of(model, kind, views)) != faulty
    hook.remove()
    model.project.register_forward_hook(lambda _, __, out: out.flip(-2))
    assert differs(before, logits_of(model, kind, views)), "columns are told apart by both"


@pytest.mark.parametrize(("kind", "faulty"), FAULTY)
def test_views_of_a_group_hear_each_other_before_the_head_but_not_as_published(kind, faulty):
    model, heard = build(kind), []
    model.blocks[-1].register_forward_hook(lambda _, __, out: heard.append(out))
    for second in (1, 2):
        logits_of(model, kind, [group(0, second)])
    tokens_of_a_view = 3 * 2
    first_view = [tokens.flatten(0, -2)[:tokens_of_a_view] for tokens in heard]  # of the only group
    assert differs(*first_view) != faulty
    assert differs(*heard)


def test_the_position_code_is_the_released_packages_on_swapped_axes():
    """The package wants (x, y, channels) and gets (channels, rows, columns); all features of y are cut off."""
    height, width, dim = 3, 5, 12
    frequencies = [1 / 10000 ** (2 * j / (dim / 2)) for j in range(dim // 4)]
    code = rowless_code(height, width, dim)
    for feature in range(dim):  # taken for x
        interleaved = [f(feature * frequency) for frequency in frequencies for f in (math.sin, math.cos)]
        for row in range(height):
            torch.testing.assert_close(code[row, :, feature], torch.tensor(interleaved[:width]), rtol=0, atol=1e-5)


def test_of_more_than_four_views_four_are_taken_at_random_in_training_and_the_first_at_test_time(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=13, max_views=6)
    groups = make_groups(manifest, make_cache(tmp_path / "cache", manifest), GroupingConfig())
    number, config, seen = int(np.argmax(groups.num_views)), GroupingConfig(view_dropout=0.0), []
    assert groups.num_views[number] == 6
    for epoch in range(40):
        views = training_views(groups, number, config, 16, 0, epoch)
        (one,) = make_passes(CONFIGS["published"], np.array([number]), [views])
        assert one.groups.tolist() == [number]
        assert one.slots.tolist() == [0, 1, 2, 3]
        assert len(set(one.ordinals)) == 4
        seen.append(tuple(one.ordinals))
    assert len(set(seen)) > 20
    assert set(np.concatenate(seen)) == set(groups.ordinals[number])
    (one,) = make_passes(CONFIGS["published"], np.array([number]), [evaluation_views(groups, number, 16)])
    assert one.ordinals.tolist() == groups.ordinals[number][:4].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_both_train_on_the_same_steps_of_the_same_cache_and_predict(tmp_path, kind):
    manifest = make_manifest(tmp_path, num_studies=13, max_views=5)
    cache, accelerator = make_cache(tmp_path / "cache", manifest, (H, W, D)), Accelerator(cpu=True)
    config = FusionConfig(run_dir=tmp_path, batch_size=4, model=CONFIGS[kind])
    groups = make_groups(manifest, cache, config.grouping)
    state = build_state(config, cache, 3, accelerator)
    assert type(state.plain_model) is KINDS[kind]
    before = {name: p.detach().clone() for name, p in state.plain_model.named_parameters() if p.requires_grad}
    batches = training_batches(config, groups, epoch=0)
    for (passes, _), ordinals, _ in plan_steps(config, groups, batches, 0, 1, accelerator):
        (one,) = passes
        assert len(ordinals) == len(one)
        assert kind == "fusion" or [views for _, views in one.buckets] == [MAX_VIEWS]
    log = Log(tmp_path, speaks=False)
    train_one_epoch(config, groups, cache, state, StopSignal(), tmp_path / "fusion", {}, log)
    assert state.progress.step == len(batches)
    moved = {name for name, p in state.plain_model.named_parameters() if name in before and not p.equal(before[name])}
    assert set(before) - moved <= {"view_embedding"}
    logits = predict_groups(config, groups, cache, state.plain_model, accelerator)
    assert np.isfinite(logits).all()
    assert np.array_equal(logits, predict_groups(config, groups, cache, state.plain_model, accelerator))


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_flops_of_its_parts_can_be_counted(kind):
    config = FusionConfig(model=CONFIGS[kind])
    types = torch.zeros(2 * MAX_VIEWS, dtype=torch.long)
    parts = parts_of(config)
    cost = measure_parts(build(kind), [(torch.empty(len(types), H, W, D), types, types, [(2, MAX_VIEWS)])], parts)
    assert cost.items == 2
    assert [len(cost.shapes[name]) for name in parts] == [len(axes) for axes in parts.values()]
    assert cost.shapes["project"] == (2 * MAX_VIEWS, 3, 2, 24)
    assert cost.shapes["head"] == (2, C)
    assert 0 < sum(cost.flops[name] for name in parts) <= cost.flops[""]


def test_a_limit_of_views_per_forward_pass_is_refused():
    with pytest.raises(ValueError, match="max_views_per_forward must be 0"):
        FusionConfig(model=CONFIGS["published"], max_views_per_forward=64)


def test_the_padded_module_of_the_bench_computes_what_packing_does(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    padded = importlib.import_module("_reference_fusion").PaddedFusion
    views, model = [group(0, 1), group(2), group(3, 4, 5, 6), group(7, 8)], build("fusion")
    ours, theirs = logits_of(model, "fusion", views), logits_of(padded(model).eval(), "published", views)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
