"""The CXR-LT challenges: what a submission to each holds, and the official files that it is held against.

A challenge publishes a sample submission, a test table, or both. Neither is trusted alone: a sample was shipped short
of its test set once, and either file may have been through a spreadsheet. Where both are given they must name the same
images in the same order; columns go by name.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data.errors import InputError
from data.ids import ORIGINAL, check_form, check_ids
from data.label_spaces import (
    CXR_LT_2023_CLASSES,
    CXR_LT_2024_TASK_1_CLASSES,
    CXR_LT_2024_TASK_2_CLASSES,
    CXR_LT_2024_TASK_3_CLASSES,
    CXR_LT_2026_CLASSES,
    CXR_LT_2026_UNSEEN_CLASSES,
)
from data.tables import read_table, require_columns


@dataclass(frozen=True)
class DataSet:
    """How a data set writes the ids of its images, and what its test tables call groups of images."""

    id_column: str
    id_form: re.Pattern[str]
    id_example: str
    group_columns: dict[str, str]
    """`study_id` and `patient_id` -> column of the test table; none where the table's groups cannot be relied on."""


@dataclass(frozen=True)
class Challenge:
    """One task of one year: a submission is the image's id, then these classes, a row per image of the test table."""

    data_set: DataSet
    classes: tuple[str, ...]
    """In the order of the published files."""
    num_images: dict[str, int]
    """Phase -> published number of images."""


MIMIC = DataSet(
    id_column="dicom_id",
    id_form=re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}"),
    id_example="0a1b2c3d-11112222-33334444-55556666-77778888",
    group_columns={"study_id": "study_id", "patient_id": "subject_id"},
)
# PatientID is 1.90E+38 in every row of the 2026 tables: three digits of it are left. There is no study column.
PADCHEST = DataSet("ImageID", re.compile(r"\S+\.png"), "10000000000000000001_ab12cd.png", {})

CHALLENGES: dict[str, Challenge] = {
    "cxr-lt-2023": Challenge(MIMIC, CXR_LT_2023_CLASSES, {"development": 36_769, "test": 75_492}),
    "cxr-lt-2024-task1": Challenge(MIMIC, CXR_LT_2024_TASK_1_CLASSES, {"development": 39_293, "test": 78_946}),
    "cxr-lt-2024-task2": Challenge(MIMIC, CXR_LT_2024_TASK_2_CLASSES, {"development": 39_293, "test": 409}),
    "cxr-lt-2024-task3": Challenge(MIMIC, CXR_LT_2024_TASK_3_CLASSES, {"development": 39_293, "test": 78_946}),
    "cxr-lt-2026-task1": Challenge(PADCHEST, CXR_LT_2026_CLASSES, {"development": 1_620, "test": 1_400}),
    "cxr-lt-2026-task2": Challenge(PADCHEST, CXR_LT_2026_UNSEEN_CLASSES, {"test": 384}),
}
TEST_TABLE_COLUMNS = {"subject_id", "PatientID"}
"""Columns that test tables have and sample files do not."""


@dataclass(frozen=True, eq=False)
class OfficialForm:
    """The rows and columns that a submission must have."""

    ids: pd.Series
    """Text, in the order of the rows; its name is the id column."""
    classes: tuple[str, ...]
    """In the order of the columns."""
    where: str
    """The file that the rows come from, for messages."""
    groups: pd.DataFrame | None
    """`study_id` and `patient_id` of each row, from the test table, as far as the data set has them."""


def official_form(name: str, template: Path | None, test_table: Path | None) -> OfficialForm:
    """Rows and columns from the challenge's files: its sample submission, its test table, or both.

    Args:
        name: A key of `CHALLENGES`.
        template: The sample submission. Its values are ignored; without it, columns are in the published order.
        test_table: The table of the images to predict.

    Raises:
        InputError: Neither is given, one is damaged or belongs to another challenge, or they differ.
    """
    challenge = CHALLENGES[name]
    if template is None and test_table is None:
        raise InputError(
            f"{name}: give the challenge's sample file (--template), its test table (--test_table) or both"
        )
    classes = challenge.classes
    forms: list[tuple[pd.Series, Path]] = []
    if template is not None:
        table = read_table(template, unnamed=True)
        classes = _template_classes(name, table, template)
        forms.append((_ids_of(challenge.data_set, table, template), template))
    groups = None
    if test_table is not None:
        table = read_table(test_table, required=[challenge.data_set.id_column], unnamed=True)
        forms.append((_ids_of(challenge.data_set, table, test_table), test_table))
        groups = _groups_of(challenge.data_set, table)
    if len(forms) == 2:
        check_same_images(*forms[0], *forms[1])
        _check_same_order(*forms[0], *forms[1])
    ids, where = forms[0]
    return OfficialForm(ids, classes, str(where), groups)


