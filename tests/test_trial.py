"""A trial runs everything on a few of the user's own images, foretells the full run, and changes nothing of it."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch

from data.manifest import Manifest, read_manifest, write_manifest
from data.order import epoch_batches
from data.predictions import read_predictions
from extract.config import ExtractConfig
from extract.trial import first_of_several_patients, step_seconds, trial_config, trial_manifest
from extract.trial_estimate import Measured, disk_lines, make_estimate, report, seconds_text
from fusion.config import FusionConfig
from fusion.trial_estimate import Counts, Training, training_seconds
from fusion.trial_estimate import Measured as FusionMeasured
from fusion.trial_estimate import report as fusion_report
from tests.launch import CONFIGS, run
from tests.make_data import make_manifest, make_run


def files(folder):
    """All files of a run folder outside its trial."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and folder / "trial" not in path.parents]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def tried(tmp_path_factory):
    """A run folder through trial and real run of both stages, one that had no trial, and what was seen between."""
    with_trial, without = (tmp_path_factory.mktemp(name) / "run" for name in ("with", "without"))
    seen = {}
    for run_dir in (with_trial, without):
        make_run(run_dir)
    for stage in CONFIGS:
        for name, trials in (("early", ["extract", "fusion"]), ("late", ["fusion"])):
            if (name == "early") == (stage == "extract"):
                seen[name, "before"] = files(with_trial)
                for trial in trials:
                    run(trial, with_trial, "--trial")
                seen[name, "after"] = files(with_trial)
                shutil.copytree(with_trial / "trial", with_trial.parent / name, symlinks=True)
        for run_dir in (with_trial, without):
            run(stage, run_dir, "--epochs", "2")
    return with_trial, without, seen


