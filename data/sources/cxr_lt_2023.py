"""CXR-LT 2023 labels (PhysioNet `cxr-lt-iccv-workshop-cvamd`) on MIMIC-CXR-JPG images.

    <labels>/train.csv  development.csv  test.csv       or in <labels>/cxr-lt-2023/, as in release 2.0.0
    <images>/files/p10/p10000032/s50414267/<dicom_id>.jpg

One row per image: `dicom_id, subject_id, study_id, ViewPosition, ViewCodeSequence_CodeMeaning, path` (`fpath` in some
releases) and the 26 classes. Labels belong to the study. During the challenge `development.csv` and `test.csv` came
without labels. Columns are taken by name; ids stay text, an `s` before the digits of a study_id is dropped.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data.errors import InputError
from data.groups import group_images
from data.labels import CXR_LT_2023_CLASSES, parse_labels
from data.manifest import MANIFEST_COLUMNS, SPLITS, Manifest, check_manifest
from data.splits import split_patients
from data.tables import read_table
from data.views import view_of_mimic, view_of_mimic_meaning

FILES = {"train": "train.csv", "val": "development.csv", "test": "test.csv"}
REQUIRED = ("dicom_id", "subject_id", "study_id", "ViewPosition")
METADATA = (*REQUIRED, "ViewCodeSequence_CodeMeaning", "path", "fpath")

log = logging.getLogger(__name__)


def read(
    images: Path,
    labels: Path,
    development: Literal["val", "split"] = "val",
    val_fraction: float = 0.1,
    overlap: Literal["refuse", "drop"] = "refuse",
    seed: int = 0,
) -> Manifest:
    """Read CXR-LT 2023 as a manifest. Images are not opened; one that is missing on disk is found by `data.scan`.

    Args:
        images: MIMIC-CXR-JPG folder, the one that holds `files/`.
        labels: Folder with train.csv, development.csv and test.csv.
        development: "val": development.csv is the validation split. "split": it is left out, and part of the training
            patients validate. The same happens where development.csv is absent or has no labels.
        val_fraction: Part of the training patients that validates then, in (0, 1).
        overlap: What to do when a patient is in two of the files: refuse, or drop such patients' rows from train, then
            from val.
        seed: Of that part.

    Raises:
        InputError: A missing folder or file, classes other than the 26, a fault in a table, a patient in two files.
    """
    images, labels = Path(images), Path(labels)
    if not (images / "files").is_dir():
        raise InputError(
            f"{images}: no folder 'files' in it; --images wants the MIMIC-CXR-JPG folder that holds files/"
        )
    parts = {
        split: _read_file(_find(labels, name), split, images)
        for split, name in FILES.items()
        if split != "val" or _has_development(labels, development)
    }
    if "val" in parts and np.isnan(parts["val"].labels).all():
        log.warning("development.csv has no labels; its %d images are left out", len(parts["val"]))
        del parts["val"]
    parts = _without_overlap(parts, overlap)
    if "val" not in parts:
        parts["train"] = _with_validation(parts["train"], val_fraction, seed)
    manifest = _join([parts[split] for split in SPLITS if split in parts])
    check_manifest(manifest, str(labels))
    group_images(manifest, "study")
    return manifest


def _find(labels: Path, name: str) -> Path:
    for folder in (labels, labels / "cxr-lt-2023"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise InputError(
        f"{labels / name}: no such file, nor in {labels / 'cxr-lt-2023'}; --labels wants the CXR-LT 2023 folder"
    )


def _has_development(labels: Path, development: str) -> bool:
    if development == "split":
        return False
    try:
        _find(labels, FILES["val"])
    except InputError:
        log.warning("no development.csv; part of the training patients validates instead")
        return False
    return True


def _read_file(path: Path, split: str, root: Path) -> Manifest:
    frame = read_table(path, required=REQUIRED)
    where = str(path)
    path_column = next((name for name in ("path", "fpath") if name in frame), None)
    if path_column is None:
        raise InputError(f"{where}, row 1: missing column 'path' (or 'fpath')")
    has_labels = _check_classes(frame, where, may_be_absent=split != "train")
    paths = frame[path_column]
    columns = {
        "image_id": frame["dicom_id"],
        "study_id": frame["study_id"].str.replace(r"^s(?=\d+$)", "", regex=True),
        "patient_id": frame["subject_id"],
        "view": _views(frame, where),
        "path": paths.where(paths.str.startswith(("files/", "/", ".")), "files/" + paths),
        "split": split,
        "source": "cxr_lt_2023",
    }
    shape = (len(frame), len(CXR_LT_2023_CLASSES))
    values = parse_labels(frame, CXR_LT_2023_CLASSES, where) if has_labels else np.full(shape, np.nan, np.float32)
    manifest = Manifest(pd.DataFrame(columns, dtype="str")[list(MANIFEST_COLUMNS)], values, CXR_LT_2023_CLASSES, root)
    check_manifest(manifest, where)
    return manifest


def _check_classes(frame: pd.DataFrame, where: str, may_be_absent: bool) -> bool:
    """Whether the table has the 26 class columns; none at all is allowed for a table without labels."""
    found = [name for name in frame.columns if name not in METADATA]
    missing = [name for name in CXR_LT_2023_CLASSES if name not in found]
    unexpected = [name for name in found if name not in CXR_LT_2023_CLASSES]
    if may_be_absent and not found:
        return False
    if missing or unexpected:
        raise InputError(
            f"{where}, row 1: the 26 classes of CXR-LT 2023 are wanted; missing: {', '.join(missing) or 'none'};"
            f" unexpected: {', '.join(unexpected) or 'none'}"
        )
    return True


def _views(frame: pd.DataFrame, where: str) -> pd.Series:
    """View of each row: ViewPosition, or where that is blank the code meaning."""
    texts = frame["ViewPosition"].unique()
    try:
        views = frame["ViewPosition"].map({text: view_of_mimic(text) for text in texts})
    except InputError as error:
        raise InputError(f"{where}, column 'ViewPosition': {error}") from None
    if "ViewCodeSequence_CodeMeaning" not in frame:
        return views
    meanings = frame["ViewCodeSequence_CodeMeaning"]
    by_meaning = meanings.map({text: view_of_mimic_meaning(text) for text in meanings.unique()})
    return views.where(views != "UNKNOWN", by_meaning)


def _without_overlap(parts: dict[str, Manifest], overlap: str) -> dict[str, Manifest]:
    """Refuse patients that are in two files, or drop their rows from the earlier split."""
    parts = dict(parts)
    for split, later in (("train", ("val", "test")), ("val", ("test",))):
        if split not in parts:
            continue
        others = {patient for name in later if name in parts for patient in parts[name].images["patient_id"]}
        shared = parts[split].images["patient_id"].isin(others)
        if not shared.any():
            continue
        patients = parts[split].images["patient_id"][shared].unique()
        if overlap == "refuse":
            raise InputError(
                f"{FILES[split]}: {len(patients)} patients are also in {' or '.join(FILES[n] for n in later)},"
                f" first {patients[0]}; --overlap drop leaves their rows out of {FILES[split]}"
            )
        log.warning(
            "%s: %d rows of %d patients left out, also in a later split, first %s",
            FILES[split],
            shared.sum(),
            len(patients),
            patients[0],
        )
        if shared.all():
            raise InputError(f"{FILES[split]}: every patient is also in a later split; nothing is left")
        parts[split] = parts[split].select(~shared.to_numpy(dtype=bool))
    return parts


def _with_validation(train: Manifest, val_fraction: float, seed: int) -> Manifest:
    if not 0 < val_fraction < 1:
        raise InputError(f"val_fraction must be between 0 and 1, got {val_fraction}")
    fractions = {"train": 1 - val_fraction, "val": val_fraction}
    split = split_patients(train.images["patient_id"].tolist(), train.labels, fractions, seed)
    log.warning("%d of %d training images validate, by patient", (split == "val").sum(), len(train))
    return Manifest(
        train.images.assign(split=pd.array(split.tolist(), dtype="str")), train.labels, train.classes, train.root
    )


def _join(parts: list[Manifest]) -> Manifest:
    images = pd.concat([part.images for part in parts], ignore_index=True)
    return Manifest(images, np.concatenate([part.labels for part in parts]), parts[0].classes, parts[0].root)
