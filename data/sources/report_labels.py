"""Labels that a program found in reports, as MIMIC-CXR-JPG, CheXpert and CheXpert Plus write them.

1.0 is present, 0.0 absent, -1.0 uncertain, blank not mentioned. No Finding is 1.0 or blank.

Axes: **N** rows, **C** classes.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError
from data.labels import parse_labels

Uncertain = Literal["ones", "zeros", "ignore"]
NotMentioned = Literal["zeros", "ignore"]
UncertainRule = Uncertain | float | dict[str, Uncertain | float]

UNCERTAIN = {"ones": 1.0, "zeros": 0.0, "ignore": np.nan}
NO_FINDING = "No Finding"


def parse_report_labels(
    table: pd.DataFrame,
    classes: Sequence[str],
    where: str,
    uncertain: UncertainRule,
    not_mentioned: NotMentioned,
) -> Float32[np.ndarray, "N C"]:
    """Report labels as numbers in [0, 1], NaN where unknown.

    A blank No Finding is 0, as the tables have no other way to say it; a row that is blank throughout is unknown in all
    classes, as nothing was found in its report, not even that there is nothing.

    Args:
        table: Has the classes as columns of text.
        where: The file to name in an error.
        uncertain: What -1 becomes: 1, 0, unknown, or a number in [0, 1]; one for all or by class, and then unknown in
            the classes that are not listed.
        not_mentioned: What a blank becomes.

    Raises:
        InputError: A label of another form, or `uncertain` names no class or is outside [0, 1].
    """
    unsure = uncertain_values(uncertain, classes)
    blank = {"zeros": 0.0, "ignore": np.nan}[not_mentioned]
    columns = []
    for name in classes:
        known = {"1.0": 1.0, "0.0": 0.0, "-1.0": unsure[name], "1": 1.0, "0": 0.0, "-1": unsure[name]}
        columns.append(parse_labels(table, [name], where, known | {"": 0.0 if name == NO_FINDING else blank}))
    labels = np.concatenate(columns, axis=1)
    labels[(table[list(classes)] == "").to_numpy(dtype=bool).all(axis=1)] = np.nan
    return labels


def uncertain_values(uncertain: UncertainRule, classes: Sequence[str]) -> dict[str, float]:
    """The number that an uncertain label becomes in each class, NaN for unknown.

    Raises:
        InputError: A name that is no class, a number outside [0, 1].
    """
    if not isinstance(uncertain, dict):
        uncertain = dict.fromkeys(classes, uncertain)
    values = dict.fromkeys(classes, np.nan)
    for name, value in uncertain.items():
        if name not in values:
            raise InputError(f"uncertain: '{name}' is not a class; the classes are {', '.join(classes)}")
        if not isinstance(value, str) and not 0 <= value <= 1:
            raise InputError(f"uncertain: {name} must be ones, zeros, ignore or a number in 0..1, got {value}")
        values[name] = UNCERTAIN[value] if isinstance(value, str) else float(value)
    return values
