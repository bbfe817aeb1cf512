"""From files, folders or a table that a user names to images with their studies, before any pixel is read.

DICOM files are grouped by Study Instance UID, wherever they lie, under pseudonyms (`data.pseudonyms`). Other images of
one folder are one study, called by the folder's path. A table says for itself which images belong together, and its ids
pass unchanged. What cannot be used is told by name, with the reason; the rest is taken.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from data.errors import InputError
from data.images import ImageError, check_file, looks_like_dicom, refuse
from data.manifest import CONTROL
from data.predictions import line_of
from data.pseudonyms import load_key
from data.scan import inside
from data.sources.dicom_folder import files_below, known_patients
from data.tables import read_table
from data.views import VIEWS

START = 1 << 10  # bytes that tell a DICOM file
IDS = ("image_id", "study_id", "patient_id")


@dataclass(frozen=True)
class StudyImage:
    """One image to predict from."""

    path: Path
    name: str
    """The file as the user gave it, for tables and messages."""
    image_id: str
    study_id: str
    patient_id: str
    view: str | None = None
    """What the user said; None: nothing."""


@dataclass(frozen=True)
class _Listed:
    """A file, and what it is called as an image without a header."""

    path: Path
    name: str
    image_id: str
    folder: str


Rejected = list[tuple[str, str]]
"""Files that are left out, and why."""


def find_images(inputs: Sequence[Path], key_file: Path | None = None) -> tuple[list[StudyImage], Rejected]:
    """The images that files and folders stand for; JPEG, PNG and DICOM may be mixed.

    Args:
        key_file: Of the pseudonyms; None: the user's own, made when the first DICOM file is met.

    Raises:
        InputError: An input does not exist, two folders would be one study, or a fault in the key.
    """
    listed, rejected = _list(inputs)
    plain, headers = [], []
    for one in listed:
        try:
            headers.append(one) if _is_dicom(one) else plain.append(one)
        except ImageError as error:
            rejected.append((one.name, error.reason))
    _check_folders(plain)
    images = [StudyImage(one.path, one.name, one.image_id, one.folder, one.folder) for one in plain]
    if headers:
        found, more = _from_headers(headers, _key(key_file, inputs))
        images, rejected = images + found, rejected + more
    return images, sorted(rejected)


def read_image_table(table: Path) -> list[StudyImage]:
    """The images of a CSV with the columns path and study_id and, if there are, image_id, patient_id and view.

    A path counts from the table's folder. Without image_id the path is the id, without patient_id the study's. A blank
    view is one that the user does not tell.

    Raises:
        InputError: A missing column, an empty or repeated id or path, an unknown view, a study of two patients.
    """
    frame = read_table(table, required=("path", "study_id"))
    frame = frame.assign(
        image_id=frame.get("image_id", frame["path"]),
        patient_id=frame.get("patient_id", frame["study_id"]),
        view=frame.get("view", ""),
    )
    for name in ("path", *IDS):
        wrong = frame[name].map(lambda text: not text or CONTROL.search(text) is not None).astype(bool)
        if wrong.any():
            raise InputError(f"{table}, row {line_of(wrong)}: {name} is empty or holds control characters")
    for name in ("path", "image_id"):
        if (wrong := frame[name].duplicated()).any():
            raise InputError(f"{table}, row {line_of(wrong)}: {name} {frame[name][wrong].iat[0]!r} occurs twice")
    if (wrong := ~frame["view"].isin(["", *VIEWS])).any():
        found = frame["view"][wrong].iat[0]
        raise InputError(f"{table}, row {line_of(wrong)}: view {found!r}; wanted {', '.join(VIEWS)}, or nothing")
    if (wrong := frame.groupby("study_id")["patient_id"].transform("nunique") > 1).any():
        raise InputError(f"{table}, row {line_of(wrong)}: study {frame['study_id'][wrong].iat[0]!r} has two patients")
    columns = frame[["path", *IDS, "view"]].itertuples(index=False, name=None)
    return [
        StudyImage(table.parent / path, path, image_id, study_id, patient_id, view or None)
        for path, image_id, study_id, patient_id, view in columns
    ]


def _list(inputs: Sequence[Path]) -> tuple[list[_Listed], Rejected]:
    """Every file once, in the order given, a folder's files by name."""
    listed, rejected, seen = [], [], dict[str, str]()
    for given in inputs:
        if not given.exists():
            raise InputError(f"{given}: no such file or folder")
        for below, name, image_id in _files(given):
            shown = name.encode(errors="backslashreplace").decode()
            try:
                if shown != name or CONTROL.search(name):
                    refuse(shown, "has a name that a table cannot hold: control characters, or not UTF-8")
                path = inside(below, Path(os.path.realpath(given))) if below else given
                if path.is_dir():
                    refuse(shown, "is a link to a folder; links are not followed: name that folder instead")
                if (first := seen.setdefault(os.path.realpath(path), shown)) != shown:
                    refuse(shown, f"is the same file as {first}")
            except ImageError as error:
                rejected.append((shown, error.reason))
                continue
            listed.append(_Listed(path, name, image_id, str(Path(image_id).parent)))
    return listed, rejected


