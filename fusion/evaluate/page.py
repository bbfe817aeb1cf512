"""What a comparison leaves behind: `comparison.json`, a CSV per class, text, and one page that needs nothing else."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from data.files import atomic_write
from data.spans import number, span
from data.tables import write_table
from fusion.evaluate.compare import Comparison
from fusion.evaluate.parts import FEW_PATIENTS
from fusion.evaluate.report import HEADLINES, UNITS
from fusion.evaluate.scores import HIGHER_IS_WORSE
from fusion.evaluate.svg import better, histogram, interval_bar, scatter

PAGE = "comparison.html"


def write_comparison(comparison: Comparison, folder: Path) -> list[str]:
    """Write everything about a comparison into a folder; returns the lines for the terminal."""
    report = comparison.report
    lines = comparison_lines(report)
    atomic_write(folder / "comparison.json", json.dumps(report, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    atomic_write(folder / "table.txt", "\n".join(lines) + "\n")
    for unit in UNITS:
        write_table(folder / f"per_class_{unit}.csv", class_table(report, unit))
    atomic_write(folder / PAGE, render(comparison))
    return lines


def render(comparison: Comparison) -> str:
    """The page as HTML; every text in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"span": span, "number": number, "bar": interval_bar, "better": better}
    report = comparison.report
    images = report["images"]
    difference = images["headline"]["mAP"]["difference"]
    classes = {unit: scored_classes(report[unit]) for unit in UNITS}
    points = [
        (name, *(values["AP"][side]["estimate"] for side in ("first", "second")), better(values["AP_difference"]))
        for name, values in classes["images"].items()
    ]
    return environment.get_template("page.html").render(
        report=report,
        first=report["first"],
        second=report["second"],
        group_name="studies" if report["group_by"] == "study" else "patients",
        headlines=headlines(report),
        worse=HIGHER_IS_WORSE,
        classes=classes,
        absent=[name for name in report["classes"] if name not in classes["images"]],
        limits={"headline": headline_limit(report), "classes": class_limit(classes), "parts": part_limit(report)},
        verdict=verdict(report),
        notes=notes(report),
        histogram=histogram(comparison.replicates, difference["low"], difference["high"]),
        scatter=scatter(points, report["first"], report["second"]),
    )


def verdict(report: dict[str, Any]) -> str:
    """One sentence: who is better, as far as the test patients can tell."""
    difference = report["images"]["headline"]["mAP"]["difference"]
    side = better(difference)
    if side == "neither":
        return "These patients do not tell the two apart: the interval of the difference includes 0."
    return f"{report[side]} is better on these patients: the interval of the difference excludes 0."


def scored_classes(unit: dict[str, Any]) -> dict[str, Any]:
    """Classes that have a positive, the largest difference first."""
    scored = {name: v for name, v in unit["per_class"].items() if v["AP_difference"]["estimate"] is not None}
    return dict(sorted(scored.items(), key=lambda item: -item[1]["AP_difference"]["estimate"]))


def comparison_lines(report: dict[str, Any]) -> list[str]:
    """The comparison as text."""
    lines = [
        f"A = {report['first']}, B = {report['second']}; split {' and '.join(report['splits'])};"
        f" [95 % interval by patient bootstrap, {report['replicates']} replicates, paired]"
    ]
    lines += notes(report)
    for unit in UNITS:
        part = report[unit]
        lines += [
            "",
            f"{unit}, {part['rows']} rows of {part['patients']} patients".ljust(36) + f"{'A':<26}{'B':<26}A - B",
        ]
        for key, words in headlines(report).items():
            values = part["headline"][key]
            cells = [span(values["first"]), span(values["second"]), span(values["difference"], "+")]
            lines.append(f"{words:<36}{cells[0]:<26}{cells[1]:<26}{cells[2]}")
    lines += ["", f"{'class (images)':<36}{'AP of A':>9}{'AP of B':>9}   {'A - B':<26}rank correlation"]
    for name, values in scored_classes(report["images"]).items():
        cells = "".join(f"{number(values['AP'][side]['estimate']):>9}" for side in ("first", "second"))
        lines.append(
            f"{name:<36}{cells}   {span(values['AP_difference'], '+'):<26}{number(values['rank_correlation'])}"
        )
    return [*lines, "", verdict(report)]


def headlines(report: dict[str, Any]) -> dict[str, str]:
    """Measures that the comparison has, and their words."""
    return {key: words.format(**report) for key, words in HEADLINES.items() if key in report["images"]["headline"]}


def notes(report: dict[str, Any]) -> list[str]:
    """What makes the comparison less than plain."""
    lines = []
    for name, count in report["images_not_compared"].items():
        if count:
            lines.append(f"{count} images of {name} have no prediction in the other one and were left out.")
    (first, by), (second, other) = report["fused_by"].items()
    if by != other:
        lines.append(f"{first} fused by {by}, {second} by {other}: both are judged by the labels of the {by}.")
    if any(report["calibrated"].values()):
        lines.append(calibration_note(report["calibrated"]))
    return lines


def calibration_note(calibrated: dict[str, bool]) -> str:
    """Which side's F1 and calibrated scores come from its model's calibration.json and thresholds.json."""
    if all(calibrated.values()):
        return "Calibrated scores and F1 at chosen thresholds: by each model's calibration.json and thresholds.json."
    has, lacks = sorted(calibrated, key=lambda name: not calibrated[name])
    return (
        f"{has} has calibration.json and thresholds.json, {lacks} has not: F1 at chosen thresholds of {has} is of"
        " calibrated probabilities; other calibrated scores are not compared."
    )


def class_table(report: dict[str, Any], unit: str) -> pd.DataFrame:
    """One row per class; an empty field where a number is undefined."""
    rows = []
    for name, values in report[unit]["per_class"].items():
        row = {"class": name, "group": values["group"]}
        row |= {"known": str(values["known"]), "positives": str(values["positives"])}
        row |= {"AP_A": values["AP"]["first"]["estimate"], "AP_B": values["AP"]["second"]["estimate"]}
        for key in ("AP", "AUROC"):
            difference = values[f"{key}_difference"]
            row |= {f"{key}_A_minus_B{end}": difference[part] for end, part in
                    (("", "estimate"), ("_low", "low"), ("_high", "high"))}  # fmt: skip
        rows.append(row | {"rank_correlation": values["rank_correlation"]})
    frame = pd.DataFrame(rows)
    counts = ("class", "group", "known", "positives")
    return frame.astype({name: str if name in counts else float for name in frame.columns})


def headline_limit(report: dict[str, Any]) -> float:
    """The scale of all headline bars: the widest interval."""
    return widest([value["difference"] for unit in UNITS for value in report[unit]["headline"].values()])


def class_limit(classes: dict[str, Any]) -> float:
    """The scale of all class bars."""
    return widest([value["AP_difference"] for unit in UNITS for value in classes[unit].values()])


def part_limit(report: dict[str, Any]) -> float:
    """The scale of all bars of parts; a handful of patients does not set it."""
    parts = [part for factor in report["groups"]["parts"].values() for part in factor.values()]
    return widest([part["difference"] for part in parts if part["patients"] >= FEW_PATIENTS])


def widest(differences: list[dict[str, Any]]) -> float:
    """The largest distance from 0 of any end of an interval."""
    ends = [abs(value[end]) for value in differences for end in ("low", "high") if value[end] is not None]
    return max(ends, default=1.0) or 1.0
