"""Any CSV with one row per image: its columns are named by options, or carry the manifest's own names.

    python scripts/prepare.py table --table chest/metadata.csv --images chest --classes auto --min_positives 20 \\
        --out runs/chest/manifest.csv
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data.errors import InputError
from data.groups import group_images
from data.labels import parse_label, parse_labels
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.splits import split_patients
from data.tables import read_table
from data.views import VIEWS

UNCERTAIN = ("-1", "-1.0")
"""How CheXpert's tables write that a report is not sure."""

log = logging.getLogger(__name__)


def read(
    table: Path,
    images: Path,
    classes: Sequence[str] | Literal["auto"],
    image_id: str = "image_id",
    study_id: str = "study_id",
    patient_id: str = "patient_id",
    view: str | None = "view",
    path: str = "path",
    split: str | None = None,
    source: str = "source",
    view_map: Mapping[str, str] | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
    min_positives: int = 0,
    study_labels: Literal["same", "any"] = "same",
    uncertain: Literal["refuse", "ones", "zeros", "ignore"] = "refuse",
) -> Manifest:
    """Read a table as a manifest. Labels are 1, 0, a fraction, or empty for unknown.

    Args:
        table: CSV file, one row per image.
        images: Folder that the paths are relative to.
        classes: Label columns, or "auto": every column without another use whose values are all labels.
        image_id: Column of the image's id.
        study_id: Column of the study's id; may be the image's column, where every image is its own study.
        patient_id: Column of the patient's id.
        view: Column of the view, or null where views are unknown.
        path: Column of the image's path below `images`.
        split: Column of train, val or test; null: split by patient here.
        source: Column of the source, or, where there is no such column, the same text for every row.
        view_map: Text in the view column -> view, for texts that are not a view's name; an empty one is UNKNOWN.
        val_fraction: Part that validates, where the split is made here; in (0, 1).
        test_fraction: Part that tests, likewise.
        seed: Of that split.
        min_positives: Classes with fewer images of label 1 are left out.
        study_labels: "same": the images of a study must carry the same labels. "any": they differ because single
            images were labelled; each image of a study then gets the study's label, the largest known one.
        uncertain: What a label of -1, as in CheXpert's tables, becomes: 1 (U-ones), 0 (U-zeros), or unknown; "refuse":
            there is none.

    Raises:
        InputError: A missing column, a bad value, or whatever `check_manifest` and `group_images` refuse.
    """
    table, images, where = Path(table), Path(images), str(table)
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; --images wants the folder that the paths are relative to")
    used = [image_id, study_id, patient_id, path] + [name for name in (view, split) if name is not None]
    frame = read_table(table, required=[*used, *([] if classes == "auto" else classes)])
    frame = _decided(frame, {*used, source}, uncertain)
    names = _label_columns(frame, {*used, source}, where) if classes == "auto" else tuple(classes)
    columns = {
        "image_id": frame[image_id],
        "study_id": frame[study_id],
        "patient_id": frame[patient_id],
        "view": "UNKNOWN" if view is None else _views(frame[view], view_map or {}, where),
        "path": frame[path],
        "split": "train" if split is None else frame[split],
        "source": frame[source] if source in frame else source,
    }
    rows = pd.DataFrame(columns, dtype="str")[list(MANIFEST_COLUMNS)]
    manifest = Manifest(rows, parse_labels(frame, names, where), names, images)
    check_manifest(manifest, where)
    manifest = agree_within_studies(frequent_classes(manifest, min_positives, where), study_labels)
    if split is None:
        manifest = split_by_patient(manifest, val_fraction, test_fraction, seed)
    return manifest


def _decided(frame: pd.DataFrame, used: set[str], uncertain: str) -> pd.DataFrame:
    """The table with every -1 of its label columns replaced."""
    if uncertain == "refuse":
        return frame
    text = {"ones": "1", "zeros": "0", "ignore": ""}[uncertain]
    columns = [name for name in frame.columns if name not in used]
    return frame.assign(**{name: frame[name].replace(dict.fromkeys(UNCERTAIN, text)) for name in columns})


