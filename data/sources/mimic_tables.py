"""The tables of MIMIC-CXR-JPG 2.0.0 and 2.1.0 (PhysioNet), which serve the DICOM set MIMIC-CXR too.

    mimic-cxr-2.0.0-metadata.csv.gz    one row per image: ids, ViewPosition, sizes, dates
    mimic-cxr-2.0.0-split.csv.gz       one row per image: train, validate or test
    mimic-cxr-2.0.0-chexpert.csv.gz    one row per study: 14 labels found in its report; -negbio: by another labeler
    mimic-cxr-2.1.0-test-set-labeled.csv    one row per study of a part of the test split: labels by radiologists

Release 2.1.0 keeps 2.0.0 in the first four names. Columns are taken by name: subject and study change places between
tables, and the radiologists' table says Airspace Opacity where the others say Lung Opacity. A report label is 1.0, 0.0,
-1.0 (uncertain) or blank (not mentioned); No Finding is 1.0 or blank. 8 studies have no row, in 2,414 all is blank.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError
from data.label_spaces import MIMIC_CXR_CLASSES
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.sources.mimic_layout import TABLE_NAMES, check_ids, image_paths, mimic_views, plain_study_ids
from data.sources.release import find_table
from data.sources.report_labels import NotMentioned, Uncertain, parse_report_labels
from data.tables import read_table

METADATA = "mimic-cxr-2.0.0-metadata.csv.gz"
SPLIT = "mimic-cxr-2.0.0-split.csv.gz"
RADIOLOGISTS = "mimic-cxr-2.1.0-test-set-labeled.csv"

SPLIT_NAMES = {"train": "train", "validate": "val", "test": "test"}
RADIOLOGISTS_SAY = {"Lung Opacity": "Airspace Opacity"}

Labeler = Literal["chexpert", "negbio"]
TestLabels = Literal["report", "radiologist"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelRule:
    """Which labels, and what -1 and blank mean; see `mimic_cxr_jpg.read`."""

    labeler: Labeler
    uncertain: Uncertain
    not_mentioned: NotMentioned
    test_labels: TestLabels


def read_ids(path: Path, columns: tuple[str, ...], key: str) -> pd.DataFrame:
    """A table with the columns named, ids of MIMIC's form under the manifest's names, each `key` once.

    Raises:
        InputError: A fault of the table, an id of another form or a second time.
    """
    table = read_table(path, required=columns)
    table["study_id"] = plain_study_ids(table["study_id"])
    check_ids(table, str(path))
    table = table.rename(columns={theirs: ours for ours, theirs in TABLE_NAMES.items()})
    _refuse(table, path, key, table[key].duplicated(), "occurs twice")
    return table


def read_images(folder: Path) -> pd.DataFrame:
    """Metadata joined with the official split: columns `image_id, study_id, patient_id, view, split`.

    Raises:
        InputError: A fault of a table, an id of another form, other images or other ids in the two tables.
    """
    path = find_table(folder, METADATA, "--tables")
    metadata = read_ids(path, ("dicom_id", "subject_id", "study_id", "ViewPosition"), key="image_id")
    split_path = find_table(folder, SPLIT, "--tables")
    split = read_ids(split_path, ("dicom_id", "study_id", "subject_id", "split"), key="image_id")
    known = ", ".join(SPLIT_NAMES)
    _refuse(split, split_path, "split", ~split["split"].isin(list(SPLIT_NAMES)), f"is not one of {known}")
    split = same_images(metadata, path, split, split_path)
    views = mimic_views(metadata, str(path))
    return metadata[["image_id", "study_id", "patient_id"]].assign(view=views, split=split["split"].map(SPLIT_NAMES))


def same_images(frame: pd.DataFrame, path: Path, other: pd.DataFrame, other_path: Path) -> pd.DataFrame:
    """The rows of `other` in the order of `frame`, where both list the same images of the same studies and patients.

    Raises:
        InputError: Names the first image that only one of them has, or the row whose study or patient differs.
    """
    rows = pd.Index(other["image_id"]).get_indexer(frame["image_id"])
    _refuse(frame, path, "image_id", rows < 0, f"is not in {other_path.name}; in one release both have the same images")
    strange = ~other["image_id"].isin(frame["image_id"])
    _refuse(other, other_path, "image_id", strange, f"is not in {path.name}; in one release both have the same images")
    other = other.iloc[rows].reset_index(drop=True)
    for name in ("study_id", "patient_id"):
        differs = (frame[name] != other[name]).to_numpy(dtype=bool)
        theirs = other[name].iat[int(np.argmax(differs))]
        _refuse(frame, path, name, differs, f"is {theirs} for the same image in {other_path.name}")
    return other


def labelled_manifest(
    rows: pd.DataFrame, tables: Path, images: Path, suffix: str, source: str, rule: LabelRule
) -> Manifest:
    """The images of `read_images`, with their places below `images` and their studies' labels."""
    labels = report_labels(tables, rows, rule)
    frame = rows.assign(path=image_paths(rows, suffix), source=source)[list(MANIFEST_COLUMNS)].astype("str")
    manifest = Manifest(frame, labels, MIMIC_CXR_CLASSES, images)
    check_manifest(manifest, str(tables))
    return _with_radiologists(manifest, tables, rule) if rule.test_labels == "radiologist" else manifest


