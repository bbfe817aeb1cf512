"""Read what k trained folds predicted, and refuse whatever would make the joined predictions untrue.

An out-of-fold prediction is worth something only if its model was not trained on the patient, and if every patient is
there once. Both are checked against the folds' own records, not assumed.

Axes: **N** images of train and val, **M** of test, **C** classes, **K** folds.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Int

from data.errors import InputError
from data.folds import SPLIT_AGAIN, TEST, stage_commands
from data.manifest import Manifest, read_manifest
from data.predictions import ID_COLUMNS, read_predictions
from data.tables import read_table


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Joined predictions, rows in manifest order; images without a readable image in their group are left out."""

    images: Manifest
    """Images of train and val, N rows."""
    fold: Int[np.ndarray, "N"]
    """The fold that holds out each of them."""
    logits: Float32[np.ndarray, "N C"]
    """Of the model that was not trained on the image's patient."""
    test: Manifest
    """M rows."""
    test_logits: Float32[np.ndarray, "K M C"]
    notes: list[str]
    """What a reader of the scores should know."""


def refuse_unfinished(folders: list[Path], name: str) -> None:
    """Check that both stages have ended in every fold.

    Raises:
        InputError: names the first fold where they have not, and the command that ends them.
    """
    for folder in folders:
        files = [folder / name / file for file in ("logits_val.csv", "logits_test.csv", "metrics.json")]
        missing = next((path for path in files if not path.is_file()), None)
        if missing is not None:
            command = stage_commands(folder.parent, folder.name.removeprefix("fold_"), name)
            raise InputError(f"{missing}: missing, {folder.name} is not finished; finish it with: {command}")


def read_folds(whole: Manifest, folders: list[Path], name: str, by: str) -> OutOfFold:
    """Read and check the predictions of all folds.

    Args:
        whole: The manifest that was split.
        folders: Of the folds, by number, finished.
        name: Of stage two's folder in each.
        by: "study" or "patient", the group whose images share one prediction.

    Raises:
        InputError: Folds of another manifest, an image held out by no fold or by two, a fold trained on what it holds
            out, a prediction missing or out of place.
    """
    part, notes = held_out_by(whole, folders)
    logits, predicted = np.full(whole.labels.shape, np.nan, dtype=np.float32), np.zeros(len(whole), dtype=bool)
    test_rows, test_logits = np.flatnonzero(part == TEST), []
    for number, folder in enumerate(folders):
        for stage in ("stage_one", name):
            refuse_trained(folder, stage, set(whole.images["patient_id"][(part == number) | (part == TEST)]))
        rows = np.flatnonzero(part == number)
        predicted[rows], values = read_logits(folder, name, "val", whole.select(rows), by)
        logits[rows[predicted[rows]]] = values
        found, values = read_logits(folder, name, "test", whole.select(test_rows), by)
        if number == 0:
            predicted[test_rows] = found
        here = f"has a prediction in {folders[0].name} or here, but not in both; run both stages on the other again"
        _refuse(found != predicted[test_rows], whole.select(test_rows), folder / name / "logits_test.csv", here)
        test_logits.append(values)
    for split, lost in (("train and val", ~predicted & (part != TEST)), ("test", ~predicted & (part == TEST))):
        if lost.any():
            notes.append(f"{lost.sum()} images of {split} have no readable image in their group and no prediction")
    kept, test = predicted & (part != TEST), whole.select(predicted & (part == TEST))
    return OutOfFold(whole.select(kept), part[kept], logits[kept], test, np.stack(test_logits), notes)


def held_out_by(whole: Manifest, folders: list[Path]) -> tuple[Int[np.ndarray, "N"], list[str]]:
    """The fold that holds out each image of a manifest (`TEST` for the test split), from the folds' own manifests.

    Raises:
        InputError: A fold has other rows, classes or test images; an image is held out by no fold or by two.
    """
    is_test = (whole.images["split"] == "test").to_numpy(dtype=bool)
    part, notes, run_dir = np.full(len(whole), TEST, dtype=np.int64), [], folders[0].parent
    for number, folder in enumerate(folders):
        path = folder / "manifest.csv"
        fold = read_manifest(path)
        refuse_other_rows(whole, fold, path)
        moved = is_test != (fold.images["split"] == "test").to_numpy(dtype=bool)
        held_out = (fold.images["split"] == "val").to_numpy(dtype=bool)
        _refuse(moved, whole, path, f"is in test here or in {run_dir / 'manifest.csv'}, but not in both")
        _refuse(held_out & (part != TEST), whole, path, "is held out by an earlier fold too")
        part[held_out] = number
        if not np.array_equal(fold.labels, whole.labels, equal_nan=True):
            notes.append(f"{folder.name} was trained with other labels than {run_dir / 'manifest.csv'} now holds")
    _refuse((part == TEST) & ~is_test, whole, run_dir, f"is held out by none of {len(folders)} folds; {SPLIT_AGAIN}")
    return part, notes


