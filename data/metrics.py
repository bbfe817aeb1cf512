"""Scores of ranked findings: exact average precision and AUROC, and calibration, over known labels only.

F1 and sensitivity are in `data.operating_points`.

Axes: **N** rows (images or groups), **C** classes.

Every number here needs a hard label. A target above 0.5 counts as positive, any other known target as negative
(soft labels are for losses; an exact 0.5 is negative), and NaN means unknown: the row is left out of that class.
A class without a positive has no average precision. It is *absent*: NaN here, null in a report, and in no mean,
because counting it as 0 or as 1 would move the macro average by 1/C for reasons that are not the model's.

Tied scores are one step of the curve, so neither number depends on the order of the rows. Half-precision
probabilities tie often (206 distinct float16 values lie in [0.9, 1]).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from data.errors import InputError

POSITIVE_ABOVE = 0.5
"""A label, and for F1 a probability, counts as positive above this value (torchmetrics has the same rule)."""

CALIBRATION_BINS = 15

LEAST_PROBABILITY = float(np.finfo(np.float32).eps)
"""Log loss takes probabilities as at least this far from 0 and 1, as scikit-learn does with float32 ones."""


@dataclass(frozen=True)
class PerClass:
    """One entry per class; NaN where a number is not defined."""

    ap: Float[np.ndarray, "C"]
    auroc: Float[np.ndarray, "C"]
    positives: Int[np.ndarray, "C"]
    known: Int[np.ndarray, "C"]


def hard_labels(targets: Float[np.ndarray, "*shape"]) -> tuple[Bool[np.ndarray, "*shape"], Bool[np.ndarray, "*shape"]]:
    """Which targets are known, and which of them are positive (above 0.5).

    Raises:
        InputError: A target is neither NaN nor in [0, 1], such as CheXpert's -1 for "uncertain".
    """
    known = ~np.isnan(targets)
    outside = known & ~((targets >= 0) & (targets <= 1))
    if outside.any():
        where = np.argwhere(outside)[0].tolist()
        raise InputError(f"targets at {where}: wanted 0 to 1 or NaN for unknown, found {targets[tuple(where)]}")
    return known, known & (targets > POSITIVE_ABOVE)


def check_scores(scores: Float[np.ndarray, "*shape"]) -> None:
    """Refuse NaN and infinite scores: a sort would rank them silently, first or last."""
    if not np.isfinite(scores).all():
        bad = np.argwhere(~np.isfinite(scores))
        raise InputError(
            f"scores at {bad[0].tolist()}: wanted finite numbers, found {scores[tuple(bad[0])]} ({len(bad)} such)"
        )


def average_precision(
    scores: Float[np.ndarray, "N"], targets: Float[np.ndarray, "N"], weights: Float[np.ndarray, "N"] | None = None
) -> float:
    """Average precision, sum over thresholds of (R_k - R_{k-1}) * P_k, without interpolation.

    Equal to `sklearn.metrics.average_precision_score`, ties included, but NaN for a class without positives.

    Args:
        weights: How often each row counts, >= 0.

    Raises:
        InputError: A score is not finite, or a known target lies outside [0, 1].
    """
    found, retrieved = _known_curve(scores, targets, weights)
    return _area_under_precision(found, retrieved)


def auroc(
    scores: Float[np.ndarray, "N"], targets: Float[np.ndarray, "N"], weights: Float[np.ndarray, "N"] | None = None
) -> float:
    """Area under the ROC curve: P(a positive outranks a negative), ties counting half.

    Equal to `sklearn.metrics.roc_auc_score`, but NaN where positives or negatives are missing.
    Arguments and errors as in `average_precision`.
    """
    found, retrieved = _known_curve(scores, targets, weights)
    return _area_under_roc(found, retrieved)


def roc_curve(
    scores: Float[np.ndarray, "N"], targets: Float[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
    """False and true positive rates down to each distinct score, best first, from (0, 0) to (1, 1).

    Empty where positives or negatives are missing; `auroc` is the area below. Errors as in `average_precision`.
    """
    found, retrieved = (np.concatenate([[0.0], part]) for part in _known_curve(scores, targets, None))
    missed = retrieved - found
    if not found[-1] or not missed[-1]:
        return np.empty(0), np.empty(0)
    return missed / missed[-1], found / found[-1]


def precision_recall_curve(
    scores: Float[np.ndarray, "N"], targets: Float[np.ndarray, "N"]
) -> tuple[Float[np.ndarray, "K"], Float[np.ndarray, "K"]]:
    """Recall and precision down to each distinct score, best first; ends at recall 1.

    Empty for a class without positives; `average_precision` sums precision over the steps of recall. Errors as there.
    """
    found, retrieved = _known_curve(scores, targets, None)
    if not len(found) or not found[-1]:
        return np.empty(0), np.empty(0)
    return found / found[-1], found / retrieved


def per_class(scores: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"]) -> PerClass:
    """Average precision and AUROC of each class from one sort; errors as in `average_precision`."""
    known, positive = _checked(scores, targets)
    curves = [_curve(*columns) for columns in _known_columns(scores, known, positive)]
    return PerClass(
        ap=np.array([_area_under_precision(*curve) for curve in curves]),
        auroc=np.array([_area_under_roc(*curve) for curve in curves]),
        positives=positive.sum(axis=0),
        known=known.sum(axis=0),
    )


def calibration_error(
    probabilities: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"]
) -> Float[np.ndarray, "C"]:
    """Expected calibration error of each class (Guo et al., arXiv 1706.04599, eq. 3) of the class's own probability.

    15 bins of equal width over [0, 1], closed on the left (the last on both sides); the error is the mean over rows
    of |mean probability - share of positives| of the row's bin. Equal to torchmetrics' `BinaryCalibrationError`
    with `norm="l1"`, but for exact ones, which it puts into a bin of their own. NaN for a class without known labels.

    Raises:
        InputError: A probability lies outside [0, 1]; else as in `average_precision`.
    """
    known, positive = _checked(probabilities, targets)
    check_probabilities(probabilities)
    columns = _known_columns(probabilities, known, positive)
    return np.array([_calibration_gap(scores, labels) for scores, labels in columns])


def brier_score(probabilities: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "C"]:
    """Mean squared distance of each class's probability from its label, 0 or 1 (Brier 1950, one term of his two).

    Equal to `sklearn.metrics.brier_score_loss`. NaN for a class without known labels. Errors as in
    `calibration_error`.
    """
    known, positive = _checked(probabilities, targets)
    check_probabilities(probabilities)
    squares = np.where(known, np.square(probabilities.astype(np.float64) - positive), 0.0).sum(axis=0)
    count = known.sum(axis=0)
    return np.divide(squares, count, out=np.full(len(count), np.nan), where=count > 0)


def log_loss(probabilities: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "C"]:
    """Mean negative log-likelihood of each class's labels, natural logarithm: what temperature and Platt's line reduce.

    Equal to `sklearn.metrics.log_loss` on float32. One certain and wrong row weighs ln 2^23 = 15.9, so isotonic
    regression, which gives exact zeros and ones, is judged by few rows. NaN for a class without known labels.
    Errors as in `calibration_error`.
    """
    known, positive = _checked(probabilities, targets)
    check_probabilities(probabilities)
    count, total = known.sum(axis=0), np.where(known, log_losses(probabilities, positive), 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def log_losses(probabilities: Float[np.ndarray, "*shape"], positive: Bool[np.ndarray, "*shape"]) -> np.ndarray:
    """-log of the probability of each label."""
    p = np.clip(probabilities.astype(np.float64), LEAST_PROBABILITY, 1 - LEAST_PROBABILITY)
    return -np.log(np.where(positive, p, 1 - p))


def check_probabilities(values: Float[np.ndarray, "*shape"]) -> None:
    """Refuse values outside [0, 1], such as logits."""
    if values.size and (values.min() < 0 or values.max() > 1):
        found = f"{values.min():.6g} to {values.max():.6g}"
        raise InputError(f"calibration needs probabilities in [0, 1], found {found}; apply a sigmoid to logits first")


def mean_defined(values: Float[np.ndarray, "C"]) -> float:
    """Mean of the entries that are not NaN; NaN (without a warning) when there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else float("nan")


