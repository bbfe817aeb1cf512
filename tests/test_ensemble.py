"""Ensembles, and the three commands that start from saved predictions: nothing on test labels is ever fitted."""

import json
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from data.config import parse_config
from data.ensemble import combine, cross_weighted, fit_weights
from data.errors import InputError
from data.manifest import read_manifest
from data.metrics import mean_defined, per_class
from data.predictions import read_predictions, write_predictions
from data.tables import read_table, write_table
from data.transforms import Preprocessing
from extract.checkpoint import check_folder, save_folder
from fusion import calibrate, ensemble, label_shift
from fusion.config import EvaluationConfig, FusionConfig
from fusion.evaluation import gate_normal
from fusion.model import FusionModel
from fusion.saved import read_saved
from fusion.test_time import predict_passes
from tests.make_data import CLASSES, make_cache
from tests.make_predictions import make_results, permute_labels

NAN = float("nan")


def members(num_rows=60, seed=0):
    """A good model, a fair one at another scale, and noise; labels with gaps."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(num_rows, 3)) * 2
    labels = (rng.random((num_rows, 3)) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    labels[rng.random((num_rows, 3)) < 0.1] = np.nan
    parts = [truth + 0.7 * rng.normal(size=truth.shape), 3 * (truth + 2 * rng.normal(size=truth.shape))]
    return np.stack([*parts, rng.normal(size=truth.shape)]).astype(np.float32), labels


def test_combinations_equal_slow_loops():
    logits, _ = members(7)
    logits[1, 2, 0] = logits[1, 3, 0]  # a tie
    M, N, C = logits.shape
    found = {how: combine(logits, how) for how in ("mean_logits", "mean_probabilities", "rank_mean")}
    found["weighted"] = combine(logits, "weighted", np.array([0.5, 0.2, 0.3]))
    for n, c in product(range(N), range(C)):
        own = logits[:, n, c].astype(float)
        p = np.mean([1 / (1 + np.exp(-value)) for value in own])
        ranks = []
        for m in range(M):
            below = sum(logits[m, other, c] < logits[m, n, c] for other in range(N))
            equal = sum(logits[m, other, c] == logits[m, n, c] for other in range(N))
            ranks.append((below + equal / 2) / N)
        r = np.mean(ranks)
        wanted = [sum(own) / M, np.log(p / (1 - p)), np.log(r / (1 - r)), own @ [0.5, 0.2, 0.3]]
        np.testing.assert_allclose([values[n, c] for values in found.values()], wanted, rtol=1e-4, atol=1e-5)


def test_certain_members_leave_combinations_finite():
    logits = np.array([[[200.0], [-200.0]], [[90.0], [-90.0]]], dtype=np.float32)
    for how in ("mean_logits", "mean_probabilities", "rank_mean"):
        assert np.isfinite(combine(logits, how)).all()


def test_weights_are_those_of_a_logistic_regression_over_the_members():
    logits, labels = members(400)
    known = ~np.isnan(labels[:, 0])
    rows = logits[:2, :, 0].T  # both help, so the bounds do not bind
    wanted = LogisticRegression(C=np.inf, tol=1e-10).fit(rows[known], labels[known, 0]).coef_[0]
    assert (wanted > 0).all()
    one_class = labels.copy()
    one_class[:, 1:] = 0  # classes without a positive count for nothing
    np.testing.assert_allclose(fit_weights(logits[:2], one_class), wanted / wanted.sum(), atol=1e-4)


def test_weights_favour_the_better_member_and_a_rare_class_counts_like_a_common_one():
    logits, labels = members(400)
    weights = fit_weights(logits, labels)
    assert weights.sum() == pytest.approx(1)
    assert weights[0] > 0.5
    assert weights[2] < 0.06
    assert (fit_weights(-logits[2:].repeat(2, axis=0) + logits[:2], labels) >= 0).all()
    np.testing.assert_allclose(fit_weights(logits[[2, 0, 1]], labels), weights[[2, 0, 1]], atol=1e-4)
    np.testing.assert_allclose(fit_weights(logits[[0, 0]], labels), 0.5, atol=1e-6)
    shifted = logits + np.array([[[0.0, 0.0, 0.0]], [[3.0, -2.0, 5.0]], [[0.0, 1.0, 0.0]]], dtype=np.float32)
    np.testing.assert_allclose(fit_weights(shifted, labels), weights, atol=1e-4)  # a shift is no fault of the ranking
    one = np.where(np.arange(400)[:, None] < 40, labels, np.nan)[:, :1]  # 40 known rows, or each of them ten times
    few, many = np.column_stack([labels[:, :1], one]), np.column_stack([labels[:, :1], np.tile(one[:40], (10, 1))])
    stacked = np.concatenate([logits[..., :1], np.tile(logits[:, :40, :1], (1, 10, 1))], axis=2)
    together = np.concatenate([logits[..., :1], logits[..., :1]], axis=2)
    np.testing.assert_allclose(fit_weights(together, few), fit_weights(stacked, many), atol=1e-4)


def test_cross_weighted_rows_do_not_see_their_own_labels():
    logits, labels = members(60)
    patients = [f"p{row // 2}" for row in range(60)]
    before = cross_weighted(logits, labels, patients)
    in_sample = combine(logits, "weighted", fit_weights(logits, labels))
    assert not np.allclose(before, in_sample, atol=1e-4)
    assert mean_defined(per_class(before, labels).ap) > mean_defined(per_class(logits[2], labels).ap)


def do(command, *words):
    command.main([str(word) for word in words])


def everything(run_dir):
    """All three commands; the bytes of all that was fitted, or predicted with it."""
    folders = [run_dir / "model_1", run_dir / "model_2"]
    few = ("--replicates", "5")
    gate = ("--normal_gate", "power", "--normal_class", "Hernia")
    do(ensemble, *folders, "--out", run_dir / "both", "--how", "weighted", *gate, *few)
    fitted = {}
    for name in ("both", "model_1"):
        do(calibrate, run_dir, "--name", name, "--min_positives", 4, *few)
        do(label_shift, run_dir, "--name", name, *few)
        paths = [
            *(run_dir / name).glob("*.csv"),
            run_dir / name / "calibration.json",
            run_dir / name / "thresholds.json",
        ]
        fitted |= {f"{name}/{path.name}": path.read_bytes() for path in paths}
        shift = json.loads((run_dir / name / "label_shift.json").read_text())
        keys = ("held_out", "test_estimated", "shift", "misfit")
        fitted[f"{name}/shift"] = {c: {key: own[key] for key in keys} for c, own in shift["classes"].items()}
    report = json.loads((run_dir / "both" / "ensemble.json").read_text())
    fitted |= {"weights": report["weights"], "best member": report["val"]["best_member"]}
    return fitted


def test_permuted_test_labels_change_nothing_that_is_fitted_and_permuted_validation_labels_do(tmp_path, capsys):
    make_results(tmp_path)
    before = everything(tmp_path)
    scores = (tmp_path / "both" / "calibration_report.json").read_text()
    permute_labels(tmp_path, "test")
    after = everything(tmp_path)
    assert after.keys() == before.keys()
    assert len([name for name in before if name.endswith((".json", ".csv"))]) >= 16  # of an ensemble and of one model
    assert [name for name in before if after[name] != before[name]] == []
    assert (tmp_path / "both" / "calibration_report.json").read_text() != scores  # the labels were read, and only there
    permute_labels(tmp_path, "val", share=0.3)
    changed = everything(tmp_path)
    for name in (
        "weights",
        "model_1/calibration.json",
        "model_1/thresholds.json",
        "model_1/shift",
        "both/logits_test.csv",
    ):
        assert changed[name] != before[name], name
    assert "next: python scripts/calibrate.py" in capsys.readouterr().out


def test_unknown_test_labels_are_predicted_and_not_scored(tmp_path, capsys):
    folders = make_results(tmp_path, labels=False)
    do(ensemble, *folders, "--out", tmp_path / "both", "--replicates", 5)
    do(calibrate, tmp_path, "--name", "both", "--replicates", 5)
    do(label_shift, tmp_path, "--name", "both", "--replicates", 5)
    assert "test: labels are unknown" in capsys.readouterr().out
    assert "test" not in json.loads((tmp_path / "both" / "calibration_report.json").read_text())
    report = json.loads((tmp_path / "both" / "label_shift.json").read_text())
    assert {own["test_true"] for own in report["classes"].values()} == {None}


def reorder(path, rows, columns=None):
    table = read_table(path)
    names = list(table.columns)
    write_table(path, table.iloc[rows][names[:3] + [names[3 + c] for c in (columns or range(len(names) - 3))]])


def test_rows_and_classes_in_another_order_are_aligned_by_name_and_told(tmp_path, capsys):
    folders = make_results(tmp_path)
    do(ensemble, *folders, "--out", tmp_path / "plain", "--replicates", 5)
    assert "aligned" not in capsys.readouterr().out
    count = len(read_table(folders[1] / "logits_test.csv"))
    reorder(folders[1] / "logits_test.csv", np.random.default_rng(0).permutation(count), [2, 0, 1])
    do(ensemble, *folders, "--out", tmp_path / "again", "--replicates", 5)
    said = capsys.readouterr().out
    assert f"{folders[1] / 'logits_test.csv'}: classes in another order" in said
    assert f"{folders[1] / 'logits_test.csv'}: rows in another order" in said
    for name in ("logits_val.csv", "logits_test.csv", "predictions_test.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


def rename(path, column, new):
    table = read_table(path)
    table.loc[0, column] = new
    write_table(path, table)


DAMAGE = {
    "holds other images": lambda a, b: reorder(b / "logits_test.csv", range(3)),
    "in one only": lambda a, b: write_table(
        b / "logits_val.csv", read_table(b / "logits_val.csv").rename(columns={"Nodule": "Mass"})
    ),
    "in the manifest 'p": lambda a, b: rename(b / "logits_val.csv", "patient_id", "p1"),
    "is not in the manifest": lambda a, b: rename(b / "logits_val.csv", "image_id", "i9999"),
    "is of split 'test', wanted val alone": lambda a, b: (b / "logits_val.csv").write_bytes(
        (b / "logits_test.csv").read_bytes()
    ),
    "have different predictions": lambda a, b: rename(b / "logits_val.csv", "Edema", "77"),
    "missing": lambda a, b: (b / "logits_val.csv").unlink(),
    "fuses by patient": lambda a, b: (b / "config.yaml").write_text("grouping:\n  by: patient\n"),
    "p0": lambda a, b: (b / "data.json").write_text(
        json.dumps({"trained_patients": sorted(set(read_table(a / "logits_test.csv")["patient_id"]))[:1]})
    ),
}


@pytest.mark.parametrize("said", list(DAMAGE))
def test_members_that_do_not_belong_together_are_refused_in_one_line(tmp_path, said):
    first, second = make_results(tmp_path)
    DAMAGE[said](first, second)
    with pytest.raises(InputError, match=said) as error:
        ensemble.ensemble([first, second], tmp_path / "both", replicates=2)
    assert str(second) in str(error.value) or "data.json" in str(error.value) or str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "both").exists()


def test_one_member_twice_and_a_training_run_as_output_are_refused(tmp_path, capsys):
    first, second = make_results(tmp_path)
    with pytest.raises(SystemExit):
        do(ensemble, first, first, "--out", tmp_path / "both")
    assert "at least 2 different results" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds a training run"):
        ensemble.ensemble([first, second], second)


def test_the_gate_acts_on_the_combination_and_is_measured(tmp_path):
    folders = make_results(tmp_path)
    gate = EvaluationConfig(normal_gate="power", normal_class="Hernia")
    ensemble.ensemble(folders, tmp_path / "plain", replicates=5)
    ensemble.ensemble(folders, tmp_path / "gated", evaluation=gate, replicates=5)
    _, plain, _ = read_predictions(tmp_path / "plain" / "predictions_test.csv")
    _, gated, _ = read_predictions(tmp_path / "gated" / "predictions_test.csv")
    np.testing.assert_allclose(gated, gate_normal(plain.astype(np.float64), CLASSES, gate), atol=1e-6)
    report = json.loads((tmp_path / "gated" / "ensemble.json").read_text())
    own = read_saved(tmp_path / "gated" / "logits_val.csv", read_manifest(tmp_path / "manifest.csv"), ("val",), "study")
    before = report["val"]["groups"]["mean_logits"]["mAP"]["estimate"]
    after = mean_defined(per_class(own.group_logits, own.groups.labels).ap)
    assert report["val"]["gate"]["estimate"] == pytest.approx(after - before)
    with pytest.raises(InputError, match="rank_mean gives ranks"):
        ensemble.ensemble(folders, tmp_path / "ranks", how="rank_mean", evaluation=gate)


def test_a_calibration_is_applied_to_any_file_by_class_name(tmp_path, capsys):
    folder = make_results(tmp_path, seeds=(1,))[0]
    do(calibrate, tmp_path, "--name", "model_1", "--method", "platt", "--min_positives", 4, "--replicates", 5)
    wanted = read_predictions(folder / "calibrated_test.csv")[1]
    (tmp_path / "new").mkdir()
    for name in ("logits_test.csv", "predictions_test.csv"):
        copy = tmp_path / "new" / name
        copy.write_bytes((folder / name).read_bytes())
        reorder(copy, range(len(wanted)), [1, 2, 0])
        do(calibrate, tmp_path, "--name", "model_1", "--apply", copy, "--out", tmp_path / "new" / "out.csv")
        _, found, classes = read_predictions(tmp_path / "new" / "out.csv")
        assert classes == CLASSES
        np.testing.assert_allclose(found, wanted, atol=1e-5 if name.startswith("pred") else 0)
    assert "aligned by name" in capsys.readouterr().out
    limits = json.loads((folder / "thresholds.json").read_text())["classes"]
    calls = read_table(tmp_path / "new" / "calls_out.csv")
    for c, name in enumerate(CLASSES):
        assert calls[name].tolist() == [str(int(p > limits[name]["threshold"])) for p in found[:, c].tolist()]


def test_a_calibration_of_other_weights_or_half_a_pair_is_refused(tmp_path):
    folder = make_results(tmp_path, seeds=(1,))[0]
    save_folder(folder / "best", {"model.safetensors": {}})
    calibrate.calibrate(tmp_path, "model_1", min_positives=4, replicates=2)
    calibrate.load_fitted(folder)
    pair = {name: (folder / "best" / name).read_text() for name in ("calibration.json", "thresholds.json")}
    (folder / "best" / "calibration.json").write_text(pair["calibration.json"] + " ")
    with pytest.raises(InputError, match=r"another calibration\.json"):
        calibrate.load_fitted(folder)
    (folder / "best" / "calibration.json").write_text("[" * 100_000)
    with pytest.raises(InputError, match="damaged"):
        calibrate.load_fitted(folder)
    save_folder(folder / "best", {"model.safetensors": {}, "config.yaml": "seed: 1"})  # training replaces the folder
    with pytest.raises(InputError, match="missing"):
        calibrate.load_fitted(folder)
    other = json.loads(pair["calibration.json"]) | {"predictor_sha256": "ab"}
    (folder / "best" / "calibration.json").write_text(json.dumps(other))
    with pytest.raises(InputError, match="another model"):
        calibrate.load_fitted(folder)


def test_a_calibrated_model_folder_is_still_whole_and_its_digests_are_untouched(tmp_path):
    folder = make_results(tmp_path, seeds=(1,))[0]
    save_folder(folder / "best", {"model.safetensors": {"w": torch.ones(3)}, "config.yaml": "seed: 1"})
    digests = (folder / "best" / "digests.json").read_bytes()
    calibrate.calibrate(tmp_path, "model_1", min_positives=4, replicates=2)
    check_folder(folder / "best")
    assert (folder / "best" / "digests.json").read_bytes() == digests
    shutil.copytree(folder / "best", tmp_path / "published")  # a model folder alone is enough to calibrate with
    fitted, chosen = calibrate.load_fitted(tmp_path / "published")
    assert (fitted, chosen) == calibrate.load_fitted(folder)
    content = (tmp_path / "published" / "model.safetensors").read_bytes()
    (tmp_path / "published" / "model.safetensors").write_bytes(content[:-1] + b"x")
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        check_folder(tmp_path / "published")


def test_a_calibration_is_refused_once_its_model_has_predicted_otherwise(tmp_path):
    folder = make_results(tmp_path, seeds=(1,))[0]
    save_folder(folder / "best", {"model.safetensors": {}})
    calibrate.calibrate(tmp_path, "model_1", min_positives=4, replicates=2)
    ids, values, classes = read_predictions(folder / "logits_val.csv")
    write_predictions(folder / "logits_val.csv", ids, values - 1, classes)  # another gate, more slot draws
    with pytest.raises(InputError, match=r"logits_val\.csv: has changed since calibration\.json was fitted"):
        calibrate.load_fitted(folder)


def test_out_of_fold_predictions_are_held_out_ones_too(tmp_path):
    folders = make_results(tmp_path)
    manifest = read_manifest(tmp_path / "manifest.csv")
    rest = manifest.images[(manifest.images["split"] != "test").to_numpy()]
    for number, folder in enumerate(folders):
        logits = (manifest.labels[rest.index] * 2 - number).astype(np.float32)
        write_predictions(folder / "logits_oof.csv", rest, logits, CLASSES)
        if not number:
            with pytest.raises(InputError, match="is of split"):  # named val, but there are train images in it
                read_saved((folder / "logits_oof.csv"), manifest, ("val",), "study")
        (folder / "logits_val.csv").unlink()
    ensemble.ensemble(folders, tmp_path / "both", replicates=2)
    calibrate.calibrate(tmp_path, "both", method="platt", replicates=2)
    found, _ = calibrate.load_fitted(tmp_path / "both")
    assert sum(found.positives.values()) > (manifest.of_split("val").labels == 1).sum()
    assert (tmp_path / "both" / "calibrated_oof.csv").is_file()
    (tmp_path / "both" / "logits_oof.csv").write_bytes((folders[0] / "logits_oof.csv").read_bytes())
    with pytest.raises(InputError, match="another model"):  # the ensemble was made again
        calibrate.load_fitted(tmp_path / "both")


def test_members_are_predicted_again_over_slot_draws_and_cached_variants(tmp_path):
    run_dir = tmp_path
    folder = make_results(run_dir, seeds=(1,))[0]
    manifest = read_manifest(run_dir / "manifest.csv")
    cache = make_cache(run_dir / "cache", manifest, per_shard=50, variants=("plain", "flip"))
    words = ["--run_dir", str(run_dir), "--model.width", "12", "--model.num_heads", "2"]
    config, resolved = parse_config(FusionConfig, None, words)
    model = FusionModel(config.model, cache.identity.map_shape, 3)
    preprocessing = Preprocessing(size=24, channels=1, mean=(0.5,), std=(0.2,)).to_dict()
    files = {"model.safetensors": model.state_dict(), "config.yaml": resolved, "preprocessing.json": preprocessing}
    save_folder(folder / "best", files | {"classes.json": {"classes": list(CLASSES)}})
    plain, flipped = (
        predict_passes(folder, EvaluationConfig(augment=augment), ["val"])["val"] for augment in (False, True)
    )
    drawn = predict_passes(folder, EvaluationConfig(slot_draws=3), ["val"])["val"]
    assert plain[0] == flipped[0] == drawn[0]
    assert not np.allclose(plain[1], flipped[1])
    assert not np.allclose(plain[1], drawn[1])
    saved = read_saved(folder / "logits_val.csv", manifest, ("val",), "study")
    averaged, effect = ensemble.average_passes([folder], {"val": [saved]}, EvaluationConfig(slot_draws=3), 5)
    order = [drawn[0].index(group_id) for group_id in saved.groups.ids]
    np.testing.assert_array_equal(averaged["val"][0].group_logits, drawn[1][order])
    assert set(effect[str(folder)]) == {"val"}
    with pytest.raises(InputError, match="no model"):
        predict_passes(run_dir / "cache", EvaluationConfig(slot_draws=2), ["val"])
