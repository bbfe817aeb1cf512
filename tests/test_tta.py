"""Test-time averages and the normal gate, against passes and formulas worked by hand."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

import fusion.train
from data.cache import FeatureCache
from data.errors import InputError
from data.manifest import Manifest, read_manifest
from data.predictions import read_predictions
from data.runs import Log
from extract.engine import sigmoid
from fusion.baselines import baseline_groups
from fusion.config import EvaluationConfig, FusionConfig, GroupingConfig
from fusion.evaluation import average_logits, evaluation_passes, gate_logits, gate_normal, log_odds
from fusion.grouping import cached_manifest, evaluation_views, fixed_slots, make_groups, slots_in_order
from fusion.inference import predict_finally
from fusion.model import FusionModel, ModelConfig
from fusion.scoring import group_map
from fusion.stage_one import stage_one_logits
from tests.launch import run
from tests.make_data import make_cache, make_manifest, make_run

G, C = 6, 4
CLASSES = ("Edema", "No Finding", "Nodule", "Hernia")
CONFIG = FusionConfig(batch_size=4, model=ModelConfig(width=12, num_heads=2, num_slots=5))


@pytest.fixture
def logits():
    return np.random.default_rng(0).normal(0, 3, (G, C)).astype(np.float32)


def by_hand(z):
    return 1 / (1 + np.exp(-z.astype(np.float64)))


def test_passes_are_all_variants_with_all_draws_and_the_plain_one_comes_first():
    assert evaluation_passes(EvaluationConfig(), 3) == [(0, 0)]
    assert evaluation_passes(EvaluationConfig(augment=True), 3) == [(0, 0), (1, 0), (2, 0)]
    assert evaluation_passes(EvaluationConfig(augment=True, slot_draws=2), 2) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    with pytest.raises(ValueError, match="slot_draws must be at least 1"):
        EvaluationConfig(slot_draws=0)


def test_the_average_is_of_probabilities_and_one_pass_is_left_as_it_is(logits):
    assert average_logits([logits]) is logits
    mean = average_logits([logits, -2 * logits, logits + 1])
    assert mean.dtype == np.float32
    wanted = (by_hand(logits) + by_hand(-2 * logits) + by_hand(logits + 1)) / 3
    np.testing.assert_allclose(sigmoid(mean), wanted, atol=1e-6)


def test_certain_logits_stay_finite_and_in_order():
    steep = np.array([[-700.0], [-90.0], [0.0], [20.0], [35.0]], dtype=np.float32)
    averaged = average_logits([steep, steep])
    np.testing.assert_allclose(averaged, steep, rtol=0.01)
    assert np.isfinite(log_odds(np.array([[0.0, 1.0]]))).all()


def views_of(groups, slots=5, **options):
    return [evaluation_views(groups, g, slots, **options) for g in range(len(groups))]


@pytest.fixture
def made(tmp_path):
    """A cache with three maps per image, its manifest, and a model whose slots matter."""
    manifest = make_manifest(tmp_path / "images", max_views=4)
    cache = make_cache(tmp_path / "cache", manifest, variants=("plain", "flip", "augmented_1"))
    torch.manual_seed(0)
    model = FusionModel(CONFIG.model, cache.identity.map_shape, len(manifest.classes)).eval()
    with torch.no_grad():
        model.slot_embedding.normal_(0, 2)
    return manifest, cache, model


def predicted(made, evaluation, manifest=None):
    sets = {s: make_groups((manifest or made[0]).of_split(s), made[1], GroupingConfig()) for s in ("val", "test")}
    config = replace(CONFIG, evaluation=evaluation)
    log = Log(made[1].folder.parent, speaks=True)
    return sets, predict_finally(config, sets, made[1], made[2], Accelerator(cpu=True), log)


def test_predictions_are_the_mean_over_passes_each_with_one_variant_and_one_draw_for_all_views(made):
    _, cache, model = made
    sets, found = predicted(made, EvaluationConfig(augment=True, slot_draws=2))
    for split, groups in sets.items():
        for g in range(len(groups)):
            total = 0
            for variant in range(3):
                for draw in range(2):
                    maps = torch.from_numpy(cache.read(groups.ordinals[g], variant)).float()[None]
                    slots = torch.from_numpy(fixed_slots(len(groups.ordinals[g]), 5, draw))[None]
                    with torch.inference_mode():
                        one = model(maps, torch.from_numpy(groups.view_types[g])[None], slots)
                    total = total + by_hand(one[0].numpy())
            np.testing.assert_allclose(sigmoid(found[split])[g], total / 6, atol=1e-5)
    plain = predicted(made, EvaluationConfig())[1]
    assert np.abs(plain["test"] - found["test"]).max() > 0.01
    before, after = (group_map(sigmoid(values["val"]), sets["val"]) for values in (plain, found))
    said = (cache.folder.parent / "log.txt").read_text()
    assert f"mean of 6 passes: validation mAP {before:.3f} -> {after:.3f}" in said


def test_slot_draws_are_fixed_distinct_and_alike_for_groups_of_a_size(made):
    groups = make_groups(made[0], made[1], GroupingConfig(by="patient"))
    for draw in range(4):
        of_size = {}
        for views in views_of(groups, draw=draw, variant=2):
            slots = views.slots.tolist()
            assert of_size.setdefault(len(slots), slots) == slots
            assert len(set(slots[:5])) == min(5, len(slots))
            assert (views.variants == 2).all()
        assert (fixed_slots(4, 5, 0) == slots_in_order(4, 5)).all()
    assert len({tuple(fixed_slots(4, 5, draw)) for draw in range(6)}) > 3


def test_the_order_of_files_changes_no_averaged_prediction(made):
    manifest = made[0]
    order = np.random.default_rng(3).permutation(len(manifest))
    shuffled = Manifest(
        manifest.images.iloc[order].reset_index(drop=True), manifest.labels[order], manifest.classes, manifest.root
    )
    options = EvaluationConfig(augment=True, slot_draws=3)
    (sets, found), (other_sets, other) = predicted(made, options), predicted(made, options, shuffled)
    assert sets["test"].ids != other_sets["test"].ids
    place = [other_sets["test"].ids.index(name) for name in sets["test"].ids]
    np.testing.assert_allclose(found["test"], other["test"][place], atol=1e-5)


@pytest.mark.parametrize(("form", "factor"), [("power", 0.2**0.5), ("linear", 0.6)])
def test_the_gate_has_the_factors_of_both_forms_and_spares_the_normal_class(form, factor):
    config = EvaluationConfig(normal_gate=form)
    probabilities = np.array([[1.0, 0.8, 0.5, 0.0], [0.3, 0.0, 0.9, 1.0]])
    gated = gate_normal(probabilities, CLASSES, config)
    np.testing.assert_allclose(gated, [[factor, 0.8, 0.5 * factor, 0.0], [0.3, 0.0, 0.9, 1.0]])
    assert f"{factor:.3f}" in ("0.447", "0.600")


@pytest.mark.parametrize("form", ["power", "linear"])
def test_gated_logits_are_those_of_the_gated_probabilities(logits, form):
    config = EvaluationConfig(normal_gate=form, normal_class="Hernia")
    wanted = gate_normal(by_hand(logits), CLASSES, config)
    np.testing.assert_allclose(sigmoid(gate_logits(logits, CLASSES, config)), wanted, atol=1e-6)
    assert np.isfinite(gate_logits(np.full((G, C), 60, dtype=np.float32), CLASSES, config)).all()


def test_a_gate_that_is_off_changes_no_bit_and_an_unknown_class_is_named(logits):
    off = EvaluationConfig(normal_class="nobody")
    assert gate_logits(logits, CLASSES, off) is logits
    assert gate_normal(logits, CLASSES, off) is logits
    with pytest.raises(InputError, match="normal_class 'Normal' is none of the classes Edema, No Finding"):
        gate_logits(logits, CLASSES, EvaluationConfig(normal_gate="power", normal_class="Normal"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run after both stages, whose cache holds flipped maps."""
    run_dir = tmp_path_factory.mktemp("tta") / "run"
    make_run(run_dir)
    run("extract", run_dir, "--head.kind", "linear", "--cache.flip", "true")
    run("fusion", run_dir, "--retrain_single", "false")
    return run_dir


