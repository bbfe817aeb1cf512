"""Count what was done to it: crashes, damage, hostile files, wrong files, kills. Status 1 if anything got through.

    python scripts/prove.py                                  a few minutes: what the tests do, counted
    python scripts/prove.py --part fuzz --hours 3 --seed 1   wrong files for three hours, led by the lines reached
    python scripts/prove.py --part crashes --long            every crash of every command, training included
    python scripts/prove.py --part disk --long               a full disk at every operation of every command
    python scripts/prove.py --part kills --long              200 random kills while a cache is written, 50 in training

The numbers in docs/reliability.md are this script's; --out appends them to a file as JSON lines.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _root
from prove_kills import stamp


def crashes(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every state that a crash before any operation on a file could leave, of each command."""
    from tests.faults.commands import CASES, quietly, results
    from tests.faults.crashes import crash_everywhere

    for name, make in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            case = make(Path(folder))
            most = None if options.long or not name.startswith("stage") else 12
            counts = crash_everywhere(case.folder, quietly(case.command), results, case.skip, case.in_place, most)
            yield {"command": name, **counts}


def disk(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A disk that is full from any operation on, of each command."""
    from tests.faults.commands import CASES, results
    from tests.faults.full_disk import fill_everywhere

    for name, make in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            case = make(Path(folder))
            most = None if options.long else 12
            counts = fill_everywhere(case.folder, case.command, results, case.skip, most)
            yield {"command": name, **counts}


def damage(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Bits flipped, pages zeroed, ends cut off, in every file of a cache and a checkpoint."""
    from tests.faults.damage import WHOLE, damage_everything

    flips = 20_000 if options.long else 2000
    for kind in WHOLE:
        with tempfile.TemporaryDirectory() as folder:
            yield {"folder": kind, **damage_everything(kind, Path(folder), flips, seed=options.seed)}


def hostile(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Files that would run code, lead elsewhere, or fill the memory."""
    from tests import bombs
    from tests.faults import hostile as files

    for kind in ("RUNS_CODE", "LEAVES_FOLDER"):
        got_through = []
        for name, (case, words) in getattr(files, kind).items():
            with tempfile.TemporaryDirectory() as folder:
                got_through += [name] * (words not in files.refusal(case, Path(folder)))
        yield {"files": kind.lower(), "number": len(getattr(files, kind)), "got_through": got_through}
    measured = {name: bombs.measure(make()) for name, (make, _) in bombs.BOMBS.items()}
    for name, case in files.FILLS_MEMORY.items():
        with tempfile.TemporaryDirectory() as folder:
            measured[name] = bombs.measure(b"", lambda _, case=case, folder=folder: case(Path(folder)))
    for name, (said, seconds, peak) in measured.items():
        bad = said.startswith(("read", "NOT OUR", "THE PROCESS")) or peak > 1500
        yield {"bomb": name, "cpu_s": round(seconds, 2), "peak_mb": round(peak), "got_through": [name] * bad}


def fuzz(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Wrong files of each kind; those that got through are kept in the current folder."""
    from tests.faults.fuzzing import fuzz
    from tests.faults.targets import TARGETS

    for name in TARGETS:
        if options.hours:
            yield guided(name, options.hours * 3600 / len(TARGETS), options.seed)
            continue
        found = fuzz(name, 2000, 600, options.seed)
        for number, content in enumerate(found.failures.values()):
            Path(f"failed_{name}_{options.seed}_{number}").write_bytes(content)
        numbers = {"inputs": found.inputs, "refused": found.refused, "slowest_s": found.slowest_s}
        yield {"target": name, **numbers, "memory_mb": found.memory_mb, "got_through": found.got_through}


def guided(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Wrong files of one kind in a process of their own, led by the lines that they reach."""
    words = ["--target", name, "--seconds", str(seconds), "--seed", str(seed)]
    command = [sys.executable, "-m", "tests.faults.guided", *words]
    run = subprocess.run(command, cwd=_root.ROOT, capture_output=True, text=True, errors="replace")
    reached = re.findall(r" cov: (\d+)", run.stderr)
    if run.returncode or not reached:
        return {"target": name, "got_through": [f"status {run.returncode}: {run.stderr[-1500:]}"]}
    return json.loads(run.stdout.splitlines()[-1]) | {"edges": [int(reached[0]), int(reached[-1])]}


KILLS = [("extract", 1, 13), ("fusion", 1, 13), *[("cache", 1, 40)] * 4]
KILLS += [("extract", 2, 12), ("fusion", 2, 12), ("cache", 2, 40)]
"""Stage, processes, how often; "cache" only writes shards, "extract" trains stage one first."""


def kills(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Random kills of whole process groups; see prove_kills.py."""
    for number, (stage, processes, often) in enumerate(KILLS):
        words = ["--stage", stage, "--processes", str(processes), "--kills", str(often if options.long else 3)]
        command = [sys.executable, Path(__file__).with_name("prove_kills.py"), *words]
        run = subprocess.run([*command, f"--seed={options.seed + number}"], capture_output=True, text=True)
        last = run.stdout.splitlines()[-1] if run.stdout else "{}"
        yield json.loads(last) if run.returncode == 0 else {"stage": stage, "got_through": [run.stderr[-500:]]}


PARTS = {part.__name__: part for part in (crashes, disk, damage, hostile, fuzz, kills)}


def main() -> None:
    """Run the parts, print a line for everything that was tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), action="append", help="may be repeated; default: all but kills")
    parser.add_argument("--long", action="store_true", help="every crash, 250 kills; hours")
    parser.add_argument("--hours", type=float, default=0.0, help="of wrong files by atheris, not 2,000 of each kind")
    parser.add_argument("--seed", type=int, default=0, help="of wrong files and random kills")
    parser.add_argument("--out", type=Path, help="append the results to this file, a JSON line each")
    options, got_through = parser.parse_args(), 0
    for name in options.part or [part for part in PARTS if part != "kills"]:
        began = time.monotonic()
        for row in PARTS[name](options):
            got_through += len(row.get("got_through", []))
            print(name, json.dumps(row), flush=True)
            if options.out:
                with open(options.out, "a") as file:
                    file.write(json.dumps({"part": name, "seed": options.seed} | row | stamp()) + "\n")
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    raise SystemExit(1 if got_through else 0)


if __name__ == "__main__":
    main()
