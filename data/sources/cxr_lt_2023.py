"""CXR-LT 2023 labels (PhysioNet `cxr-lt-iccv-workshop-cvamd`) on MIMIC-CXR-JPG images.

    <labels>/train.csv  development.csv  test.csv       or in <labels>/cxr-lt-2023/, as in release 2.0.0
    <images>/files/p10/p10000032/s50414267/<dicom_id>.jpg

264,849 training images and 26 classes. During the challenge `development.csv` and `test.csv` came without labels. Not
known for certain, so accepted either way: the order of the columns, an `s` before study ids, `files/` before paths.
"""

from pathlib import Path
from typing import Literal

from data.label_spaces import CXR_LT_2023_CLASSES, CXR_LT_2023_POSITIVES, CXR_LT_2023_TRAIN_IMAGES
from data.manifest import Manifest
from data.sources.cxr_lt_tables import Challenge, read_challenge

CHALLENGE = Challenge(
    name="CXR-LT 2023",
    source="cxr_lt_2023",
    folders=(".", "cxr-lt-2023"),
    files={"train": ("train.csv",), "val": ("development.csv",), "test": ("test.csv",)},
    classes=CXR_LT_2023_CLASSES,
    train_classes=CXR_LT_2023_CLASSES,
    images={"train": CXR_LT_2023_TRAIN_IMAGES},
    train_positives=CXR_LT_2023_POSITIVES,
)


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
    return read_challenge(CHALLENGE, images, labels, development, val_fraction, overlap, seed)
