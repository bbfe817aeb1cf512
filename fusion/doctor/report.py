"""The command `scripts/doctor.py`: can this machine run the project, and if not, what to do about it?

Every check is one small function and one line. The report may be passed on: it holds no path, no name of a user or
machine, no image or patient id and no value of an environment variable. Packages are imported inside the checks,
because a broken one must end in a line of the report.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

from fusion.doctor.finding import Finding, guarded
from fusion.doctor.self_test import check_self_test
from fusion.doctor.software import (
    check_gpu,
    check_launch,
    check_packages,
    check_pairs,
    check_python,
    check_torchvision,
    processes_here,
)

DEMO = Path(__file__).resolve().parents[2] / "extract" / "configs" / "demo.yaml"
Check = tuple[str, Callable[[], Finding]]


def main(argv: list[str] | None = None) -> None:
    """Make the checks, print the report; status 1 if anything failed."""
    options = parse_options(argv)
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library's warning quotes paths
        checks = all_checks(options)
        width = max(len(name) for name, _ in checks)
        lines, findings = [], []
        for finding in (guarded(name, look) for name, look in checks):
            findings.append(finding)
            lines += finding_lines(finding, width)
            print(*finding_lines(finding, width), sep="\n", flush=True)
    lines.append(verdict(findings, time.monotonic() - started))
    print(lines[-1])
    if options.out:
        write_report(options.out, lines)
    raise SystemExit(any(finding.status == "fail" for finding in findings))


def parse_options(argv: list[str] | None) -> argparse.Namespace:
    """The command line; needs nothing but Python itself."""
    parser = argparse.ArgumentParser(prog="doctor.py", description="Can this machine run the project?")
    parser.add_argument(
        "--config", action="append", default=[], help="recipe of stage one to judge by; may be repeated"
    )
    parser.add_argument("--run_dir", help="run folder to look at (default: the recipe's)")
    parser.add_argument("--num_workers", type=int, help="image-decoding workers per process (default: the recipe's)")
    parser.add_argument("--skip_self_test", action="store_true", help="leave out the tiny run through both stages")
    parser.add_argument("--out", type=Path, help="also write the report to this file")
    return parser.parse_args(argv)


def all_checks(options: argparse.Namespace) -> list[Check]:
    """Every check with its name, in the order of the report."""
    checks: list[Check] = [
        ("python", check_python),
        ("packages", check_packages),
        ("package pairs", check_pairs),
        ("torchvision", check_torchvision),
        ("GPU", check_gpu),
        ("accelerate launch", check_launch),
        *collected("image formats", codec_checks),
        *collected("machine", partial(machine_checks, options)),
    ]
    return checks if options.skip_self_test else [*checks, ("self-test", check_self_test)]


def collected(name: str, collect: Callable[[], list[Check]]) -> list[Check]:
    """Checks whose modules import packages; where one is broken, a single check that fails with its error."""
    try:
        return collect()
    except Exception as error:  # a broken installation raises anything
        return [(name, partial(fail_with, error))]


def fail_with(error: Exception) -> Finding:
    """Raise what was raised before."""
    raise error


def codec_checks() -> list[Check]:
    """One per image format."""
    from fusion.doctor.codecs import CODECS, check_codec

    return [(name, partial(check_codec, name)) for name in CODECS]


def machine_checks(options: argparse.Namespace) -> list[Check]:
    """Cores, memory, files and disk, against the recipe of stage one with the options laid over it.

    A recipe with a fault ends the program as it does in extract.py, since that is not this machine's fault.
    """
    from data.config import parse_config
    from extract.config import ExtractConfig
    from fusion.doctor import disk, machine

    words = [word for path in options.config or [str(DEMO)] for word in ("--config", path)]
    words += [] if options.num_workers is None else ["--num_workers", str(options.num_workers)]
    words += [] if options.run_dir is None else ["--run_dir", options.run_dir]
    config, _ = parse_config(ExtractConfig, DEMO, words)
    processes = processes_here()
    return [
        ("CPU cores", partial(machine.check_cores, config, processes)),
        ("memory", partial(machine.check_memory, config, processes)),
        ("shared memory", partial(machine.check_shared_memory, config, processes)),
        ("open files", partial(disk.check_open_files, config)),
        ("temporary folder", partial(disk.check_temporary_folder, config)),
        ("disk", partial(disk.check_disk, config)),
        ("run folder", partial(disk.check_run_folder, config.run_dir)),
    ]


def finding_lines(finding: Finding, width: int) -> list[str]:
    """The line of a finding, `width` characters for what was looked at, and one for the remedy if there is one."""
    lines = [f"{finding.status:<6}{finding.check:<{width}}  {finding.found}"]
    return [*lines, f"{'':<{6 + width}}  remedy: {finding.remedy}"] if finding.remedy else lines


def verdict(findings: list[Finding], seconds: float) -> str:
    """The last line."""
    failed, warned = (sum(finding.status == status for finding in findings) for status in ("fail", "warn"))
    what = "this machine cannot run the project as it is" if failed else "this machine can run the project"
    return f"{what}: {len(findings)} checks, {failed} failed, {warned} warned; {seconds:.0f} s"


def write_report(path: Path, lines: list[str]) -> None:
    """Write the report to a file."""
    from data.files import atomic_write

    try:
        atomic_write(path, "\n".join(lines) + "\n")
    except OSError as error:
        print(f"error: --out: the report cannot be written there ({error.strerror})", file=sys.stderr)
        raise SystemExit(1) from None
