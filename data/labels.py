"""Class names in their challenge's order, head, medium and tail, and labels as text and numbers.

Axes: **N** images, **C** classes.
"""

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError

HEAD_SHARE = 0.10
MEDIUM_SHARE = 0.01

NUMBER = re.compile(r"[0-9.eE+-]+")  # float() alone also takes "nan", "1_0" and digits of other scripts

# Order of the CSV and of the submission. Groups as the winning entry scores them (CheXFusion, arXiv 2308.03968, public
# code); not a plain rule of frequency: Enlarged Cardiomediastinum (11.4 %) is medium, Tortuous Aorta (1.32 %) is tail.
CXR_LT_2023_GROUPS: dict[str, str] = {
    "Atelectasis": "head",
    "Calcification of the Aorta": "medium",
    "Cardiomegaly": "head",
    "Consolidation": "medium",
    "Edema": "head",
    "Emphysema": "medium",
    "Enlarged Cardiomediastinum": "medium",
    "Fibrosis": "tail",
    "Fracture": "medium",
    "Hernia": "medium",
    "Infiltration": "medium",
    "Lung Lesion": "tail",
    "Lung Opacity": "head",
    "Mass": "medium",
    "No Finding": "head",
    "Nodule": "medium",
    "Pleural Effusion": "head",
    "Pleural Other": "tail",
    "Pleural Thickening": "tail",
    "Pneumomediastinum": "tail",
    "Pneumonia": "head",
    "Pneumoperitoneum": "tail",
    "Pneumothorax": "medium",
    "Subcutaneous Emphysema": "tail",
    "Support Devices": "head",
    "Tortuous Aorta": "tail",
}
CXR_LT_2023_CLASSES: tuple[str, ...] = tuple(CXR_LT_2023_GROUPS)


def frequency_groups(train_positives: dict[str, int], num_images: int) -> dict[str, str]:
    """Head, medium or tail for class lists without published groups, by the CXR-LT 2024 rule.

    Args:
        train_positives: Positive training images of each class.
        num_images: Training images, at least 1.

    Returns:
        "head" from 10 % of the images on, "medium" from 1 % on, else "tail".
    """
    assert num_images > 0, num_images
    shares = {name: positives / num_images for name, positives in train_positives.items()}
    return {
        name: "head" if share >= HEAD_SHARE else "medium" if share >= MEDIUM_SHARE else "tail"
        for name, share in shares.items()
    }


def class_groups(train_positives: dict[str, int], num_images: int) -> dict[str, str]:
    """Head, medium or tail of each class: the published groups for CXR-LT 2023's classes, else by frequency."""
    if set(train_positives) == set(CXR_LT_2023_CLASSES):
        return CXR_LT_2023_GROUPS
    return frequency_groups(train_positives, max(num_images, 1))


def parse_labels(frame: pd.DataFrame, classes: Sequence[str], where: str) -> Float32[np.ndarray, "N C"]:
    """Label columns of a table as numbers: empty is NaN (unknown), anything else must be in [0, 1].

    Raises:
        InputError: Names the row, column and value that is neither.
    """
    labels = np.empty((len(frame), len(classes)), dtype=np.float32)
    for column, name in enumerate(classes):
        codes, texts = pd.factorize(frame[name])  # a handful of distinct texts per column: parse each once
        values = [parse_label(text) for text in texts]
        if None in values:
            row = int(np.argmax(codes == values.index(None)))
            found = frame[name].iat[row]
            raise InputError(f"{where}, row {row + 2}, column '{name}': label must be empty or in 0..1, got '{found}'")
        labels[:, column] = np.array(values, dtype=np.float32)[codes]
    return labels


def parse_label(text: str) -> float | None:
    """A label's text as a number in [0, 1]; NaN for empty; None where it is neither."""
    if text == "":
        return float("nan")
    try:
        value = float(text) if NUMBER.fullmatch(text) else -1.0
    except ValueError:
        return None
    return value if 0 <= value <= 1 else None


def label_text(labels: Float32[np.ndarray, "N C"]) -> np.ndarray:
    """Labels as text, (N, C) of `object`; a soft one in the fewest digits that read back as the same float32."""
    text = np.full(labels.shape, "", dtype=object)
    text[labels == 0] = "0"
    text[labels == 1] = "1"
    soft = (labels != 0) & (labels != 1) & ~np.isnan(labels)
    values, places = np.unique(labels[soft], return_inverse=True)
    text[soft] = np.array([str(value) for value in values], dtype=object)[places]
    return text
