"""The command `scripts/label_shift.py`: how test differs from the held-out predictions, as far as that can be told.

Prevalences are estimated from unlabelled test predictions and nothing is fitted on test labels; where these are known,
they only stand beside the estimates. Axes: **G** groups, **C** classes, **R** replicates.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from jsonargparse import ArgumentParser
from scipy.special import expit

from data.bootstrap import draw_patients, number_patients, patient_bootstrap
from data.bootstrap_metrics import metric_bootstrap
from data.calibration import Calibration, fit_calibration
from data.files import atomic_write
from data.intervals import Interval, percentiles
from data.label_shift import at_prevalence, estimate_prevalence, misfit, platt_replicates, precision_at_prevalence
from data.manifest import read_manifest
from data.metrics import mean_defined, per_class
from data.order import derive_seed
from data.predictions import write_predictions
from data.runs import run_command
from data.spans import interval, number, or_none, span
from fusion.result_folder import HELD_OUT, group_by_of, held_out_kind
from fusion.saved import Saved, read_saved

CAVEATS = (
    "It is assumed that findings look the same in both sets. Other scanners, views or patients move scores too, and"
    " then the estimates take that for prevalence; a misfit above 1 shows some of this, none proves nothing.",
    "Whether the labels mean the same (reports there, radiologists here) cannot be seen in predictions.",
    "Classes marked * share one calibration curve, which their intervals take for certain.",
    "A class that the model ranks badly hardly shows its prevalence: its interval is wide, and it is left alone.",
    "Each class is treated alone: changed co-occurrence, such as no normal study among the test ones, is not modelled.",
    "AP at test prevalence changes nothing but the shares of positives and negatives among the held-out rows.",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(
        prog="label_shift.py",
        description="Prevalences of test, estimated without its labels, and their effect on AP and calibration.",
    )
    parser.add_argument("run_dir", type=Path, help="a finished run, or the folder of joined folds")
    parser.add_argument("--name", type=str, default="fusion", help="the run's folder that holds the predictions")
    parser.add_argument("--replicates", type=int, default=200, help="patient bootstrap replicates behind intervals")
    options = vars(parser.parse_args(argv))
    run_command(lambda: label_shift(**options))


def label_shift(run_dir: Path, name: str = "fusion", replicates: int = 200) -> None:
    """Write `label_shift.json`, `label_shift.txt` and `adjusted_test.csv` (calibrated, at the estimated prevalences of
    classes whose shift is more than chance).

    Raises:
        InputError: No finished predictions, or none with labels to calibrate on.
    """
    folder = run_dir / name
    kind, by, manifest = held_out_kind(folder), group_by_of(folder), read_manifest(run_dir / "manifest.csv")
    held_out = read_saved(folder / f"logits_{kind}.csv", manifest, HELD_OUT[kind], by)
    test = read_saved(folder / "logits_test.csv", manifest, ("test",), by)
    fitted = fit_calibration(held_out.group_logits, held_out.groups.labels, manifest.classes, "platt")
    calibrated = fitted(test.group_logits)
    counts = {kind: len(held_out.groups.ids), "test": len(calibrated)}
    report: dict[str, Any] = {"by": by, "held_out": kind, "groups": counts}
    report["classes"] = classes = prevalences(held_out, test, fitted, replicates)
    for name, own in classes.items():
        own["shares_a_curve"] = name not in fitted.own
    old = np.array([missing(own["held_out"]["estimate"]) for own in classes.values()])
    new = np.array(
        [missing(own["test_estimated" if moved(own) else "held_out"]["estimate"]) for own in classes.values()]
    )
    adjusted = at_prevalence(calibrated, old, new)
    write_predictions(folder / "adjusted_test.csv", test.images.images, adjusted[test.owner], manifest.classes)
    report["mAP"] = precision(held_out, test, new, classes, replicates)
    if test.labelled:
        report["test_calibration"] = effect(test, calibrated, adjusted, replicates)
    report["cannot_know"] = list(CAVEATS)
    lines = table_lines(report)
    atomic_write(folder / "label_shift.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    atomic_write(folder / "label_shift.txt", "\n".join(lines) + "\n")
    print("\n".join([*lines, f"wrote {folder}/label_shift.json, label_shift.txt, adjusted_test.csv"]))


def prevalences(held_out: Saved, test: Saved, fitted: Calibration, replicates: int) -> dict[str, dict[str, Any]]:
    """Per class: prevalence among the held-out groups, estimated among the test ones, the shift, the truth if known.

    A replicate draws patients of both sets, and fits Platt's line anew.
    """
    before, calibrated = fitted(held_out.group_logits), fitted(test.group_logits)
    weights = {part: row_weights(saved, part, replicates) for part, saved in (("before", held_out), ("after", test))}
    found = {}
    for c, name in enumerate(fitted.classes):
        labels, truth = held_out.groups.labels[:, c], test.groups.labels[:, c]
        known, positive = ~np.isnan(labels), labels > 0.5
        counts = weights["before"][known]
        shares = (counts * positive[known, None]).sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
        slope, bias = np.full((2, len(shares)), [[fitted.shared.slope], [fitted.shared.bias]])
        if name in fitted.own:
            slope, bias = platt_replicates(held_out.group_logits[known, c], positive[known], counts)
        after = expit(slope * test.group_logits[:, c : c + 1] + bias)
        estimates = estimate_prevalence(after, shares, weights["after"])
        known_test = ~np.isnan(truth)
        found[name] = {
            "positives": int(positive.sum()),
            "held_out": interval(percentiles(float(shares[0]), shares[1:], 0.95)),
            "test_estimated": interval(percentiles(float(estimates[0]), estimates[1:], 0.95)),
            "shift": interval(percentiles(float(estimates[0] - shares[0]), estimates[1:] - shares[1:], 0.95)),
            "misfit": or_none(misfit(before[known, c], positive[known], calibrated[:, c], float(estimates[0]))),
            "test_true": float((truth[known_test] > 0.5).mean()) if known_test.any() else None,
        }
    return found


def moved(own: dict[str, Any]) -> bool:
    """Whether a class's shift is more than chance at 95 %; others are left at the held-out prevalence.

    A weakly ranked class hardly tells its prevalence. On the phantom, whose splits have the same prevalences, putting
    in every estimate made the Brier score worse by 0.0026 [0.0016, 0.0035].
    """
    shift = own["shift"]
    return shift["estimate"] is not None and (shift["low"] > 0 or shift["high"] < 0)


def row_weights(saved: Saved, part: str, replicates: int) -> Float[np.ndarray, "G R1"]:
    """How often each group counts: once in the first column, as often as its patient was drawn in the others."""
    num_patients, patients = number_patients(saved.groups.patient_ids, replicates)
    draws = draw_patients(num_patients, len(patients), replicates, derive_seed("label shift", part))
    return np.column_stack([np.ones(len(patients)), *(weights[patients] for _, weights in draws)])


def precision(
    held_out: Saved, test: Saved, new: Float[np.ndarray, "C"], classes: dict[str, dict[str, Any]], replicates: int
) -> dict[str, Any]:
    """mAP of held-out and test groups, and of the held-out ones at the estimated prevalences of classes that moved.

    Means over classes that have a positive among the held-out groups (and among the test ones, if those are known).
    Adds each class's AP to `classes`.
    """
    labels, logits = held_out.groups.labels, held_out.group_logits
    own = per_class(logits, labels).ap
    moved = np.array([precision_at_prevalence(logits[:, c], labels[:, c], float(new[c])) for c in range(len(own))])
    seen = per_class(test.group_logits, test.groups.labels).ap if test.labelled else np.full(len(own), np.nan)
    use = ~np.isnan(moved) & (~np.isnan(seen) if test.labelled else True)
    for entry, *values in zip(classes.values(), own, moved, seen, strict=True):
        entry["AP"] = dict(zip(("held_out", "at_test_prevalence", "test"), map(or_none, values), strict=True))
    report: dict[str, Any] = {"classes": int(use.sum())}
    report |= {"held_out": or_none(mean_defined(own[use])), "at_test_prevalence": or_none(mean_defined(moved[use]))}
    if test.labelled:
        columns = np.flatnonzero(use).tolist()
        results = [bootstrap_map(saved, columns, replicates, number) for number, saved in enumerate((held_out, test))]
        (val, val_draws), (found, draws) = results
        report |= {"test": interval(found), "held_out_interval": interval(val)}
        report["gap"] = interval(percentiles(found.estimate - val.estimate, draws - val_draws, 0.95))
    return report


def bootstrap_map(saved: Saved, columns: list[int], replicates: int, seed: int) -> tuple[Interval, np.ndarray]:
    """mAP of groups over some classes with its interval, and its replicates."""
    scores = {"model": saved.group_logits}
    result = patient_bootstrap(
        scores, saved.groups.labels, saved.groups.patient_ids, replicates=replicates, seed=derive_seed("gap", seed)
    )
    return result.interval("model", columns), result.macro("model", columns)


def effect(
    test: Saved, calibrated: Float[np.ndarray, "G C"], adjusted: Float[np.ndarray, "G C"], replicates: int
) -> dict[str, Any]:
    """ECE and Brier score on test, calibrated on held-out predictions, and what the estimated prevalences change."""
    labels, patients = test.groups.labels, test.groups.patient_ids
    scores = {"calibrated": calibrated, "adjusted": adjusted}
    results = metric_bootstrap(scores, labels, patients, metrics=("ECE", "Brier"), replicates=replicates)
    return {
        key: {name: interval(result.interval(name)) for name in scores}
        | {"change": interval(result.difference("adjusted", "calibrated"))}
        for key, result in results.items()
    }


def table_lines(report: dict[str, Any]) -> list[str]:
    """The report as text."""
    kind, classes = report["held_out"], report["classes"]
    width = max(map(len, classes)) + 3
    lines = [
        f"prevalence in {report['groups'][kind]} {kind} and {report['groups']['test']} test groups ({report['by']}),"
        " estimated for test from predictions alone [95 % interval by patient]; AP of the held-out groups, the same at"
        " the estimated prevalence, of test",
        f"{'':<{width}}{kind:<23}{'test, estimated':<23}{'shift':<26}{'test, true':<12}{'misfit':<8}AP",
    ]
    for name, own in classes.items():
        if own["test_estimated"]["estimate"] is None:
            continue
        mark, scores = " *" if own["shares_a_curve"] else "", " ".join(number(value) for value in own["AP"].values())
        cells = f"{span(own['held_out']):<23}{span(own['test_estimated']):<23}{span(own['shift'], '+'):<26}"
        lines.append(f"{name + mark:<{width}}{cells}{number(own['test_true']):<12}{number(own['misfit']):<8}{scores}")
    skipped = [name for name, own in classes.items() if own["test_estimated"]["estimate"] is None]
    if skipped:
        lines.append(f"without a positive in {kind}, so nothing can be said: {', '.join(skipped)}")
    shifts = [own["shift"] for own in classes.values() if own["shift"]["estimate"] is not None]
    sure = sum(map(moved, classes.values()))
    bad = sum((own["misfit"] or 0) > 1 for own in classes.values())
    lines += [
        "",
        f"{sure} of {len(shifts)} intervals of a shift leave out 0 (by chance: 1 in 20); misfit above 1: {bad}",
    ]
    own = report["mAP"]
    lines.append(
        f"mAP over {own['classes']} classes: {kind} {number(own['held_out'])}, at test prevalence"
        f" {number(own['at_test_prevalence'])}" + (f", test {span(own['test'])}" if "test" in own else "")
    )
    if "gap" in own:
        rest = own["test"]["estimate"] - own["at_test_prevalence"]
        part = own["at_test_prevalence"] - own["held_out"]
        lines.append(f"gap test - {kind} {span(own['gap'], '+')}: {part:+.3f} by prevalence, {rest:+.3f} by all else")
    for key, values in report.get("test_calibration", {}).items():
        said = f"{span(values['calibrated'], digits=4)} -> {span(values['adjusted'], digits=4)}"
        change = span(values["change"], "+", 4)
        lines.append(f"{key} on test, calibrated -> at the estimated prevalences: {said}, change {change}")
    return [*lines, "", "What this cannot know:", *(f"- {line}" for line in report["cannot_know"])]


def missing(value: float | None) -> float:
    """The inverse of `or_none`."""
    return float("nan") if value is None else value
