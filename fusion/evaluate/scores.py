"""Every number of an evaluation with its interval, for one method or for two on the same draws of patients.

Axes: N rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32

from data.bootstrap import patient_bootstrap
from data.bootstrap_metrics import metric_bootstrap
from data.intervals import BootstrapResult, Difference, Interval
from data.metrics import mean_defined, per_class
from data.spans import interval, or_none
from data.summary import summary
from fusion.evaluate.rows import Rows

FEW_PATIENTS = 20
"""A part of the test set with fewer patients is listed, but does not decide which classes all parts share."""

CALIBRATED = ("Brier", "ECE")
"""Scores that a calibration is made for: given with it, too, where there is one."""

HIGHER_IS_WORSE = (*CALIBRATED, *(f"{name}_calibrated" for name in CALIBRATED))
Methods = dict[str, Float32[np.ndarray, "N C"]]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What an evaluation is made with, alike for every unit and method."""

    classes: tuple[str, ...]
    bands: dict[str, str]
    """Head, medium or tail of each class."""
    specificity: float
    """That sensitivity is given at."""
    replicates: int
    seed: int = 0


@dataclass(frozen=True)
class Scored:
    """Bootstrap results of one unit: every headline number and every class of every method."""

    results: dict[str, BootstrapResult]
    """"AP", "micro AP" and the metrics of `data.bootstrap_metrics`."""
    columns: dict[str, tuple[str, list[int] | None]]
    """Headline number, such as "mAP_tail", to the result it is a mean of, and over which classes (None: all)."""

    def interval(self, headline: str, method: str) -> Interval:
        """A headline number of a method."""
        name, classes = self.columns[headline]
        return self.results[name].interval(method, classes)

    def difference(self, headline: str, first: str, second: str) -> Difference:
        """First minus second."""
        name, classes = self.columns[headline]
        return self.results[name].difference(first, second, classes)


def bootstrap_scores(
    methods: Methods,
    calibrated: Methods,
    rows: Rows,
    thresholds: dict[str, Float[np.ndarray, "C"]],
    settings: Settings,
) -> Scored:
    """Score the methods on the same rows and draws.

    Args:
        calibrated: Probabilities of those methods that have a calibration. Where all have one, their Brier score and
            calibration error are given beside the plain ones.
        thresholds: Per method, for calibrated probabilities if it has them; without one there is no `F1_chosen`.

    Raises:
        InputError: Fewer than two patients.
    """
    how: dict[str, Any] = {"replicates": settings.replicates, "seed": settings.seed}
    results = {"AP": patient_bootstrap(methods, rows.targets, rows.patient_ids, **how)}
    results["micro AP"] = micro_bootstrap(methods, rows, settings)
    results |= metric_bootstrap(
        methods, rows.targets, rows.patient_ids, thresholds=thresholds, specificity=settings.specificity, **how
    )
    if calibrated:
        names = ("F1_chosen", *CALIBRATED)
        own = metric_bootstrap(
            methods | calibrated, rows.targets, rows.patient_ids, metrics=names, thresholds=thresholds, **how
        )
        results["F1_chosen"] = own["F1_chosen"]
        if calibrated.keys() == methods.keys():
            results |= {f"{name}_calibrated": own[name] for name in CALIBRATED}
    columns: dict[str, tuple[str, list[int] | None]] = {"mAP": ("AP", None)}
    for band in ("head", "medium", "tail"):
        numbers = [c for c, name in enumerate(settings.classes) if settings.bands[name] == band]
        columns[f"mAP_{band}"] = ("AP", numbers)
    columns |= {"mAP_micro": ("micro AP", None), "mAUROC": ("AUROC", None)}
    columns |= {name: (name, None) for name in ("sensitivity", "F1", "F1_chosen", *HIGHER_IS_WORSE) if name in results}
    return Scored(results, columns)


def micro_bootstrap(methods: Methods, rows: Rows, settings: Settings) -> BootstrapResult:
    """Average precision over all known pairs of row and class in one ranking: ruled by the frequent classes."""
    flat = {name: values.reshape(-1, 1) for name, values in methods.items()}
    patients = np.repeat(np.array(rows.patient_ids, dtype=object), len(settings.classes)).tolist()
    targets = rows.targets.reshape(-1, 1)
    return patient_bootstrap(flat, targets, patients, replicates=settings.replicates, seed=settings.seed)


