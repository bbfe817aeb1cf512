"""Folds hold out every patient once, and what is joined from them is what the right model said of the right image."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

import data.files
import data.folds
import data.scan
from data.folds import TEST, divide, find_folds, fold_manifest, main
from data.manifest import MANIFEST_COLUMNS, Manifest, read_manifest, write_manifest
from data.predictions import read_predictions, write_predictions
from data.tables import read_table, write_table
from fusion.out_of_fold import join_folds
from tests.make_data import CLASSES, make_manifest, make_run, write_images

ROOT = Path(__file__).resolve().parents[1]
FOLDS = 3
NAN = float("nan")


@st.composite
def tables(draw):
    """Patients of 1 to 4 studies of 1 to 3 images, some in test, labels with gaps, rows in any order."""
    rows, labels, num_patients = [], [], draw(st.integers(6, 25))
    for patient in range(num_patients):
        split = "test" if patient == 0 else draw(st.sampled_from(["train", "train", "val", "test"]))
        split = "train" if 1 <= patient <= 5 else split
        for study in range(draw(st.integers(1, 4))):
            y = draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, NAN]), min_size=2, max_size=2))
            for view in range(draw(st.integers(1, 3))):
                image = f"p{patient}s{study}i{view}"
                rows.append([image, f"p{patient}s{study}", f"p{patient}", "PA", f"{image}.png", split, "made up"])
                labels.append(y)
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(rows))
    frame = pd.DataFrame([rows[i] for i in order], columns=list(MANIFEST_COLUMNS), dtype=str)
    return frame, np.array(labels, dtype=np.float32)[order], ("Edema", "Hernia"), Path("images")


@given(tables(), st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_patient_is_held_out_by_one_fold_and_nothing_else_changes(table, num_folds, seed):
    manifest = Manifest(*table)
    part = divide(manifest, num_folds, seed)
    folds = [fold_manifest(manifest, part, number) for number in range(num_folds)]
    held_out = Counter(image for fold in folds for image in fold.of_split("val").images["image_id"])
    rest = manifest.images["image_id"][manifest.images["split"] != "test"]
    assert held_out == dict.fromkeys(rest, 1)
    holders = {(p, i) for i, fold in enumerate(folds) for p in fold.of_split("val").images["patient_id"]}
    assert len(holders) == len({patient for patient, _ in holders})
    assert {i for _, i in holders} == set(range(num_folds))
    for fold in folds:
        assert fold.images.drop(columns="split").equals(manifest.images.drop(columns="split"))
        np.testing.assert_array_equal(fold.labels, manifest.labels)
        sides = zip(manifest.images["split"], fold.images["split"], strict=True)
        assert all((before == "test") == (now == "test") for before, now in sides)
        assert not set(fold.of_split("val").images["patient_id"]) & set(fold.of_split("train").images["patient_id"])


@given(tables(), st.integers(2, 5), st.integers(0, 3))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_patient_goes_to_the_fold_that_lacks_most_of_what_it_has(table, num_folds, seed):
    """Replayed patient by patient in exact fractions, which know no rounding: no fold would have been better."""
    manifest = Manifest(*table)
    part = divide(manifest, num_folds, seed)
    rows = np.flatnonzero(part != TEST)
    patients = sorted(set(manifest.images["patient_id"].iloc[rows]))
    own = {p: [r for r in rows if manifest.images["patient_id"].iat[r] == p] for p in patients}
    amounts = {
        p: [sum(int(manifest.labels[r, c] == 1) for r in own[p]) for c in range(2)] + [len(own[p])] for p in patients
    }
    totals = [max(1, sum(amounts[p][c] for p in patients)) for c in range(3)]
    shares = {p: [Fraction(n, total) for n, total in zip(amounts[p], totals, strict=True)] for p in patients}
    order = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    have = [[Fraction(0)] * 3 for _ in range(num_folds)]
    for patient in sorted(order, key=lambda p: -max(shares[p])):
        costs = [sum((h + s / 2) * s for h, s in zip(fold, shares[patient], strict=True)) for fold in have]
        chosen = part[own[patient][0]]
        assert float(costs[chosen] - min(costs)) < 1e-12
        have[chosen] = [h + s for h, s in zip(have[chosen], shares[patient], strict=True)]


def test_the_division_depends_on_the_seed_but_not_on_which_images_were_val_before():
    manifest = make_manifest(Path("images"), num_studies=60)
    first = divide(manifest, FOLDS, 0)
    assert (first != divide(manifest, FOLDS, 1)).any()
    swapped = manifest.images.assign(split=manifest.images["split"].replace({"val": "train", "train": "val"}))
    other = Manifest(swapped, manifest.labels, manifest.classes, manifest.root)
    np.testing.assert_array_equal(first, divide(other, FOLDS, 0))


def command(*words):
    main(join_folds, [str(word) for word in words])


def split(run_dir, *options):
    command("split", "--manifest", run_dir / "manifest.csv", "--folds", FOLDS, *options)


def content(folder):
    """Bytes of every file that belongs to a result."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name not in (".lock", "log.txt")}


