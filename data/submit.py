"""The command `scripts/submit.py`: a submission to a CXR-LT challenge from predictions and the official files.

Axes: **N** rows of the submission, **C** classes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32, Integer
from jsonargparse import ArgumentParser

from data.challenges import CHALLENGES, OfficialForm, official_form, phase_note
from data.errors import InputError
from data.files import sha256_file
from data.runs import run_command
from data.spread import Predicted, groups_of_manifest, read_predicted, spread
from data.submission import SubmissionReport, write_files
from data.submission_compare import compare_submissions, comparison_lines


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    options = _parser().parse_args(argv)
    run_command(lambda: print("\n".join(submit(**vars(options)))))


def submit(
    challenge: str,
    predictions: Path,
    template: Path | None = None,
    test_table: Path | None = None,
    manifest: Path | None = None,
    out: Path | None = None,
    former: Path | None = None,
    rename: Sequence[str] = (),
    max_missing: int = 0,
) -> list[str]:
    """Check everything, then write `submission.csv` and `submission.zip`.

    Args:
        challenge: A key of `CHALLENGES`.
        predictions: A table of probabilities by image, study or patient; classes that are not wanted do no harm.
        template: The challenge's sample submission.
        test_table: The challenge's table of images to predict. At least one of the two is needed.
        manifest: Says which images belong to a study or patient, where the test table does not.
        out: Folder to write (default: named after the challenge, beside the predictions).
        former: A former submission.csv to compare with (default: the one that is in `out`).
        rename: "name in the predictions=class", for classes that are called differently.
        max_missing: Images without a prediction that get the class's median, from 0 on.

    Returns:
        Lines for the user.

    Raises:
        InputError: Something does not fit; nothing is written then.
    """
    form = official_form(challenge, template, test_table)
    predicted = read_predicted(predictions, form.classes, dict(_pair(text) for text in rename))
    rows = _rows(form, predicted, predictions, manifest, str(test_table or template))
    values = _filled(predicted, rows, form, predictions, max_missing)
    target = _checked_folder(out or predictions.parent / challenge) / "submission.csv"
    changes = _change_lines(form, values, former, target)
    archive = target.with_suffix(".zip")
    report = write_files(form.ids, values, form.classes, target, archive)
    return [
        f"{challenge}: {report.rows:,} rows x {len(form.classes)} classes; {phase_note(challenge, report.rows)}",
        *_official_lines(template, test_table),
        *_prediction_lines(predicted, rows, report),
        *changes,
        f"wrote {target} and {archive.name} (SHA-256 {sha256_file(archive)[:16]})",
        f"next: upload {archive}",
    ]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="submit.py", description="A submission to a CXR-LT challenge, checked before it is written."
    )
    parser.add_argument("challenge", choices=list(CHALLENGES), help="which year and task")
    parser.add_function_arguments(submit, skip={"challenge", "rename"})
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        help='"name in the predictions=class", for a class that is called differently; once per class',
    )
    return parser


def _rows(
    form: OfficialForm, predicted: Predicted, path: Path, manifest: Path | None, source: str
) -> Integer[np.ndarray, "N"]:
    """The row of the prediction for every row of the submission, -1 where there is none."""
    if manifest is None or predicted.level == "image":
        return spread(predicted, str(path), form.ids, form.groups, source)
    return spread(predicted, str(path), form.ids, groups_of_manifest(manifest, form.ids), str(manifest))


def _filled(
    predicted: Predicted, rows: Integer[np.ndarray, "N"], form: OfficialForm, path: Path, max_missing: int
) -> Float32[np.ndarray, "N C"]:
    """The values of every row; a row without a prediction gets the medians, as far as that is allowed."""
    missing = rows < 0
    if missing.sum() > max(max_missing, 0):
        raise InputError(
            f"{path}: no prediction for {form.ids.name} {form.ids[missing].iloc[0]!r} of {form.where} "
            f"({missing.sum()} of {len(rows)} rows lack one); predict these images, or, if they cannot be read, allow "
            f"them the median of each class: --max_missing {missing.sum()}"
        )
    medians = np.median(predicted.values, axis=0)
    return np.where(missing[:, None], medians, predicted.values[rows]).astype(np.float32)


def _change_lines(
    form: OfficialForm, values: Float32[np.ndarray, "N C"], former: Path | None, target: Path
) -> list[str]:
    """What the new values change against the former submission, or against the one that they replace."""
    if former is None and not target.exists():
        return []
    try:
        comparison = compare_submissions(form.ids, pd.DataFrame(values, columns=form.classes), former or target)
    except InputError as error:
        if former is not None:
            raise
        return [f"not compared with the file that is replaced: {error}"]
    return [f"compared with {former or target}:", *(f"  {line}" for line in comparison_lines(comparison))]


def _checked_folder(folder: Path) -> Path:
    """The folder to write, made if need be.

    Raises:
        InputError: It is named like a file, or cannot be made.
    """
    if folder.suffix in (".csv", ".zip"):
        raise InputError(f"--out {folder}: wanted a folder; submission.csv and submission.zip are written into it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {folder}: cannot be made ({error.strerror or error})") from None
    return folder


def _official_lines(template: Path | None, test_table: Path | None) -> list[str]:
    if template is None:
        return [f"rows as in {test_table}, columns as published; not compared with a sample file (--template)"]
    if test_table is None:
        return [f"rows and columns as in {template}; not compared with the test table (--test_table)"]
    return [f"rows and columns as in {template}, the same images in the same order as in {test_table}"]


def _prediction_lines(predicted: Predicted, rows: Integer[np.ndarray, "N"], report: SubmissionReport) -> list[str]:
    used = np.unique(rows[rows >= 0])
    lines = [f"predictions by {predicted.level}: {len(used):,} of {len(predicted.ids):,} rows used"]
    if (rows < 0).any():
        lines.append(f"note: {(rows < 0).sum()} images without a prediction got the median of each class")
    if predicted.left_out:
        lines.append(f"not asked for: {', '.join(predicted.left_out)}")
    flat = [name for name, (low, high) in report.ranges.items() if low == high]
    if flat:
        lines.append(f"warning: one value for every image, which ranks nothing: {', '.join(flat)}")
    return lines


def _pair(text: str) -> tuple[str, str]:
    theirs, equals, ours = text.rpartition("=")
    if not equals:
        raise InputError(f"--rename: '{text}' is not of the form 'name in the predictions=class'")
    return theirs.strip(), ours.strip()