@pytest.mark.slow
@pytest.mark.parametrize("when", ["early", "late"])
def test_nothing_outside_the_trial_changes(tried, when):
    _, _, seen = tried
    assert seen[when, "before"] == seen[when, "after"]
    assert ("cache/cache.json" in seen[when, "after"]) == (when == "late")


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["stage_one/best", "stage_one/last", "fusion/last", "fusion/single_image/last"])
def test_a_real_run_after_a_trial_ends_with_the_same_weights(tried, folder):
    with_trial, without, _ = tried
    a, b = weights(with_trial / folder), weights(without / folder)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_stage_one_goes_through_everything(tried):
    folder = tried[0].parent / "early"
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    wanted = "cache/000000.tar cache/cache.json stage_one/config.yaml stage_one/best/model.safetensors"
    assert {*wanted.split(), "stage_one/last/state.json", "stage_one/previous/state.json"} <= names
    assert "1 of 1 epochs are done already" in (folder / "log.txt").read_text(), "it resumed"
    assert len((folder / "stage_one/metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("when", "source"), [("early", "trial"), ("late", ".")])
def test_stage_two_goes_through_everything_on_the_best_cache_there_is(tried, when, source):
    with_trial, _, _ = tried
    folder = with_trial.parent / when / "fusion"
    assert (folder / "cache").readlink() == (with_trial / source / "cache").resolve()
    manifest = read_manifest(folder / "manifest.csv")
    ids, _, _ = read_predictions(folder / "fusion/predictions_test.csv")
    submission = pd.read_csv(folder / "fusion/submission.csv")
    assert ids["image_id"].tolist() == manifest.of_split("test").images["image_id"].tolist()
    assert submission["image_id"].tolist() == ids["image_id"].tolist()
    assert json.loads((folder / "fusion/metrics.json").read_text())["groups"]["rows"] == ids["study_id"].nunique()
    assert (folder / "fusion/single_image/best/model.safetensors").exists()


def test_its_images_are_the_first_two_batches_and_a_few_held_out(tmp_path):
    full = make_manifest(tmp_path, num_studies=60)
    config = ExtractConfig(batch_size=6, seed=3, cache=replace(ExtractConfig().cache, batch_size=5))
    small = trial_manifest(config, full)
    train = full.of_split("train").images["image_id"].to_numpy(dtype=str)
    batches = epoch_batches(len(train), 6, 3, 0)
    assert set(small.of_split("train").images["image_id"]) == set(train[np.concatenate(batches[:2])])
    assert [len(small.of_split(split)) for split in ("val", "test")] == [5, 5]
    by_id = dict(zip(full.images["image_id"], full.labels.tolist(), strict=True))
    assert [by_id[image] for image in small.images["image_id"]] == small.labels.tolist()


@pytest.mark.parametrize(
    ("patients", "count", "numbers"),
    [
        ("aaaaaaab", 4, [0, 1, 7]),
        ("abcdef", 4, [0, 1, 2, 3]),
        ("aab", 1, [0, 2]),
        ("aaa", 8, [0, 1, 2]),
    ],
)
def test_one_patient_never_fills_a_held_out_batch_alone(patients, count, numbers):
    assert first_of_several_patients(list(patients), count).tolist() == numbers


@pytest.mark.parametrize(
    "changes", [{"average_from": 7, "patience": 3}, {"resume": Path("x"), "ema_decay": 0.9}, {"trial": True}]
)
def test_the_trial_trains_one_epoch_whatever_the_run_does(tmp_path, changes):
    small = trial_config(ExtractConfig(epochs=9, **changes), tmp_path)
    assert (small.epochs, small.patience, small.resume, small.trial, small.run_dir) == (1, 0, None, False, tmp_path)
    assert small.average_from == min(1, changes.get("average_from", 0))
    assert small.ema_decay == changes.get("ema_decay", 0.0)


MEASURED = Measured(
    scan_s=0.5,
    decode_s=0.25,
    step_s=2.0,
    val_s=0.75,
    cache_s=0.125,
    map_bytes=2.0**20,
    checkpoint_bytes=1000,
    peak_bytes=5,
)


def test_the_estimate_scales_what_was_measured():
    config = ExtractConfig(epochs=3, batch_size=8, num_workers=0)
    full = make_estimate(config, MEASURED, num_images=100, num_train=70, num_val=20, num_processes=1)
    assert full.num_steps == 3 * 9
    assert full.scan_s == 50
    assert full.train_s == 27 * 2.0 + 3 * 20 * 0.75
    assert full.cache_s == 12.5
    assert full.total_s == 50 + 99 + 12.5
    assert full.total_bytes == 100 * 2**20 + 1000


def test_slow_workers_make_a_step_longer_and_reading_ahead_makes_validation_shorter(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    config = ExtractConfig(epochs=1, batch_size=64, num_workers=12)
    full = make_estimate(config, MEASURED, num_images=100, num_train=64, num_val=8, num_processes=1)
    assert full.train_s == 64 * 0.25 / 2 + 8 * (0.75 - 0.25)
    on_two = make_estimate(config, MEASURED, num_images=1000, num_train=64, num_val=8, num_processes=2)
    assert on_two.train_s == 64 * 0.25 / 2 / 2 + 8 * (0.75 - 0.125)
    assert on_two.cache_s == 1000 * 0.125 / 2


def test_the_step_time_is_the_recorded_one_or_the_epoch_where_there_is_none(tmp_path):
    row = {"epoch": 1, "seconds": 8.0, "step_seconds": 0.75}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    assert step_seconds(tmp_path, 2) == 0.75
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row | {"step_seconds": None}) + "\n")
    assert step_seconds(tmp_path, 2) == 4.0


def test_stage_two_adds_up_both_models_and_the_baselines(tmp_path):
    config = FusionConfig(run_dir=tmp_path, epochs=5, batch_size=4)
    measured = FusionMeasured(Training(600.0, 120.0, 7_000), Training(60.0, 3.0, 2_000), 1800.0, 9)
    counts = Counts({"train": 10, "val": 3, "test": 2}, {"train": 13, "val": 5, "test": 4})
    fusion_s = training_seconds(config, measured.fusion, counts.groups)
    assert fusion_s == 5 * 3 * 600 + (5 * 3 + 3 + 2) * 120
    single_s = 5 * 4 * 60 + (5 * 5 + 5 + 4) * 3
    assert training_seconds(config, measured.single, counts.images) == single_s
    text = "\n".join(fusion_report(config, measured, counts, tmp_path))
    assert seconds_text(fusion_s + single_s + 9 * 1800) in text
    assert "9 kB" in text
    assert "full cache" not in text
    assert "full cache" in "\n".join(fusion_report(config, measured, counts, tmp_path / "trial"))


def test_a_disk_that_is_too_small_is_told_with_a_remedy(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=10_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert "warning" not in "".join(disk_lines([["a", "b"]], 10_000, tmp_path, "x"))
    config = ExtractConfig(run_dir=tmp_path)
    lines = report(config, MEASURED, make_estimate(config, MEASURED, 100, 70, 20, 1), 70)
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 1
    assert "105 MB wanted, 10 kB free" in warnings[0]
    assert "image.size" in warnings[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "12.3 ms"), (95.0, "95 s"), (600.0, "10 min"), (9000.0, "2.5 h"), (259200.0, "3 days")],
)
def test_durations_are_written_for_people(seconds, text):
    assert seconds_text(seconds) == f"about {text}"


