"""scripts/evaluate.py: its numbers are scikit-learn's, whatever the order of rows; test labels choose nothing."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, brier_score_loss, f1_score, roc_auc_score

from data.manifest import read_manifest, write_manifest
from data.predictions import read_predictions, write_predictions
from fusion.evaluate.command import main
from fusion.evaluate.strata import age_band, sex_word, view_mix
from tests.make_predictions import CLASSES, make_evaluable


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluable") / "run"
    make_evaluable(folder)
    return folder


def evaluated(run_dir, *options):
    """metrics.json of a run's test predictions."""
    out = run_dir / "out"
    main(["--predictions", str(run_dir / "fusion"), "--out", str(out), "--replicates", "20", *map(str, options)])
    return json.loads((out / "metrics.json").read_text())


def cases(run_dir, unit, split="test"):
    """Scores, labels, patients of images, or of studies by a slow loop: the mean of a study's images."""
    ids, values, _ = read_predictions(run_dir / "fusion" / f"predictions_{split}.csv")
    manifest = read_manifest(run_dir / "manifest.csv").of_split(split)
    labels = {name: row for name, row in zip(manifest.images["image_id"], manifest.labels, strict=True)}
    if unit == "images":
        return values, np.array([labels[name] for name in ids["image_id"]])
    studies = {}
    for study, name, row in zip(ids["study_id"], ids["image_id"], values, strict=True):
        studies.setdefault(study, []).append((row, labels[name]))
    scores = np.array([np.mean([row for row, _ in rows], axis=0, dtype=np.float64) for rows in studies.values()])
    return scores.astype(np.float32), np.array([rows[0][1] for rows in studies.values()])


def slow_means(scores, targets, cuts):
    """Means over classes with a positive, row by row and bin by bin, of what is not a ranking over all thresholds."""
    means = {name: [] for name in ("mAUROC", "sensitivity", "F1", "F1_chosen", "Brier", "ECE")}
    for c in range(targets.shape[1]):
        rows = [(float(s), t == 1) for s, t in zip(scores[:, c], targets[:, c], strict=True) if not np.isnan(t)]
        positives, negatives = [s for s, y in rows if y], [s for s, y in rows if not y]
        if not positives:
            continue
        for name, cut in (("F1", 0.5), ("F1_chosen", cuts[c])):
            hits, calls = sum(s > cut for s in positives), sum(s > cut for s, _ in rows)
            means[name].append(2 * hits / (calls + len(positives)))
        means["Brier"].append(sum((s - y) ** 2 for s, y in rows) / len(rows))
        bins = [[(s, y) for s, y in rows if min(int(s * 15), 14) == b] for b in range(15)]
        means["ECE"].append(sum(abs(sum(s - y for s, y in one)) for one in bins) / len(rows))
        if negatives:
            wins = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
            means["mAUROC"].append(sum(wins) / len(wins))
            allowed = [
                t for t in [2.0, *{s for s, _ in rows}] if sum(n >= t for n in negatives) <= 0.1 * len(negatives)
            ]
            means["sensitivity"].append(max(sum(p >= t for p in positives) / len(positives) for t in allowed))
    return {name: np.mean(values) for name, values in means.items()}


def refused(capsys, *options):
    """The one line of an error."""
    with pytest.raises(SystemExit) as error:
        main([str(option) for option in options])
    assert error.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("unit", ["images", "groups"])
