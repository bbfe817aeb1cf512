"""Another prevalence at test time: estimated without labels, put into probabilities, and what it does to precision.

The model is label shift: findings are more or less frequent, but look the same as before. Each class is treated alone.

Axes: **N** rows (one per group), **R** replicates, **C** classes.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.special import expit

from data.calibration_curves import fit_platt
from data.metrics import average_precision

STEPS = 30
"""Halvings of [0, 1]: an error of 1e-9."""

NEWTON_STEPS = 12
CHUNK_ELEMENTS = 2**22


def estimate_prevalence(
    probabilities: Float[np.ndarray, "N R"], before: Float[np.ndarray, "R"], weights: Float[np.ndarray, "N R"]
) -> Float64[np.ndarray, "R"]:
    """The prevalence under which unlabelled predictions are most likely: where Saerens' iteration ends.

    Saerens, Latinne and Decaestecker 2002, eq. 2.9: pi <- mean over rows of p w1 / (p w1 + (1 - p) w0), with w1 = pi /
    before and w0 = (1 - pi) / (1 - before). It climbs a likelihood that is concave in pi, so halving finds the same
    maximum without its thousands of steps near 0.

    Args:
        probabilities: Calibrated, at the prevalence `before`; a column per replicate.
        before: Prevalence where they were calibrated.
        weights: How often each row counts in each replicate.

    Returns:
        In [0, 1]; NaN where `before` is 0 or 1, which leaves nothing to learn from.
    """
    usable = (before > 0) & (before < 1)
    width, found = max(1, CHUNK_ELEMENTS // max(1, len(probabilities))), []
    for start in range(0, len(before), width):
        part = slice(start, start + width)
        p, old = probabilities[:, part].astype(np.float64), np.where(usable, before, 0.5)[part]
        found.append(_halve(p / old, (1 - p) / (1 - old), weights[:, part].astype(np.float64)))
    return np.where(usable, np.concatenate(found), np.nan)


def platt_replicates(
    logits: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"], weights: Float[np.ndarray, "N R"]
) -> tuple[Float64[np.ndarray, "R"], Float64[np.ndarray, "R"]]:
    """Slope and bias of Platt's line (`fit_platt`) in every replicate, so that intervals know how unsure it is.

    Newton's method for all replicates at once, from the line of all rows, with steps cut short where they would leap.
    """
    z, line = logits.astype(np.float64)[:, None], fit_platt(logits, positive)
    slope, bias = np.full(weights.shape[1], line.slope), np.full(weights.shape[1], line.bias)
    num_positives = (weights * positive[:, None]).sum(axis=0)
    high, low = (num_positives + 1) / (num_positives + 2), 1 / (weights.sum(axis=0) - num_positives + 2)
    targets = np.where(positive[:, None], high, low)
    for _ in range(NEWTON_STEPS):
        p = expit(slope * z + bias)
        error, spread = weights * (p - targets), weights * p * (1 - p)
        by_slope, by_bias = (error * z).sum(axis=0), error.sum(axis=0)
        zz, z1, ones = (spread * z * z).sum(axis=0), (spread * z).sum(axis=0), spread.sum(axis=0)
        determinant = np.maximum(zz * ones - z1 * z1, 1e-12)
        slope = slope - np.clip((ones * by_slope - z1 * by_bias) / determinant, -1, 1)
        bias = bias - np.clip((zz * by_bias - z1 * by_slope) / determinant, -2, 2)
    return slope, bias


def at_prevalence(
    probabilities: Float[np.ndarray, "N C"], before: Float[np.ndarray, "C"], after: Float[np.ndarray, "C"]
) -> Float[np.ndarray, "N C"]:
    """Probabilities at another prevalence by Bayes' rule; ranks stay. A class with an unknown prevalence stays too.

    Args:
        before: Prevalences where the probabilities were calibrated.
        after: Prevalences where they are to be used; kept from 0 and 1, which would forbid any other answer.
    """
    usable = (before > 0) & (before < 1) & ~np.isnan(after)
    old = np.where(usable, before, 0.5)
    new = np.where(usable, np.clip(after, 1e-6, 1 - 1e-6), 0.5)
    p = probabilities.astype(np.float64)
    positive, negative = p * new / old, (1 - p) * (1 - new) / (1 - old)
    return (positive / (positive + negative)).astype(np.float32)


def precision_at_prevalence(scores: Float[np.ndarray, "N"], targets: Float[np.ndarray, "N"], after: float) -> float:
    """Average precision that the same scores would have at another prevalence: positives and negatives reweighed.

    NaN without positives or without negatives, and for an unknown or extreme `after`.
    """
    known = ~np.isnan(targets)
    before = float((targets[known] > 0.5).mean()) if known.any() else float("nan")
    if not (0 < before < 1 and 0 < after < 1):
        return float("nan")
    weights = np.where(targets > 0.5, after / before, (1 - after) / (1 - before))
    return average_precision(scores, targets, weights)


def misfit(
    before: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"], after: Float[np.ndarray, "M"], prevalence: float
) -> float:
    """How badly label shift explains the scores after it: a Kolmogorov-Smirnov distance over its 5 % bound.

    Distance between the distribution of the scores `after` and the mixture of positive and negative scores `before` at
    the estimated prevalence. Above 1: the findings, or what has none, look different too. The bound sqrt(1.84 (1/m +
    1/n)) takes rows for independent, m being the rows behind the mixture.
    """
    if not (positive.any() and not positive.all() and len(after)) or np.isnan(prevalence):
        return float("nan")
    points = np.sort(np.concatenate([before, after]))
    share_positive = np.searchsorted(np.sort(before[positive]), points, side="right") / positive.sum()
    share_negative = np.searchsorted(np.sort(before[~positive]), points, side="right") / (~positive).sum()
    mixture = prevalence * share_positive + (1 - prevalence) * share_negative
    found = np.searchsorted(np.sort(after), points, side="right") / len(after)
    noise = prevalence**2 / positive.sum() + (1 - prevalence) ** 2 / (~positive).sum() + 1 / len(after)
    return float(np.abs(found - mixture).max() / np.sqrt(1.84 * noise))


def _halve(
    positive: Float64[np.ndarray, "N R"], negative: Float64[np.ndarray, "N R"], weights: Float64[np.ndarray, "N R"]
) -> Float64[np.ndarray, "R"]:
    """The zero of the likelihood's slope, which falls with the prevalence; an end of [0, 1] where it has none."""
    low, high = np.zeros(weights.shape[1]), np.ones(weights.shape[1])
    for _ in range(STEPS):
        middle = (low + high) / 2
        slope = (weights * (positive - negative) / (middle * positive + (1 - middle) * negative)).sum(axis=0)
        low, high = np.where(slope > 0, middle, low), np.where(slope > 0, high, middle)
    return (low + high) / 2