def fold_files(run_dir):
    return {name: data for name, data in content(run_dir).items() if name.startswith("fold_")}


def error_line(capsys, *words):
    """The one line that a refused command prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command(*words)
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert lines[-1:] == errors
    return errors[0]


def test_split_writes_runs_that_find_their_images_and_ends_with_the_next_command(tmp_path, capsys, monkeypatch):
    run_dir = tmp_path / "my run"
    manifest = make_run(run_dir, num_studies=27)
    monkeypatch.chdir(tmp_path)
    split(Path("my run"))
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == (
        "next: for i in 0 1 2; do accelerate launch extract.py --config ... --run_dir 'my run'/fold_$i && "
        "accelerate launch train_fusion.py --config ... --run_dir 'my run'/fold_$i; done"
    )
    assert out[-2].endswith("python scripts/folds.py join --run_dir 'my run'")
    part = divide(manifest, FOLDS, 0)
    for number, folder in enumerate(find_folds(run_dir)):
        fold = read_manifest(folder / "manifest.csv")
        assert fold.to_bytes() == fold_manifest(manifest, part, number).to_bytes()
        assert all(fold.image_path(row).is_file() for row in range(len(fold)))
    monkeypatch.chdir("/")
    assert read_manifest(run_dir / "fold_2" / "manifest.csv").image_path(4).is_file()


def test_no_fold_opens_an_image_again(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    split(tmp_path / "run")
    monkeypatch.setattr(data.scan, "read_bytes", lambda path: pytest.fail(f"{path} was opened again"))
    for folder in find_folds(tmp_path / "run"):
        scan = data.scan.scan_images(read_manifest(folder / "manifest.csv"), folder, workers=1, progress=False)
        assert scan.readable.all()


def test_a_split_that_is_there_is_left_alone_and_a_moved_one_finds_its_images_again(tmp_path, capsys):
    make_run(tmp_path / "run")
    split(tmp_path / "run")
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("run/fold_*/*")}
    split(tmp_path / "run")
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("run/fold_*/*")} == stamps
    assert capsys.readouterr().out.count("(there already)") == FOLDS
    os.rename(tmp_path / "run", tmp_path / "moved")
    assert not read_manifest(tmp_path / "moved/fold_0/manifest.csv").image_path(0).exists()
    split(tmp_path / "moved")
    assert read_manifest(tmp_path / "moved/fold_0/manifest.csv").image_path(0).exists()


def dying(monkeypatch, stop_at):
    """Let the machine fail at the given rename; returns the switch that repairs it."""
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) > stop_at:
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(data.files.os, "replace", replace)
    return lambda: monkeypatch.setattr(data.files.os, "replace", real)


@pytest.mark.parametrize("stop_at", range(2 + 3 * FOLDS))  # images.csv, rejected.csv, then three files per fold
def test_a_killed_split_looks_incomplete_and_goes_on_to_the_same_bytes(tmp_path, monkeypatch, capsys, stop_at):
    for name in ("whole", "killed"):
        make_run(tmp_path / name, num_studies=25)
    split(tmp_path / "whole")
    wanted = {n: d for n, d in fold_files(tmp_path / "whole").items() if n.endswith("manifest.csv")}
    repair = dying(monkeypatch, stop_at)
    with pytest.raises(SystemExit):
        split(tmp_path / "killed")
    repair()
    line = error_line(capsys, "join", "--run_dir", tmp_path / "killed")
    assert "no folders fold_0" in line or "the split was not finished" in line or "is not finished" in line
    complete = [p for p in tmp_path.glob("killed/fold_*/manifest.csv") if read_manifest(p)]
    assert len(complete) < FOLDS
    split(tmp_path / "killed")
    assert {n: d for n, d in fold_files(tmp_path / "killed").items() if n.endswith("manifest.csv")} == wanted
    assert all((folder / "images.csv").exists() for folder in find_folds(tmp_path / "killed"))


def test_rare_classes_are_named_and_unreadable_images_counted(tmp_path, capsys):
    manifest = make_manifest(tmp_path / "run/images", num_studies=25)
    rest = (manifest.images["split"] != "test").to_numpy()
    manifest.labels[rest, 2] = 0
    manifest.labels[np.flatnonzero(rest)[:1], 2] = 1
    write_images(manifest)
    manifest.image_path(3).write_bytes(b"nothing")
    write_manifest(manifest, tmp_path / "run/manifest.csv")
    split(tmp_path / "run")
    out = capsys.readouterr().out
    assert "note: fewer positive patients than folds, so some folds cannot be scored on them: Hernia (1)\n" in out
    assert f"1 of {len(manifest)} images cannot be read: see {tmp_path / 'run/rejected.csv'}" in out
    assert manifest.images["path"].iat[3] not in read_table(tmp_path / "run/fold_1/images.csv")["path"].tolist()


def relabelled(run_dir):
    manifest = read_manifest(run_dir / "manifest.csv")
    manifest.labels[0, 0] = 1 - manifest.labels[0, 0]
    write_manifest(manifest, run_dir / "manifest.csv")


SPLIT_FAULTS = {
    "one fold": (lambda run: None, ["--folds", "1"], "--folds must be at least 2, got 1"),
    "more folds than patients": (lambda run: None, ["--folds", "90"], "--folds 90: train and val have 16 patients"),
    "another seed": (split, ["--seed", "7"], "fold_0/manifest.csv: holds other splits or labels"),
    "fewer folds": (split, ["--folds", "2"], "fold_2/manifest.csv: left from a split into more than --folds 2"),
    "more folds": (split, ["--folds", "4"], "holds other splits or labels"),
    "changed labels": (lambda run: (split(run), relabelled(run)), [], "holds other splits or labels"),
    "no manifest": (lambda run: os.remove(run / "manifest.csv"), [], "manifest.csv: no such file"),
    "no test images": (lambda run: make_run(run, num_studies=20), [], "no image in split 'test'"),
    "another name": (
        lambda run: os.rename(run / "manifest.csv", run / "m.csv"),
        ["--manifest", "{run}/m.csv"],
        "must be called manifest.csv",
    ),
}


@pytest.mark.parametrize("fault", SPLIT_FAULTS)
def test_split_refuses_with_one_line_and_writes_nothing(tmp_path, capsys, fault):
    run_dir = tmp_path / "run"
    make_run(run_dir, num_studies=25)
    break_it, options, says = SPLIT_FAULTS[fault]
    break_it(run_dir)
    before = content(run_dir)
    words = ["split", "--manifest", run_dir / "manifest.csv", "--folds", FOLDS]
    line = error_line(capsys, *words, *(option.replace("{run}", str(run_dir)) for option in options))
    assert says in line
    assert content(run_dir) == before


def finish_folds(run_dir, by="study", seed=0):
    """Leave in every fold what both stages leave, but logits are drawn: equal within a group, rich in ties."""
    rng = np.random.default_rng(seed)
    for number, folder in enumerate(find_folds(run_dir)):
        fold = read_manifest(folder / "manifest.csv")
        readable = set(read_table(folder / "images.csv")["path"])
        patients = json.dumps({"trained_patients": sorted(set(fold.of_split("train").images["patient_id"]))})
        for stage in ("stage_one", "fusion"):
            (folder / stage).mkdir(exist_ok=True)
            (folder / stage / "data.json").write_text(patients)
            (folder / stage / "config.yaml").write_text("epochs: 1\n")
        (folder / "fusion/config.yaml").write_text(f"grouping: {{by: {by}}}\nbootstrap_replicates: 30\n")
        (folder / "fusion/metrics.json").write_text("{}")
        for side in ("val", "test"):
            part = fold.of_split(side)
            groups = part.images[f"{by}_id"]
            seen = part.select(groups.isin(groups[part.images["path"].isin(readable)]).to_numpy())
            values = {g: rng.normal(number, 2, len(CLASSES)).round(1) for g in dict.fromkeys(groups)}
            logits = np.array([values[g] for g in seen.images[f"{by}_id"]], dtype=np.float32)
            order = rng.permutation(len(seen))  # rows are joined by id: their order in the file means nothing
            path = folder / "fusion" / f"logits_{side}.csv"
            write_predictions(path, seen.images.iloc[order].reset_index(drop=True), logits[order], CLASSES)


def finished_run(run_dir, by="study", unreadable=(), num_studies=38):
    manifest = make_run(run_dir, num_studies)
    for row in unreadable:
        manifest.image_path(row).write_bytes(b"nothing")
    split(run_dir)
    finish_folds(run_dir, by)
    return manifest


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("folds") / "run"
    return run_dir, finished_run(run_dir)


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def slow_join(run_dir, manifest):
    """Image by image and fold by fold, in dictionaries: out-of-fold and averaged test logits in manifest order."""
    tables = {}
    for folder in find_folds(run_dir):
        for side in ("val", "test"):
            ids, values, _ = read_predictions(folder / "fusion" / f"logits_{side}.csv")
            tables[folder.name, side] = dict(zip(ids["image_id"], values.tolist(), strict=True))
    oof, test = {}, {}
    for image, side in zip(manifest.images["image_id"], manifest.images["split"], strict=True):
        found = [table[image] for (_, part), table in tables.items() if image in table and part in ("val", "test")]
        if side == "test" and found:
            assert len(found) == FOLDS
            test[image] = [np.float32(sum(column) / FOLDS) for column in zip(*found, strict=True)]
        elif found:
            (oof[image],) = found
    return oof, test


@pytest.mark.parametrize("by", ["study", "patient"])
def test_join_equals_a_slow_loop_and_counts_images_without_prediction(tmp_path, capsys, by):
    whole = make_manifest(tmp_path / "nowhere", 38)
    sizes = whole.images.groupby("patient_id")["image_id"].transform("size")
    sides = [(sizes == 1) & (whole.images["split"] != "test"), (sizes > 2) & (whole.images["split"] == "train")]
    lone, of_many = (int(np.flatnonzero(side)[0]) for side in sides)
    run_dir = tmp_path / "run"
    manifest = finished_run(run_dir, by, unreadable=[lone, of_many])
    command("join", "--run_dir", run_dir)
    oof, test = slow_join(run_dir, manifest)
    kept = [i for i in manifest.images["image_id"][manifest.images["split"] != "test"] if i in oof]
    assert manifest.images["image_id"].iat[lone] not in kept
    assert "note: 1 images of train and val have no readable image in their group" in capsys.readouterr().out
    for what, wanted, order in (("oof", oof, kept), ("test", test, list(test))):
        ids, logits, classes = read_predictions(run_dir / "fusion" / f"logits_{what}.csv")
        _, probabilities, _ = read_predictions(run_dir / "fusion" / f"predictions_{what}.csv")
        assert (ids["image_id"].tolist(), classes) == (order, CLASSES)
        np.testing.assert_array_equal(logits, np.array([wanted[i] for i in order], dtype=np.float32))
        np.testing.assert_allclose(probabilities, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)
        for _, rows in pd.DataFrame(probabilities).groupby(ids[f"{by}_id"].to_numpy()):
            assert (rows == rows.iloc[0]).all(axis=None)


def labels_of(manifest, images, by):
    """Per row of a frame of ids, the largest label of its group, by a slow loop."""
    ids = manifest.images
    rows = [
        np.flatnonzero((ids[f"{by}_id"] == g) & ids["image_id"].isin(images["image_id"])) for g in images[f"{by}_id"]
    ]
    return np.array([manifest.labels[r].max(axis=0) for r in rows])


@pytest.mark.parametrize("by", ["study", "patient"])
def test_scores_are_those_of_scikit_learn_in_both_units_and_per_fold(tmp_path, by):
    run_dir = tmp_path / "run"
    manifest = finished_run(run_dir, by)
    command("join", "--run_dir", run_dir)
    report = json.loads((run_dir / "fusion/metrics.json").read_text())
    for part, what in (("out_of_fold", "oof"), ("test", "test")):
        images, values, _ = read_predictions(run_dir / "fusion" / f"predictions_{what}.csv")
        labels = labels_of(manifest, images, by)
        first = ~images[f"{by}_id"].duplicated().to_numpy()
        for unit, rows in (("images", np.ones(len(images), bool)), ("groups", first)):
            found = report[part][unit]
            assert found["rows"] == rows.sum()
            ap = [average_precision_score(labels[rows, c], values[rows, c]) for c in range(3)]
            for c, name in enumerate(CLASSES):
                auroc = roc_auc_score(labels[rows, c], values[rows, c])
                own = found["per_class"][name]
                assert (own["AP"], own["AUROC"]) == (pytest.approx(ap[c]), pytest.approx(auroc))
                assert own["interval"]["low"] <= own["interval"]["high"]
            assert found["mAP"] == pytest.approx(np.mean(ap)) == found["interval"]["estimate"]
            assert found["interval_head"]["estimate"] == pytest.approx(found["mAP_head"])
            assert found["interval_tail"]["estimate"] is None  # no class of this data is that rare
    for number, folder in enumerate(find_folds(run_dir)):
        images, logits, _ = read_predictions(folder / "fusion/logits_val.csv")
        labels = labels_of(manifest, images, by)
        wanted = np.mean([average_precision_score(labels[:, c], logits[:, c]) for c in range(3)])
        assert report["fold_validation"][number]["images"] == {"rows": len(images), "mAP": pytest.approx(wanted)}


def test_the_table_the_submission_and_the_next_step_are_there(run_dir, tmp_path, capsys):
    ids = read_predictions(run_dir / "fold_0/fusion/logits_test.csv")[0]["image_id"]
    template = pd.DataFrame({"dicom_id": ids[::-1]}).assign(Hernia="0.5", Edema="0.5", Nodule="0.5")
    write_table(tmp_path / "sample.csv", template)
    command("join", "--run_dir", run_dir, "--template", tmp_path / "sample.csv", "--out", run_dir / "mine")
    lines = capsys.readouterr().out.splitlines()
    submission = read_table(run_dir / "mine/submission.csv")
    assert submission["dicom_id"].tolist() == template["dicom_id"].tolist()
    assert submission.columns.tolist() == ["dicom_id", "Hernia", "Edema", "Nodule"]
    assert (run_dir / "mine/submission.zip").exists()
    assert [line.split(",")[0] for line in lines if line.startswith(("out-of-fold,", "test,"))] == [
        *("out-of-fold", "out-of-fold", "test", "test")
    ]
    assert lines[-1].startswith(f"next: upload {run_dir / 'mine/submission.zip'}")


def test_unknown_test_labels_are_predicted_and_not_scored(tmp_path, capsys):
    manifest = make_manifest(tmp_path / "run/images", 30)
    write_images(manifest)
    manifest.labels[(manifest.images["split"] == "test").to_numpy()] = np.nan
    write_manifest(manifest, tmp_path / "run/manifest.csv")
    split(tmp_path / "run")
    finish_folds(tmp_path / "run")
    command("join", "--run_dir", tmp_path / "run")
    assert "test" not in json.loads((tmp_path / "run/fusion/metrics.json").read_text())
    assert "predicted, not scored" in capsys.readouterr().out
    assert (tmp_path / "run/fusion/submission.csv").exists()


def test_join_is_repeatable_and_says_when_labels_or_settings_differ(run_dir, capsys):
    command("join", "--run_dir", run_dir)
    before = content(run_dir / "fusion")
    command("join", "--run_dir", run_dir)
    assert content(run_dir / "fusion") == before
    relabelled(run_dir)
    path = run_dir / "fold_2/fusion/config.yaml"
    path.write_text(path.read_text() + "seed: 5\n")
    command("join", "--run_dir", run_dir)
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes[0] == "note: fold_2 was trained with seed=5 (fold_0: 0)"
    assert notes[1:] == [
        f"note: fold_{i} was trained with other labels than {run_dir}/manifest.csv now holds" for i in range(FOLDS)
    ]


@pytest.mark.parametrize("stop_at", [0, 1, 3, 5, 7])
def test_a_killed_join_has_no_scores_and_goes_on_to_the_same_bytes(run_dir, finished, tmp_path, monkeypatch, stop_at):
    command("join", "--run_dir", run_dir)
    wanted = content(run_dir / "fusion")
    assert len(wanted) == 8  # four tables, template, submission and its zip, metrics
    repair = dying(monkeypatch, stop_at)
    with pytest.raises(SystemExit):
        command("join", "--run_dir", run_dir)
    repair()
    assert not (run_dir / "fusion/metrics.json").exists()
    command("join", "--run_dir", run_dir)
    assert content(run_dir / "fusion") == wanted


def edit_table(path, change):
    """Rewrite a table; `change` takes and returns a frame of text."""
    write_table(path, change(read_table(path)))


def edit_logits(change, side="val", number=1):
    return lambda run: edit_table(run / f"fold_{number}/fusion/logits_{side}.csv", change)


def set_cell(column, value, row=0):
    def change(table):
        table = table.copy()
        table.loc[row, column] = value
        return table

    return change


def retrained_on(patient_of, stage):
    """A record that a fold's model was trained on a patient of the given split."""

    def change(run):
        path, manifest = run / f"fold_1/{stage}/data.json", read_manifest(run / "fold_1/manifest.csv")
        record = json.loads(path.read_text())
        record["trained_patients"].append(manifest.of_split(patient_of).images["patient_id"].iat[0])
        path.write_text(json.dumps(record))

    return change


