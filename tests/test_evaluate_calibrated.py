"""scripts/evaluate.py after scripts/calibrate.py: the model's own calibration and thresholds, beside plain numbers."""

import json
import shutil

import numpy as np
import pytest

from data.manifest import read_manifest
from data.predictions import read_predictions, write_predictions
from fusion import calibrate
from fusion.evaluate.command import main
from tests.make_predictions import make_results

FEW = ("--replicates", "10")


def evaluate(*words):
    """metrics.json, or of two comparison.json and the page's text."""
    main([*map(str, words), *FEW])


def metrics(folder, out, *words):
    evaluate("--predictions", folder, "--out", out, *words)
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """model_1 is calibrated, model_2 is not; `before` is what was said of model_1 until then."""
    run_dir = tmp_path_factory.mktemp("calibrated") / "run"
    folder = make_results(run_dir)[0]
    metrics(folder, run_dir / "before")
    words = ["--name", "model_1", "--method", "platt", "--min_positives", "4", *FEW]
    calibrate.main([str(run_dir), *words])
    return run_dir


def test_a_calibrated_model_shows_calibrated_scores_beside_plain_ones(run_dir, tmp_path, capsys):
    found = metrics(run_dir / "model_1", tmp_path / "out")
    before = json.loads((run_dir / "before" / "metrics.json").read_text())
    wanted = json.loads((run_dir / "model_1" / "calibration_report.json").read_text())["test"]
    groups = found["groups"]
    for key in ("ECE", "Brier"):
        for end in ("estimate", "low", "high"):
            own = groups["intervals"][f"{key}_calibrated"][end]
            assert own == pytest.approx(wanted["methods"]["platt"][key][end], abs=1e-5), (key, end)
            assert groups["intervals"][key][end] == pytest.approx(wanted["methods"]["none"][key][end], abs=1e-5)
    assert groups["ECE_calibrated"] != groups["ECE"]
    assert groups["F1_chosen"] == pytest.approx(wanted["F1"]["above thresholds"]["estimate"], abs=1e-9)
    for unit in ("images", "groups"):
        for key in ("mAP", "mAP_micro", "mAUROC", "sensitivity", "F1", "Brier", "ECE"):  # of what would be submitted
            assert found[unit][key] == before[unit][key], (unit, key)
        assert "ECE_calibrated" not in before[unit]
        limits = json.loads((run_dir / "model_1" / "thresholds.json").read_text())["classes"]
        for name, row in found[unit]["per_class"].items():
            assert row["threshold"] == limits[name]["threshold"]
    assert (before["thresholds_from"], found["thresholds_from"]) == ("val", "thresholds.json")
    assert found["calibration"] == {"method": "platt", "already_calibrated": False}
    assert (
        "the model's thresholds.json, for probabilities calibrated by its calibration.json" in capsys.readouterr().out
    )


def test_thresholds_call_calibrated_probabilities_in_every_part_too(run_dir, tmp_path):
    found = metrics(run_dir / "model_1", tmp_path / "out")["images"]["parts"]["view"]
    _, values, classes = read_predictions(run_dir / "model_1" / "calibrated_test.csv")
    limits = json.loads((run_dir / "model_1" / "thresholds.json").read_text())["classes"]
    manifest = read_manifest(run_dir / "manifest.csv").of_split("test")
    cuts = np.array([limits[name]["threshold"] for name in classes])
    assert len(found) > 1
    for view, part in found.items():
        rows = (manifest.images["view"] == view).to_numpy()
        truth, called = manifest.labels[rows] > 0.5, values[rows] > cuts
        hits, total = (truth & called).sum(axis=0), truth.sum(axis=0) + called.sum(axis=0)
        wanted = np.mean([2 * h / t for h, t, seen in zip(hits, total, truth.any(axis=0), strict=True) if seen])
        assert part["methods"]["model"]["F1_chosen"] == pytest.approx(wanted)


def test_images_are_calibrated_by_their_own_model_before_groups_are_made(run_dir, tmp_path):
    found = metrics(run_dir / "model_1", tmp_path / "out", "--group_by", "patient")
    _, values, _ = read_predictions(run_dir / "model_1" / "calibrated_test.csv")
    manifest = read_manifest(run_dir / "manifest.csv").of_split("test")
    patients = manifest.images["patient_id"].to_numpy()
    errors = []
    for patient in np.unique(patients):
        rows = patients == patient
        labels = (manifest.labels[rows] > 0.5).any(axis=0)
        errors.append((values[rows].astype(np.float64).mean(axis=0) - labels) ** 2)
    assert found["groups"]["rows"] == len(errors)
    assert found["groups"]["Brier_calibrated"] == pytest.approx(np.mean(errors), abs=1e-5)