def test_every_number_equals_scikit_learn_with_ties_an_absent_class_and_unknown_labels(run_dir, unit):
    found = evaluated(run_dir)[unit]
    scores, targets = cases(run_dir, unit)
    val_scores, val_targets = cases(run_dir, unit, "val")
    assert np.isnan(targets).any()
    assert found["absent"] == ["Fibrosis"]
    means = {name: [] for name in ("AP", "AUROC", "F1", "F1_chosen", "Brier")}
    for c, name in enumerate(CLASSES[:3]):
        known, val_known = ~np.isnan(targets[:, c]), ~np.isnan(val_targets[:, c])
        truth, ranked, row = targets[known, c], scores[known, c], found["per_class"][name]
        cut = row["threshold"]
        numbers = {
            "AP": average_precision_score(truth, ranked),
            "AUROC": roc_auc_score(truth, ranked),
            "F1": f1_score(truth, ranked > 0.5),
            "F1_chosen": f1_score(truth, ranked > cut),
            "Brier": brier_score_loss(truth, ranked, pos_label=1),
        }
        for key, value in numbers.items():
            assert row[key] == pytest.approx(value, abs=1e-7), (name, key)
            means[key].append(value)
        val_truth, val_ranked = val_targets[val_known, c], val_scores[val_known, c]
        best = max(f1_score(val_truth, val_ranked > other) for other in np.linspace(0, 0.999, 200))
        assert f1_score(val_truth, val_ranked > cut) == pytest.approx(best)
        assert row["AP_interval"]["low"] <= row["AP"] <= row["AP_interval"]["high"]
    for key, mean in (("mAP", "AP"), ("mAUROC", "AUROC"), *((key, key) for key in ("F1", "F1_chosen", "Brier"))):
        assert found[key] == pytest.approx(np.mean(means[mean]), abs=1e-7)
    cuts = [found["per_class"][name]["threshold"] for name in CLASSES]
    for key, value in slow_means(scores, targets, cuts).items():
        assert found[key] == pytest.approx(value, abs=1e-6), key
    known = ~np.isnan(targets)
    assert found["mAP_micro"] == pytest.approx(average_precision_score(targets[known], scores[known]))
    assert found["mAUROC_micro"] == pytest.approx(roc_auc_score(targets[known], scores[known]))
    limits = found["intervals"]["mAUROC_micro"]
    assert limits["low"] < found["mAUROC_micro"] < limits["high"]
    assert found["mAP_absent_as_0"] == pytest.approx(0.75 * found["mAP"])
    assert found["per_class"]["Fibrosis"]["AP"] is None
    assert found["per_class"]["Fibrosis"]["threshold"] == 0.5


def test_the_order_of_rows_and_columns_changes_no_byte(run_dir, tmp_path):
    evaluated(run_dir)
    for split in ("val", "test"):
        ids, values, classes = read_predictions(run_dir / "fusion" / f"predictions_{split}.csv")
        order = np.random.default_rng(1).permutation(len(ids))
        columns = [2, 0, 3, 1]
        path = tmp_path / "run" / "fusion" / f"predictions_{split}.csv"
        shuffled = ids.iloc[order].reset_index(drop=True)
        write_predictions(path, shuffled, values[order][:, columns], [classes[c] for c in columns])
    for name in ("manifest.csv", "manifest.json"):
        shutil.copy(run_dir / name, tmp_path / "run" / name)
    evaluated(tmp_path / "run")
    for name in ("metrics.json", "per_class_images.csv", "per_class_groups.csv", "table.txt"):
        assert (run_dir / "out" / name).read_bytes() == (tmp_path / "run" / "out" / name).read_bytes(), name


def test_labels_of_the_test_split_have_no_influence_on_the_thresholds(run_dir, tmp_path):
    before = evaluated(run_dir)
    manifest = read_manifest(run_dir / "manifest.csv")
    test = (manifest.images["split"] == "test").to_numpy()
    other = np.where(test[:, None] & ~np.isnan(manifest.labels), 1 - manifest.labels, manifest.labels)
    write_manifest(replace(manifest, labels=other), tmp_path / "manifest.csv")
    shutil.copytree(run_dir / "fusion", tmp_path / "fusion")
    after = evaluated(tmp_path)
    for unit in ("images", "groups"):
        for name in CLASSES[:3]:
            old, new = before[unit]["per_class"][name], after[unit]["per_class"][name]
            assert old["threshold"] == new["threshold"]
            assert old["F1_chosen"] != new["F1_chosen"]
    ids, values, classes = read_predictions(run_dir / "fusion" / "predictions_val.csv")
    write_predictions(tmp_path / "fusion" / "predictions_val.csv", ids, values**2, classes)
    moved = evaluated(tmp_path)
    assert moved["images"]["per_class"]["Edema"]["threshold"] != after["images"]["per_class"]["Edema"]["threshold"]