def edit_fold(change):
    """Rewrite a fold's manifest so that its digest fits again."""

    def apply(run):
        manifest = read_manifest(run / "fold_1/manifest.csv")
        write_manifest(change(manifest), run / "fold_1/manifest.csv")

    return apply


def move(before, after):
    """All images of one patient from one split to another."""

    def change(manifest):
        patient = manifest.of_split(before).images["patient_id"].iat[0]
        splits = manifest.images["split"].mask(manifest.images["patient_id"] == patient, after)
        return Manifest(manifest.images.assign(split=splits), manifest.labels, manifest.classes, manifest.root)

    return change


def rename_patient(manifest):
    return Manifest(
        manifest.images.replace({"patient_id": {"p001": "p0x1"}}), manifest.labels, manifest.classes, manifest.root
    )


def lose_row(table):
    return table.drop(index=2)


def cut_in_half(run):
    path = run / "fold_1/fusion/logits_val.csv"
    path.write_bytes(path.read_bytes()[:-9])


def write_text(name, text):
    return lambda run: (run / name).write_text(text)


def drop_last_fold(run):
    shutil.rmtree(run / "fold_2")


def equal_test_without(run):
    """One fold could not read a test image of which the others made a prediction."""
    path = run / "fold_1/fusion/logits_test.csv"
    image = read_predictions(path)[0]["image_id"].iat[0]
    edit_table(path, lambda table: table[table["image_id"] != image])
    edit_table(run / "fold_1/images.csv", lambda table: table[table["path"] != f"{image}.png"])


