"""What the CXR-LT challenges on MIMIC-CXR-JPG images (2023, 2024) share: one table per split, all of one form.

One row per image: `dicom_id, subject_id, study_id, ViewPosition, ViewCodeSequence_CodeMeaning, path` (`fpath` in 2024)
and the classes, 0 or 1. Labels belong to the study. Columns are taken by name; ids stay text. Some tables came without
labels during a challenge.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data.errors import InputError
from data.groups import group_images
from data.labels import ZERO_OR_ONE, parse_labels
from data.manifest import MANIFEST_COLUMNS, SPLITS, Manifest, check_manifest
from data.sources.mimic_layout import check_image_folder, check_paths, mimic_views, plain_study_ids
from data.sources.release import compare_with_release
from data.sources.table import stacked, validate_by_patient
from data.tables import read_table

REQUIRED = ("dicom_id", "subject_id", "study_id", "ViewPosition")
METADATA = (*REQUIRED, "ViewCodeSequence_CodeMeaning", "path", "fpath")
LABEL_VALUES = ZERO_OR_ONE | {"": np.nan}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Challenge:
    """One task of one year: where its tables are and what they hold."""

    name: str
    """As written in messages."""
    source: str
    """Text of the manifest's `source` column."""
    folders: tuple[str, ...]
    """Below the folder with the labels; "." is that folder itself."""
    files: dict[str, tuple[str, ...]]
    """Names of each split's table; the first that is there is read."""
    classes: tuple[str, ...]
    """The classes of development and test, in the official order."""
    train_classes: tuple[str, ...]
    """The class columns of the training table, which may be more, or others."""
    images: dict[str, int]
    """How many images each split has in the release, where that is published."""
    train_positives: dict[str, int]
    """How many images of the training table have each class."""


def read_challenge(
    challenge: Challenge,
    images: Path,
    labels: Path,
    development: Literal["val", "split"] = "val",
    val_fraction: float = 0.1,
    overlap: Literal["refuse", "drop"] = "refuse",
    seed: int = 0,
) -> Manifest:
    """The challenge's tables as a manifest; the arguments are those of `cxr_lt_2023.read`."""
    images, labels = Path(images), Path(labels)
    check_image_folder(images)
    paths = {
        split: _find(challenge, labels, split)
        for split in SPLITS
        if split != "val" or _has_development(challenge, labels, development)
    }
    parts = {split: _read_file(challenge, path, split, images) for split, path in paths.items()}
    if "val" in parts and np.isnan(parts["val"].labels).all():
        log.warning("%s has no labels; its %d images are left out", paths["val"].name, len(parts["val"]))
        del parts["val"]
    parts = _without_overlap(parts, paths, overlap)
    if "val" not in parts:
        parts["train"] = validate_by_patient(parts["train"], val_fraction, seed)
    manifest = stacked([parts[split] for split in SPLITS if split in parts])
    check_manifest(manifest, str(labels))
    try:
        group_images(manifest, "study")
    except InputError as error:
        raise InputError(f"{labels}: {error}") from None
    return manifest


def _find(challenge: Challenge, labels: Path, split: str) -> Path:
    for name in challenge.files[split]:
        for folder in challenge.folders:
            for path in (labels / folder / name, labels / folder / f"{name}.gz"):
                if path.is_file():
                    return path
    wanted = labels / challenge.files[split][0]
    folders = ", ".join(str(labels / folder) for folder in challenge.folders if folder != ".")
    raise InputError(f"{wanted}: no such file, nor in {folders}; --labels wants the folder of {challenge.name}")


def _has_development(challenge: Challenge, labels: Path, development: str) -> bool:
    if development == "split":
        return False
    try:
        _find(challenge, labels, "val")
    except InputError:
        log.warning("no %s; part of the training patients validates instead", challenge.files["val"][0])
        return False
    return True


def _read_file(challenge: Challenge, path: Path, split: str, root: Path) -> Manifest:
    frame = read_table(path, required=REQUIRED)
    where = str(path)
    path_column = next((name for name in ("path", "fpath") if name in frame), None)
    if path_column is None:
        raise InputError(f"{where}, row 1: missing column 'path' (or 'fpath')")
    wanted = challenge.train_classes if split == "train" else challenge.classes
    has_labels = _check_classes(frame, where, wanted, challenge.name, may_be_absent=split != "train")
    places = frame[path_column]
    columns = {
        "image_id": frame["dicom_id"],
        "study_id": plain_study_ids(frame["study_id"]),
        "patient_id": frame["subject_id"],
        "view": mimic_views(frame, where),
        "path": places.where(places.str.startswith(("files/", "/", ".")), "files/" + places),
        "split": split,
        "source": challenge.source,
    }
    values = np.full((len(frame), len(challenge.classes)), np.nan, np.float32)
    if has_labels:
        shared = [name for name in challenge.classes if name in frame]
        found = parse_labels(frame, shared, where, LABEL_VALUES)
        if 0 < np.isnan(found).sum() < found.size:
            log.warning("%s: %d labels are blank, in the release none; they are unknown", where, np.isnan(found).sum())
        values[:, [challenge.classes.index(name) for name in shared]] = found
    rows = pd.DataFrame(columns, dtype="str")[list(MANIFEST_COLUMNS)]
    manifest = Manifest(rows, values, challenge.classes, root)
    check_manifest(manifest, where)
    check_paths(manifest.images, where, path_column, (".jpg", ".png", ".dcm"))
    if split in challenge.images:
        positives = dict(zip(manifest.classes, (manifest.labels == 1).sum(axis=0).tolist(), strict=True))
        published = challenge.train_positives if split == "train" else {}
        compare_with_release(where, challenge.name, len(manifest), challenge.images[split], positives, published)
    return manifest


def _check_classes(
    frame: pd.DataFrame, where: str, wanted: tuple[str, ...], challenge: str, may_be_absent: bool
) -> bool:
    """Whether the table has exactly the class columns wanted; none at all is allowed for a table without labels."""
    found = [name for name in frame.columns if name not in METADATA]
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    if may_be_absent and not found:
        return False
    if missing or unexpected:
        raise InputError(
            f"{where}, row 1: the {len(wanted)} classes of {challenge} are wanted; missing:"
            f" {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}"
        )
    return True


def _without_overlap(parts: dict[str, Manifest], paths: dict[str, Path], overlap: str) -> dict[str, Manifest]:
    """Refuse patients that are in two files, or drop their rows from the earlier split."""
    parts = dict(parts)
    for split, later in (("train", ("val", "test")), ("val", ("test",))):
        if split not in parts:
            continue
        others = {patient for name in later if name in parts for patient in parts[name].images["patient_id"].tolist()}
        shared = parts[split].images["patient_id"].isin(others)
        if not shared.any():
            continue
        patients, name = parts[split].images["patient_id"][shared].unique(), paths[split]
        if overlap == "refuse":
            tables = " or ".join(paths[n].name for n in later if n in paths)
            raise InputError(
                f"{name}: {len(patients)} patients are also in {tables}, first {patients[0]};"
                f" --overlap drop leaves their rows out of {name.name}"
            )
        log.warning(
            "%s: %d rows of %d patients left out, also in a later split, first %s",
            *(name, shared.sum(), len(patients), patients[0]),
        )
        if shared.all():
            raise InputError(f"{name}: every patient is also in a later split; nothing is left")
        parts[split] = parts[split].select(~shared.to_numpy(dtype=bool))
    return parts
