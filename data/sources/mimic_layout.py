"""What every data set on MIMIC-CXR images shares: where an image lies, how its ids look, and its view.

    files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg     (.dcm in the DICOM set)

`subject_id` has 8 digits and starts with 1, `study_id` 8 digits and 5, `dicom_id` 5 times 8 hexadecimal digits. CXR-LT
writes an `s` before the study's digits, MIMIC does not; it is dropped.
"""

import re
from pathlib import Path

import pandas as pd

from data.errors import InputError
from data.views import view_of_mimic, view_of_mimic_meaning, views_of

TABLE_NAMES = {"image_id": "dicom_id", "study_id": "study_id", "patient_id": "subject_id"}
STUDY_PREFIX = re.compile(r"^s(?=\d+$)")
ID_FORMS = {
    "subject_id": (r"1\d{7}", "8 digits, the first of them 1"),
    "study_id": (r"5\d{7}", "8 digits, the first of them 5"),
    "dicom_id": (r"[0-9a-f]{8}(-[0-9a-f]{8}){4}", "5 groups of 8 hexadecimal digits joined by '-'"),
}


def check_image_folder(images: Path) -> None:
    """Refuse a folder that does not hold `files/`."""
    if not (images / "files").is_dir():
        raise InputError(
            f"{images}: no folder 'files' in it; --images wants the MIMIC-CXR folder that holds files/ (p10 to p19)"
        )


def plain_study_ids(column: pd.Series) -> pd.Series:
    """Study ids without the `s` that CXR-LT puts before the digits."""
    return pd.Series([STUDY_PREFIX.sub("", text) for text in column.tolist()], column.index, dtype="str")


def check_ids(frame: pd.DataFrame, where: str) -> None:
    """Refuse ids that are not of MIMIC's form, as a spreadsheet leaves them: `10000032.0`, `5.04E+07`.

    Raises:
        InputError: Names the row, the column, the id and the form that was expected.
    """
    for name, (pattern, form) in ID_FORMS.items():
        if name not in frame:
            continue
        fits = re.compile(pattern, re.ASCII).fullmatch
        row = next((row for row, text in enumerate(frame[name].tolist()) if not fits(text)), None)
        if row is not None:
            raise InputError(
                f"{where}, row {row + 2}, column '{name}': '{frame[name].iat[row]}' is not of MIMIC's form ({form})"
            )


def image_paths(images: pd.DataFrame, suffix: str = ".jpg") -> list[str]:
    """The place of each image below the folder that holds `files/`, in MIMIC's layout.

    Args:
        images: Columns `image_id, study_id, patient_id`, as in the manifest.
    """
    ids = [images[name].tolist() for name in ("patient_id", "study_id", "image_id")]
    rows = zip(*ids, strict=True)
    return [f"files/p{patient[:2]}/p{patient}/s{study}/{image}{suffix}" for patient, study, image in rows]


def check_paths(images: pd.DataFrame, where: str, column: str, suffixes: tuple[str, ...]) -> None:
    """Refuse a path that is not the one its row's ids make: ids and files would be of different images.

    Args:
        images: The manifest's columns `image_id, study_id, patient_id, path`.
        column: The path's name in the table.

    Raises:
        InputError: Names the row, the path and the one expected.
    """
    places = image_paths(images, suffix="")
    for row, (path, place) in enumerate(zip(images["path"].tolist(), places, strict=True)):
        if not path.startswith(place) or path[len(place) :] not in suffixes:
            raise InputError(
                f"{where}, row {row + 2}, column '{column}': '{path}' is not the place of this row's image;"
                f" expected '{place}{suffixes[0]}'"
            )


def mimic_views(frame: pd.DataFrame, where: str) -> pd.Series:
    """View of each row: `ViewPosition`, or where that is blank `ViewCodeSequence_CodeMeaning`, if there is one.

    Raises:
        InputError: A ViewPosition that MIMIC-CXR does not have, named with its row.
    """
    found = views_of(frame["ViewPosition"], view_of_mimic, where)
    if "ViewCodeSequence_CodeMeaning" not in frame:
        return found
    meanings = frame["ViewCodeSequence_CodeMeaning"]
    by_meaning = meanings.map({text: view_of_mimic_meaning(text) for text in meanings.unique()})
    return found.where(found != "UNKNOWN", by_meaning)