def test_nothing_is_judged_by_a_calibration_of_the_same_rows(run_dir, tmp_path):
    found = metrics(run_dir / "model_1", tmp_path / "out", "--split", "val")
    assert (found["thresholds_from"], found["calibration"]) == (None, None)
    assert "ECE_calibrated" not in found["groups"]


def test_a_validation_table_that_is_named_puts_the_calibration_aside(run_dir, tmp_path):
    table = run_dir / "model_1" / "predictions_val.csv"
    found = metrics(run_dir / "model_1", tmp_path / "out", "--validation", table)
    before = json.loads((run_dir / "before" / "metrics.json").read_text())
    assert found == before


def test_a_calibrated_table_is_not_calibrated_again(run_dir, tmp_path):
    own = metrics(run_dir / "model_1", tmp_path / "own")["groups"]
    found = metrics(run_dir / "model_1" / "calibrated_test.csv", tmp_path / "out")
    for key in ("ECE", "Brier", "F1_chosen"):
        name = key if key == "F1_chosen" else f"{key}_calibrated"
        assert found["groups"][key] == pytest.approx(own[name], abs=1e-5)
    assert found["groups"]["ECE_calibrated"] == found["groups"]["ECE"]
    assert found["calibration"]["already_calibrated"]


def test_classes_in_another_order_change_nothing(run_dir, tmp_path):
    wanted = metrics(run_dir / "model_1", tmp_path / "own")["groups"]
    shutil.copytree(run_dir / "model_1", tmp_path / "run" / "model_1")
    path = tmp_path / "run" / "model_1" / "predictions_test.csv"
    ids, values, classes = read_predictions(path)
    write_predictions(path, ids, values[:, [2, 0, 1]], [classes[c] for c in (2, 0, 1)])
    manifest = ("--manifest", run_dir / "manifest.csv")
    assert metrics(path.parent, tmp_path / "out", *manifest)["groups"] == wanted
    write_predictions(path, ids, values, ["Mass", *classes[1:]])
    with pytest.raises(SystemExit):
        metrics(path.parent, tmp_path / "out", *manifest)


def test_half_a_pair_or_a_damaged_one_is_refused_in_one_line(run_dir, tmp_path, capsys):
    shutil.copytree(run_dir / "model_1", tmp_path / "model_1")
    manifest = ("--manifest", run_dir / "manifest.csv")
    (tmp_path / "model_1" / "calibration.json").write_text("{}")
    for said in ("wanted the keys", "calibration.json: missing"):
        with pytest.raises(SystemExit):
            metrics(tmp_path / "model_1", tmp_path / "out", *manifest)
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
        (tmp_path / "model_1" / "calibration.json").unlink(missing_ok=True)


def test_a_comparison_shows_calibrated_scores_where_both_have_them_and_says_where_not(run_dir, tmp_path):
    one, two = run_dir / "model_1", run_dir / "model_2"
    evaluate("--compare", one, two, "--out", tmp_path / "mixed")
    report = json.loads((tmp_path / "mixed" / "comparison.json").read_text())
    assert report["thresholds_from"] == {"model_1": "thresholds.json", "model_2": "val"}
    assert "ECE_calibrated" not in report["groups"]["headline"]
    alone = [metrics(folder, tmp_path / folder.name)["groups"] for folder in (one, two)]
    for side, own in zip(("first", "second"), alone, strict=True):
        assert report["groups"]["headline"]["F1_chosen"][side]["estimate"] == pytest.approx(own["F1_chosen"])
    for text in ("table.txt", "comparison.html"):
        assert "model_2 has not" in (tmp_path / "mixed" / text).read_text()
    shutil.copytree(one, tmp_path / "run" / "twin")
    evaluate("--compare", one, tmp_path / "run" / "twin", "--manifest", run_dir / "manifest.csv", "--out", tmp_path)
    values = json.loads((tmp_path / "comparison.json").read_text())["groups"]["headline"]["ECE_calibrated"]
    assert values["first"] == values["second"]
    assert values["first"]["estimate"] == pytest.approx(alone[0]["ECE_calibrated"])
    assert values["difference"]["estimate"] == 0


def test_an_ensemble_is_judged_by_the_groups_that_it_fused(run_dir, tmp_path):
    shutil.copytree(run_dir / "model_2", tmp_path / "both")
    (tmp_path / "both" / "config.yaml").unlink()
    (tmp_path / "both" / "ensemble.json").write_text(json.dumps({"by": "patient"}))
    found = metrics(tmp_path / "both", tmp_path / "out", "--manifest", run_dir / "manifest.csv")
    assert found["group_by"] == "patient"
