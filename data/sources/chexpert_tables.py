"""What CheXpert v1.0 and CheXpert Plus share: ids and sides in the path of an image, and tables by image or study.

    [CheXpert-v1.0-small/]train/patient00001/study1/view1_frontal.jpg

There are no id columns in v1.0. What stands before `train`, `valid` or `test` differs from table to table (one has
nothing there) and is not used. `study1` begins anew with every patient, so that a study's id holds the patient's.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import InputError
from data.views import view_of_chexpert

PATH = re.compile(r"(?:[^/]+/)*(train|valid|test)/(patient\d{5})/(study\d+)/(view\d+)_(frontal|lateral)\.jpg", re.ASCII)
STUDY = re.compile(r"(?:[^/]+/)*(train|valid|test)/(patient\d{5})/(study\d+)", re.ASCII)
IMAGE_NAME = re.compile(r"view\d+_(frontal|lateral)\.jpg", re.ASCII)
PATH_FORM = "patient12345/study1/view1_frontal.jpg"


def read_paths(paths: pd.Series, where: str, folder: str | None) -> pd.DataFrame:
    """What the paths of images say.

    Args:
        paths: One per image; the series' name is that of the column.
        where: The table.
        folder: "train", "valid" or "test" if all must lie there, None if in any.

    Returns:
        `image_id, study_id, patient_id, path, side, folder`: patient00001_study1_view1_frontal, patient00001_study1,
        patient00001, the path from `folder` on, Frontal or Lateral, the folder.

    Raises:
        InputError: A path of another form, or in another folder.
    """
    rows = []
    for row, text in enumerate(paths.tolist()):
        found = PATH.fullmatch(text)
        if found is None or (folder is not None and found[1] != folder):
            raise InputError(
                f"{where}, row {row + 2}, column '{paths.name}': '{text}' is not of the form"
                f" .../{folder or 'train'}/{PATH_FORM}"
            )
        part, patient, study, view, side = found.groups()
        image = f"{patient}_{study}_{view}_{side}"
        path = f"{part}/{patient}/{study}/{view}_{side}.jpg"
        rows.append((image, f"{patient}_{study}", patient, path, side.capitalize(), part))
    return pd.DataFrame(rows, columns=["image_id", "study_id", "patient_id", "path", "side", "folder"], dtype="str")


def images_of_studies(table: pd.DataFrame, images: Path, where: str) -> pd.DataFrame:
    """A table by study as one by image: column `Path` in place of `Study`, the images as they lie in `images`.

    Raises:
        InputError: A study of another form, or without images.
    """
    rows, paths = [], []
    for row, text in enumerate(table["Study"].tolist()):
        found = STUDY.fullmatch(text)
        if found is None:
            raise InputError(f"{where}, row {row + 2}, column 'Study': '{text}' is not .../test/patient12345/study1")
        place = "/".join(found.groups())
        names = _list_images(images / place)
        if not names:
            raise InputError(
                f"{where}, row {row + 2}: {images / place} holds no view1_frontal.jpg or the like; the table names"
                f" studies only, so that their images must lie in --images"
            )
        rows += [row] * len(names)
        paths += [f"{place}/{name}" for name in names]
    frame = table.drop(columns="Study").iloc[rows].reset_index(drop=True)
    return frame.assign(Path=pd.array(paths, dtype="str"))


def views(sides: pd.Series, projections: pd.Series, where: str) -> list[str]:
    """View of each row.

    Raises:
        InputError: Names the first row with a pair of values that CheXpert does not have.
    """
    pairs = list(zip(sides.tolist(), projections.tolist(), strict=True))
    known = {}
    for pair in dict.fromkeys(pairs):
        try:
            known[pair] = view_of_chexpert(*pair)
        except InputError as error:
            raise InputError(f"{where}, row {pairs.index(pair) + 2}: {error}") from None
    return [known[pair] for pair in pairs]


def refuse_differences(found: pd.Series, told: pd.Series, where: str, column: str) -> None:
    """Refuse a column that says something else than the path does."""
    differs = (found != told).to_numpy(dtype=bool)
    if differs.any():
        row = int(np.argmax(differs))
        raise InputError(
            f"{where}, row {row + 2}, column '{column}': '{told.iat[row]}', but the path says '{found.iat[row]}'"
        )


def check_image_folder(images: Path, wanted: str) -> None:
    """Refuse a folder that holds no `train/`."""
    if not (images / "train").is_dir():
        inside = next((name for name in sorted(_list(images)) if (images / name / "train").is_dir()), None)
        hint = f"; is it {images / inside}?" if inside else ""
        raise InputError(f"{images}: no folder 'train' in it; --images wants {wanted}{hint}")


def _list_images(folder: Path) -> list[str]:
    return sorted(name for name in _list(folder) if IMAGE_NAME.fullmatch(name))


def _list(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()] if folder.is_dir() else []
