"""A folder of DICOM radiographs, whatever its subfolders and file names: studies and patients by their headers.

The ids in the manifest are pseudonyms (`data.pseudonyms`), and no text of a header gets further than this. File names
do: the manifest has to say where each image lies, so a folder whose files are named after patients tells them.

Every file that is not a usable chest radiograph is named with the reason; the others are taken. Pixels are not looked
at here: what does not decode is found by `data.scan`.
"""

import logging
import os
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32
from tqdm import tqdm

from data.errors import InputError
from data.images import ImageError, refuse
from data.label_spaces import CXR_LT_2023_CLASSES
from data.labels import parse_labels
from data.manifest import CONTROL, LEAVES_ROOT, MANIFEST_COLUMNS, Manifest, check_manifest
from data.pseudonyms import load_key, pseudonym
from data.scan import inside
from data.sources.table import agree_within_studies, split_by_patient
from data.tables import read_table

KINDS: dict[str, Literal["image", "study"]] = {"SOPInstanceUID": "image", "StudyInstanceUID": "study"}

log = logging.getLogger(__name__)


def read(
    images: Path,
    labels: Path | None = None,
    classes: list[str] | None = None,
    key: Path | None = None,
    study_labels: Literal["same", "any"] = "same",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Manifest:
    """Read the headers of all files below a folder as a manifest.

    Without a table of labels, all labels are unknown and all images are test images.

    Args:
        images: The folder; links in it that lead out of it are not followed.
        labels: Table with one column of StudyInstanceUID, SOPInstanceUID or path (below `images`), and the classes: 1,
            0, a fraction, or empty for unknown. Files without a row are unknown.
        classes: The classes, [A,B]; null: all other columns of `labels`, or without that table the 26 of CXR-LT 2023.
        key: File with the key of the pseudonyms; null: one in your configuration folder, made at its first use. Another
            key gives other ids.
        study_labels: "same": the images of a study must carry the same labels. "any": a study has the labels that any
            of its images has.
        val_fraction: Part of the patients that validates, where there are labels; in (0, 1).
        test_fraction: Part that tests, likewise.
        seed: Of that split.

    Raises:
        InputError: A missing folder, a fault in the table or key, no usable file at all.
    """
    images = Path(images)
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; --images wants the folder with the DICOM files")
    secret, place = load_key(key)
    if Path(os.path.realpath(place)).is_relative_to(os.path.realpath(images)):
        raise InputError(f"{place}: the key must not lie in the data folder: whoever has both has the identifiers")
    frame, rejected = _headers(images, secret)
    frame, mixed = known_patients(frame, secret)
    rejected = tuple(sorted([*rejected, *mixed]))
    if not len(frame):
        first = "; ".join(f"{path}: {reason}" for path, reason in rejected[:3]) or "it holds no files"
        raise InputError(f"{images}: no usable chest radiograph in DICOM form: {first}")
    if rejected:
        log.warning("%d of %d files are left out, see rejected.csv", len(rejected), len(rejected) + len(frame))
    names, values = _labels(frame, labels, classes, secret)
    rows = frame.assign(split="test", source="dicom")[list(MANIFEST_COLUMNS)].astype("str")
    manifest = Manifest(rows, values, names, images, rejected)
    check_manifest(manifest, str(images))
    if labels is None:
        return manifest
    return split_by_patient(agree_within_studies(manifest, study_labels), val_fraction, test_fraction, seed)


def _headers(images: Path, key: bytes) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Pseudonyms, view and path of every usable file, in the order of paths; and the others with a reason."""
    from data.dicom_header import StudyHeader, read_study_header  # pydicom takes 0.3 s to import

    root = Path(os.path.realpath(images))
    first: dict[str, str] = {}
    found, rejected = [], []
    bar = tqdm(files_below(images), desc="reading headers", unit="file", disable=None)  # silent where nobody looks
    for path in bar:
        shown = path.encode(errors="backslashreplace").decode()
        try:
            if shown != path or CONTROL.search(path) or LEAVES_ROOT.search(path):
                refuse(shown, "has a name that a manifest cannot hold: control characters, \\, :, or not UTF-8")
            if os.path.isdir(images / path):
                refuse(path, "is a link to a folder; links are not followed: name that folder instead")
            header = read_study_header(inside(path, root), path, key)
            if header.image_id in first:
                refuse(path, f"has the same SOP Instance UID as {first[header.image_id]}")
        except ImageError as error:
            rejected.append((shown, error.reason))
            continue
        first[header.image_id] = path
        found.append((header.image_id, header.study_id, header.patient_id, header.view, path))
    columns = [*StudyHeader.__dataclass_fields__, "path"]
    return pd.DataFrame(found, columns=columns, dtype="str"), rejected


def files_below(images: Path) -> list[str]:
    """Paths of all files below a folder, sorted, and of links to folders, which are not entered."""

    def stop(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be listed ({error.strerror}); its files would be missing")

    found = []
    for folder, folders, names in os.walk(images, onerror=stop):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), images) for name in [*names, *links]]
    return sorted(found)


def known_patients(frame: pd.DataFrame, key: bytes) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """One patient for each study: without a Patient ID its own one; with two, it is left out."""
    known = frame[frame["patient_id"] != ""].groupby("study_id")["patient_id"]
    counts = frame["study_id"].map(known.nunique()).fillna(0)
    reason = "its study holds files with different Patient IDs"
    rejected = [(path, reason) for path in frame["path"][counts > 1]]
    frame = frame[counts <= 1].reset_index(drop=True)
    alone = {study: pseudonym("patient", study, key) for study in frame["study_id"].unique()}
    patients = frame["study_id"].map(known.first())
    if patients.isna().any():
        studies = frame["study_id"][patients.isna()].nunique()
        log.warning("%d studies have no Patient ID; each is taken for a patient of its own", studies)
    return frame.assign(patient_id=patients.fillna(frame["study_id"].map(alone)).astype("str")), rejected


def _labels(
    frame: pd.DataFrame, table: Path | None, classes: list[str] | None, key: bytes
) -> tuple[tuple[str, ...], Float32[np.ndarray, "N C"]]:
    """The classes, and the labels of each file, unknown where the table says nothing."""
    if table is None:
        names = tuple(classes or CXR_LT_2023_CLASSES)
        return names, np.full((len(frame), len(names)), np.nan, dtype=np.float32)
    where = str(table)
    given = read_table(Path(table), required=classes or ())
    columns = [name for name in (*KINDS, "path") if name in given]
    if len(columns) != 1:
        raise InputError(
            f"{where}, row 1: one of the columns {', '.join(KINDS)} or path is wanted to find the files by, got"
            f" {' and '.join(columns) or 'none of them'}"
        )
    by = columns[0]
    names = tuple(classes or (name for name in given.columns if name != by))
    kind = KINDS.get(by)
    ids = given[by] if kind is None else given[by].map(lambda text: pseudonym(kind, text.strip(), key))
    repeated = ids.duplicated()
    if repeated.any():
        raise InputError(f"{where}, row {int(np.argmax(repeated)) + 2}: this {by} has a row already")
    places = pd.Index(ids).get_indexer(frame["path" if kind is None else f"{kind}_id"])
    log.warning("%s: %d of %d rows match files, %d of %d files have a row", where, len(set(places) - {-1}), len(ids),
                (places >= 0).sum(), len(places))  # fmt: skip
    if (places < 0).all():
        raise InputError(f"{where}, column '{by}': not one of its values belongs to a file; is it the right table?")
    values = parse_labels(given, names, where)
    return names, np.where((places >= 0)[:, None], values[places], np.float32("nan"))