def _label_columns(frame: pd.DataFrame, used: set[str], where: str) -> tuple[str, ...]:
    """Columns whose values are all labels, with at least one known."""
    names = []
    for name in frame.columns:
        texts = set(frame[name].unique())
        if name not in used | set(MANIFEST_COLUMNS) and texts != {""} and None not in map(parse_label, texts):
            names.append(name)
    if not names:
        raise InputError(f"{where}: no column holds only 0, 1, fractions and empty fields; name the classes")
    log.warning("classes found: %s", ", ".join(names))
    return tuple(names)


def _views(column: pd.Series, view_map: Mapping[str, str], where: str) -> pd.Series:
    for text, view in view_map.items():
        if view not in VIEWS:
            raise InputError(f"view_map: '{text}={view}': the view must be one of {', '.join(VIEWS)}")
    known = {"": "UNKNOWN", **{view: view for view in VIEWS}, **view_map}
    bad = ~column.isin(list(known))
    if bad.any():
        row, text = int(np.argmax(bad)), column[bad].iat[0]
        raise InputError(
            f"{where}, row {row + 2}, column '{column.name}': '{text}' is not a view;"
            f" say what it is: --view_map '{text}=PA'"
        )
    return column.map(known)


def frequent_classes(manifest: Manifest, min_positives: int, where: str) -> Manifest:
    """Without the classes that fewer than `min_positives` images have.

    Raises:
        InputError: No class is left.
    """
    positives = (manifest.labels == 1).sum(axis=0)
    keep = positives >= min_positives
    dropped = [f"{name} ({n})" for name, n, kept in zip(manifest.classes, positives, keep, strict=True) if not kept]
    if not dropped:
        return manifest
    log.warning("classes with fewer than %d positives, left out: %s", min_positives, ", ".join(dropped))
    if not keep.any():
        raise InputError(f"{where}: no class has {min_positives} positives, the most is {positives.max()}")
    classes = tuple(name for name, kept in zip(manifest.classes, keep, strict=True) if kept)
    return replace(manifest, labels=manifest.labels[:, keep], classes=classes)


def agree_within_studies(manifest: Manifest, study_labels: Literal["same", "any"]) -> Manifest:
    """With the same labels for all images of a study: refused where they differ, or the largest known one ("any").

    Raises:
        InputError: "same", and a study has images with different labels.
    """
    groups = group_images(manifest, "study", study_labels)
    if study_labels == "same":
        return manifest
    log.warning("%d pairs of study and class had images that disagree; the largest label was taken", groups.conflicts)
    labels = np.empty_like(manifest.labels)
    labels[np.concatenate(groups.rows)] = np.repeat(groups.labels, [len(rows) for rows in groups.rows], axis=0)
    return replace(manifest, labels=labels)


def validate_by_patient(manifest: Manifest, val_fraction: float, seed: int) -> Manifest:
    """With a part of the training patients validating, chosen so that every class keeps its share.

    Raises:
        InputError: `val_fraction` outside (0, 1).
    """
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction must be between 0 and 1, got {val_fraction}")
    train = manifest.of_split("train")
    split = manifest.images["split"].to_numpy(dtype=object)
    fractions = {"train": 1 - val_fraction, "val": val_fraction}
    split[split == "train"] = split_patients(train.images["patient_id"].tolist(), train.labels, fractions, seed)
    log.warning("%d of %d training images validate, by patient", (split == "val").sum(), len(train))
    return replace(manifest, images=manifest.images.assign(split=pd.array(split.tolist(), dtype="str")))


def stacked(parts: Sequence[Manifest]) -> Manifest:
    """The rows of several manifests with the same classes and root, one after the other."""
    images = pd.concat([part.images for part in parts], ignore_index=True)
    rejected = tuple(entry for part in parts for entry in part.rejected)
    return Manifest(images, np.concatenate([part.labels for part in parts]), parts[0].classes, parts[0].root, rejected)


def split_by_patient(manifest: Manifest, val_fraction: float, test_fraction: float, seed: int) -> Manifest:
    """With a split made by patient instead of the one it has."""
    fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    splits = split_patients(manifest.images["patient_id"].tolist(), manifest.labels, fractions, seed)
    return replace(manifest, images=manifest.images.assign(split=pd.array(splits.tolist(), dtype="str")))
