"""Labels as text and as numbers.

Axes: **N** images, **C** classes.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError

ZERO_OR_ONE = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0}
"""What people write who leave nothing uncertain and nothing blank: `values` of `parse_labels`."""

NUMBER = re.compile(r"[0-9.eE+-]+")  # float() alone also takes "nan", "1_0" and digits of other scripts


def parse_labels(
    frame: pd.DataFrame, classes: Sequence[str], where: str, values: Mapping[str, float] | None = None
) -> Float32[np.ndarray, "N C"]:
    """Label columns of a table as numbers: empty is NaN (unknown), anything else must be in [0, 1].

    Args:
        where: The file to name in an error.
        values: The only texts that a data set writes, and what each means in [0, 1] or NaN; others are refused then.

    Raises:
        InputError: Names the row, column and value that is neither.
    """
    wanted = "empty or in 0..1" if values is None else f"one of {', '.join(text or '(empty)' for text in values)}"
    labels = np.empty((len(frame), len(classes)), dtype=np.float32)
    for column, name in enumerate(classes):
        codes, texts = pd.factorize(frame[name])  # a handful of distinct texts per column: parse each once
        numbers = [parse_label(text) if values is None else values.get(text) for text in texts]
        if None in numbers:
            row = int(np.argmax(codes == numbers.index(None)))
            found = frame[name].iat[row]
            raise InputError(f"{where}, row {row + 2}, column '{name}': label must be {wanted}, got '{found}'")
        labels[:, column] = np.array(numbers, dtype=np.float32)[codes]
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
