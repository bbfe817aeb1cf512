"""The probability from which a class is called: chosen on held-out predictions, for the best F1 of each class.

Axes: **N** rows (one per group), **C** classes.

F1 on the rows that chose a threshold is too good to be true, the more so the fewer positives there are: classes with
few take the *shared* threshold, that of best F1 when all classes that have a positive are counted together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64

from data.calibration import MIN_POSITIVES
from data.errors import InputError
from data.metrics import check_scores, hard_labels
from data.operating_points import best_threshold
from data.strict_json import check_keys


@dataclass(frozen=True)
class Thresholds:
    """Probabilities above which a class is called."""

    own: dict[str, float]
    """Of the classes that have one."""
    shared: float
    """Of all others."""
    classes: tuple[str, ...]

    @property
    def values(self) -> Float64[np.ndarray, "C"]:
        """In the order of `classes`."""
        return np.array([self.own.get(name, self.shared) for name in self.classes])

    def __call__(self, probabilities: Float[np.ndarray, "N C"]) -> Bool[np.ndarray, "N C"]:
        """Which classes are called."""
        return probabilities > self.values


def fit_thresholds(
    probabilities: Float[np.ndarray, "N C"],
    targets: Float[np.ndarray, "N C"],
    classes: Sequence[str],
    min_positives: int = MIN_POSITIVES,
) -> Thresholds:
    """The threshold of best F1 for each class (`data.operating_points.best_threshold`), from its known labels.

    Raises:
        InputError: No class has a positive.
    """
    check_scores(probabilities)
    known, positive = hard_labels(targets)
    seen = positive.any(axis=0)
    if not seen.any():
        raise InputError("thresholds need a class with known positives, found none")
    own = {
        name: best_threshold(probabilities[known[:, c], c], positive[known[:, c], c])
        for c, name in enumerate(classes)
        if positive[:, c].sum() >= max(1, min_positives)
    }
    pooled = known & seen
    return Thresholds(own, best_threshold(probabilities[pooled], positive[pooled]), tuple(classes))


def to_json(thresholds: Thresholds) -> dict[str, Any]:
    """Plain dictionaries for `thresholds.json`."""
    entries = {
        name: {"threshold": value, "chosen": "own" if name in thresholds.own else "shared"}
        for name, value in zip(thresholds.classes, thresholds.values.tolist(), strict=True)
    }
    return {"criterion": "F1", "shared": thresholds.shared, "classes": entries}


def from_json(record: Any, where: str) -> Thresholds:
    """Read what `to_json` made, strictly.

    Raises:
        InputError: Another key, type or range, named.
    """
    check_keys(record, {"criterion": str, "shared": float, "classes": dict}, where)
    if record["criterion"] != "F1":
        raise InputError(f"{where}: criterion must be F1, found {record['criterion']!r}")
    shared, own = _probability(record["shared"], f"{where}: shared"), {}
    for name, entry in record["classes"].items():
        place = f"{where}: {name}"
        check_keys(entry, {"threshold": float, "chosen": str}, place)
        value = _probability(entry["threshold"], place)
        if entry["chosen"] == "own":
            own[name] = value
        elif entry["chosen"] != "shared" or value != shared:
            raise InputError(f"{place}: wanted chosen own, or chosen shared with {shared}, found {entry}")
    return Thresholds(own, shared, tuple(record["classes"]))


def _probability(value: float | int, where: str) -> float:
    if not 0 <= value <= 1:
        raise InputError(f"{where}: a threshold must be in 0..1, found {value}")
    return float(value)