def report_labels(folder: Path, images: pd.DataFrame, rule: LabelRule) -> Float32[np.ndarray, "N C"]:
    """Labels of each image's study, found in its report; NaN where nothing is known. Classes: `MIMIC_CXR_CLASSES`.

    Raises:
        InputError: A fault of the table, a study that has no image, or another patient's.
    """
    path = find_table(folder, f"mimic-cxr-2.0.0-{rule.labeler}.csv.gz", "--tables")
    table = read_ids(path, ("subject_id", "study_id", *MIMIC_CXR_CLASSES), key="study_id")
    studies = images.drop_duplicates("study_id")
    rows = pd.Index(studies["study_id"]).get_indexer(table["study_id"])
    _refuse(table, path, "study_id", rows < 0, "has no image in the metadata")
    differs = studies["patient_id"].to_numpy()[rows] != table["patient_id"].to_numpy()
    _refuse(table, path, "study_id", differs, "is another patient's in the metadata")
    without = ~studies["study_id"].isin(table["study_id"])
    if without.any():
        log.warning("%s: no row for %d studies (8 in the release); their labels are unknown", path, without.sum())
    return _labels_of_images(table, path, images, rule)


def _with_radiologists(manifest: Manifest, folder: Path, rule: LabelRule) -> Manifest:
    """Test images have the radiologists' labels (release 2.1.0); those that they did not read are left out."""
    path = find_table(folder, RADIOLOGISTS, "--tables")
    names = {name: RADIOLOGISTS_SAY.get(name, name) for name in MIMIC_CXR_CLASSES}
    table = read_ids(path, ("study_id", *names.values()), key="study_id")
    table = table.rename(columns={theirs: name for name, theirs in names.items()})
    test = (manifest.images["split"] == "test").to_numpy(dtype=bool)
    strange = ~table["study_id"].isin(manifest.images["study_id"][test])
    _refuse(table, path, "study_id", strange, "is not in the official test split, as all of this table's should be")
    read = manifest.images["study_id"].isin(table["study_id"]).to_numpy(dtype=bool)
    log.warning("%d images of the test split were not read by radiologists; left out", (test & ~read).sum())
    labels = np.where(read[:, None], _labels_of_images(table, path, manifest.images, rule), manifest.labels)
    return Manifest(manifest.images, labels, manifest.classes, manifest.root).select(read | ~test)


def _labels_of_images(
    table: pd.DataFrame, path: Path, images: pd.DataFrame, rule: LabelRule
) -> Float32[np.ndarray, "N C"]:
    """Labels of a table by study for each image; NaN for studies without a row."""
    labels = parse_report_labels(table, MIMIC_CXR_CLASSES, str(path), rule.uncertain, rule.not_mentioned)
    rows = pd.Index(table["study_id"]).get_indexer(images["study_id"])
    return np.where(rows[:, None] < 0, np.float32(np.nan), labels[rows])


def _refuse(table: pd.DataFrame, path: Path, column: str, bad: np.ndarray | pd.Series, fault: str) -> None:
    """Name the first bad row of a table, by the column's name in the file."""
    bad = np.asarray(bad, dtype=bool)
    if bad.any():
        row, name = int(np.argmax(bad)), TABLE_NAMES.get(column, column)
        more = f" ({bad.sum()} such rows)" if bad.sum() > 1 else ""
        raise InputError(f"{path}, row {row + 2}, column '{name}': {table[column].iat[row]} {fault}{more}")
