"""Predictions by image, study or patient, brought to the rows of a submission by id.

Axes: **N** rows of the predictions, **M** rows of the submission, **C** classes.

The challenges score images, but their labels belong to studies. A table with one row per study or patient is spread to
the images of the group; a table with one row per image goes to its images.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32, Integer

from data.errors import InputError
from data.ids import check_not_rounded, how_changed, how_ruined
from data.manifest import read_manifest
from data.predictions import check_predictions, check_probabilities, line_of, number_columns
from data.tables import read_table

Level = Literal["image", "study", "patient"]
ID_COLUMNS: dict[Level, tuple[str, ...]] = {
    "image": ("image_id", "dicom_id", "ImageID"),
    "study": ("study_id", "StudyID"),
    "patient": ("patient_id", "subject_id", "PatientID"),
}
"""Columns that say what a row is about. The first level that has one decides: an image row may also name its study."""


@dataclass(frozen=True, eq=False)
class Predicted:
    """Probabilities with what they are about."""

    level: Level
    ids: pd.Series
    """Of images, studies or patients, each once; its name is the column's."""
    values: Float32[np.ndarray, "N C"]
    """In [0, 1]."""
    left_out: tuple[str, ...]
    """Columns that are neither ids nor wanted."""


def read_predicted(path: Path, classes: Sequence[str], rename: Mapping[str, str] | None = None) -> Predicted:
    """Read the wanted classes of a prediction table; what else it holds does not matter.

    Args:
        path: A table with ids (`ID_COLUMNS`) and one column per class, such as `predictions_test.csv`.
        classes: The wanted ones, which the result has in this order.
        rename: Column of the table -> class, where they are called differently.

    Raises:
        InputError: No id column, a class that is missing, an empty, repeated or rounded id, a value that is no
            probability; named by file, row and column.
    """
    table = read_table(path, unnamed=True)
    table = _renamed(table, rename or {}, path)
    known = {name: level for level, names in ID_COLUMNS.items() for name in names}
    column = next((name for name in known if name in table), None)
    if column is None:
        raise InputError(f"{path}, row 1: no column of ids; wanted image_id, study_id or patient_id, and the classes")
    _check_classes(table, classes, path)
    values = number_columns(path, table, classes)
    check_not_rounded(table[column], str(path))
    check_predictions(table, values, classes, str(path), column)
    check_probabilities(table[column], values, classes, str(path))
    left_out = tuple(name for name in table.columns if name not in known and name not in classes)
    return Predicted(known[column], table[column], values, left_out)


def spread(
    predicted: Predicted, where: str, images: pd.Series, groups: pd.DataFrame | None, source: str
) -> Integer[np.ndarray, "M"]:
    """For each image of the submission the row of its prediction, -1 where there is none.

    Args:
        where: The file of the predictions, for messages.
        images: Ids of the M images.
        groups: `study_id` and `patient_id` of the M images; needed for predictions of groups.
        source: The file that `groups` comes from.

    Raises:
        InputError: The groups of the images are not known, or the ids were changed by some program.
    """
    if predicted.level == "image":
        wanted = images
    elif groups is None or f"{predicted.level}_id" not in groups:
        raise InputError(
            f"{where}: has one row per {predicted.level}, and {source} does not say which images belong to it; "
            "give the manifest that does: --manifest runs/<name>/manifest.csv"
        )
    else:
        wanted = groups[f"{predicted.level}_id"]
        check_not_rounded(wanted, source)
    wanted, having = _without_s(wanted), _without_s(predicted.ids)
    rows = pd.Index(having).get_indexer(wanted)
    if (rows < 0).any():
        _explain(wanted[rows < 0], having, rows, where, predicted)
    return rows


def groups_of_manifest(path: Path, images: pd.Series) -> pd.DataFrame:
    """`study_id` and `patient_id` of each image from a manifest.

    Raises:
        InputError: The manifest lacks one of the images.
    """
    table = read_manifest(path).images.set_index("image_id")
    missing = images[~images.isin(table.index)]
    if len(missing):
        raise InputError(
            f"{path}: lacks {len(missing)} of the {len(images)} images to predict, first {missing.iloc[0]!r}; "
            "give the manifest that the predictions were made with"
        )
    return table.loc[images.tolist(), ["study_id", "patient_id"]].reset_index(drop=True)


def _renamed(table: pd.DataFrame, rename: Mapping[str, str], path: Path) -> pd.DataFrame:
    for theirs, ours in rename.items():
        if theirs not in table:
            raise InputError(f"{path}, row 1: no column '{theirs}' to rename to '{ours}'")
        if ours in table:
            raise InputError(f"{path}, row 1: cannot rename '{theirs}': there is a column '{ours}' already")
    return table.rename(columns=dict(rename))


def _check_classes(table: pd.DataFrame, classes: Sequence[str], path: Path) -> None:
    missing = [name for name in classes if name not in table]
    if not missing:
        return
    more = f" and {len(missing) - 1} more of the {len(classes)} classes" if len(missing) > 1 else ""
    like = {name.lower(): name for name in table.columns}
    near = difflib.get_close_matches(missing[0].lower(), list(like), n=1)
    if missing[0] == "Normal" and "No Finding" in table:
        near = ["no finding"]  # the same class: CXR-LT 2024 renamed it
    hint = f"; if '{like[near[0]]}' is that class: --rename \"{like[near[0]]}={missing[0]}\"" if near else ""
    raise InputError(f"{path}, row 1: no column '{missing[0]}'{more}{hint}")


def _without_s(ids: pd.Series) -> pd.Series:
    """CXR-LT 2024 writes study_id as s50414267, MIMIC and the manifest as 50414267."""
    return ids.str.replace(r"^s(?=\d+$)", "", regex=True)


def _explain(missing: pd.Series, having: pd.Series, rows: np.ndarray, where: str, predicted: Predicted) -> None:
    """Refuse ids that were changed on the way: they would pass for images without a prediction.

    Raises:
        InputError: An id is there in another spelling, or none of the ids is there.
    """
    first = missing.iloc[0]
    changed = how_changed(first, having.tolist())
    if changed:
        raise InputError(f"{where}: no {predicted.ids.name} {first!r}, but {changed}; keep ids as text (dtype=str)")
    ruined = having.map(lambda text: how_ruined(text) is not None).astype(bool)
    if ruined.any():
        found = having[ruined].iloc[0]
        raise InputError(
            f"{where}, row {line_of(ruined)}: {predicted.ids.name} {found!r} looks like {how_ruined(found)} "
            f"({ruined.sum()} such ids), and {first!r} is missing; keep ids as text (dtype=str)"
        )
    if (rows < 0).all():
        raise InputError(
            f"{where}: has none of the {len(rows)} wanted ids (wanted {first!r}, has {having.iloc[0]!r}); "
            "are these the predictions of another split?"
        )
