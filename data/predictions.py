"""Prediction tables: `image_id, study_id, patient_id`, then one column per class.

Axes: **N** images, **C** classes. `predictions_<split>.csv` holds probabilities, `logits_<split>.csv` logits, in one
layout. Values are float32 in 9 significant digits, which is what it takes to read back the same bits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError
from data.tables import read_table, write_table

ID_COLUMNS = ("image_id", "study_id", "patient_id")


def write_predictions(
    path: Path, images: pd.DataFrame, values: Float32[np.ndarray, "N C"], classes: Sequence[str]
) -> None:
    """Write one row per image, in the order given; the file appears complete or not at all.

    Args:
        images: A frame with at least `image_id, study_id, patient_id`, such as a manifest's images.
        values: Probabilities or logits, finite.

    Raises:
        InputError: A value is not finite, an `image_id` is empty or occurs twice.
    """
    check_predictions(images, values, classes, where=str(path))
    write_table(path, value_table(images[list(ID_COLUMNS)], values, classes))


def read_predictions(path: Path) -> tuple[pd.DataFrame, Float32[np.ndarray, "N C"], tuple[str, ...]]:
    """Read what `write_predictions` wrote, to the bit.

    Returns:
        The ids (three columns of str), the values, and the classes in the order of the columns.

    Raises:
        InputError: Another layout, no rows, an empty or repeated `image_id`, or a value that is no finite float32,
            named by file, row (line of the file) and column.
    """
    table = read_table(path, required=ID_COLUMNS)
    classes = tuple(table.columns[len(ID_COLUMNS) :])
    if tuple(table.columns[: len(ID_COLUMNS)]) != ID_COLUMNS or not classes:
        raise InputError(
            f"{path}: wanted the columns {', '.join(ID_COLUMNS)} and then one per class, "
            f"found {', '.join(table.columns[:4])}"
        )
    ids = table[list(ID_COLUMNS)]
    values = number_columns(path, table, classes)
    check_predictions(ids, values, classes, where=str(path))
    return ids, values, classes


def check_predictions(
    ids: pd.DataFrame,
    values: Float32[np.ndarray, "N C"],
    classes: Sequence[str],
    where: str,
    id_column: str = "image_id",
) -> None:
    """Refuse what no prediction table may hold; arguments as in `write_predictions`.

    Args:
        where: The file, for the message.
        id_column: The column of `ids` that says what a row is about, an image or a group of images.
    """
    assert values.shape == (len(ids), len(classes)), "one row per image, one column per class"
    if not len(ids):
        raise InputError(f"{where}: no predictions, wanted at least one row")
    if (ids[id_column] == "").any():
        raise InputError(f"{where}, row {line_of(ids[id_column] == '')}: {id_column} is empty")
    repeated = ids[id_column].duplicated()
    if repeated.any():
        raise InputError(
            f"{where}, row {line_of(repeated)}: {id_column} {ids[id_column][repeated].iloc[0]!r} occurs twice "
            f"({repeated.sum()} such rows); wanted one row per {id_column.removesuffix('_id')}"
        )
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise InputError(
            f"{where}, row {row + 2}, column {classes[column]!r}: wanted a finite number, found {values[row, column]} "
            f"({id_column.removesuffix('_id')} {ids[id_column].iloc[row]!r}; "
            f"{(~np.isfinite(values)).sum()} such values)"
        )


def check_probabilities(ids: pd.Series, values: Float32[np.ndarray, "N C"], classes: Sequence[str], where: str) -> None:
    """Refuse values outside [0, 1].

    Raises:
        InputError: Names the first one by row, column and id.
    """
    outside = (values < 0) | (values > 1)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        what = str(ids.name).removesuffix("_id")
        raise InputError(
            f"{where}, row {row + 2}, column {classes[column]!r}: wanted a probability in [0, 1], found "
            f"{values[row, column]:.9g} ({what} {ids.iloc[row]!r}; {outside.sum()} such values); "
            "submit the predictions file, not the logits"
        )


def number_columns(path: Path, table: pd.DataFrame, names: Sequence[str]) -> Float32[np.ndarray, "N C"]:
    """Columns of a table as numbers.

    Raises:
        InputError: A value that is none, named by row and column. `nan` and `inf` are numbers here.
    """
    return np.stack([_numbers(path, table, name) for name in names], axis=1)


def value_table(ids: pd.DataFrame, values: Float32[np.ndarray, "N C"], classes: Sequence[str]) -> pd.DataFrame:
    """The ids and the values as text in 9 significant digits, beside each other."""
    columns = {name: [f"{value:.9g}" for value in values[:, c].tolist()] for c, name in enumerate(classes)}
    return pd.concat([ids.reset_index(drop=True), pd.DataFrame(columns, dtype=str)], axis=1)


def line_of(wrong: pd.Series) -> int:
    """The line in the file of the first row marked (bool); line 1 is the header, blank lines are not counted."""
    return int(np.argmax(wrong.to_numpy())) + 2


def _numbers(path: Path, table: pd.DataFrame, name: str) -> Float32[np.ndarray, "N"]:
    texts = table[name].tolist()
    with np.errstate(over="ignore"):  # 1e39 becomes infinite here and is refused later, with its row
        return np.array([_number(path, row, name, text) for row, text in enumerate(texts)]).astype(np.float32)


def _number(path: Path, row: int, name: str, text: str) -> float:
    try:
        if "_" in text or text != text.strip():  # float() takes "1_0" and " 1"
            raise ValueError
        return float(text)
    except ValueError:
        raise InputError(f"{path}, row {row + 2}, column {name!r}: wanted a number, found {text!r}") from None
