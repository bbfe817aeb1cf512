"""Parts of the test set scored by themselves: by number of views, view, source, sex and age.

Axes: **N** rows, **K** rows of a part, **C** classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from data.bootstrap import patient_bootstrap
from data.bootstrap_metrics import metric_values
from data.metrics import mean_defined, per_class
from data.spans import interval, or_none
from fusion.evaluate.rows import Rows
from fusion.evaluate.scores import Settings

FEW_PATIENTS = 20
"""A part of the test set with fewer patients is listed, but does not decide which classes all parts share."""

OTHER_METRICS = ("sensitivity", "F1", "F1_chosen", "Brier", "ECE")


@dataclass(frozen=True, eq=False)
class Judged:
    """One method: what its table says, the same calibrated, and thresholds for the latter where there is one."""

    plain: Float32[np.ndarray, "N C"]
    calibrated: Float32[np.ndarray, "N C"] | None
    thresholds: Float[np.ndarray, "C"] | None

    def of_rows(self, mask: Bool[np.ndarray, "N"]) -> "Judged":
        """Some of the rows."""
        return Judged(self.plain[mask], None if self.calibrated is None else self.calibrated[mask], self.thresholds)


def parts_report(methods: dict[str, Judged], rows: Rows, settings: Settings) -> dict[str, dict[str, Any]]:
    """All metrics of every part of the rows, factor by factor; a factor with one value tells nothing and is left out.

    Average precision rises with the share of positives, and parts differ in that and in which classes they hold. So
    beside a part's own mAP stands `mAP_shared`, over the classes that have a positive in every part of at least
    `FEW_PATIENTS` patients, and AUROC, which does not depend on that share.
    """
    return {
        factor: _one_factor(methods, rows, values, settings)
        for factor, values in rows.factors.items()
        if len(set(values)) > 1
    }


def _one_factor(methods: dict[str, Judged], rows: Rows, values: np.ndarray, settings: Settings) -> dict[str, Any]:
    masks = {str(value): values == value for value in sorted(set(values))}
    patients = {value: [rows.patient_ids[i] for i in np.flatnonzero(mask)] for value, mask in masks.items()}
    large = [mask for value, mask in masks.items() if len(set(patients[value])) >= FEW_PATIENTS]
    positive = rows.targets > 0.5
    shared = np.all([positive[mask].any(axis=0) for mask in large], axis=0) if large else np.zeros(positive.shape[1])
    return {
        value: _one_part(methods, rows.targets, mask, patients[value], np.flatnonzero(shared).tolist(), settings)
        for value, mask in masks.items()
    }


def _one_part(
    methods: dict[str, Judged],
    targets: Float32[np.ndarray, "N C"],
    mask: Bool[np.ndarray, "N"],
    patients: Sequence[str],
    shared: list[int],
    settings: Settings,
) -> dict[str, Any]:
    """One part: counts, and per method numbers with the interval of mAP; with two methods, the paired difference."""
    chosen, labels = {name: method.of_rows(mask) for name, method in methods.items()}, targets[mask]
    part: dict[str, Any] = {"rows": int(mask.sum()), "patients": len(set(patients)), "shared_classes": len(shared)}
    part["classes"] = int((labels > 0.5).any(axis=0).sum())
    if part["patients"] < FEW_PATIENTS:
        shared = []
    part["methods"] = {name: _part_numbers(one, labels, shared, settings) for name, one in chosen.items()}
    if part["patients"] >= 2:
        plain = {name: one.plain for name, one in chosen.items()}
        result = patient_bootstrap(plain, labels, list(patients), replicates=settings.replicates, seed=settings.seed)
        for name in methods:
            part["methods"][name]["interval"] = interval(result.interval(name))
        if len(methods) == 2:
            first, second = methods
            part["difference"] = interval(result.difference(first, second))
    return part


def _part_numbers(
    method: Judged, labels: Float32[np.ndarray, "K C"], shared: list[int], settings: Settings
) -> dict[str, Any]:
    """Means over classes with a positive. Brier score and ECE are of the table as it is, F1_chosen of what thresholds
    are for; without thresholds there is none.
    """
    cuts = np.full(labels.shape[1], np.nan) if method.thresholds is None else method.thresholds
    scores, values = per_class(method.plain, labels), metric_values(method.plain, labels, cuts, settings.specificity)
    if method.calibrated is not None:
        values["F1_chosen"] = metric_values(method.calibrated, labels, cuts, settings.specificity)["F1_chosen"]
    means = {
        "mAP": mean_defined(scores.ap),
        "mAP_shared": mean_defined(scores.ap[shared]),
        "mAUROC": mean_defined(scores.auroc),
    }
    means |= {name: mean_defined(values[name]) for name in OTHER_METRICS}
    return {name: or_none(value) for name, value in means.items()}