def refuse_other_rows(whole: Manifest, fold: Manifest, path: Path) -> None:
    """Check that a fold speaks of the same images, patients and classes as the manifest that was split."""
    origin = path.parents[1] / "manifest.csv"
    if fold.classes != whole.classes:
        raise InputError(f"{path}: has the classes {', '.join(fold.classes)}, {origin} {', '.join(whole.classes)}")
    if len(fold) != len(whole):
        raise InputError(f"{path}: has {len(fold)} images, {origin} {len(whole)}; split and train the folds again")
    for name in ID_COLUMNS:
        differs = (fold.images[name] != whole.images[name]).to_numpy(dtype=bool)
        if differs.any():
            row = int(np.argmax(differs))
            raise InputError(
                f"{path}, row {row + 2}: {name} is '{fold.images[name].iat[row]}', in {origin} it is"
                f" '{whole.images[name].iat[row]}'; split and train the folds again"
            )


def refuse_trained(folder: Path, stage: str, held_out: set[str]) -> None:
    """Check that no held-out patient was in the training set of a fold's model.

    Raises:
        InputError: names the first such patient, or the record that cannot be read.
    """
    path = folder / stage / "data.json"
    try:
        trained = set(json.loads(path.read_text(encoding="utf-8"))["trained_patients"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            f"{path}: missing or damaged, so nobody knows whom {folder.name} was trained on; delete"
            f" {folder / stage} and train it again"
        ) from None
    seen = sorted(trained & held_out)
    if seen:
        raise InputError(
            f"{path}: {folder.name} was trained on {len(seen)} of the patients it holds out, first {seen[0]}; delete"
            f" {folder}, split again and train it again"
        )


def read_logits(
    folder: Path, name: str, split: str, wanted: Manifest, by: str
) -> tuple[Bool[np.ndarray, "N"], Float32[np.ndarray, "K C"]]:
    """Which of the wanted images a fold predicted, and their logits in the order wanted.

    Raises:
        InputError: Other classes, an image or id that does not belong there, no prediction for a readable image, or
            images of a group with different values.
    """
    path = folder / name / f"logits_{split}.csv"
    ids, values, classes = read_predictions(path)
    if classes != wanted.classes:
        raise InputError(
            f"{path}: predicts {', '.join(classes)}; wanted {', '.join(wanted.classes)}, as in the manifest"
        )
    foreign = ~ids["image_id"].isin(wanted.images["image_id"])
    if foreign.any():
        first = ids["image_id"][foreign].iloc[0]
        raise InputError(f"{path}: image '{first}' is not in {split} of {folder.name} ({foreign.sum()} such images)")
    places = pd.Index(ids["image_id"]).get_indexer(wanted.images["image_id"])
    found = places >= 0
    for column in ("study_id", "patient_id"):
        differs = ids[column].to_numpy()[places[found]] != wanted.images[column].to_numpy()[found]
        _refuse(differs, wanted.select(found), path, f"has another {column} than in the manifest")
    if not found.all():
        readable = read_table(folder / "images.csv", required=("path",))["path"]
        lost = ~found & wanted.images["path"].isin(readable).to_numpy(dtype=bool)
        again = f"run train_fusion.py --run_dir {folder} again"
        _refuse(lost, wanted, path, f"has no prediction although it is readable; {again}")
    logits = values[places[found]]
    refuse_unequal_rows(wanted.select(found), logits, by, path)
    return found, logits


def refuse_unequal_rows(images: Manifest, logits: Float32[np.ndarray, "N C"], by: str, where: Path) -> None:
    """Check that all images of a study (or patient, as `by` says) carry the same values, as fusion leaves them.

    Raises:
        InputError: names the first image that differs from its group.
    """
    group, _ = pd.factorize(images.images[f"{by}_id"])
    first = np.unique(group, return_index=True)[1]
    differs = (logits != logits[first[group]]).any(axis=1)
    _refuse(differs, images, where, f"has other values than the first image of its {by}; the file was edited")


def _refuse(wrong: Bool[np.ndarray, "N"], images: Manifest, where: Path | str, fault: str) -> None:
    """Raise for the first image marked."""
    if wrong.any():
        row = int(np.argmax(wrong))
        image, patient = images.images["image_id"].iat[row], images.images["patient_id"].iat[row]
        raise InputError(f"{where}: image '{image}' of patient '{patient}' {fault} ({wrong.sum()} such images)")