JOIN_FAULTS = {
    "no folds": (lambda run: [shutil.rmtree(p) for p in run.glob("fold_*")], "split --manifest {run}/manifest.csv"),
    "a fold left out": (lambda run: shutil.rmtree(run / "fold_1"), "{run}/fold_1: missing, although there is fold_2"),
    "the last fold left out": (drop_last_fold, "is held out by none of 2 folds"),
    "a fold without manifest": (lambda run: os.remove(run / "fold_1/manifest.csv"), "the split was not finished"),
    "an untrained fold": (
        lambda run: [shutil.rmtree(run / "fold_1" / stage) for stage in ("stage_one", "fusion")],
        "fold_1/fusion/logits_val.csv: missing, fold_1 is not finished; finish it with: accelerate launch extract.py"
        " --config {run}/fold_0/stage_one/config.yaml --run_dir {run}/fold_1 && accelerate launch train_fusion.py"
        " --config {run}/fold_0/fusion/config.yaml --run_dir {run}/fold_1",
    ),
    "a fold without results": (lambda run: os.remove(run / "fold_2/fusion/metrics.json"), "fold_2 is not finished"),
    "a missing table": (lambda run: os.remove(run / "fold_0/fusion/logits_test.csv"), "fold_0 is not finished"),
    "a damaged table": (cut_in_half, "fold_1/fusion/logits_val.csv, row"),
    "a value that is no number": (edit_logits(set_cell("Edema", "nan")), "column 'Edema': wanted a finite number"),
    "an image twice": (edit_logits(lambda t: pd.concat([t, t[:1]])), "occurs twice"),
    "a row left out": (edit_logits(lose_row), "has no prediction although it is readable"),
    "a test row left out": (edit_logits(lose_row, "test", 2), "fold_2/fusion/logits_test.csv: image"),
    "a foreign image": (edit_logits(set_cell("image_id", "nobody")), "image 'nobody' is not in val of fold_1"),
    "another fold's table": (
        lambda run: shutil.copy(run / "fold_0/fusion/logits_val.csv", run / "fold_1/fusion/logits_val.csv"),
        "is not in val of fold_1",
    ),
    "another patient": (edit_logits(set_cell("patient_id", "p999")), "has another patient_id than in the manifest"),
    "other classes": (edit_logits(lambda t: t.rename(columns={"Edema": "Mass"})), "predicts Mass, Nodule, Hernia"),
    "one value of a study": (
        edit_logits(lambda t: set_cell("Nodule", "9", t.index[t["study_id"].duplicated()][0])(t)),
        "has other values than the first image of its study; the file was edited",
    ),
    "other test images": (equal_test_without, "has a prediction in fold_0 or here, but not in both"),
    "trained on a val patient": (retrained_on("val", "stage_one"), "fold_1 was trained on 1 of the patients"),
    "fused on a val patient": (retrained_on("val", "fusion"), "fold_1/fusion/data.json: fold_1 was trained on 1"),
    "trained on a test patient": (retrained_on("test", "stage_one"), "fold_1/stage_one/data.json: fold_1 was trained"),
    "no record": (lambda run: os.remove(run / "fold_1/stage_one/data.json"), "nobody knows whom fold_1 was trained on"),
    "a damaged record": (write_text("fold_1/stage_one/data.json", "[1"), "nobody knows whom fold_1 was trained on"),
    "a record of another kind": (write_text("fold_1/stage_one/data.json", "[1]"), "nobody knows whom"),
    "held out twice": (edit_fold(move("train", "val")), "is held out by"),
    "held out by none": (edit_fold(move("val", "train")), "is held out by none of 3 folds"),
    "test images moved": (
        edit_fold(move("test", "train")),
        "is in test here or in {run}/manifest.csv, but not in both",
    ),
    "other patients": (edit_fold(rename_patient), "patient_id is 'p0x1', in {run}/manifest.csv it is 'p001'"),
    "other images": (edit_fold(lambda m: m.select(np.arange(1, len(m)))), "split and train the folds again"),
    "other class list": (
        edit_fold(lambda m: Manifest(m.images, m.labels, ("Edema", "Mass", "Hernia"), m.root)),
        "fold_1/manifest.csv: has the classes Edema, Mass, Hernia",
    ),
    "no manifest": (lambda run: os.remove(run / "manifest.csv"), "manifest.csv: no such file"),
    "other groups": (write_text("fold_1/fusion/config.yaml", "grouping: {by: patient}\n"), "must fuse the same groups"),
    "a training run in the way": (
        lambda run: shutil.copytree(run / "fold_0/fusion", run / "fusion"),
        "{run}/fusion: holds a training run; choose another folder with --out {run}/fusion_folds",
    ),
}