def check_same_images(wanted: pd.Series, template: Path, test_ids: pd.Series, test_table: Path) -> None:
    """Refuse a template and a test table that do not name the same images, in any order.

    Raises:
        InputError: Names the file that lacks ids, the first one and both counts.
    """
    counts = f"{len(test_ids)} images in the test table, {len(wanted)} in the template"
    for lacking, ids, having, there in (
        (template, wanted, test_table, test_ids),
        (test_table, test_ids, template, wanted),
    ):
        missing = there[~there.isin(ids)]
        if len(missing):
            raise InputError(
                f"{lacking}: lacks {len(missing)} ids of {having}, first {missing.iloc[0]!r} ({counts}); "
                "take both files from the same release of the challenge"
            )


def phase_note(name: str, num_images: int) -> str:
    """Which of the published sets has this many images, in words."""
    published = CHALLENGES[name].num_images
    phase = next((phase for phase, count in published.items() if count == num_images), None)
    if phase is not None:
        return f"as many images as the published {phase} set"
    sizes = ", ".join(f"{count:,} in the {phase} set" for phase, count in published.items())
    return f"note: not the published number of images ({sizes})"


def _ids_of(data_set: DataSet, table: pd.DataFrame, path: Path) -> pd.Series:
    ids = table[data_set.id_column]
    check_form(ids, data_set.id_form, data_set.id_example, str(path))
    check_ids(ids, str(path))
    return ids


def _template_classes(name: str, table: pd.DataFrame, template: Path) -> tuple[str, ...]:
    """The class columns of a sample file, in its order, when they are this challenge's."""
    challenge, id_column = CHALLENGES[name], CHALLENGES[name].data_set.id_column
    columns = set(table.columns)
    for other, theirs in CHALLENGES.items():
        if other != name and columns == {theirs.data_set.id_column, *theirs.classes}:
            raise InputError(f"{template}: this is a sample file of {other}, wanted one of {name}")
    require_columns(template, list(table.columns), [id_column])
    missing = [column for column in challenge.classes if column not in columns]
    unexpected = [column for column in table.columns if column not in (id_column, *challenge.classes)]
    if missing or unexpected:
        hint = "; a test table is given with --test_table" if columns & TEST_TABLE_COLUMNS else ""
        raise InputError(
            f"{template}, row 1: wanted {id_column} and the {len(challenge.classes)} classes of {name}; "
            f"missing: {_some(missing)}; unexpected: {_some(unexpected)}{hint}"
        )
    if table.columns[0] != id_column:
        raise InputError(f"{template}, row 1: the first column must be {id_column}; {ORIGINAL}")
    return tuple(table.columns[1:])


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more


def _groups_of(data_set: DataSet, table: pd.DataFrame) -> pd.DataFrame | None:
    columns = {ours: table[theirs] for ours, theirs in data_set.group_columns.items() if theirs in table}
    return pd.DataFrame(columns) if columns else None


def _check_same_order(wanted: pd.Series, template: Path, test_ids: pd.Series, test_table: Path) -> None:
    differs = (wanted.to_numpy() != test_ids.to_numpy()).nonzero()[0]
    if len(differs):
        row = differs[0]
        raise InputError(
            f"{template}, row {row + 2}: {wanted.iloc[row]!r}, but {test_ids.iloc[row]!r} in that row of {test_table} "
            f"({len(differs)} rows differ): the same images in another order, so one of the files was sorted after "
            "the download; take the original, or leave --test_table out to keep the template's order"
        )
