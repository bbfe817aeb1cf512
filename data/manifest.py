"""The manifest: one row per image, written once by `scripts/prepare.py` and read by every stage.

`manifest.csv` holds the columns of `MANIFEST_COLUMNS`, then one column per class: 1 present, 0 absent, a fraction for
a soft label, empty for unknown. `manifest.json` beside it holds the digest of the table, the folder that image paths
are relative to, and counts. Because both stages read the same file, their splits cannot differ.

Axes: **N** images, **C** classes.
"""

import errno
import hashlib
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Integer

from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.labels import label_text, parse_labels
from data.strict_json import read_json
from data.tables import read_table, table_bytes
from data.views import VIEWS

MANIFEST_COLUMNS = ("image_id", "study_id", "patient_id", "view", "path", "split", "source")
SPLITS = ("train", "val", "test")

CONTROL = re.compile("[\x00-\x1f\x7f]")  # a line break in an id would break every log and error line that names it
LEAVES_ROOT = re.compile(r"^[/\\]|^[A-Za-z]:|(^|[/\\])\.\.([/\\]|$)", re.MULTILINE)


@dataclass(frozen=True, eq=False)
class Manifest:
    """Images with their ids, views, splits and labels.

    `labels` are in [0, 1], NaN where unknown; `images` has the columns `MANIFEST_COLUMNS`, all text. `rejected` is
    what the source left out by name when it was read: (path, reason).
    """

    images: pd.DataFrame
    labels: Float32[np.ndarray, "N C"]
    classes: tuple[str, ...]
    root: Path
    rejected: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        assert tuple(self.images.columns) == MANIFEST_COLUMNS, self.images.columns
        assert self.labels.shape == (len(self.images), len(self.classes)), self.labels.shape

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Bool[np.ndarray, " N"] | Integer[np.ndarray, " K"]) -> "Manifest":
        """The given rows, in the given order, numbered anew from 0."""
        images = self.images.iloc[rows].reset_index(drop=True)
        return Manifest(images, self.labels[rows], self.classes, self.root)

    def of_split(self, split: str) -> "Manifest":
        """The rows of "train", "val" or "test"; may be none."""
        assert split in SPLITS, split
        return self.select((self.images["split"] == split).to_numpy(dtype=bool))

    def require_splits(self) -> None:
        """Check that there are images to train, validate and test on.

        Raises:
            InputError: names the split that has none.
        """
        for split in SPLITS:
            if not (self.images["split"] == split).any():
                raise InputError(
                    f"manifest.csv: no image in split '{split}'; prepare it with other fractions or tables"
                )

    def image_path(self, row: int) -> Path:
        """Where the image of a row lies."""
        return self.root / self.images["path"].iat[row]

    @property
    def digest(self) -> str:
        """SHA-256 of `manifest.csv` as `write_manifest` writes it: changes with any id, path, split or label."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The bytes of `manifest.csv`."""
        columns = [self.images[name].tolist() for name in MANIFEST_COLUMNS]
        text = label_text(self.labels)
        return table_bytes([*MANIFEST_COLUMNS, *self.classes], [*columns, *(c.tolist() for c in text.T)])


