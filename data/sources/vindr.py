"""VinDr-CXR 1.0.0 (PhysioNet): 18,000 postero-anterior radiographs from Vietnam, 28 labels by radiologists.

    <images>/train/<image_id>.dicom    15,000       <images>/test/<image_id>.dicom    3,000
    <images>/annotations/image_labels_train.csv     image_id, rad_id and the 28: three readers, a row each
    <images>/annotations/image_labels_test.csv      image_id and the 28: the consensus of five readers

No patient and no study ids are published: every image is a patient of its own here, which cannot be checked. The images
of VinBigData (Kaggle) are those of `train/`, under the same ids. The boxes (annotations_*.csv) are not read.

The test table says "Other disease" where the training table says "Other diseases"; both are taken in both.
"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError
from data.ids import check_form
from data.label_spaces import VINDR_CLASSES
from data.labels import ZERO_OR_ONE, parse_labels
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.sources.release import compare_with_release
from data.sources.table import validate_by_patient
from data.sources.votes import NUM_READERS, Votes, combine
from data.tables import read_table

TABLES = {"train": "image_labels_train.csv", "test": "image_labels_test.csv"}
IMAGES = {"train": 15_000, "test": 3_000}
OTHER = {"Other disease": "Other diseases"}  # the test table's name: the training table's
IMAGE_ID = re.compile("[0-9a-f]{32}")
EXAMPLE = "0123456789abcdef0123456789abcdef"


def read(
    images: Path, labels: Path | None = None, votes: Votes = "majority", val_fraction: float = 0.1, seed: int = 0
) -> Manifest:
    """Read VinDr-CXR as a manifest, with its official test split. Images are not opened.

    Args:
        images: Folder that holds `train/` and `test/`.
        labels: Folder with the image_labels tables; null: `annotations` in the images' folder.
        votes: What three readers make a training label: 1 if "any" of them saw it, 1 if the "majority" did, or the
            "mean" of their votes as a soft label. Under "any", "No finding" is 1 if all three say so.
        val_fraction: Part of the training images that validates, in (0, 1).
        seed: Of that part.

    Raises:
        InputError: A missing folder or file, other columns than the release's, an image without exactly three readers,
            a fault in a table.
    """
    images = Path(images)
    folder = Path(labels) if labels else images / "annotations"
    parts = [_part(images, folder / name, split, votes) for split, name in TABLES.items()]
    frame = pd.concat([rows for rows, _ in parts], ignore_index=True).astype("str")
    manifest = Manifest(frame, np.concatenate([values for _, values in parts]), VINDR_CLASSES, images)
    check_manifest(manifest, str(folder))
    return validate_by_patient(manifest, val_fraction, seed)


def image_rows(image_ids: pd.Series, folder: str, split: str, source: str) -> pd.DataFrame:
    """A manifest's row for each id, below `folder`: every image is its own study and patient, seen from behind.

    VinDr-CXR was collected as postero-anterior radiographs; nothing in its tables says so image by image.
    """
    paths = [f"{folder}/{image_id}.dicom" for image_id in image_ids]
    columns = {"image_id": image_ids, "study_id": image_ids, "patient_id": image_ids, "view": "PA", "path": paths}
    return pd.DataFrame({**columns, "split": split, "source": source})[list(MANIFEST_COLUMNS)]


def check_image_folder(images: Path, folder: str) -> None:
    """Refuse a folder that does not hold `folder`."""
    if not (images / folder).is_dir():
        raise InputError(
            f"{images / folder}: no such folder; --images wants the one that holds {folder}/ with .dicom files"
        )


def _part(images: Path, path: Path, split: str, votes: Votes) -> tuple[pd.DataFrame, Float32[np.ndarray, "N C"]]:
    """One split's rows and labels."""
    check_image_folder(images, split)
    table = read_table(path, required=("image_id", "rad_id") if split == "train" else ("image_id",))
    table = table.rename(columns={name: ours for name, ours in OTHER.items() if ours not in table})
    _check_columns(table, path)
    check_form(table["image_id"], IMAGE_ID, EXAMPLE, str(path))
    values = parse_labels(table, VINDR_CLASSES, str(path), ZERO_OR_ONE)
    if split == "train":
        codes, image_ids = _readers(table, path)
        order = np.argsort(codes, kind="stable").reshape(-1, NUM_READERS)
        values = combine(values[order], VINDR_CLASSES.index("No finding"), votes)
    else:
        image_ids = table["image_id"]
    compare_with_release(str(path), "VinDr-CXR", len(values), IMAGES[split])
    return image_rows(pd.Series(image_ids), split, split, "vindr"), values


def _check_columns(table: pd.DataFrame, path: Path) -> None:
    missing = [f"'{name}'" for name in VINDR_CLASSES if name not in table]
    strange = [f"'{name}'" for name in table if name not in (*VINDR_CLASSES, "image_id", "rad_id")]
    if missing or strange:
        raise InputError(
            f"{path}, row 1: image_id, rad_id and the 28 labels of VinDr-CXR are wanted;"
            f" missing: {', '.join(missing) or 'none'}; unexpected: {', '.join(strange) or 'none'}"
        )


def _readers(table: pd.DataFrame, path: Path) -> tuple[np.ndarray, pd.Index]:
    """The number of each row's image, and the images in the table's order; three readers each."""
    twice = table.duplicated(["image_id", "rad_id"])
    if twice.any():
        row = int(np.argmax(twice))
        reader, image_id = table["rad_id"].iat[row], table["image_id"].iat[row]
        raise InputError(f"{path}, row {row + 2}: reader '{reader}' has a row for image {image_id} already")
    codes, names = pd.factorize(table["image_id"])
    image_ids = pd.Index(names)
    check_readers(np.bincount(codes), image_ids, path)
    return codes, image_ids


def check_readers(counts: np.ndarray, image_ids: pd.Index, path: Path) -> None:
    """Refuse images that were not read by exactly three: part of the table is missing, or it is another one."""
    wrong = counts != NUM_READERS
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(
            f"{path}: image {image_ids[first]} has {counts[first]} readers, each of the release has {NUM_READERS}"
            f" ({wrong.sum()} such images); take the table as it was downloaded"
        )