@pytest.mark.parametrize("fault", JOIN_FAULTS)
def test_join_refuses_with_one_line_and_writes_nothing(run_dir, capsys, fault):
    break_it, says = JOIN_FAULTS[fault]
    break_it(run_dir)
    before = content(run_dir)
    assert says.replace("{run}", str(run_dir)) in error_line(capsys, "join", "--run_dir", run_dir)
    assert content(run_dir) == before


def test_the_script_splits_from_any_folder_without_loading_torch(tmp_path):
    make_run(tmp_path / "run", num_studies=25)
    words = [str(ROOT / "scripts/folds.py"), "split", "--manifest", "run/manifest.csv", "--folds", "2"]
    code = "import runpy, sys; sys.argv = sys.argv[1:]; sys.path.insert(0, sys.argv.pop(0)); "
    code += "runpy.run_path(sys.argv[0], run_name='__main__'); print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "scripts"), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.splitlines()[-1] == "False"
    assert len(find_folds(tmp_path / "run")) == 2


@pytest.mark.slow
def test_both_stages_on_every_fold_then_joined(tmp_path, capsys):
    import extract.train
    import fusion.train

    run_dir = tmp_path / "run"
    manifest = make_run(run_dir)
    command("split", "--manifest", run_dir / "manifest.csv", "--folds", 2)
    tiny = {
        s: [f"--config={ROOT}/{s}/configs/{n}.yaml" for n in ("cxr_lt_2023", "tiny")] for s in ("extract", "fusion")
    }
    for folder in find_folds(run_dir):
        extract.train.main([*tiny["extract"], f"--run_dir={folder}"])
        fusion.train.main([*tiny["fusion"], f"--run_dir={folder}", "--retrain_single=false"])
    command("join", "--run_dir", run_dir)
    rest = manifest.images["image_id"][manifest.images["split"] != "test"]
    assert read_predictions(run_dir / "fusion/logits_oof.csv")[0]["image_id"].tolist() == rest.tolist()
    report = json.loads((run_dir / "fusion/metrics.json").read_text())
    for number, folder in enumerate(find_folds(run_dir)):  # what the fold itself said of its best epoch
        own = json.loads((folder / "fusion/best/metrics.json").read_text())["val"]
        assert report["fold_validation"][number]["groups"] == {
            "rows": own["rows"],
            "mAP": pytest.approx(own["mAP"], abs=1e-6),
        }
    assert "next: upload" in capsys.readouterr().out.splitlines()[-1]
