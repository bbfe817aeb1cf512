"""Every number of an evaluation with its interval, for one method or for two on the same draws of patients.

Axes: N rows, C classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from data.bootstrap import patient_bootstrap
from data.bootstrap_metrics import metric_bootstrap
from data.intervals import BootstrapResult, Difference, Interval
from data.spans import interval, or_none
from data.summary import summary
from fusion.evaluate.rows import Rows

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
    """"AP", "micro AP", "micro AUROC" and the metrics of `data.bootstrap_metrics`."""
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
    results |= micro_bootstrap(methods, rows, settings)
    results |= metric_bootstrap(
        methods,
        rows.targets,
        rows.patient_ids,
        metrics=("AUROC", "sensitivity", "F1", "F1_chosen", *CALIBRATED),
        thresholds=thresholds,
        specificity=settings.specificity,
        **how,
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
    columns |= {"mAP_micro": ("micro AP", None), "mAUROC": ("AUROC", None), "mAUROC_micro": ("micro AUROC", None)}
    columns |= {name: (name, None) for name in ("sensitivity", "F1", "F1_chosen", *HIGHER_IS_WORSE) if name in results}
    return Scored(results, columns)


def micro_bootstrap(methods: Methods, rows: Rows, settings: Settings) -> dict[str, BootstrapResult]:
    """Average precision and AUROC of all known pairs of row and class in one ranking, where frequent classes rule."""
    flat = {name: values.reshape(-1, 1) for name, values in methods.items()}
    targets = rows.targets.reshape(-1, 1)
    patients = np.repeat(np.array(rows.patient_ids, dtype=object), len(settings.classes)).tolist()
    how: dict[str, Any] = {"replicates": settings.replicates, "seed": settings.seed}
    auroc = metric_bootstrap(flat, targets, patients, metrics=("AUROC",), **how)["AUROC"]
    return {"micro AP": patient_bootstrap(flat, targets, patients, **how), "micro AUROC": auroc}


def unit_report(rows: Rows, thresholds: Float[np.ndarray, "C"] | None, settings: Settings) -> dict[str, Any]:
    """All numbers of one method in one unit but those of its parts, ready for JSON."""
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
    return report


def class_numbers(results: dict[str, BootstrapResult], method: str, column: int) -> dict[str, Any]:
    """One class: numbers that are not in `summary`, intervals of the ranked ones, replicates it was missing in."""
    names = ("sensitivity", "F1_chosen", "Brier", "Brier_calibrated", "ECE_calibrated")
    numbers = {name: or_none(results[name].class_values[method][column]) if name in results else None for name in names}
    intervals = {f"{name}_interval": interval(results[name].interval(method, [column])) for name in ("AP", "AUROC")}
    return numbers | intervals | {"absent_in_replicates": int(results["AP"].dropped[column])}
