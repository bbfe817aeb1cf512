"""The command `scripts/evaluate.py`: evaluate one prediction table, or compare two."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data.errors import InputError
from data.manifest import SPLITS, read_manifest
from data.runs import run_command
from data.tables import read_table
from fusion.evaluate.compare import compare
from fusion.evaluate.page import PAGE, write_comparison
from fusion.evaluate.report import evaluate, write_report
from fusion.evaluate.rows import Template
from fusion.evaluate.source import Source, find_source
from fusion.evaluate.strata import read_about
from fusion.result_folder import GroupBy


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    options = _parser().parse_args(argv)
    run_command(lambda: _run(options))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="evaluate.py",
        description="Score predictions against the manifest's labels, with intervals; or compare two sets of them.",
    )
    add = parser.add_argument
    add("--predictions", type=Path | None, default=None, help="stage two's folder, runs/x/fusion, or a prediction CSV")
    add("--compare", type=Path, nargs=2, default=None, metavar=("A", "B"), help="two such folders or files: A minus B")
    add("--split", choices=SPLITS, default="test", help="which prediction table of a folder")
    add("--manifest", type=Path | None, default=None, help="manifest.csv (default: of the folder's run)")
    add("--validation", type=Path | None, default=None, help="validation predictions to choose thresholds on (default:"
        " thresholds.json and calibration.json of the model, or else predictions_val.csv beside)")  # fmt: skip
    add("--group_by", type=GroupBy | None, default=None, help="groups: study or patient (default: what was fused)")
    add("--about", type=Path | None, default=None, help="CSV with an id column and sex or age: scores by subgroup")
    add("--template", type=Path | None, default=None, help="a challenge's sample file: its images and classes only")
    add("--specificity", type=float, default=0.9, help="that sensitivity is given at, above 0 and at most 1")
    add("--replicates", type=int, default=1000, help="patient bootstrap replicates behind intervals")
    add("--out", type=Path | None, default=None, help="folder for the results (default: beside the predictions)")
    return parser


def _run(options: Namespace) -> None:
    if (options.predictions is None) == (options.compare is None):
        raise InputError("wanted either --predictions FOLDER_OR_CSV or --compare A B")
    if not 0 < options.specificity <= 1:
        raise InputError(f"--specificity must be above 0 and at most 1, got {options.specificity:g}")
    if options.predictions is not None:
        _evaluate(options)
    else:
        _compare(options)


def _evaluate(options: Namespace) -> None:
    source = find_source(options.predictions, options.split, options.manifest, options.validation, options.group_by)
    about = read_about(options.about) if options.about else None
    only = _template(options.template) if options.template else None
    manifest = read_manifest(source.manifest)
    report = evaluate(source, manifest, about, only, options.specificity, options.replicates)
    folder = options.out or default_folder(source)
    for line in [*write_report(report, folder), "", f"written to {folder}; next: --compare two of them"]:
        print(line)


def _compare(options: Namespace) -> None:
    if options.validation is not None:
        raise InputError("--validation: each side of --compare has thresholds of its own; with --predictions only")
    first, second = (
        find_source(path, options.split, options.manifest, None, options.group_by) for path in options.compare
    )
    about = read_about(options.about) if options.about else None
    only = _template(options.template) if options.template else None
    comparison = compare((first, second), about, only, options.specificity, options.replicates)
    folder = options.out or first.predictions.with_name("comparison")
    for line in [*write_comparison(comparison, folder), f"next: look at {folder / PAGE}"]:
        print(line)


def default_folder(source: Source) -> Path:
    """`evaluation_test` beside `predictions_test.csv`."""
    return source.predictions.with_name(f"evaluation_{source.predictions.stem.removeprefix('predictions_')}")


def _template(path: Path) -> Template:
    """A challenge's sample file: an id column, then its classes."""
    table = read_table(path)
    return Template(path, frozenset(table[table.columns[0]]), tuple(table.columns[1:]))