def table(folder, what):
    return read_predictions(folder / f"{what}.csv")[1]


@pytest.mark.slow
def test_a_finished_run_is_predicted_anew_without_training_and_all_methods_are_treated_alike(
    finished, tmp_path, monkeypatch
):
    run_dir = tmp_path / "run"
    shutil.copytree(finished, run_dir)
    plain, scored = table(run_dir / "fusion", "predictions_test"), {}
    monkeypatch.setattr(fusion.train, "train_one_epoch", None)

    def note(config, manifest, groups, scores, single, best):
        scored.update(scores, single_images=single)
        return real(config, manifest, groups, scores, single, best)

    real = fusion.results.score
    monkeypatch.setattr(fusion.results, "score", note)
    gate = ("--evaluation.normal_gate", "power", "--evaluation.normal_class", "Nodule")
    run("fusion", run_dir, "--retrain_single", "false", "--evaluation.augment", "true", *gate)
    evaluation = EvaluationConfig(augment=True, normal_gate="power", normal_class="Nodule")
    fused = table(run_dir / "fusion", "predictions_test")
    assert np.abs(fused - plain).max() > 1e-3
    np.testing.assert_allclose(sigmoid(table(run_dir / "fusion", "logits_test")), fused, atol=1e-6)
    report = json.loads((run_dir / "fusion" / "metrics.json").read_text())
    assert report["evaluation"] == vars(evaluation)
    log = (run_dir / "log.txt").read_text()
    assert "fusion: mean of 2 passes: validation mAP" not in log.split("stage two")[1], "the first run had one pass"
    assert "mean of 2 passes: validation mAP" in log
    assert "power gate by 'Nodule', validation mAP: single " in log
    cache = FeatureCache(run_dir / "cache")
    manifest = cached_manifest(read_manifest(run_dir / "manifest.csv"), cache)
    groups = make_groups(manifest.of_split("test"), cache, GroupingConfig())
    images = sigmoid(stage_one_logits(run_dir, groups, cache, num_variants=2))
    wanted = gate_normal(baseline_groups("mean", images, groups), manifest.classes, evaluation)
    np.testing.assert_array_equal(scored["mean"], wanted)
    np.testing.assert_array_equal(scored["single_images"], gate_normal(images, manifest.classes, evaluation))


@pytest.mark.slow
def test_single_images_are_averaged_over_the_same_maps(finished):
    cache = FeatureCache(finished / "cache")
    manifest = cached_manifest(read_manifest(finished / "manifest.csv"), cache)
    groups = make_groups(manifest.of_split("val"), cache, GroupingConfig())
    plain = stage_one_logits(finished, groups, cache)
    assert (stage_one_logits(finished, groups, cache, num_variants=1) == plain).all()
    both = stage_one_logits(finished, groups, cache, num_variants=2)
    swapped = cache.read
    cache.read = lambda ordinals, variant=0: swapped(ordinals, 1)
    flipped = stage_one_logits(finished, groups, cache)
    assert np.abs(flipped - plain).max() > 1e-4
    np.testing.assert_allclose(sigmoid(both), (by_hand(plain) + by_hand(flipped)) / 2, atol=1e-6)
