"""Combining several models' logits of the same rows: means, ranks, and weights fitted on held-out predictions.

Axes: **M** models, **N** rows (one per group), **C** classes, **K** numbers to fit: M weights and C biases.
"""

from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Float64
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import rankdata

from data.calibration import patient_folds
from data.errors import InputError
from data.metrics import hard_labels

How = Literal["mean_logits", "mean_probabilities", "rank_mean", "weighted"]
HOWS: tuple[How, ...] = get_args(How)

LEAST, MOST = 2.0**-126, 1 - 2.0**-25
"""Probabilities are kept from 0 and 1 by float32's own limits before their logit is taken."""


def combine(
    logits: Float[np.ndarray, "M N C"], how: How, weights: Float[np.ndarray, "M"] | None = None
) -> Float[np.ndarray, "N C"]:
    """One table of logits, float32.

    rank_mean: per class, the mean over models of each row's rank among the N, from 0.5 / N to 1 - 0.5 / N (ties share
    theirs), as a logit. It ignores the models' scales, is no probability, and depends on which rows are there: for a
    test set as a whole, not for single patients. weighted: the mean of logits with weights that sum to 1.

    Args:
        weights: For "weighted" alone.
    """
    values = logits.astype(np.float64)
    if how == "mean_logits":
        mean = values.mean(axis=0)
    elif how == "mean_probabilities":
        mean = bounded_logit(expit(values).mean(axis=0))
    elif how == "rank_mean":
        mean = bounded_logit(((rankdata(values, axis=1) - 0.5) / values.shape[1]).mean(axis=0))
    else:
        assert weights is not None, "weighted needs weights"
        mean = np.tensordot(weights, values, axes=1)
    return mean.astype(np.float32)


def fit_weights(logits: Float[np.ndarray, "M N C"], targets: Float[np.ndarray, "N C"]) -> Float64[np.ndarray, "M"]:
    """Weights >= 0 that sum to 1, the same for all classes: those of least log loss of the weighted logits.

    The loss is the mean over classes that have a positive and a negative, so that a rare class counts like a common
    one. The fit has a free scale and a free bias for each class, which are dropped afterwards: they change no ranking,
    calibration sets them, and without the biases a model with shifted logits (asymmetric loss) would be passed over.
    The problem is convex; equal models get equal weights.

    Raises:
        InputError: No class has both a positive and a negative, or no model ranks positives above negatives.
    """
    known, positive = hard_labels(targets)
    use = positive.any(axis=0) & (known & ~positive).any(axis=0)
    if not use.any():
        raise InputError("ensemble weights need a class with known positives and negatives, found none")
    importance = np.where(known & use, 1 / np.maximum(known.sum(axis=0), 1), 0.0) / use.sum()
    z, y = logits.astype(np.float64), positive.astype(np.float64)
    M, _, C = z.shape

    def loss(values: Float64[np.ndarray, "K"]) -> tuple[float, Float64[np.ndarray, "K"]]:
        scores = np.tensordot(values[:M], z, axes=1) + values[M:]
        total = float((importance * (np.logaddexp(0, scores) - y * scores)).sum())
        errors = importance * (expit(scores) - y)
        return total, np.concatenate([np.tensordot(z, errors, axes=2), errors.sum(axis=0)])

    start = np.concatenate([np.full(M, 1 / M), np.zeros(C)])
    bounds = [(0, 50.0)] * M + [(None, None)] * C
    options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 5000}
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x[:M]
    if not found.sum() > 0:
        raise InputError("ensemble weights: no model's logits rise with the labels; are they of the same images?")
    return found / found.sum()


def cross_weighted(
    logits: Float[np.ndarray, "M N C"], targets: Float[np.ndarray, "N C"], patient_ids: list[str], seed: int = 0
) -> Float[np.ndarray, "N C"]:
    """Weighted logits of each row with weights fitted on the patients of the four other fifths: an honest look at
    "weighted" on the rows that its weights come from.
    """
    out = np.empty(logits.shape[1:], dtype=np.float32)
    for held_out in patient_folds(patient_ids, targets, seed):
        weights = fit_weights(logits[:, ~held_out], targets[~held_out])
        out[held_out] = combine(logits[:, held_out], "weighted", weights)
    return out


def bounded_logit(probabilities: Float64[np.ndarray, "N C"]) -> Float64[np.ndarray, "N C"]:
    """Logits, finite: a probability that float32 has rounded to 0 or 1 counts as the last one before it."""
    return logit(np.clip(probabilities, LEAST, MOST))
