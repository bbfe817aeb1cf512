"""The command `scripts/report.py`: one page about a finished run, or about several."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from data.errors import InputError
from data.files import atomic_write
from data.runs import run_command
from fusion.report.page import render
from fusion.report.source import open_runs

PAGE = "report.html"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="report.py", description="One page about a run that needs nothing but itself.")
    add = parser.add_argument
    add(
        "runs",
        type=Path,
        nargs="+",
        help="run folders, runs/x, or their result folders, runs/x/fusion; the first in detail",
    )
    add("--out", type=Path | None, default=None, help=f"the page (default: {PAGE} in the first one's result folder)")
    add(
        "--cases",
        type=int,
        default=3,
        help="best and worst cases shown, so many of each; 0: no picture and no patient's id",
    )
    options = parser.parse_args(argv)
    run_command(lambda: write_report(options))


def write_report(options: Namespace) -> None:
    """Write the page and say where it is.

    Raises:
        InputError: A folder is no finished run, or an option is out of range.
    """
    if options.cases < 0:
        raise InputError(f"--cases must be 0 or more, got {options.cases}")
    runs = open_runs(options.runs)
    path = options.out or runs[0].folder / PAGE
    if path.is_dir():
        raise InputError(f"--out {path}: is a folder; name the page, such as {path / PAGE}")
    page = render(runs, options.cases)
    atomic_write(path, page)
    kept = (
        "it holds X-rays and ids, keep it where the data may lie" if options.cases else "no picture or id of a patient"
    )
    print(f"{path}: {len(page.encode()) / 1e6:.1f} MB, one file; {kept}")
    print(f"next: open {path} in a browser")
