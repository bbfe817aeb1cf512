"""The command `scripts/calibrate.py`: fit calibration and thresholds on held-out predictions, and apply them.

Axes: **G** groups, **C** classes.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from jsonargparse import ArgumentParser

from data.calibration import METHODS, MIN_POSITIVES, Calibration, Method, cross_fitted, fit_calibration
from data.errors import InputError
from data.files import atomic_write
from data.manifest import read_manifest
from data.metrics import brier_score, hard_labels, mean_defined
from data.predictions import read_predictions, write_predictions
from data.runs import run_command
from data.tables import write_table
from data.thresholds import Thresholds, fit_thresholds
from fusion.calibration_report import compare, table_lines
from fusion.fitted import load_fitted, save_fitted
from fusion.result_folder import HELD_OUT, group_by_of, held_out_kind, model_folder
from fusion.saved import Saved, as_logits, read_saved


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(
        prog="calibrate.py",
        description="Fit calibration.json and thresholds.json on held-out predictions alone; or apply them (--apply).",
    )
    parser.add_argument("run_dir", type=Path, help="a finished run, or the folder of joined folds")
    parser.add_argument("--name", type=str, default="fusion", help="the run's folder that holds the predictions")
    parser.add_argument(
        "--method",
        type=Literal["best", "none", "temperature", "platt", "isotonic"],
        default="best",
        help="best: of least held-out Brier score",
    )
    parser.add_argument(
        "--min_positives", type=int, default=MIN_POSITIVES, help="fewer positives or negatives: the shared curve"
    )
    parser.add_argument("--replicates", type=int, default=1000, help="patient bootstrap replicates behind intervals")
    parser.add_argument(
        "--apply",
        type=Path | None,
        default=None,
        help="predictions (logits_*.csv: logits) to calibrate with what is there",
    )
    parser.add_argument("--out", type=Path | None, default=None, help="where calibrated probabilities go, with --apply")
    options = vars(parser.parse_args(argv))
    apply, out = options.pop("apply"), options.pop("out")
    if apply is None:
        run_command(lambda: calibrate(**options))
    else:
        run_command(lambda: apply_to_file(options["run_dir"] / options["name"], apply, out))


def calibrate(
    run_dir: Path,
    name: str = "fusion",
    method: Method | Literal["best"] = "best",
    min_positives: int = MIN_POSITIVES,
    replicates: int = 1000,
) -> None:
    """Fit on held-out predictions, write both files into the model folder, and calibrate what the run predicted.

    Test labels, where known, are read after everything was fitted, for the report alone.

    Raises:
        InputError: No finished predictions, or none with labels to fit on.
    """
    folder = run_dir / name
    kind, by, manifest = held_out_kind(folder), group_by_of(folder), read_manifest(run_dir / "manifest.csv")
    held_out = read_saved(folder / f"logits_{kind}.csv", manifest, HELD_OUT[kind], by)
    candidates = {kind: crossed(held_out, min_positives)}
    method = least_brier(candidates[kind], held_out) if method == "best" else method
    fitted, chosen = fit(held_out, method, min_positives)
    save_fitted(folder, fitted, chosen, held_out)
    parts, lines = {kind: held_out}, [*held_out.notes, *fitted_lines(fitted, chosen, held_out)]
    if (folder / "logits_test.csv").is_file():
        parts["test"] = read_saved(folder / "logits_test.csv", manifest, ("test",), by)
        candidates["test"] = applied(held_out, parts["test"], min_positives)
    report: dict[str, Any] = {"method": method, "min_positives": min_positives, "by": by}
    for part, saved in parts.items():
        probabilities = fitted(saved.group_logits)[saved.owner]
        write_predictions(folder / f"calibrated_{part}.csv", saved.images.images, probabilities, manifest.classes)
        if saved.labelled:
            report[part] = compare(saved, candidates[part], None if part == kind else chosen, method, replicates)
            lines += ["", *table_lines(report[part], part, method, crossed=part == kind)]
    atomic_write(folder / "calibration_report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    files = ", ".join(f"calibrated_{part}.csv" for part in parts)
    lines += ["", f"wrote {model_folder(folder)}/calibration.json and thresholds.json; in {folder}: {files}"]
    lines.append(f"from now on used by: python scripts/evaluate.py --predictions {folder}")
    lines.append(f"next: python scripts/label_shift.py {run_dir}" + ("" if name == "fusion" else f" --name {name}"))
    print("\n".join(lines))


def least_brier(candidates: dict[Method, Float[np.ndarray, "G C"]], held_out: Saved) -> Method:
    """The method of least mean Brier score over classes with a positive; of equal ones the simpler."""
    labels = held_out.groups.labels
    seen = hard_labels(labels)[1].any(axis=0)
    errors = {method: mean_defined(brier_score(values, labels)[seen]) for method, values in candidates.items()}
    return min(errors, key=errors.__getitem__)


def fit(held_out: Saved, method: Method, min_positives: int) -> tuple[Calibration, Thresholds]:
    """Calibration, and thresholds of the probabilities that it gives to what it was fitted on."""
    logits, labels, classes = held_out.group_logits, held_out.groups.labels, held_out.images.classes
    fitted = fit_calibration(logits, labels, classes, method, min_positives)
    return fitted, fit_thresholds(fitted(logits), labels, classes, min_positives)


def crossed(held_out: Saved, min_positives: int) -> dict[Method, Float[np.ndarray, "G C"]]:
    """Probabilities of the held-out groups by every method, each by a calibration that had not seen its patient."""
    logits, groups, classes = held_out.group_logits, held_out.groups, held_out.images.classes
    return {
        method: cross_fitted(logits, groups.labels, groups.patient_ids, classes, method, min_positives)
        for method in METHODS
    }


def applied(held_out: Saved, saved: Saved, min_positives: int) -> dict[Method, Float[np.ndarray, "G C"]]:
    """Probabilities of other groups by every method, fitted on the held-out ones."""
    logits, labels, classes = held_out.group_logits, held_out.groups.labels, held_out.images.classes
    return {
        method: fit_calibration(logits, labels, classes, method, min_positives)(saved.group_logits)
        for method in METHODS
    }


def fitted_lines(fitted: Calibration, chosen: Thresholds, held_out: Saved) -> list[str]:
    """What was fitted on what, and which classes share."""
    groups = "studies" if held_out.by == "study" else "patients"
    lines = [f"{fitted.method}, fitted on {held_out.path} ({len(held_out.groups.ids)} {groups})"]
    shared = [f"{name} ({fitted.positives[name]})" for name in fitted.classes if name not in fitted.own]
    if shared and fitted.method != "none":
        kind = "temperature" if fitted.method == "temperature" else "Platt line"
        lines.append(
            f"one {kind} shared by classes with fewer than {fitted.min_positives} positives or negatives, or whose own"
            f" curve would not rise: {', '.join(shared)}"
        )
    alone = [name for name in chosen.classes if name not in chosen.own]
    if alone:
        lines.append(f"one threshold, {chosen.shared:.3f}, shared by classes with few positives: {', '.join(alone)}")
    return lines


def apply_to_file(folder: Path, path: Path, out: Path | None) -> None:
    """Calibrate any predictions of the classes that a calibration knows, and call what lies above the thresholds.

    Raises:
        InputError: No calibration, other classes, or values that are neither logits nor probabilities.
    """
    fitted, chosen = load_fitted(folder)
    ids, values, classes = read_predictions(path)
    if set(classes) != set(fitted.classes):
        odd = sorted(set(classes) ^ set(fitted.classes))[0]
        raise InputError(f"{path}: has other classes than {model_folder(folder)}: {odd!r} is in one only")
    if classes != fitted.classes:
        print(f"{path}: classes in another order than the model's, aligned by name")
        values = values[:, [classes.index(name) for name in fitted.classes]]
    probabilities = fitted(as_logits(path, values))
    target = out or path.with_name(f"calibrated_{path.stem.removeprefix('logits_').removeprefix('predictions_')}.csv")
    if target.exists() and target.resolve() == path.resolve():
        raise InputError(f"--out {target}: is the file to be calibrated; choose another name")
    calls = target.with_name(f"calls_{target.name}")
    write_predictions(target, ids, probabilities, fitted.classes)
    called = chosen(probabilities).astype(int).astype(str)
    frame = pd.DataFrame(called, columns=list(fitted.classes))
    write_table(calls, pd.concat([ids.reset_index(drop=True), frame], axis=1))
    print(f"{len(ids)} rows calibrated by {fitted.method}: {target}; called above the thresholds: {calls}")
