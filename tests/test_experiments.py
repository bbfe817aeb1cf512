"""What the comparisons measure is what they say: costs of one process, paired seeds, maps that nobody has memorised."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fusion.train
from data.bootstrap import patient_bootstrap
from data.cache import FeatureCache
from data.cache_merge import merge
from data.folds import divide, find_folds, fold_manifest
from data.manifest import write_manifest
from data.storage import encode_maps
from fusion.config import GroupingConfig
from fusion.grouping import make_groups, training_views
from tests.make_data import make_cache, make_manifest
from tests.make_predictions import make_results, permute_labels

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
NUM_FOLDS = 2


@pytest.fixture
def script(monkeypatch):
    """A module of scripts/ by name."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    return importlib.import_module


def test_a_command_tells_its_own_cpu_seconds_and_its_failure(script, capsys):
    command = script("_experiment").command
    busy = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.3: pass"
    assert 0.3 <= command("-c", busy) < 3
    with pytest.raises(SystemExit, match=r"(?s)no such thing.*the command above failed"):
        command("-c", "raise SystemExit('no such thing')")


def test_a_timed_command_runs_once_and_anew_after_an_interruption(script, tmp_path):
    timed = script("_experiment").timed
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "manifest.csv").write_text("a,b\n")
    cell = tmp_path / "cells" / "one"
    cell.mkdir(parents=True)
    (cell / "half").write_text("left by a killed start")
    code = "import pathlib, sys; p = pathlib.Path(sys.argv[2]); open(p / 'starts', 'a').write('x')"
    first = timed(cell, ["manifest.csv"], tmp_path / "run", "-c", code)
    assert not (cell / "half").exists()
    assert (cell / "manifest.csv").read_text() == "a,b\n"
    assert timed(cell, ["manifest.csv"], tmp_path / "run", "-c", code) == first
    assert (cell / "starts").read_text() == "x"
    assert json.loads((cell / "cpu_seconds.json").read_text()) == first


def test_live_training_draws_the_same_views_as_ever_with_a_fresh_map_in_each_epoch(script, tmp_path, monkeypatch):
    manifest = make_manifest(tmp_path, num_studies=12)
    variants = ("plain", *(f"augmented_{k + 1}" for k in range(4)))
    groups = make_groups(manifest, make_cache(tmp_path / "cache", manifest, variants=variants), GroupingConfig())
    monkeypatch.setattr(fusion.train, "training_views", training_views)
    monkeypatch.setattr(fusion.train, "main", lambda argv: argv)
    script("compare_augmentation").train_live(["--seed", "3"])
    for epoch in range(4):
        for number in range(len(groups)):
            usual = training_views(groups, number, GroupingConfig(), 5, 3, epoch, 1)
            live = fusion.train.training_views(groups, number, GroupingConfig(), 5, 3, epoch, len(variants))
            for name in ("ordinals", "view_types", "slots"):
                np.testing.assert_array_equal(getattr(live, name), getattr(usual, name))
            assert set(live.variants) == {epoch + 1}
    with pytest.raises(AssertionError, match="one variant per epoch"):
        fusion.train.training_views(groups, 0, GroupingConfig(), 5, 3, 4, len(variants))


@pytest.fixture
def folds(tmp_path, monkeypatch):
    """A run and its folds; a fold's maps are the run's, every fold's mixed by a matrix and an offset of its own."""
    manifest = make_manifest(tmp_path / "images", num_studies=50)
    write_manifest(manifest, tmp_path / "manifest.csv")
    part = divide(manifest, NUM_FOLDS, 0)
    train = manifest.of_split("train").images["patient_id"].tolist()
    full = make_cache(tmp_path / "cache", manifest, weights="aa", trained=train)
    rng = np.random.default_rng(5)
    for number in range(NUM_FOLDS):
        fold, folder = fold_manifest(manifest, part, number), tmp_path / f"fold_{number}"
        folder.mkdir()
        write_manifest(fold, folder / "manifest.csv")
        mix = torch.from_numpy(rng.normal(size=(5, 5)).astype(np.float32))
        monkeypatch.setattr(
            "tests.make_data.encode_maps", lambda maps, form, mix=mix: encode_maps(maps @ mix + 1, form)
        )
        trained = fold.of_split("train").images["patient_id"].tolist()
        make_cache(folder / "cache", fold, weights=f"{number:02}", trained=trained)
    return manifest, full