def unit_report(rows: Rows, thresholds: Float[np.ndarray, "C"] | None, settings: Settings) -> dict[str, Any]:
    """All numbers of one method in one unit, ready for JSON."""
    method = {"model": rows.probabilities}
    calibrated = {} if rows.calibrated is None else {"model": rows.calibrated}
    scored = bootstrap_scores(method, calibrated, rows, {} if thresholds is None else {"model": thresholds}, settings)
    report = summary(rows.probabilities, rows.targets, settings.classes, settings.bands)
    report["intervals"] = {name: interval(scored.interval(name, "model")) for name in scored.columns}
    report |= {name: value["estimate"] for name, value in report["intervals"].items()}
    present = len(settings.classes) - len(report["absent"])
    if report["mAP"] is not None:
        report["mAP_absent_as_0"] = report["mAP"] * present / len(settings.classes)
    report["patients"] = len(set(rows.patient_ids))
    for c, name in enumerate(settings.classes):
        report["per_class"][name] |= class_numbers(scored.results, "model", c)
        report["per_class"][name]["threshold"] = None if thresholds is None else float(thresholds[c])
    report["parts"] = parts_report(method, rows, settings)
    return report


def class_numbers(results: dict[str, BootstrapResult], method: str, column: int) -> dict[str, Any]:
    """One class: numbers that are not in `summary`, intervals of the ranked ones, replicates it was missing in."""
    names = ("sensitivity", "F1_chosen", "Brier", "Brier_calibrated", "ECE_calibrated")
    numbers = {name: or_none(results[name].class_values[method][column]) if name in results else None for name in names}
    intervals = {f"{name}_interval": interval(results[name].interval(method, [column])) for name in ("AP", "AUROC")}
    return numbers | intervals | {"absent_in_replicates": int(results["AP"].dropped[column])}


def parts_report(methods: Methods, rows: Rows, settings: Settings) -> dict[str, dict[str, Any]]:
    """mAP and AUROC of every part of the rows, factor by factor; a factor with one value tells nothing and is left out.

    Average precision rises with the share of positives, and parts differ in that and in which classes they hold. So
    beside a part's own mAP stands `mAP_shared`, over the classes that have a positive in every part of at least
    `FEW_PATIENTS` patients, and AUROC, which does not depend on that share.
    """
    return {
        factor: _one_factor(methods, rows, values, settings)
        for factor, values in rows.factors.items()
        if len(set(values)) > 1
    }


def _one_factor(methods: Methods, rows: Rows, values: np.ndarray, settings: Settings) -> dict[str, Any]:
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
    methods: Methods,
    targets: Float32[np.ndarray, "N C"],
    mask: Bool[np.ndarray, "N"],
    patients: Sequence[str],
    shared: list[int],
    settings: Settings,
) -> dict[str, Any]:
    """One part: counts, and per method numbers with the interval of mAP; with two methods, the paired difference."""
    chosen, labels = {name: values[mask] for name, values in methods.items()}, targets[mask]
    part: dict[str, Any] = {"rows": int(mask.sum()), "patients": len(set(patients)), "shared_classes": len(shared)}
    part["classes"] = int((labels > 0.5).any(axis=0).sum())
    if part["patients"] < FEW_PATIENTS:
        shared = []
    part["methods"] = {name: _part_numbers(values, labels, shared) for name, values in chosen.items()}
    if part["patients"] >= 2:
        result = patient_bootstrap(chosen, labels, list(patients), replicates=settings.replicates, seed=settings.seed)
        for name in methods:
            part["methods"][name]["interval"] = interval(result.interval(name))
        if len(methods) == 2:
            first, second = methods
            part["difference"] = interval(result.difference(first, second))
    return part


def _part_numbers(values: Float32[np.ndarray, "K C"], labels: Float32[np.ndarray, "K C"], shared: list[int]) -> dict:
    scores = per_class(values, labels)
    means = {
        "mAP": mean_defined(scores.ap),
        "mAP_shared": mean_defined(scores.ap[shared]),
        "mAUROC": mean_defined(scores.auroc),
    }
    return {name: or_none(value) for name, value in means.items()}
