"""BRAX 1.1.0 (PhysioNet): 40,967 radiographs of 24,959 studies from a hospital in Brazil, 14 labels found in reports.

    <images>/master_spreadsheet_update.csv      (index), DicomPath, PngPath, PatientID, PatientSex, PatientAge,
                                                AccessionNumber, StudyDate, the 14 of CheXpert, ViewPosition, Rows, ...
    <images>/images/id_.../Study_.../Series_.../image-....png
    <images>/Anonymized_DICOMs/id_.../Study_.../Series_.../image-....dcm

Labels are CheXpert's: 1, 0, -1 (uncertain) or blank (not mentioned), and "No Finding" is 1 or blank. The table could
not be seen when this was written, only code that reads it and its description: columns are taken by name, every value
that is not known is refused. No official split exists.

A study is a patient's accession number: nobody promises that two patients never share one.
"""

import re
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data.errors import InputError
from data.label_spaces import BRAX_CLASSES
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.sources.release import compare_with_release, find_table
from data.sources.report_labels import NotMentioned, UncertainRule, parse_report_labels
from data.sources.table import agree_within_studies, split_by_patient
from data.tables import read_table
from data.views import view_of_brax, views_of

TABLES = ("master_spreadsheet_update.csv", "master_spreadsheet.csv")
NUM_IMAGES = 40_967
FORMS = {
    "png": ("PngPath", r"images/(?:[^/]+/)*[^/]+\.png"),
    "dicom": ("DicomPath", r"Anonymized_DICOMs/(?:[^/]+/)*[^/]+\.dcm"),
}


def read(
    images: Path,
    table: Path | None = None,
    form: Literal["png", "dicom"] = "png",
    uncertain: UncertainRule = "ignore",
    not_mentioned: NotMentioned = "zeros",
    study_labels: Literal["same", "any"] = "same",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Manifest:
    """Read BRAX as a manifest. Images are not opened.

    Args:
        images: BRAX folder, the one that holds `images/` or `Anonymized_DICOMs/`.
        table: The table; null: master_spreadsheet_update.csv in the images' folder.
        form: The PNGs or the DICOM files.
        uncertain: What -1 becomes: 1, 0, unknown, or a number in [0, 1]; one for all or by class.
        not_mentioned: What a blank becomes: 0 or unknown. A blank No Finding is 0 (the table has no other way to say
            it), and an image whose labels are all blank is unknown in all classes.
        study_labels: "same": the images of a study must carry the same labels. "any": a study has the labels that any
            of its images has.
        val_fraction: Part of the patients that validates, in (0, 1).
        test_fraction: Part that tests, likewise.
        seed: Of that split.

    Raises:
        InputError: A missing folder or file, a value that BRAX is not known to have, a fault in the table.
    """
    images = Path(images)
    path = Path(table) if table else find_table(images, TABLES[0], "--images", *TABLES[1:])
    column, pattern = FORMS[form]
    ids = ("PatientID", "AccessionNumber", "ViewPosition", column)
    frame = read_table(path, required=(*ids, *BRAX_CLASSES), only_required=True, unnamed=True)
    compare_with_release(str(path), "BRAX", len(frame), NUM_IMAGES)
    _check_paths(frame[column], pattern, path)
    if not (images / frame[column].iat[0].split("/")[0]).is_dir():
        raise InputError(
            f"{images}: no folder '{frame[column].iat[0].split('/')[0]}' in it; --images wants BRAX's folder"
        )
    rows = pd.DataFrame(
        {
            "image_id": frame[column].str.rsplit("/", n=1).str[1].str.rsplit(".", n=1).str[0],
            "study_id": frame["PatientID"] + "_" + frame["AccessionNumber"],
            "patient_id": frame["PatientID"],
            "view": views_of(frame["ViewPosition"], view_of_brax, str(path)),
            "path": frame[column],
            "split": "train",
            "source": "brax",
        },
        dtype="str",
    )[list(MANIFEST_COLUMNS)]
    labels = parse_report_labels(frame, BRAX_CLASSES, str(path), uncertain, not_mentioned)
    manifest = Manifest(rows, labels, BRAX_CLASSES, images)
    _refuse_empty(frame, ids, path)
    check_manifest(manifest, str(path))
    return split_by_patient(agree_within_studies(manifest, study_labels), val_fraction, test_fraction, seed)


def _check_paths(column: pd.Series, pattern: str, path: Path) -> None:
    wrong = ~column.map(lambda text: re.fullmatch(pattern, text) is not None).astype(bool)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise InputError(
            f"{path}, row {row + 2}, column '{column.name}': {pattern} is expected, got '{column.iat[row]}'"
        )


def _refuse_empty(frame: pd.DataFrame, names: tuple[str, ...], path: Path) -> None:
    for name in names:
        empty = frame[name] == ""
        if name != "ViewPosition" and empty.any():
            raise InputError(f"{path}, row {int(np.argmax(empty)) + 2}: {name} is empty")
