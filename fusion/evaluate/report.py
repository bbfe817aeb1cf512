"""One prediction table evaluated: `metrics.json`, a table for people, and a CSV per class and unit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from data.errors import InputError
from data.files import atomic_write
from data.manifest import Manifest
from data.operating_points import best_f1_thresholds
from data.spans import number, span
from data.summary import groups_of
from data.tables import write_table
from fusion.evaluate.parts import Judged, parts_report
from fusion.evaluate.rows import Evaluated, Template, read_evaluated
from fusion.evaluate.scores import Settings, unit_report
from fusion.evaluate.source import Source, load_source_fitted
from fusion.evaluate.strata import About

UNITS = ("images", "groups")
Thresholds = dict[str, Float[np.ndarray, "C"]]
"""Per unit, one threshold per class."""

HEADLINES = {
    "mAP": "mAP, macro",
    "mAP_head": "  head",
    "mAP_medium": "  medium",
    "mAP_tail": "  tail",
    "mAP_micro": "mAP, micro",
    "mAUROC": "AUROC, macro",
    "mAUROC_micro": "AUROC, micro",
    "sensitivity": "sensitivity at specificity {specificity:g}",
    "F1": "F1 at 0.5",
    "F1_chosen": "F1 at chosen thresholds",
    "Brier": "Brier score",
    "Brier_calibrated": "  calibrated",
    "ECE": "calibration error (ECE)",
    "ECE_calibrated": "  calibrated",
}
CSV_COLUMNS = (
    *("class", "group", "known", "positives", "AP", "AP_low", "AP_high", "AUROC", "AUROC_low", "AUROC_high"),
    *("F1", "F1_chosen", "threshold", "sensitivity", "Brier", "ECE", "Brier_calibrated", "ECE_calibrated"),
)


def class_bands(manifest: Manifest) -> dict[str, str]:
    """Head, medium or tail of each class by the training images, or by all where the manifest has none to train on."""
    train = manifest.of_split("train")
    return groups_of(train if len(train) else manifest)


def choose_thresholds(source: Source, manifest: Manifest, evaluated: Evaluated) -> Thresholds | None:
    """Thresholds of both units: those of the model's `thresholds.json`, or else with the best F1 on validation.

    Test rows and labels are not looked at.

    Returns:
        None without both, or where validation images are among those to be judged.

    Raises:
        InputError: The validation table holds an image of another split, or lacks a class.
    """
    if evaluated.fitted is not None:
        return dict.fromkeys(UNITS, evaluated.fitted.cuts(evaluated.classes))
    if source.validation is None or "val" in evaluated.splits:
        return None
    chosen = read_evaluated(source.validation, manifest, source.by)
    if chosen.splits != ("val",):
        raise InputError(
            f"{source.validation}: thresholds are chosen on validation alone, but this table holds images of"
            f" {' and '.join(chosen.splits)}; give predictions of the split val"
        )
    if lacking := [name for name in evaluated.classes if name not in chosen.classes]:
        raise InputError(f"{source.validation}: class {lacking[0]!r} is missing, but {source.predictions} has it")
    columns = [chosen.classes.index(name) for name in evaluated.classes]
    units = {unit: getattr(chosen, unit) for unit in UNITS}
    return {
        unit: best_f1_thresholds(rows.probabilities[:, columns], rows.targets[:, columns])
        for unit, rows in units.items()
    }


def thresholds_from(evaluated: Evaluated, thresholds: Thresholds | None) -> str | None:
    """Where `choose_thresholds` has them from."""
    if thresholds is None:
        return None
    return "thresholds.json" if evaluated.fitted else "val"


def evaluate(
    source: Source,
    manifest: Manifest,
    about: About | None,
    only: Template | None,
    specificity: float,
    replicates: int,
) -> dict[str, Any]:
    """Everything that `metrics.json` says of one prediction table."""
    evaluated = read_evaluated(source.predictions, manifest, source.by, about, only, load_source_fitted(source))
    thresholds = choose_thresholds(source, manifest, evaluated)
    bands = class_bands(manifest)
    settings = Settings(classes=evaluated.classes, bands=bands, specificity=specificity, replicates=replicates)
    report: dict[str, Any] = {
        "splits": list(evaluated.splits),
        "group_by": source.by,
        "classes": list(evaluated.classes),
        "not_scored": list(evaluated.unscored),
        "images_without_prediction": evaluated.missing,
        "thresholds_from": thresholds_from(evaluated, thresholds),
        "calibration": evaluated.fitted.as_json() if evaluated.fitted else None,
        "specificity": specificity,
        "replicates": replicates,
    }
    for unit in UNITS:
        rows, cuts = getattr(evaluated, unit), thresholds[unit] if thresholds else None
        judged = {"model": Judged(rows.probabilities, rows.calibrated, cuts)}
        report[unit] = unit_report(rows, cuts, settings) | {"parts": parts_report(judged, rows, settings)}
    return report


def write_report(report: dict[str, Any], folder: Path) -> list[str]:
    """Write `metrics.json`, `table.txt` and a `per_class_<unit>.csv` for each unit; returns the table's lines."""
    lines = table_lines(report)
    atomic_write(folder / "metrics.json", json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    for unit in UNITS:
        write_table(folder / f"per_class_{unit}.csv", class_table(report[unit]))
    atomic_write(folder / "table.txt", "\n".join(lines) + "\n")
    return lines


def class_table(unit: dict[str, Any]) -> pd.DataFrame:
    """One row per class, an empty field where a number is undefined."""
    rows = []
    for name, values in unit["per_class"].items():
        limits = {f"{key}_{end}": values[f"{key}_interval"][end] for key in ("AP", "AUROC") for end in ("low", "high")}
        rows.append({"class": name} | values | limits)
    frame = pd.DataFrame(rows)[list(CSV_COLUMNS)]
    counts = ("class", "group", "known", "positives")
    return frame.astype({name: str if name in counts else float for name in CSV_COLUMNS})


def table_lines(report: dict[str, Any]) -> list[str]:
    """The report as text: headline numbers of both units side by side, classes, parts."""
    images, groups = report["images"], report["groups"]
    group_name = "studies" if report["group_by"] == "study" else "patients"
    lines = [
        f"Split {' and '.join(report['splits'])}: {images['rows']} images, {groups['rows']} groups ({group_name}),"
        f" {images['patients']} patients; [95 % interval by patient bootstrap, {report['replicates']} replicates]",
        *notes(report),
        "",
        f"{'':<34}{'image rows':<26}groups ({group_name})",
    ]
    for key, words in HEADLINES.items():
        if key not in images["intervals"]:
            continue
        cells = [span(report[unit]["intervals"][key]) for unit in UNITS]
        lines.append(f"{words.format(**report):<34}{cells[0]:<26}{cells[1]}")
    lines += ["", *class_lines(images, "image rows")]
    for unit in UNITS:
        for factor, parts in report[unit]["parts"].items():
            lines += ["", *part_lines(factor, parts, unit)]
    return lines


def notes(report: dict[str, Any]) -> list[str]:
    """What a reader must know before comparing these numbers with others."""
    lines = []
    if absent := report["images"]["absent"]:
        lines.append(f"Without a positive and left out of every mean: {', '.join(absent)}.")
        if "mAP_absent_as_0" in report["images"]:
            counted = number(report["images"]["mAP_absent_as_0"])
            lines.append(f"An evaluation that counts their AP as 0 would say mAP {counted} on image rows.")
    if report["not_scored"]:
        lines.append(f"Predicted or labelled, but not both, and not scored: {', '.join(report['not_scored'])}.")
    if report["images_without_prediction"]:
        lines.append(f"Left out: {report['images_without_prediction']} images of the split have no prediction.")
    return [*lines, thresholds_line(report)]


def thresholds_line(report: dict[str, Any]) -> str:
    """Where thresholds come from, and which probabilities they are for."""
    if report["thresholds_from"] is None:
        return "No thresholds: they need validation predictions, and other images than these to be judged on."
    if (calibration := report["calibration"]) is None:
        return "Chosen thresholds: of the best F1 on the validation predictions."
    if calibration["already_calibrated"]:
        return f"Chosen thresholds: the model's thresholds.json. The table is calibrated ({calibration['method']})."
    return (
        "Chosen thresholds: the model's thresholds.json, for probabilities calibrated by its calibration.json"
        f" ({calibration['method']}); numbers not called calibrated are of the predictions as they are."
    )


def class_lines(unit: dict[str, Any], title: str) -> list[str]:
    """A table of the classes that have a positive."""
    names = "".join(f"{name:>8}" for name in ("AUROC", "F1", "F1 thr.", "sens.", "Brier", "ECE"))
    lines = [f"{title:<38}{'positives':>10}{'known':>8}   {'AP':<24}{names}"]
    for name, values in unit["per_class"].items():
        if values["AP"] is None:
            continue
        keys = ("AUROC", "F1", "F1_chosen", "sensitivity", "Brier", "ECE")
        cells = "".join(f"{number(values[key]):>8}" for key in keys)
        counts = f"{values['positives']:>10}{values['known']:>8}"
        lines.append(f"{name:<30}{values['group']:<8}{counts}   {span(values['AP_interval']):<24}{cells}")
    return lines


def part_lines(factor: str, parts: dict[str, Any], unit: str) -> list[str]:
    """A table of the parts of one factor."""
    shared = next(iter(parts.values()))["shared_classes"]
    lines = [
        f"{factor + ', ' + unit:<30}{'rows':>8}{'patients':>10}{'classes':>9}   {'mAP':<24}"
        f"{'mAP of ' + str(shared) + ' shared':>18}{'AUROC':>8}"
    ]
    for value, part in parts.items():
        own = part["methods"]["model"]
        said = span(own["interval"]) if "interval" in own else number(own["mAP"])
        counts = f"{part['rows']:>8}{part['patients']:>10}{part['classes']:>9}"
        lines.append(f"{value:<30}{counts}   {said:<24}{number(own['mAP_shared']):>18}{number(own['mAUROC']):>8}")
    return lines
