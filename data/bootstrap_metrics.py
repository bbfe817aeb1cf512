"""Intervals of the metrics beside average precision, from the same draws of patients as `data.bootstrap`.

AUROC and sensitivity need a class's rows in their order and cumulative weights along it. F1, Brier score, log
loss and calibration error are made of sums over rows: added up per patient once, they make a replicate a weighted sum
over patients. How long that takes is measured by `scripts/bench_bootstrap.py`.

Calibration error is a mean of absolute values, so noise only adds to it, and each replicate adds the sampling noise a
second time: on the chest phantom's 738 test images the estimate, 0.028, lay below its percentile interval, 0.031 to
0.041. Its replicates are therefore shifted, class by class, so that their mean is the estimate (and cut off at 0).

Axes: **N** rows, **C** classes, **P** patients, **R** replicates, **r** replicates of one chunk, **K** known rows of a
class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Int32

from data.bootstrap import draw_patients, number_patients
from data.intervals import BootstrapResult
from data.metrics import (
    CALIBRATION_BINS,
    POSITIVE_ABOVE,
    brier_score,
    calibration_error,
    hard_labels,
    log_loss,
    log_losses,
    per_class,
)
from data.operating_points import f1_at, most_false_positives, sensitivity_at

RANKED = ("AUROC", "sensitivity")
METRICS = (*RANKED, "F1", "F1_chosen", "Brier", "NLL", "ECE")
"""F1 is at one half, F1_chosen at the thresholds handed in; NLL is the log loss."""


def metric_bootstrap(
    scores: dict[str, Float[np.ndarray, "N C"]],
    targets: Float[np.ndarray, "N C"],
    patient_ids: Sequence[str],
    *,
    metrics: Sequence[str] = METRICS,
    thresholds: Mapping[str, Float[np.ndarray, "C"]] | None = None,
    specificity: float = 0.9,
    replicates: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> dict[str, BootstrapResult]:
    """Metrics on resampled patients, NaN for a class that has no positive in a replicate.

    The draws are those of `patient_bootstrap` with the same seed and patients. AUROC and sensitivity are NaN without a
    negative too.

    Args:
        scores: Probabilities per method, in [0, 1].
        metrics: Which of `METRICS`; without those of `RANKED` it takes a fraction of the time.
        thresholds: Per method, chosen on other rows; a method that is missing has no `F1_chosen` (NaN).
        specificity: Of the sensitivity, in (0, 1].

    Raises:
        InputError: As `patient_bootstrap`, or a score outside [0, 1].
    """
    num_patients, patient_of_row = number_patients(patient_ids, replicates)
    nowhere = np.full(targets.shape[1], np.nan)
    cuts = {method: (thresholds or {}).get(method, nowhere) for method in scores}
    ranked = specificity if set(RANKED) & set(metrics) else None
    points = {method: metric_values(values, targets, cuts[method], specificity) for method, values in scores.items()}
    columns = {
        method: _columns(values, targets, cuts[method], patient_of_row, num_patients)
        for method, values in scores.items()
    }
    shape = (len(METRICS), replicates, targets.shape[1])
    found = {method: np.full(shape, np.nan) for method in scores}
    for part, weights in draw_patients(num_patients, len(targets), replicates, seed):
        of_patients = weights.T.astype(np.float64)
        for method in scores:
            for c, column in enumerate(columns[method]):
                found[method][:, part, c] = _replicate(column, weights, of_patients, ranked)
    for method in scores:
        ece = METRICS.index("ECE")
        found[method][ece] = _centred(found[method][ece], points[method]["ECE"])
    dropped = np.isnan(next(iter(found.values()))[METRICS.index("Brier")]).sum(axis=0)
    return {
        name: BootstrapResult(
            confidence=confidence,
            class_values={method: points[method][name] for method in scores},
            replicate_values={method: values[number] for method, values in found.items()},
            dropped=dropped,
        )
        for number, name in enumerate(METRICS)
        if name in metrics
    }


@dataclass(frozen=True)
class _Column:
    """One class of one method: its known rows from the best score down, and its sums over each patient's rows."""

    patients: Int[np.ndarray, "K"]
    positive: Bool[np.ndarray, "K"]
    ends: Int[np.ndarray, "S"]
    """Last row of each run of equal scores, runs of negatives that follow one another being one."""
    sums: Float[np.ndarray, "P M"]
    """Known rows, positives; calls and hits at one half; the same at the chosen threshold; squares; log losses; surplus
    per bin."""
    has_chosen: bool


def metric_values(
    values: Float[np.ndarray, "N C"],
    targets: Float[np.ndarray, "N C"],
    cuts: Float[np.ndarray, "C"],
    specificity: float,
) -> dict[str, Float[np.ndarray, "C"]]:
    """Every measure per class on the rows as they are; NaN for a class without a positive, or without a cut for F1.

    Args:
        values: Probabilities in [0, 1].
        targets: Labels, NaN where unknown.
        cuts: Thresholds chosen elsewhere, NaN where there is none.
        specificity: At which sensitivity is told.
    """
    scores = per_class(values, targets)
    numbers = {
        "AUROC": scores.auroc,
        "sensitivity": sensitivity_at(specificity, values, targets),
        "F1": f1_at(values, targets),
        "F1_chosen": np.where(np.isnan(cuts), np.nan, f1_at(values, targets, cuts)),
        "Brier": brier_score(values, targets),
        "NLL": log_loss(values, targets),
        "ECE": calibration_error(values, targets),
    }
    return {name: np.where(scores.positives > 0, number, np.nan) for name, number in numbers.items()}