def check_manifest(manifest: Manifest, where: str) -> None:
    """Refuse a manifest that training must not see.

    Args:
        where: The file to name in the error.

    Raises:
        InputError: No rows or classes, a bad class name, an empty or repeated id, a path that leaves the image folder,
            an unknown view or split, a label outside [0, 1], a patient on two sides, a study of two patients.
    """
    images = manifest.images
    if not len(images):
        raise InputError(f"{where}: no images")
    _check_classes(manifest.classes, where)
    for name in MANIFEST_COLUMNS:
        _check_text(images, name, where)
    repeated = images["image_id"].duplicated()
    if repeated.any():
        raise InputError(
            f"{where}, row {_row(repeated)}: image_id '{_first(images['image_id'], repeated)}' occurs twice"
        )
    _check_paths(images["path"], where)
    _check_values(images["view"], VIEWS, where)
    _check_values(images["split"], SPLITS, where)
    _check_one_split_per_patient(images, where)
    _check_one_patient_per_study(images, where)
    bad = ~(np.isnan(manifest.labels) | ((manifest.labels >= 0) & (manifest.labels <= 1)))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        name, value = manifest.classes[column], manifest.labels[row, column]
        raise InputError(f"{where}, row {row + 2}, column '{name}': label must be empty or in 0..1, got {value}")


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Check a manifest, then write it as `path` (CSV) with its `.json` beside it.

    The JSON goes first: a crash between the two leaves a pair that `read_manifest` refuses.
    """
    path = Path(path)
    check_manifest(manifest, str(path))
    content = manifest.to_bytes()
    root, folder = os.path.abspath(manifest.root), os.path.abspath(path.parent)
    inside = os.path.commonpath([root, folder]) == folder
    description = {
        "format": 1,
        "digest": hashlib.sha256(content).hexdigest(),
        "root": os.path.relpath(root, folder) if inside else root,
        "classes": list(manifest.classes),
        "splits": {split: describe(manifest.of_split(split)) for split in SPLITS},
    }
    if manifest.rejected:
        description["rejected"] = [list(entry) for entry in manifest.rejected]
    atomic_write(path.with_suffix(".json"), json.dumps(description, indent=1, ensure_ascii=False) + "\n")
    atomic_write(path, content)


def read_manifest(path: Path, accept_edits: bool = False) -> Manifest:
    """Read and check a manifest.

    Image paths are relative to the folder that `manifest.json` names, or to the manifest's own folder without one.

    Args:
        accept_edits: Take a table that does not match the digest in `manifest.json`.

    Raises:
        InputError: A fault of the table (`read_table`, `check_manifest`), or an edit since it was written.
    """
    path = Path(path)
    frame = read_table(path, required=MANIFEST_COLUMNS)
    classes = tuple(name for name in frame.columns if name not in MANIFEST_COLUMNS)
    description = _read_description(path.with_suffix(".json"))
    root = path.parent / (description["root"] if description else ".")
    rejected = tuple((name, reason) for name, reason in (description or {}).get("rejected", ()))
    labels = parse_labels(frame, classes, str(path))
    manifest = Manifest(frame[list(MANIFEST_COLUMNS)], labels, classes, root, rejected)
    check_manifest(manifest, str(path))
    if description and not accept_edits:
        _refuse_edits(manifest, path, description["digest"])
    return manifest


def describe(manifest: Manifest) -> dict[str, Any]:
    """Counts: images, studies, patients, views; per class positives (1), negatives (0), soft (between), unknown."""
    labels, images = manifest.labels, manifest.images
    unknown = np.isnan(labels)
    counts = {
        "positives": labels == 1,
        "negatives": labels == 0,
        "soft": (labels > 0) & (labels < 1),
        "unknown": unknown,
    }
    return {
        "images": len(manifest),
        "studies": int(images["study_id"].nunique()),
        "patients": int(images["patient_id"].nunique()),
        "views": {view: int((images["view"] == view).sum()) for view in VIEWS},
        **{kind: dict(zip(manifest.classes, mask.sum(axis=0).tolist(), strict=True)) for kind, mask in counts.items()},
    }


def _read_description(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    description = read_json(path, "run scripts/prepare.py again")
    if not all(isinstance(description.get(k), str) for k in ("digest", "root")):
        raise InputError(f"{path}: 'digest' and 'root' are missing; run scripts/prepare.py again")
    try:
        os.stat(path.parent / description["root"])
    except (OSError, ValueError) as error:  # images may be elsewhere today, but this is no name that a folder can have
        if not isinstance(error, OSError) or error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{path}: 'root' can be no folder's name; run scripts/prepare.py again") from None
    rejected = description.get("rejected", [])
    if not isinstance(rejected, list) or not all(_is_pair_of_texts(entry) for entry in rejected):
        raise InputError(f"{path}: 'rejected' must be a list of [path, reason]; run scripts/prepare.py again")
    return description


def _is_pair_of_texts(entry: object) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry)


def _refuse_edits(manifest: Manifest, path: Path, digest: str) -> None:
    if digest == sha256_file(path) or digest == manifest.digest:  # the second: same rows, other quotes or line ends
        return
    raise InputError(
        f"{path}: edited since it was written (its digest is not the one in {path.with_suffix('.json').name});"
        f" to accept the edits: python scripts/prepare.py accept --manifest {path}"
    )


def _row(bad: Sequence[bool] | pd.Series | np.ndarray) -> int:
    """Line number of the first bad row: the header is line 1."""
    return int(np.argmax(np.asarray(bad))) + 2


def _first(column: pd.Series, bad: pd.Series | np.ndarray) -> str:
    return column.iat[_row(bad) - 2]


def _check_classes(classes: tuple[str, ...], where: str) -> None:
    if not classes:
        raise InputError(f"{where}: no class columns after '{MANIFEST_COLUMNS[-1]}'")
    for number, name in enumerate(classes):
        if not name.strip() or CONTROL.search(name) or name in MANIFEST_COLUMNS or name in classes[:number]:
            raise InputError(
                f"{where}: bad class name {name!r}: empty, repeated, a control character or a reserved name"
            )


def _check_text(images: pd.DataFrame, name: str, where: str) -> None:
    empty = images[name] == ""
    if empty.any():
        raise InputError(f"{where}, row {_row(empty)}: {name} is empty")
    together = "".join(images[name].tolist())
    if not together.isprintable() and CONTROL.search(together):  # the first is faster, and mostly enough
        bad = images[name].map(lambda text: bool(CONTROL.search(text)))
        raise InputError(f"{where}, row {_row(bad)}: {name} {_first(images[name], bad)!r} holds a control character")


def _check_paths(paths: pd.Series, where: str) -> None:
    together = "\n" + "\n".join(paths.tolist())  # one search for all rows: a path holds no line break
    if any(text in together for text in ("\n/", "\\", ":", "..")) and LEAVES_ROOT.search(together):
        bad = paths.map(lambda path: bool(LEAVES_ROOT.search(path)))
        raise InputError(
            f"{where}, row {_row(bad)}: path '{_first(paths, bad)}' must be relative and stay inside the image folder"
        )


def _check_values(column: pd.Series, allowed: tuple[str, ...], where: str) -> None:
    bad = ~column.isin(allowed)
    if bad.any():
        found = _first(column, bad)
        raise InputError(f"{where}, row {_row(bad)}: {column.name} must be one of {', '.join(allowed)}, got '{found}'")


def _check_one_split_per_patient(images: pd.DataFrame, where: str) -> None:
    pairs = images[["patient_id", "split"]].drop_duplicates()
    twice = pairs["patient_id"].duplicated()
    if twice.any():
        patient = _first(pairs["patient_id"], twice)
        sides = [split for split in SPLITS if ((pairs["patient_id"] == patient) & (pairs["split"] == split)).any()]
        count = pairs["patient_id"][twice].nunique()
        raise InputError(
            f"{where}: {count} patient_ids are in more than one split, first {patient} ({' and '.join(sides)})"
        )


def _check_one_patient_per_study(images: pd.DataFrame, where: str) -> None:
    pairs = images[["study_id", "patient_id"]].drop_duplicates()
    twice = pairs["study_id"].duplicated()
    if twice.any():
        study = _first(pairs["study_id"], twice)
        patients = pairs["patient_id"][pairs["study_id"] == study].tolist()
        raise InputError(f"{where}: study_id {study} belongs to more than one patient ({', '.join(patients[:3])})")