def _files(given: Path) -> Iterator[tuple[str, str, str]]:
    """Path below the folder, name for people and name for tables of all its files; or "" and the names of a file.

    Names for tables begin at the folder that the user named, or the one that holds the named file.
    """
    root = Path(os.path.realpath(given if given.is_dir() else given.parent))
    if not given.is_dir():
        yield "", str(given), f"{root.name or 'images'}/{given.name}"
        return
    for path in files_below(given):
        yield path, os.path.join(given, path), f"{root.name or 'images'}/{path}"


def _is_dicom(one: _Listed) -> bool:
    check_file(one.path)
    try:
        with one.path.open("rb") as file:
            return looks_like_dicom(file.read(START))
    except OSError as error:
        refuse(one.name, f"cannot be read ({error.strerror})")


def _check_folders(plain: list[_Listed]) -> None:
    """Refuse two folders that would be one study because they are called alike."""
    first: dict[str, Path] = {}
    for one in plain:
        folder = Path(os.path.realpath(one.path.parent))
        if first.setdefault(one.folder, folder) != folder:
            raise InputError(f"{first[one.folder]} and {folder}: both would be study {one.folder}; write a --table")


def _key(key_file: Path | None, inputs: Sequence[Path]) -> bytes:
    key, place = load_key(key_file)
    for given in inputs:
        if given.is_dir() and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(given)):
            raise InputError(f"{place}: the key must not lie in the data folder: whoever has both has the identifiers")
    return key


def _from_headers(listed: list[_Listed], key: bytes) -> tuple[list[StudyImage], Rejected]:
    """DICOM files under their pseudonyms; a study of two patients is left out."""
    from data.dicom_header import read_study_header  # pydicom takes 0.3 s to import

    rows, rejected, first = [], [], dict[str, str]()
    for one in tqdm(listed, desc="reading headers", unit="file", disable=None):  # silent where nobody looks
        try:
            header = read_study_header(one.path, one.name, key)
            if (other := first.setdefault(header.image_id, one.name)) != one.name:
                refuse(one.name, f"has the same SOP Instance UID as {other}")
        except ImageError as error:
            rejected.append((one.name, error.reason))
            continue
        rows.append((str(one.path), one.name, header.image_id, header.study_id, header.patient_id))
    if not rows:
        return [], rejected
    frame = pd.DataFrame(rows, columns=["file", "path", *IDS], dtype="str")
    frame, mixed = known_patients(frame, key)
    found = frame[["file", "path", *IDS]].itertuples(index=False, name=None)
    return [StudyImage(Path(file), *rest) for file, *rest in found], rejected + mixed
