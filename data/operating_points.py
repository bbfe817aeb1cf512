"""Decisions instead of ranks: thresholds of best F1, F1 at given ones, sensitivity at a specificity one insists on.

A threshold is chosen on validation and used on test; choosing it where it is judged flatters rare classes most.
Known labels only, as in `data.metrics`. Axes: **N** rows, **C** classes.
"""

import numpy as np
from jaxtyping import Bool, Float

from data.metrics import POSITIVE_ABOVE, check_scores, hard_labels


def best_f1_thresholds(
    probabilities: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"]
) -> Float[np.ndarray, "C"]:
    """The threshold of each class with the largest F1; a probability above it is called positive.

    A threshold lies half-way between two neighbouring distinct probabilities, so that it separates unseen rows as well
    as it can; the lowest one lies half-way to 0. Of equally good ones the highest is taken: it calls fewer. Where no
    positive is known nothing can be chosen, and the threshold is one half.
    """
    check_scores(probabilities)
    known, positive = hard_labels(targets)
    return np.array([best_threshold(probabilities[rows, c], positive[rows, c]) for c, rows in enumerate(known.T)])


def best_threshold(probabilities: Float[np.ndarray, "K"], positive: Bool[np.ndarray, "K"]) -> float:
    """One class of `best_f1_thresholds`, or any known pairs of row and class together."""
    if not positive.any():
        return POSITIVE_ABOVE
    values, found, retrieved = _steps(probabilities.astype(np.float64), positive)
    f1 = 2 * found / (retrieved + positive.sum())
    best = int(np.argmax(f1))  # the first of equals: the highest threshold
    below = values[best + 1] if best + 1 < len(values) else 0.0
    return float((values[best] + below) / 2)


def f1_at(
    probabilities: Float[np.ndarray, "N C"],
    targets: Float[np.ndarray, "N C"],
    thresholds: Float[np.ndarray, "C"] | float = POSITIVE_ABOVE,
) -> Float[np.ndarray, "C"]:
    """F1 = 2 TP / (2 TP + FP + FN) of each class, calling a probability above its threshold positive.

    NaN for an absent class.
    """
    check_scores(probabilities)
    known, positive = hard_labels(targets)
    called = known & (probabilities > thresholds)
    hits, total = (called & positive).sum(axis=0), called.sum(axis=0) + positive.sum(axis=0)
    return np.where(positive.any(axis=0), 2 * hits / np.maximum(total, 1), np.nan)


def sensitivity_at(
    specificity: float, probabilities: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"]
) -> Float[np.ndarray, "C"]:
    """Largest sensitivity of each class on the points of its ROC curve with at least that specificity.

    A property of the curve, like AUROC: the cut is not one that was chosen beforehand. The curve begins at
    sensitivity 0, specificity 1. NaN where positives or negatives are missing.

    Args:
        specificity: Share of negatives that must be called negative, in (0, 1].
    """
    check_scores(probabilities)
    known, positive = hard_labels(targets)
    columns = [_sensitivity(specificity, probabilities[rows, c], positive[rows, c]) for c, rows in enumerate(known.T)]
    return np.array(columns)


def most_false_positives(specificity: float, negatives: Float[np.ndarray, "r"]) -> Float[np.ndarray, "r"]:
    """How many of so many negatives may be called positive; 10 of 100 at 0.9, whatever 1 - 0.9 is in binary."""
    return np.floor((1 - specificity) * negatives + 1e-9)


def _sensitivity(specificity: float, scores: Float[np.ndarray, "K"], positive: Bool[np.ndarray, "K"]) -> float:
    if positive.all() or not positive.any():
        return float("nan")
    _, found, retrieved = _steps(scores, positive)
    allowed = retrieved - found <= most_false_positives(specificity, (~positive).sum(keepdims=True) * 1.0)
    return float(found[allowed].max(initial=0) / positive.sum())


def _steps(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct scores from the top, positives found and rows retrieved down to each."""
    values, step = np.unique(-scores, return_inverse=True)
    retrieved = np.cumsum(np.bincount(step))
    found = np.cumsum(np.bincount(step, weights=positive))
    return -values, found, retrieved
