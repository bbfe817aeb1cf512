"""How two sets of predictions differ: the groups that moved most.

A first, B second. G groups, C classes.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from data.metrics import hard_labels
from fusion.evaluate.rows import Rows

MOVED = 8
"""Groups shown on each side."""


def moved_most(first: Rows, second: Rows, classes: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """The groups in which one side is closest to the labels compared with the other.

    A class counts with the squared distance of B's probability from the label minus that of A's: its part of the Brier
    score. A group's gain is the sum over its known classes.

    Returns:
        "first_better" and "second_better", the largest gain first, each with the three classes that moved most.
    """
    known, positive = hard_labels(first.targets)
    a, b = (rows.probabilities.astype(np.float64) for rows in (first, second))
    gains = np.where(known, np.square(b - positive) - np.square(a - positive), 0.0)
    total = gains.sum(axis=1)
    order = np.argsort(-total, kind="stable")
    best = [g for g in order[:MOVED].tolist() if total[g] > 0]
    worst = [g for g in order[::-1][:MOVED].tolist() if total[g] < 0]
    return {
        "first_better": [_moved(g, first, a, b, gains, positive, classes) for g in best],
        "second_better": [_moved(g, first, a, b, gains, positive, classes) for g in worst],
    }


def _moved(
    group: int,
    rows: Rows,
    a: Float[np.ndarray, "G C"],
    b: Float[np.ndarray, "G C"],
    gains: Float[np.ndarray, "G C"],
    positive: Bool[np.ndarray, "G C"],
    classes: tuple[str, ...],
) -> dict[str, Any]:
    largest = np.argsort(-np.abs(gains[group]), kind="stable")[:3].tolist()
    moved = [c for c in largest if gains[group, c] != 0]
    return {
        "id": rows.ids[group],
        "views": rows.views[group],
        "gain": float(gains[group].sum()),
        "positive": [name for name, y in zip(classes, positive[group], strict=True) if y],
        "classes": [
            {
                "class": classes[c],
                "present": bool(positive[group, c]),
                "first": float(a[group, c]),
                "second": float(b[group, c]),
            }
            for c in moved
        ],
    }
