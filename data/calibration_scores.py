"""How sure a calibration's gain is: ECE, Brier score and F1 of each class, resampled by patient, paired.

Axes: **N** rows, **C** classes, **P** patients, **R** replicates, **B** bins.

All three are functions of sums over rows, so each patient's part is summed once, and a replicate is a weighted sum over
patients. The same patients and seed give the same draws, so differences between two calls are paired. Resampling adds
noise to every bin, and an absolute value cannot cancel it: the replicates of ECE lie above its estimate, more so with
few rows, and an interval may leave the estimate out. Brier score has no such bias.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64

from data.bootstrap import Interval, draw_patients, percentiles
from data.errors import InputError
from data.metrics import CALIBRATION_BINS, check_scores, hard_labels

CHUNK = 128
"""Replicates at once: bounds memory at P x 128 weights."""


@dataclass(frozen=True, eq=False)
class Resampled:
    """A score of every class; the first row is of all rows, the others of the replicates. NaN where undefined."""

    values: Float64[np.ndarray, "R1 C"]

    def mean(self, classes: Bool[np.ndarray, "C"] | None = None) -> Float64[np.ndarray, "R1"]:
        """Mean over classes (None: all), those undefined in a replicate left out."""
        values = self.values if classes is None else self.values[:, classes]
        defined = ~np.isnan(values)
        total, count = np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1)
        return np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)

    def interval(self, minus: "Resampled | None" = None, classes: Bool[np.ndarray, "C"] | None = None) -> Interval:
        """95 % interval of the mean over classes, or of the difference from another method's."""
        means = self.mean(classes) - (minus.mean(classes) if minus is not None else 0.0)
        return percentiles(float(means[0]), means[1:], 0.95)


def brier_score(probabilities: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"]) -> Float64[np.ndarray, "C"]:
    """Mean squared error of each class's probability over known labels; NaN for a class without a positive."""
    check_scores(probabilities)
    known, positive = hard_labels(targets)
    errors = np.where(known, (probabilities.astype(np.float64) - positive) ** 2, 0.0).sum(axis=0)
    return errors / np.where(positive.any(axis=0), known.sum(axis=0), np.nan)


def calibration_scores(
    probabilities: Float[np.ndarray, "N C"],
    targets: Float[np.ndarray, "N C"],
    patient_ids: Sequence[str],
    thresholds: Float[np.ndarray, "C"] | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> dict[str, Resampled]:
    """ "ECE" (as `data.metrics.calibration_error`), "Brier" (mean squared error of the probability), "F1".

    A class without a positive, among all rows or in a replicate, is NaN in all three.

    Args:
        thresholds: Above which a class is called; 0.5 unless given.

    Raises:
        InputError: A probability outside [0, 1], no replicates, fewer than two patients; targets as everywhere.
    """
    check_scores(probabilities)
    known, positive = hard_labels(targets)
    if probabilities.size and (probabilities.min() < 0 or probabilities.max() > 1):
        raise InputError(f"wanted probabilities, found {probabilities.min():.6g} to {probabilities.max():.6g}")
    names, patients = np.unique(np.array(list(patient_ids), dtype=object), return_inverse=True)
    if len(names) < 2 or replicates < 1:
        raise InputError(f"intervals need at least 2 patients and 1 replicate, found {len(names)} and {replicates}")
    called = probabilities > (0.5 if thresholds is None else thresholds)
    p = probabilities.astype(np.float64)
    columns = [
        _sums(p[rows, c], positive[rows, c], called[rows, c], patients[rows], len(names))
        for c, rows in enumerate(known.T)
    ]
    parts = [_scores(columns, np.ones((1, len(names))))]
    generator = np.random.default_rng(seed)
    for start in range(0, replicates, CHUNK):
        weights = draw_patients(generator, len(names), min(CHUNK, replicates - start))
        parts.append(_scores(columns, weights.T.astype(np.float64)))
    values = np.concatenate(parts, axis=1)
    return {name: Resampled(value) for name, value in zip(("ECE", "Brier", "F1"), values, strict=True)}


def _sums(
    p: Float64[np.ndarray, "K"], positive: np.ndarray, called: np.ndarray, patients: np.ndarray, count: int
) -> Float64[np.ndarray, "P B4"]:
    """Per patient: surplus of each bin, squared error, rows, positives, hits, called."""
    bins = np.minimum((p * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    surplus = np.bincount(
        patients * CALIBRATION_BINS + bins, weights=p - positive, minlength=count * CALIBRATION_BINS
    ).reshape(count, CALIBRATION_BINS)
    others = [(p - positive) ** 2, np.ones_like(p), positive, called & positive, called]
    rest = [np.bincount(patients, weights=values.astype(np.float64), minlength=count) for values in others]
    return np.column_stack([surplus, *rest])


def _scores(columns: list[Float64[np.ndarray, "P B4"]], weights: Float64[np.ndarray, "R P"]) -> np.ndarray:
    """(3, R, C): ECE, Brier score, F1."""
    sums = np.stack([weights @ column for column in columns], axis=1)  # (R, C, B + 5)
    surplus, (error, rows, positives, hits, called) = sums[..., :CALIBRATION_BINS], np.moveaxis(sums, 2, 0)[-5:]
    rows = np.where(positives > 0, rows, np.nan)
    f1 = 2 * hits / np.where(positives > 0, called + positives, np.nan)
    return np.stack([np.abs(surplus).sum(axis=2) / rows, error / rows, f1])
