"""What a submission changes against a former one, per class and per image, before an upload is spent on it.

Axes: **N** images in both, **C** classes in both.

Average precision sees ranks only, so classes are compared by Spearman's rank correlation: Pearson's of the ranks, ties
sharing their mean rank. A class whose ranks follow another class of the former file points to swapped columns; ranks
that follow nothing point to mixed-up rows.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32

from data.errors import InputError
from data.ids import check_ids
from data.predictions import check_predictions, number_columns
from data.rank_correlation import rank_correlations
from data.tables import read_table

SWAP_MARGIN = 0.2
"""How much better the ranks must follow another class before a swap is suspected: related findings correlate too."""
UNRELATED = 0.3
"""Median rank correlation below which two submissions for the same images hardly speak of the same images."""
SHOWN_IMAGES = 5


@dataclass(frozen=True)
class ClassChange:
    """How one class moved."""

    name: str
    rank_correlation: float
    """In [-1, 1]; NaN where either file has one value only."""
    rows_changed: int
    largest: float
    """The largest absolute difference."""
    image_id: str
    """The first image that has it."""
    follows: str | None
    """A former class whose ranks it follows better than its own, by `SWAP_MARGIN`."""


@dataclass(frozen=True)
class Comparison:
    """A new submission against a former one."""

    rows: int
    """In both."""
    only_new: int
    only_former: int
    rows_changed: int
    classes: tuple[ClassChange, ...]
    """In the new file's order."""
    classes_only_in_one: tuple[str, ...]
    moved_most: tuple[tuple[str, float], ...]
    """Images with the largest mean absolute difference, and that, descending."""


def compare_submissions(new_ids: pd.Series, new_values: pd.DataFrame, former: Path) -> Comparison:
    """Compare a submission with a former one by id and by column name.

    Args:
        new_ids: Text; its name is the id column's.
        new_values: One column of float32 per class, rows as in `new_ids`.

    Raises:
        InputError: `former` is no submission, has another id column, or nothing in common.
    """
    former_ids, former_values = _read(former)
    if new_ids.name != former_ids.name:
        raise InputError(f"{former}: its first column is {former_ids.name}, wanted {new_ids.name} as in the new file")
    in_former = pd.Index(former_ids).get_indexer(new_ids)
    classes = [name for name in new_values if name in former_values]
    if not (in_former >= 0).any() or not classes:
        what = "images" if classes else "classes"
        raise InputError(f"{former}: has no {what} in common with the new file; is it a submission to the same task?")
    ids = new_ids[in_former >= 0].reset_index(drop=True)
    after = new_values.loc[in_former >= 0, classes].to_numpy(np.float32)
    before = former_values.loc[in_former[in_former >= 0], classes].to_numpy(np.float32)
    change = np.abs(after - before)
    mean_change = change.mean(axis=1)
    most = np.argsort(-mean_change, kind="stable")[:SHOWN_IMAGES]
    return Comparison(
        rows=len(ids),
        only_new=int((in_former < 0).sum()),
        only_former=len(former_ids) - len(ids),
        rows_changed=int((change > 0).any(axis=1).sum()),
        classes=_class_changes(ids, before, after, classes),
        classes_only_in_one=tuple(new_values.columns.symmetric_difference(former_values.columns)),
        moved_most=tuple((ids.iloc[row], float(mean_change[row])) for row in most if mean_change[row] > 0),
    )


def comparison_lines(comparison: Comparison) -> list[str]:
    """A comparison for the console: counts, classes by agreement, lowest first, images that moved most, warnings."""
    c = comparison
    lines = [f"{c.rows_changed} of {c.rows} rows changed; {c.only_new} rows are new, {c.only_former} are gone"]
    if c.classes_only_in_one:
        lines.append(f"classes in one of the files only: {', '.join(c.classes_only_in_one)}")
    moved = [change for change in c.classes if change.rows_changed]
    if not moved:
        return [*lines, "every value is as before"]
    width = max(len(change.name) for change in moved)
    lines.append(f"{'class'.ljust(width)}  rank corr.  rows changed  largest change")
    for change in sorted(moved, key=lambda change: (not np.isnan(change.rank_correlation), change.rank_correlation)):
        rank = "one value" if np.isnan(change.rank_correlation) else f"{change.rank_correlation:.4f}"
        where = f"{change.largest:.3g} at {change.image_id}"
        lines.append(f"{change.name.ljust(width)}  {rank.rjust(10)}  {change.rows_changed:12d}  {where}")
    lines += [f"moved most, mean over classes: {image} ({mean:.3g})" for image, mean in c.moved_most]
    return lines + _warnings(c)


def _read(path: Path) -> tuple[pd.Series, pd.DataFrame]:
    """Ids and float32 values of a submission."""
    if zipfile.is_zipfile(path):
        raise InputError(f"{path}: a zip; give the submission.csv that is in it")
    table = read_table(path)
    if len(table.columns) < 2:
        raise InputError(f"{path}, row 1: wanted an id column and then one per class, found {table.columns[0]}")
    ids, classes = table.iloc[:, 0], list(table.columns[1:])
    check_ids(ids, str(path))
    values = number_columns(path, table, classes)
    check_predictions(ids.to_frame(), values, classes, str(path), str(ids.name))
    return ids, pd.DataFrame(values, columns=classes)


def _class_changes(
    ids: pd.Series, before: Float32[np.ndarray, "N C"], after: Float32[np.ndarray, "N C"], classes: list[str]
) -> tuple[ClassChange, ...]:
    change = np.abs(after - before)
    correlation = rank_correlations(after, before)
    found = []
    for c, name in enumerate(classes):
        row = int(change[:, c].argmax())
        found.append(
            ClassChange(
                name=name,
                rank_correlation=float(correlation[c, c]),
                rows_changed=int((change[:, c] > 0).sum()),
                largest=float(change[row, c]),
                image_id=ids.iloc[row],
                follows=_better_match(correlation[c], c, classes),
            )
        )
    return tuple(found)


def _better_match(correlation: Float[np.ndarray, "C"], own: int, classes: list[str]) -> str | None:
    known = np.nan_to_num(correlation, nan=-1.0)
    best = int(known.argmax())
    return classes[best] if known[best] > np.nan_to_num(correlation[own]) + SWAP_MARGIN else None


def _warnings(comparison: Comparison) -> list[str]:
    lines = [
        f"warning: {change.name} ranks like the former {change.follows}, not like itself: are two columns swapped?"
        for change in comparison.classes
        if change.follows
    ]
    known = [change.rank_correlation for change in comparison.classes if not np.isnan(change.rank_correlation)]
    if known and float(np.median(known)) < UNRELATED:
        lines.append(
            f"warning: the median rank correlation is {np.median(known):.2f}: are the rows those of other images?"
        )
    return lines