def test_aligned_maps_are_the_full_backbones_where_a_fold_says_the_same_in_other_channels(script, folds, tmp_path):
    manifest, full = folds
    sources = [full.folder, *(fold / "cache" for fold in find_folds(tmp_path))]
    merge(sources, tmp_path / "merged")
    r2 = script("_memorised").align(tmp_path, tmp_path / "merged", tmp_path / "aligned")
    assert max(r2["as they are"]) < 0.5
    assert min(r2["aligned"]) > 0.999
    merged, aligned = FeatureCache(tmp_path / "merged"), FeatureCache(tmp_path / "aligned")
    everything = np.arange(len(manifest))
    wanted = full.read(everything).astype(np.float32)
    assert set(merged.index.fold) == {0, 1, 2}
    np.testing.assert_allclose(aligned.read(everything), wanted, atol=0.03)
    kept = merged.index.fold == 0
    np.testing.assert_array_equal(aligned.read(everything)[kept], full.read(everything)[kept])
    assert np.abs(merged.read(everything)[~kept] - wanted[~kept]).mean() > 0.3
    assert aligned.identity == merged.identity
    np.testing.assert_array_equal(aligned.index.fold, merged.index.fold)


def test_out_of_fold_logits_come_from_the_fold_that_holds_the_image_out(script, folds, tmp_path, monkeypatch):
    manifest, _ = folds
    module = script("_memorised")
    number_of = {image: n for n, image in enumerate(manifest.images["image_id"])}

    def logits(folder, images):
        fold = int(folder.name.removeprefix("fold_"))
        return np.array([[1000 * fold + number_of[i]] * 3 for i in images.images["image_id"]], dtype=np.float32)

    monkeypatch.setattr(module, "head_logits", logits)
    train = manifest.of_split("train")
    found = module.out_of_fold_logits(find_folds(tmp_path), train)
    part = dict(zip(manifest.images["image_id"], divide(manifest, NUM_FOLDS, 0), strict=True))
    assert found[:, 0].tolist() == [1000 * part[i] + number_of[i] for i in train.images["image_id"]]


def test_differences_are_paired_within_a_split_and_independent_between_two(script):
    rng = np.random.default_rng(0)
    labels = (rng.random((90, 2)) < 0.4).astype(np.float32)
    scores = {"a": rng.random((90, 2)) + 0.5 * labels, "b": rng.random((90, 2))}
    patients = [f"p{n // 2}" for n in range(90)]
    first, other = (patient_bootstrap(scores, labels, patients, replicates=200, seed=seed) for seed in (0, 1))
    difference = script("_memorised").difference
    assert difference(first, ["a"], first, ["a"]) == [0, 0, 0]
    estimate, low, high = difference(first, ["a"], other, ["a"])
    assert estimate == 0
    assert low < -0.02 < 0.02 < high
    paired = first.difference("a", "b")
    wanted = [paired.estimate, paired.low, paired.high]
    np.testing.assert_allclose(difference(first, ["a"], first, ["b"]), wanted, atol=1e-4)
    mean = (first.estimate("a") + first.estimate("b")) / 2
    np.testing.assert_allclose(difference(first, ["a", "b"])[0], mean, atol=1e-4)


def test_the_comparison_of_calibrations_and_ensembles_fits_nothing_on_test(script, tmp_path, monkeypatch):
    module = script("compare_calibration")
    monkeypatch.setattr(module, "REPLICATES", 5)
    monkeypatch.setattr(module, "MIN_POSITIVES", 4)
    folders, found = make_results(tmp_path), []
    for permuted in (False, True):
        if permuted:
            permute_labels(tmp_path, "test")
        parts = [module.read(tmp_path, folder) for folder in folders]
        found.append((module.calibration(parts[0]), module.ensemble(parts, ["one", "two"])))
    (single, mixed), (single_after, mixed_after) = found
    assert single["chosen on validation"] == single_after["chosen on validation"]
    assert single["methods"] != single_after["methods"]
    for key in ("weights", "best member on validation", "val"):
        assert mixed[key] == mixed_after[key]
    assert mixed["test"] != mixed_after["test"]
    best = mixed["best member on validation"]
    gain = mixed["test"]["mean_logits"]["minus_best_member"]["estimate"]
    wanted = mixed["test"]["mean_logits"]["mAP"]["estimate"] - mixed["test"][best]["mAP"]["estimate"]
    assert gain == pytest.approx(wanted)
