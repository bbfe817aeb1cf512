"""The files of NIH ChestX-ray14, which serve NIH-CXR-LT too: the table of images, lists of names, boxes, folders.

A name is `00000001_000.png`: the patient's number with zeros, and a running number (not the table's `Follow-up #`).
"""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import InputError
from data.label_spaces import NIH_CHEST_XRAY14_CLASSES
from data.tables import MAX_LINE, read_table
from data.views import view_of_nih, views_of

COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "View Position")
NAME = re.compile(r"([0-9]{8})_[0-9]{3}\.png")  # patient and running number
BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")  # one name with commas in it, to a reader of CSV four
BOX_LABELS = {"Infiltrate": "Infiltration"}  # where the table of boxes spells a finding unlike that of the labels
IMAGE_SIDE = 1024
FOLDERS = ("", "images")

log = logging.getLogger(__name__)


def read_entries(path: Path) -> tuple[pd.DataFrame, pd.Series]:
    """The table of images: `image_id, patient_id, view`, and `Finding Labels` as text.

    Ids are the file's name and 8 digits, as NIH-CXR-LT writes them.

    Raises:
        InputError: A fault of the table, a name of another form, another patient's name, an unknown view.
    """
    frame = read_table(path, required=COLUMNS, only_required=True, blank_end=True)
    patients = patients_of(frame["Image Index"], frame["Patient ID"], str(path))
    columns = {
        "image_id": frame["Image Index"],
        "patient_id": patients,
        "view": views_of(frame["View Position"], view_of_nih, str(path)),
    }
    return pd.DataFrame(columns, dtype="str"), frame["Finding Labels"]


def views_by_name(names: pd.Series, entries: Path, where: str) -> pd.Series:
    """View of each image, from the table of images.

    Args:
        where: Whose names they are, for the error.

    Raises:
        InputError: A fault of the table, or an image that it does not have.
    """
    rows, _ = read_entries(entries)
    places = pd.Index(rows["image_id"]).get_indexer(names)
    if (places < 0).any():
        raise InputError(
            f"{where}: {(places < 0).sum()} images are not in {entries}, first {names.iat[int(np.argmin(places))]}"
        )
    return rows["view"].iloc[places].reset_index(drop=True)


def patients_of(names: pd.Series, ids: pd.Series, where: str) -> list[str]:
    """The 8 digits of the patient in each image's name, where the patient's column says the same.

    Raises:
        InputError: A name of another form, or of another patient.
    """
    patients = []
    for row, (name, given) in enumerate(zip(names.tolist(), ids.tolist(), strict=True)):
        found = NAME.fullmatch(name)
        if found is None:
            raise InputError(
                f"{where}, row {row + 2}, column '{names.name}': '{name}' is not of the form 00000001_000.png"
            )
        if given.zfill(8) != found[1]:
            raise InputError(
                f"{where}, row {row + 2}, column '{ids.name}': patient '{given}', but the image is called {name}"
            )
        patients.append(found[1])
    return patients


def image_places(images: Path, names: pd.Series, where: str) -> list[str]:
    """Where images lie below `images`, after listing its folders; a missing one is taken to be where the first lies.

    Raises:
        InputError: `images` is no folder, or holds none of the images.
    """
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; --images wants the folder of PNGs")
    folders = [*FOLDERS, *sorted(f"{path.name}/images" for path in images.glob("images_[0-9][0-9][0-9]"))]
    places: dict[str, str] = {}
    for folder in folders:
        if (images / folder).is_dir():
            prefix = f"{folder}/" if folder else ""
            for path in (images / folder).iterdir():
                places.setdefault(path.name, prefix + path.name)
    found = [places.get(name) for name in names.tolist()]
    first = next((place for place in found if place), None)
    if first is None:
        raise InputError(
            f"{images}: holds none of the images of {where}, nor do images/ and images_001/images/ to"
            f" images_012/images/ in it; --images wants the folder that the archives were unpacked in"
        )
    if missing := found.count(None):
        log.warning("%d of %d images are not in %s", missing, len(found), images)
    folder = first.rpartition("/")[0]
    return [place or f"{folder}/{name}".removeprefix("/") for place, name in zip(found, names.tolist(), strict=True)]


def read_list(path: Path) -> list[str]:
    """The image names of a list, one a line; the last may lack its line feed.

    Raises:
        InputError: No such file, a line that is no image's name, a name twice.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            text = file.read(MAX_LINE)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason})") from None
    names = [line.strip() for line in text.rstrip().split("\n")]
    seen: set[str] = set()
    for number, name in enumerate(names, start=1):
        if not NAME.fullmatch(name) or name in seen:
            fault = "occurs twice" if name in seen else "is not of the form 00000001_000.png"
            raise InputError(f"{path}, line {number}: '{name[:40]}' {fault}")
        seen.add(name)
    return names


def read_boxes(path: Path) -> pd.DataFrame:
    """The boxes of BBox_List_2017.csv, one row each.

    Returns:
        `image_id, label, x, y, width, height`: the label as in the classes (the file says Infiltrate for Infiltration);
        the upper left corner and the size in pixels of the image of 1024 x 1024.

    Raises:
        InputError: A fault of the table, a label that is no class, a box that does not lie within the image.
    """
    path = Path(path)
    frame = read_table(path, required=("Image Index", "Finding Label", *BOX_COLUMNS), blank_end=True)
    labels = frame["Finding Label"].replace(BOX_LABELS)
    numbers = np.array([[_number(text) for text in frame[name].tolist()] for name in BOX_COLUMNS])
    x, y, width, height = numbers
    inside = (x >= 0) & (y >= 0) & (width > 0) & (height > 0) & (x + width <= IMAGE_SIDE) & (y + height <= IMAGE_SIDE)
    named = np.array([NAME.fullmatch(name) is not None for name in frame["Image Index"].tolist()])
    known = labels.isin(NIH_CHEST_XRAY14_CLASSES[:-1]).to_numpy(dtype=bool)
    for good, fault in (
        (named, "the image's name is not of the form 00000001_000.png"),
        (known, f"the label is none of {', '.join(NIH_CHEST_XRAY14_CLASSES[:-1])}"),
        (inside, f"x, y, w, h must be a box within {IMAGE_SIDE} x {IMAGE_SIDE} pixels"),
    ):
        if not good.all():
            row = int(np.argmin(good))
            raise InputError(f"{path}, row {row + 2}: {fault}, got '{','.join(frame.iloc[row].tolist())[:80]}'")
    columns = {"image_id": frame["Image Index"], "label": labels, "x": x, "y": y, "width": width, "height": height}
    return pd.DataFrame(columns)


def _number(text: str) -> float:
    """NaN for what is no number, so that its box lies nowhere."""
    try:
        return float(text)
    except ValueError:
        return float("nan")
