"""CXR-LT 2024 labels (PhysioNet `cxr-lt-iccv-workshop-cvamd` 2.0.0) on MIMIC-CXR-JPG images, tasks 1, 2 and 3.

    <labels>/cxr-lt-2024/train_labeled.csv                         258,871 images, 40 classes, for all tasks
    <labels>/cxr-lt-2024/development_labeled_task{1,2,3}.csv        39,293 images, 40, 26 or 5 classes
    <labels>/cxr-lt-2024/test_labeled_task{1,2,3}.csv               78,946 images; task 2: 409, read by radiologists
    <images>/files/p10/p10000032/s50414267/<dicom_id>.jpg

2023's "No Finding" is "Normal" here; task 2 keeps it in 2023's place, the other tables are alphabetical. The split is
neither MIMIC's nor that of 2023: a model trained on either of those has seen test images of this one. `labels.csv` (all
images, 45 classes) is not read.
"""

from pathlib import Path
from typing import Literal

from data.label_spaces import (
    CXR_LT_2024_POSITIVES,
    CXR_LT_2024_TASK_1_CLASSES,
    CXR_LT_2024_TASK_2_CLASSES,
    CXR_LT_2024_TASK_3_CLASSES,
    CXR_LT_2024_TRAIN_IMAGES,
)
from data.manifest import Manifest
from data.sources.cxr_lt_tables import Challenge, read_challenge

CLASSES = {1: CXR_LT_2024_TASK_1_CLASSES, 2: CXR_LT_2024_TASK_2_CLASSES, 3: CXR_LT_2024_TASK_3_CLASSES}
TEST_IMAGES = {1: 78_946, 2: 409, 3: 78_946}


def challenge(task: Literal[1, 2, 3]) -> Challenge:
    """A task's tables. During the challenge they came without labels, under other names, in folders of starting kits,
    of which task 1's alone has the training table.
    """
    development = "development_task3.csv" if task == 3 else "development.csv"
    return Challenge(
        name=f"CXR-LT 2024 task {task}",
        source=f"cxr_lt_2024_task_{task}",
        folders=(".", "cxr-lt-2024", f"task{task}_development_starting_kit", "task1_development_starting_kit"),
        files={
            "train": ("train_labeled.csv",),
            "val": (f"development_labeled_task{task}.csv", development),
            "test": (f"test_labeled_task{task}.csv", f"test_task{task}.csv"),
        },
        classes=CLASSES[task],
        train_classes=CXR_LT_2024_TASK_1_CLASSES,
        images={"train": CXR_LT_2024_TRAIN_IMAGES, "val": 39_293, "test": TEST_IMAGES[task]},
        train_positives=CXR_LT_2024_POSITIVES,
    )


def read(
    images: Path,
    labels: Path,
    task: Literal[1, 2, 3],
    development: Literal["val", "split"] = "val",
    val_fraction: float = 0.1,
    overlap: Literal["refuse", "drop"] = "refuse",
    seed: int = 0,
) -> Manifest:
    """Read one task of CXR-LT 2024 as a manifest. Images are not opened.

    Args:
        images: MIMIC-CXR-JPG folder, the one that holds `files/`.
        labels: The folder cxr-lt-2024 of release 2.0.0, or the one that holds it.
        task: 1: 40 classes, labels from reports. 2: 26 of them, test labels by radiologists. 3: five classes that no
            training image has labels of, so train is unknown throughout.
        development: "val": the development table is the validation split. "split": it is left out, and part of the
            training patients validate. The same happens where that table is absent or has no labels.
        val_fraction: Part of the training patients that validates then, in (0, 1).
        overlap: What to do when a patient is in two of the files: refuse, or drop such patients' rows from train, then
            from val.
        seed: Of that part.

    Raises:
        InputError: A missing folder or file, other classes than the task's, a fault in a table, a patient in two files.
    """
    return read_challenge(challenge(task), images, labels, development, val_fraction, overlap, seed)