def test_thresholds_are_never_chosen_on_what_they_are_judged_on(run_dir, capsys):
    on_val = evaluated(run_dir, "--split", "val")
    assert on_val["thresholds_from"] is None
    assert on_val["images"]["F1_chosen"] is None
    assert on_val["images"]["per_class"]["Edema"]["threshold"] is None
    test_table = run_dir / "fusion" / "predictions_test.csv"
    error = refused(capsys, "--predictions", run_dir / "fusion", "--validation", test_table)
    assert "thresholds are chosen on validation alone" in error


def test_parts_are_scored_as_if_they_were_alone(run_dir):
    found = evaluated(run_dir)
    scores, targets = cases(run_dir, "images")
    views = read_manifest(run_dir / "manifest.csv").of_split("test").images["view"].to_numpy()
    parts = found["images"]["parts"]["view"]
    assert set(parts) == set(views)
    assert "source" not in found["images"]["parts"]  # one source tells nothing
    for view, part in parts.items():
        rows = views == view
        assert part["rows"] == rows.sum()
        expected = []
        for c in range(4):
            known = rows & ~np.isnan(targets[:, c])
            if targets[known, c].any():
                expected.append(average_precision_score(targets[known, c], scores[known, c]))
        assert part["classes"] == len(expected)
        own = part["methods"]["model"]
        assert own["mAP"] == pytest.approx(np.mean(expected))
        cuts = [found["images"]["per_class"][name]["threshold"] for name in CLASSES]
        for key, value in slow_means(scores[rows], targets[rows], cuts).items():
            assert own[key] == pytest.approx(value, abs=1e-6), (view, key)
    sizes = found["groups"]["parts"]["views in the group"]
    assert sum(part["rows"] for part in sizes.values()) == found["groups"]["rows"]
    assert sum(int(views) * part["rows"] for views, part in sizes.items()) == found["images"]["rows"]


def test_subgroups_come_from_a_table_and_show_nothing_but_their_own_words(run_dir, tmp_path):
    images = read_manifest(run_dir / "manifest.csv").images
    patients = sorted(set(images["patient_id"]))
    sexes = ["F", "male", "Jane Doe"]
    about = pd.DataFrame(
        {
            "patient_id": patients,
            "Sex": [sexes[i % 3] for i in range(len(patients))],
            "age": [f"{20 + i % 50}" if i % 7 else "born 1961" for i in range(len(patients))],
            "name": "Jane Doe",
        }
    )
    about.to_csv(tmp_path / "people.csv", index=False)
    found = evaluated(run_dir, "--about", tmp_path / "people.csv")
    parts = found["groups"]["parts"]
    assert set(parts["sex"]) == {"female", "male", "unknown"}
    assert set(parts["age"]) <= {"20-39", "40-59", "60-79", "unknown"}
    chosen = set(about["patient_id"][about["Sex"] == "F"]) & set(images["patient_id"][images["split"] == "test"])
    assert parts["sex"]["female"]["patients"] == len(chosen)
    for path in (run_dir / "out").iterdir():
        assert "Jane" not in path.read_text()
        assert "1961" not in path.read_text()


def test_words_for_sex_age_and_views():
    assert [sex_word(text) for text in (" f", "Male", "O", "")] == ["female", "male", "unknown", "unknown"]
    ages = ("19.9", "20", "064Y", "89", "131", "-1", "nan", "")
    bands = ["0-19", "20-39", "60-79", "80 or more", "unknown", "unknown", "unknown", "unknown"]
    assert [age_band(text) for text in ages] == bands
    assert view_mix({"AP", "LATERAL", "OTHER"}) == "frontal and lateral"
    assert [view_mix({view}) for view in ("PA", "LATERAL", "UNKNOWN")] == [
        "frontal, no lateral",
        "lateral, no frontal",
        "neither known",
    ]