def _columns(
    values: Float[np.ndarray, "N C"],
    targets: Float[np.ndarray, "N C"],
    cuts: Float[np.ndarray, "C"],
    patient_of_row: Int[np.ndarray, "N"],
    num_patients: int,
) -> list[_Column]:
    known, positive = hard_labels(targets)
    return [
        _column(values[rows, c], positive[rows, c], float(cuts[c]), patient_of_row[rows], num_patients)
        for c, rows in enumerate(known.T)
    ]


def _column(
    scores: Float[np.ndarray, "K"],
    positive: Bool[np.ndarray, "K"],
    cut: float,
    patients: Int[np.ndarray, "K"],
    num_patients: int,
) -> _Column:
    order = np.argsort(scores)[::-1]
    rows = _row_sums(scores.astype(np.float64), positive, cut)
    sums = np.stack([np.bincount(patients, weights=row, minlength=num_patients) * 1.0 for row in rows], axis=1)
    return _Column(patients[order], positive[order], _ends(scores[order], positive[order]), sums, not np.isnan(cut))


def _ends(ranked: Float[np.ndarray, "K"], positive: Bool[np.ndarray, "K"]) -> Int[np.ndarray, "S"]:
    """Between two runs with a positive no positive is found, so area and sensitivity need the last run's end alone."""
    if not len(ranked):
        return np.arange(0)
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    holds = np.logical_or.reduceat(positive, _starts(ends))
    return ends[holds | np.append(holds[1:], True)]


def _starts(ends: Int[np.ndarray, "S"]) -> Int[np.ndarray, "S"]:
    return np.append(0, ends[:-1] + 1)


def _row_sums(scores: Float[np.ndarray, "K"], positive: Bool[np.ndarray, "K"], cut: float) -> list[np.ndarray]:
    half, chosen = scores > POSITIVE_ABOVE, scores > cut
    bins = np.minimum((scores * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    counts = [np.ones_like(positive), positive, half, half & positive, chosen, chosen & positive]
    surplus = [np.where(bins == number, scores - positive, 0.0) for number in range(CALIBRATION_BINS)]
    sums = [*(count.astype(np.float64) for count in counts), np.square(scores - positive), log_losses(scores, positive)]
    return [*sums, *surplus]


def _replicate(
    column: _Column, weights: Int32[np.ndarray, "P r"], of_patients: Float[np.ndarray, "r P"], specificity: float | None
) -> Float[np.ndarray, "M r"]:
    """The metrics, in the order of `METRICS`, of one class in every replicate of a chunk; None: no ranked ones."""
    known, positives, calls, hits, chosen_calls, chosen_hits, squares, losses, *surplus = (of_patients @ column.sums).T
    nothing = np.full(len(known), np.nan)
    auroc, sensitivity = (nothing, nothing) if specificity is None else _curve(column, weights, specificity)
    chosen = _ratio(2 * chosen_hits, chosen_calls + positives) if column.has_chosen else nothing
    numbers = np.stack(
        [
            auroc,
            sensitivity,
            _ratio(2 * hits, calls + positives),
            chosen,
            _ratio(squares, known),
            _ratio(losses, known),
            _ratio(np.abs(surplus).sum(axis=0), known),
        ]
    )
    return np.where(positives > 0, numbers, np.nan)


def _curve(
    column: _Column, weights: Int32[np.ndarray, "P r"], specificity: float
) -> tuple[Float[np.ndarray, "r"], Float[np.ndarray, "r"]]:
    """AUROC and sensitivity of every replicate; the counts are integers, so only the last divisions round."""
    if not column.positive.any():
        return np.full(weights.shape[1], np.nan), np.full(weights.shape[1], np.nan)
    retrieved, found = _cumulative(column, weights)
    missed = retrieved - found
    before = np.concatenate([np.zeros_like(missed[:1]), missed[:-1]])
    gained = np.diff(found, axis=0, prepend=0)
    positives, negatives = found[-1].astype(np.float64), missed[-1].astype(np.float64)
    # A positive outranks the negatives below its step, and half of those in it.
    lost = np.einsum("sr,sr->r", gained, missed + before, dtype=np.float64) / 2
    auroc = 1 - _ratio(lost, positives * negatives)
    count = (missed <= most_false_positives(specificity, negatives)).sum(axis=0)  # steps that may be used: the first
    best = np.where(count > 0, found[np.maximum(count - 1, 0), np.arange(len(count))], 0)
    return auroc, np.where(negatives > 0, _ratio(best, positives), np.nan)


def _cumulative(column: _Column, weights: Int32[np.ndarray, "P r"]) -> tuple[np.ndarray, np.ndarray]:
    """Rows retrieved and positives found down to the end of each run of equal scores, (S, r)."""
    starts = _starts(column.ends)
    of_rows = weights[column.patients]
    retrieved = np.add.reduceat(of_rows, starts, axis=0, dtype=np.int32)
    of_rows *= column.positive[:, None]
    found = np.add.reduceat(of_rows, starts, axis=0, dtype=np.int32)
    return np.cumsum(retrieved, axis=0, out=retrieved), np.cumsum(found, axis=0, out=found)


def _centred(replicates: Float[np.ndarray, "R C"], estimate: Float[np.ndarray, "C"]) -> Float[np.ndarray, "R C"]:
    """Replicates less the bootstrap's estimate of bias, their mean minus the estimate; not below 0."""
    defined = ~np.isnan(replicates)
    mean = _ratio(np.where(defined, replicates, 0.0).sum(axis=0), defined.sum(axis=0))
    return np.maximum(replicates - (mean - estimate), 0.0)


def _ratio(top: np.ndarray, bottom: np.ndarray) -> Float[np.ndarray, "r"]:
    return np.divide(top, bottom, out=np.full(np.shape(bottom), np.nan), where=bottom > 0)