def _checked(
    scores: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"]
) -> tuple[Bool[np.ndarray, "N C"], Bool[np.ndarray, "N C"]]:
    check_scores(scores)
    return hard_labels(targets)


def _known_columns(scores: np.ndarray, known: np.ndarray, positive: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per class: the scores and labels of its known rows."""
    return [(scores[known[:, c], c], positive[known[:, c], c]) for c in range(scores.shape[1])]


def _known_curve(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    check_scores(scores)
    known, positive = hard_labels(targets)
    if weights is not None:
        assert np.isfinite(weights).all(), "weights are finite"
        assert (weights >= 0).all(), "weights are not negative"
        weights = weights[known]
    return _curve(scores[known], positive[known], weights)


def _curve(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Positives found and rows retrieved (weighted) down to the end of each run of equal scores, best score first."""
    order = np.argsort(scores)[::-1]
    scores, positive = scores[order], positive[order]
    ends = np.append(np.flatnonzero(scores[1:] != scores[:-1]), len(scores) - 1) if len(scores) else np.arange(0)
    if weights is None:
        return np.cumsum(positive)[ends].astype(np.float64), ends + 1.0
    weights = weights[order].astype(np.float64)
    return np.cumsum(weights * positive)[ends], np.cumsum(weights)[ends]


def _area_under_precision(found: np.ndarray, retrieved: np.ndarray) -> float:
    if not len(found) or found[-1] == 0:
        return float("nan")
    gained = np.diff(found, prepend=0)
    precision = np.divide(found, retrieved, out=np.zeros_like(found), where=retrieved > 0)  # leading rows of weight 0
    return float((gained * precision).sum() / found[-1])


def _area_under_roc(found: np.ndarray, retrieved: np.ndarray) -> float:
    missed = retrieved - found  # negatives retrieved: the false positives
    if not len(found) or found[-1] == 0 or missed[-1] == 0:
        return float("nan")
    gained = np.diff(found, prepend=0)
    below = np.diff(missed, prepend=0)
    return float((below * (found - gained / 2)).sum() / (found[-1] * missed[-1]))


def _calibration_gap(probabilities: np.ndarray, positive: np.ndarray) -> float:
    if not len(probabilities):
        return float("nan")
    probabilities = probabilities.astype(np.float64)
    bins = np.minimum((probabilities * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    surplus = np.bincount(bins, weights=probabilities - positive, minlength=CALIBRATION_BINS)
    return float(np.abs(surplus).sum() / len(probabilities))