@pytest.mark.slow
def test_it_begins_anew_and_its_last_line_is_the_full_command(tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "run")
    left = tmp_path / "run/trial/stage_one/last/left.txt"
    left.parent.mkdir(parents=True)
    left.write_text("over")
    monkeypatch.setattr(sys, "argv", ["extract.py", "--trial", "--run_dir", "r"])
    run("extract", tmp_path / "run", "--trial")
    assert capsys.readouterr().out.rstrip().endswith("next: accelerate launch extract.py --run_dir r")
    assert not left.exists()


@pytest.mark.slow
def test_neither_a_held_out_split_without_positives_nor_the_challenges_template_stops_it(tmp_path):
    run_dir = tmp_path / "run"
    manifest = make_run(run_dir)
    labels = np.where((manifest.images["split"] == "train").to_numpy()[:, None], manifest.labels, 0)
    write_manifest(
        Manifest(manifest.images, labels.astype(np.float32), manifest.classes, manifest.root), run_dir / "manifest.csv"
    )
    run("extract", run_dir, "--trial", "--batch_size", "64")  # one step an epoch
    sample = manifest.of_split("test").images[["image_id"]].assign(Hernia=0.5, Edema=0.5, Nodule=0.5)
    sample.to_csv(run_dir / "sample.csv", index=False)  # asks for more images than a trial predicts
    options = ["--grouping.by", "patient", "--name", "by_patient", "--batch_size", "1"]
    run("fusion", run_dir, "--trial", *options, "--template", str(run_dir / "sample.csv"))
    assert len(pd.read_csv(run_dir / "trial/by_patient/template_filled_in.csv")) == len(sample)
    assert len(pd.read_csv(run_dir / "trial/by_patient/by_patient/submission.csv")) < len(sample)
    assert (run_dir / "trial/by_patient/by_patient/submission.zip").exists()


def break_template(run_dir):
    (run_dir / "sample.csv").write_text("dicom_id,Edema,Nodule,Hernia\nnobody,0.5,0.5,0.5\n")
    run("extract", run_dir, "--trial")


FAULTS = {
    "no manifest": (lambda run: (run / "manifest.csv").unlink(), "extract", "no manifest; make one"),
    "unreadable images": (
        lambda run: [path.write_bytes(b"half") for path in (run / "images").iterdir()],
        "extract",
        "cannot be read",
    ),
    "no test images": (lambda run: make_run(run, num_studies=20), "extract", "no image in split 'test'"),
    "no cache": (lambda run: None, "fusion", "run extract.py first"),
    "a template of other images": (break_template, "fusion", "nobody"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_an_error_of_a_real_run_is_the_same_line_here(tmp_path, capsys, fault):
    break_it, stage, names = FAULTS[fault]
    run_dir = tmp_path / "run"
    make_run(run_dir)
    break_it(run_dir)
    options = ["--template", str(run_dir / "sample.csv")] if "template" in fault else []
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        run(stage, run_dir, "--trial", *options)
    assert exit.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert names in errors[0]


@pytest.mark.slow
def test_a_disk_that_is_full_ends_with_one_line(tmp_path, capsys, monkeypatch):
    make_run(tmp_path / "run")
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SystemExit):
        run("extract", tmp_path / "run", "--trial")
    assert "make room or move run_dir" in capsys.readouterr().err