def test_images_without_a_prediction_are_counted_and_their_group_keeps_its_label_and_views(run_dir, tmp_path):
    whole = evaluated(run_dir)
    shutil.copytree(run_dir, tmp_path / "run", ignore=shutil.ignore_patterns("out"))
    path = tmp_path / "run" / "fusion" / "predictions_test.csv"
    ids, values, classes = read_predictions(path)
    second = ids["study_id"].duplicated().to_numpy()
    write_predictions(path, ids[~second].reset_index(drop=True), values[~second], classes)
    found = evaluated(tmp_path / "run")
    assert found["images_without_prediction"] == second.sum() > 0
    assert found["images"]["rows"] == (~second).sum()
    for factor in ("views in the group", "view"):
        old, new = whole["groups"]["parts"][factor], found["groups"]["parts"][factor]
        assert {k: v["rows"] for k, v in old.items()} == {k: v["rows"] for k, v in new.items()}


def test_a_template_chooses_images_and_classes_and_lets_none_be_left_out(run_dir, tmp_path, capsys):
    ids, _, _ = read_predictions(run_dir / "fusion" / "predictions_test.csv")
    chosen = ids["image_id"].tolist()[::2]
    template = tmp_path / "sample_submission.csv"
    template.write_text("dicom_id,Hernia,Edema\n" + "".join(f"{name},0,0\n" for name in chosen))
    found = evaluated(run_dir, "--template", template)
    scores, targets = cases(run_dir, "images")
    assert found["classes"] == ["Edema", "Hernia"]
    assert found["images"]["rows"] == len(chosen)
    expected = []
    for c in (0, 2):
        known = ~np.isnan(targets[::2, c])
        expected.append(average_precision_score(targets[::2][known, c], scores[::2][known, c]))
    assert found["images"]["mAP"] == pytest.approx(np.mean(expected))
    template.write_text("dicom_id,Hernia\nunseen,0\n")
    error = refused(capsys, "--predictions", run_dir / "fusion", "--template", template)
    assert "1 images of" in error
    assert "'unseen'" in error


def test_the_table_of_classes_says_what_metrics_json_says(run_dir):
    found = evaluated(run_dir)["groups"]["per_class"]
    table = pd.read_csv(run_dir / "out" / "per_class_groups.csv").set_index("class")
    assert list(table.index) == list(CLASSES)
    for name, row in table.iterrows():
        values = found[name] | {"AP_low": found[name]["AP_interval"]["low"]}
        for key in ("known", "positives", "AP", "AP_low", "F1_chosen", "threshold", "sensitivity", "Brier", "ECE"):
            assert (values[key] is None and np.isnan(row[key])) or values[key] == row[key], (name, key)


def test_what_does_not_fit_is_named_in_one_line(run_dir, tmp_path, capsys):
    folder = run_dir / "fusion"
    ids, values, classes = read_predictions(folder / "predictions_test.csv")
    manifest = ["--manifest", run_dir / "manifest.csv"]
    table = tmp_path / "predictions.csv"
    write_predictions(table, ids, 8 * values - 4, classes)
    assert "wanted probabilities in [0, 1], found -4 to 4" in refused(capsys, "--predictions", table, *manifest)
    write_predictions(table, ids.assign(image_id="x" + ids["image_id"]), values, classes)
    error = refused(capsys, "--predictions", table, *manifest)
    assert "row 2: image_id" in error
    assert "is not in the manifest" in error
    write_predictions(table, ids.assign(study_id="elsewhere"), values, classes)
    assert "study_id of image" in refused(capsys, "--predictions", table, *manifest)
    write_predictions(table, ids, values, [f"{name} 2" for name in classes])
    assert "none of its classes" in refused(capsys, "--predictions", table, *manifest)
    assert "no such manifest" in refused(capsys, "--predictions", table)
    assert "no such prediction table" in refused(capsys, "--predictions", tmp_path / "fusion")
    assert "either --predictions" in refused(capsys)
    assert "--specificity must be" in refused(capsys, "--predictions", folder, "--specificity", 0)
