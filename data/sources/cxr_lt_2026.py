"""CXR-LT 2026 (ISBI 2026) on PadChest images: 30 classes (task 1), or the test table of the 6 unseen ones (task 2).

    <labels>/CXRLT_2026_training.csv       ImageID, StudyDate_DICOM, PatientID and 30 classes
    <labels>/Removal.csv                   images of the evaluation's patients; not to be trained on
    <labels>/CXRLT_2026_TEST_ALL_TASK1.csv, ..._TASK2.csv    the same three columns, then columns without a name
    <images>/<ImageID>                     the PadChest PNGs, or in folders as PadChest's zips have them

`PatientID` went through a spreadsheet: every value reads like 1.90E+38, so that many patients share one. Patient, study
and view come from the PadChest table instead, by ImageID, and the rounded number is compared with them. The labels in
that table are not touched: the rules forbid them for the evaluation images.

Not published, and therefore checked: whether the training table still holds the rows of Removal.csv (they are left
out), the layout of the test table of task 2, and how its images from NIH ChestX-ray14 are called.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data.errors import InputError
from data.ids import SPREADSHEET_ID
from data.label_spaces import CXR_LT_2026_CLASSES, CXR_LT_2026_UNSEEN_CLASSES
from data.labels import parse_labels
from data.manifest import MANIFEST_COLUMNS, SPLITS, Manifest, check_manifest
from data.sources.cxr_lt_tables import LABEL_VALUES
from data.sources.nih_tables import NAME as NIH_NAME
from data.sources.padchest import image_paths, read_metadata
from data.sources.release import find_table
from data.sources.table import agree_within_studies, validate_by_patient
from data.tables import read_table
from data.views import view_of_padchest, views_of

TRAINING, REMOVAL = "CXRLT_2026_training.csv", "Removal.csv"
TESTS = {1: "CXRLT_2026_TEST_ALL_TASK1.csv", 2: "CXRLT_2026_TEST_ALL_TASK2.csv"}
CLASSES = {1: CXR_LT_2026_CLASSES, 2: CXR_LT_2026_UNSEEN_CLASSES}
KEYS = ("ImageID", "StudyDate_DICOM", "PatientID")
TRAINING_IMAGES = 142_928  # all of PadChest without Removal.csv: 160,861 - 17,933
ROUNDING = 0.006  # of three digits: 1.00E+38 may stand for anything from 0.995 to 1.005

log = logging.getLogger(__name__)


def read(
    images: Path,
    labels: Path,
    padchest: Path,
    task: Literal[1, 2] = 1,
    val_fraction: float = 0.1,
    overlap: Literal["refuse", "drop"] = "refuse",
    study_labels: Literal["same", "any"] = "same",
    seed: int = 0,
) -> Manifest:
    """Read CXR-LT 2026 as a manifest. Images are not opened; one that is missing on disk is found by `data.scan`.

    Args:
        images: Folder of the PadChest PNGs, all in one or in one folder per zip (0 to 54).
        labels: Folder with CXRLT_2026_training.csv, Removal.csv and the test tables.
        padchest: PadChest's own table (PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv or .csv.gz).
        task: 1: train, val and test with the 30 classes. 2: the images of task 2 as test, with the 6 unseen classes.
            The labels of test images are unknown.
        val_fraction: Part of the training patients that validates, in (0, 1).
        overlap: What to do when a test patient has training images left: refuse, or drop those.
        study_labels: "same": the images of a study must carry the same labels. "any": a study has the labels that any
            of its images has.
        seed: Of the validation part.

    Raises:
        InputError: A missing folder or file, other classes, an image that the PadChest table does not have, a table
            that differs from what is known of it, a fault in a table.
    """
    images, labels, padchest = Path(images), Path(labels), Path(padchest)
    metadata = read_metadata(padchest)
    metadata = metadata.assign(view=views_of(metadata["Projection"], view_of_padchest, str(padchest)))
    metadata = metadata.set_index("ImageID")
    if not metadata.index.is_unique:
        raise InputError(f"{padchest}: ImageID '{metadata.index[metadata.index.duplicated()][0]}' occurs twice")
    test = _with_metadata(_read_test(find_table(labels, TESTS[task], "--labels"), task), metadata, padchest, task)
    parts = {"test": test}
    if task == 1:
        train = _with_metadata(_read_training(labels), metadata, padchest, task)
        parts["train"] = _without_test_patients(train, test, overlap)
    frame = pd.concat([parts[split].assign(split=split) for split in SPLITS if split in parts], ignore_index=True)
    manifest = _manifest(frame, images, CLASSES[task], str(labels))
    manifest = agree_within_studies(manifest, study_labels)
    return validate_by_patient(manifest, val_fraction, seed) if task == 1 else manifest


def _read_training(labels: Path) -> pd.DataFrame:
    """The training table, without the rows of Removal.csv."""
    path = find_table(labels, TRAINING, "--labels")
    frame = read_table(path)
    wanted = (*KEYS, *CXR_LT_2026_CLASSES)
    missing = [f"'{name}'" for name in wanted if name not in frame]
    unexpected = [f"'{name}'" for name in frame if name not in wanted]
    if missing or unexpected:
        raise InputError(
            f"{path}, row 1: {', '.join(KEYS)} and the 30 classes of CXR-LT 2026 are wanted;"
            f" missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}"
        )
    removal = find_table(labels, REMOVAL, "--labels")
    removed = frame["ImageID"].isin(read_table(removal, required=KEYS)["ImageID"])
    if removed.all():
        raise InputError(f"{path}: every image is in {removal}; nothing is left")
    if removed.any():
        log.warning("%s: %d images left out, they are in %s", path.name, removed.sum(), removal.name)
    if len(frame) - removed.sum() != TRAINING_IMAGES:
        log.warning("%s: %d training images, %d were published", path, len(frame) - removed.sum(), TRAINING_IMAGES)
    values = parse_labels(frame, CXR_LT_2026_CLASSES, str(path), LABEL_VALUES)
    return _with_place(frame, path).assign(**dict(zip(CXR_LT_2026_CLASSES, values.T, strict=True)))[~removed]


def _read_test(path: Path, task: int) -> pd.DataFrame:
    """A test table: ids, and perhaps columns for the classes, named or not, without a value in them."""
    frame = read_table(path, required=("ImageID",), unnamed=True)
    for name in frame.columns.drop([name for name in KEYS if name in frame]):
        filled = frame[name] != ""
        if filled.any():
            raise InputError(
                f"{path}, row {int(np.argmax(filled)) + 2}, column '{name}': {', '.join(KEYS)} and empty columns are"
                f" expected in the test table of task {task}, got '{frame[name][filled].iat[0]}'"
            )
    keys = frame.reindex(columns=list(KEYS), fill_value="")
    return _with_place(keys, path).assign(**dict.fromkeys(CLASSES[task], np.float32("nan")))


def _with_place(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """With the table and row of each line, for an error to name."""
    return frame.assign(place=[f"{path}, row {number}" for number in range(2, len(frame) + 2)])


def _with_metadata(frame: pd.DataFrame, metadata: pd.DataFrame, padchest: Path, task: int) -> pd.DataFrame:
    """With patient, study, view and path by PadChest's table, or by the name of an NIH image in task 2."""
    found = frame["ImageID"].isin(metadata.index)
    nih = frame["ImageID"].str.fullmatch(NIH_NAME.pattern) & ~found
    bad = ~found & ~(nih & (task == 2))
    if bad.any():
        first = int(np.argmax(bad))
        also = ", nor a name of NIH ChestX-ray14 (00012345_000.png)" if task == 2 else ""
        raise InputError(
            f"{frame['place'].iat[first]}: ImageID '{frame['ImageID'].iat[first]}'"
            f" (one of {bad.sum()}) is not in {padchest}{also}"
        )
    own = metadata.reindex(frame["ImageID"], fill_value="").set_axis(frame.index)
    _check_rounded(frame[found], own["PatientID"][found], padchest)
    stem = frame["ImageID"].str.removesuffix(".png")
    return frame.assign(
        patient_id=own["PatientID"].where(found, stem.str[:8]),
        study_id=own["StudyID"].where(found, stem),
        view=own["view"].where(found, "UNKNOWN"),
        folder=own["ImageDir"],
        source=pd.Series("cxr_lt_2026", frame.index).where(found, "cxr_lt_2026_nih"),
    )


def _check_rounded(frame: pd.DataFrame, patients: pd.Series, padchest: Path) -> None:
    """Compare the challenge's PatientID, as far as it goes, with the one found: a wrong join must not go unnoticed."""
    given = frame["PatientID"]
    rounded = given.str.fullmatch(SPREADSHEET_ID.pattern)
    ratio = given.where(rounded, "nan").str.replace(",", ".").astype(float) / patients.astype(float)
    bad = (given != "") & (given != patients) & ~(rounded & ((ratio - 1).abs() < ROUNDING))
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{frame['place'].iat[first]}: PatientID '{given.iat[first]}' is expected to be the rounded"
            f" '{patients.iat[first]}' that {padchest} has for this ImageID ({bad.sum()} rows differ)"
        )


def _without_test_patients(train: pd.DataFrame, test: pd.DataFrame, overlap: str) -> pd.DataFrame:
    shared = train["patient_id"].isin(test["patient_id"])
    if not shared.any():
        return train
    found = f"{shared.sum()} training images belong to {train['patient_id'][shared].nunique()} test patients"
    if overlap == "refuse":
        raise InputError(
            f"{TRAINING}: {found}, first {train['ImageID'][shared].iat[0]}; --overlap drop leaves them out"
        )
    if shared.all():
        raise InputError(f"{TRAINING}: all {found}; nothing is left")
    log.warning("%s: %s and are left out", TRAINING, found)
    return train[~shared]


def _manifest(frame: pd.DataFrame, images: Path, classes: tuple[str, ...], where: str) -> Manifest:
    columns = {
        **{name: frame[name] for name in MANIFEST_COLUMNS if name in frame},
        "image_id": frame["ImageID"],
        "path": image_paths(images, frame["folder"], frame["ImageID"], where),
    }
    rows = pd.DataFrame(columns, dtype="str")[list(MANIFEST_COLUMNS)]
    manifest = Manifest(rows, frame[list(classes)].to_numpy(dtype=np.float32), classes, images)
    check_manifest(manifest, where)
    return manifest
