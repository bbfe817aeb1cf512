"""What all comparisons share: cells that are run once and kept, a table over seeds, and a record of how it was made."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _bench
import _root
import numpy as np

from data.bootstrap import patient_bootstrap
from data.intervals import BootstrapResult
from data.manifest import Manifest
from data.predictions import read_predictions
from data.seeds import mean_over_seeds, seed_differences

Runs = dict[str, dict[int, Path]]
"""Method, seed, and the folder of stage two that holds its predictions."""

GROUPS = ("head", "medium", "tail")


def command(*words: object, threads: int = 0) -> float:
    """Run one of the project's commands as a user does; what is finished is recognised by the command itself.

    Args:
        threads: Of torch; 0 leaves that to torch.

    Returns:
        Its CPU seconds, those of its loader processes included.
    """
    line = [str(word) for word in words]
    print("$ python", *line, flush=True)
    limit = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    began = time.monotonic()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, *line], cwd=_root.ROOT, env=os.environ | limit, stdout=log, stderr=subprocess.STDOUT
        )
        _, status, usage = os.wait4(process.pid, 0)  # this process alone, though others run beside it
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            log.seek(0)
            end = log.read()[-4000:].decode(errors="replace")
            raise SystemExit(f"{end}\nthe command above failed: python {' '.join(line)}")
    print(f"  {time.monotonic() - began:.0f} s: {' '.join(line[:1] + line[-4:])}", flush=True)
    return usage.ru_utime + usage.ru_stime


def timed(folder: Path, parts: list[str], run_dir: Path, *words: object) -> float:
    """CPU seconds of a command that works in a run folder of its own on the same data; run once, then remembered.

    What an interrupted start left is deleted, so that the time is that of an undisturbed run.

    Args:
        folder: The run folder, made here.
        parts: What it borrows from `run_dir`, as links.
    """
    record = folder / "cpu_seconds.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        link_run(run_dir, folder, parts)
        record.write_text(json.dumps(round(command(*words, "--run_dir", folder, threads=1), 1)))
    return json.loads(record.read_text())


def link_run(run_dir: Path, folder: Path, parts: list[str]) -> None:
    """A run folder on the same data, for a run folder has one writer."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if not (folder / part).exists():
            (folder / part).symlink_to((run_dir / part).resolve())


def prepare_run(run_dir: Path, config: str, *options: object, studies: str = "") -> None:
    """Phantom, stage one and cache, where they are not there yet.

    Args:
        studies: Size of the phantom, train,val,test; empty: the usual one.
    """
    if not (run_dir / "manifest.csv").exists():
        size = ["--studies", studies] if studies else []
        command("scripts/prepare.py", "phantom", *size, "--out", run_dir / "manifest.csv")
    if not (run_dir / "cache" / "cache.json").exists():
        command("extract.py", "--config", config, "--run_dir", run_dir, *options)


def compare(
    runs: Runs, against: str, test: Manifest, replicates: int = 1000, groups: dict[str, str] | None = None
) -> dict[str, Any]:
    """Macro mAP of each method over image rows, and its difference from one of them: mean over seeds, 95 % interval.

    Args:
        against: The method that all others are compared with.
        test: Labels and patients of the test images.
        groups: Head, medium or tail of every class, for the same numbers over the classes of each.
    """
    scores, labels, patients = {}, None, None
    for method, seeds in runs.items():
        for seed, folder in seeds.items():
            ids, values, classes = read_predictions(folder / "predictions_test.csv")
            rows = test.images.reset_index().set_index("image_id").loc[ids["image_id"], "index"].to_numpy()
            assert classes == test.classes, "the same classes everywhere"
            found = test.labels[rows], ids["patient_id"].tolist()
            assert patients is None or found[1] == patients, "the same rows everywhere"
            (labels, patients), scores[f"{method}/{seed}"] = found, values
    names = {method: [f"{method}/{seed}" for seed in seeds] for method, seeds in runs.items()}
    result = patient_bootstrap(scores, labels, patients, replicates=replicates)
    means = mean_over_seeds(result, names)
    columns = {name: [c for c, label in enumerate(test.classes) if groups and groups[label] == name] for name in GROUPS}
    return {
        method: {
            **_numbers(means, method, against),
            "by_seed": np.round(seed_differences(result, names[method], names[against]), 4).tolist(),
            "mAP_by_seed": [round(result.estimate(name), 4) for name in names[method]],
            **{name: _numbers(means, method, against, own) for name, own in columns.items() if own},
        }
        for method in runs
    }


def _numbers(means: BootstrapResult, method: str, against: str, columns: list[int] | None = None) -> dict[str, Any]:
    difference = None if method == against else _rounded(means.difference(method, against, columns))
    return {"mAP": _rounded(means.interval(method, columns)), "minus_" + against: difference}


def _rounded(interval: Any) -> list[float]:
    return [round(value, 4) for value in (interval.estimate, interval.low, interval.high)]


def table_lines(table: dict[str, Any], against: str) -> list[str]:
    """The table as people read it."""
    wide = 2 + max(map(len, (*table, "method")))
    lines = [f"{'method':<{wide}}{'mAP':>24}   {'minus ' + against:<28}by seed"]
    for method, row in table.items():
        difference = row["minus_" + against]
        shown = "" if difference is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*difference)
        mean = "{:.4f} [{:.4f}, {:.4f}]".format(*row["mAP"])
        lines.append(f"{method:<{wide}}{mean:>24}   {shown:<28}{' '.join(f'{value:+.4f}' for value in row['by_seed'])}")
    if not all(name in row for row in table.values() for name in GROUPS):
        return lines
    lines += ["", f"{'method':<{wide}}" + "".join(f"{name + ' mAP':>12}   {'minus ' + against:<28}" for name in GROUPS)]
    for method, row in table.items():
        cells = [(row[name]["mAP"][0], row[name]["minus_" + against]) for name in GROUPS]
        texts = [(f"{mean:.4f}", "" if d is None else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*d)) for mean, d in cells]
        lines.append(f"{method:<{wide}}" + "".join(f"{mean:>12}   {shown:<28}" for mean, shown in texts))
    return lines


def keep(name: str, record: dict[str, Any]) -> None:
    """Write a result to scripts/results/, with command, commit, machine and versions."""
    path = _root.ROOT / "scripts" / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    stamped = {"command": " ".join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])}
    path.write_text(json.dumps(stamped | record | _bench.stamp(), indent=1) + "\n")
    print(f"kept as {path.relative_to(_root.ROOT)}")


def check_cell(name: str, method: str, seed: int, folder: Path, test: Manifest) -> None:
    """Compare the mAP of a cell that was trained again with the kept table; leaves with status 1 where it differs.

    Args:
        name: Of the kept result.
        folder: Stage two's folder of the new cell.
    """
    found = compare({method: {seed: folder}}, method, test, replicates=2)[method]["mAP_by_seed"][0]
    kept = json.loads((_root.ROOT / "scripts" / "results" / f"{name}.json").read_text())
    wanted = kept["table"][method]["mAP_by_seed"][kept["seeds"].index(seed)]
    differs = abs(found - wanted) >= 5e-4
    print(f"{method}, seed {seed}: mAP {found}, kept {wanted}: {'DIFFERS' if differs else 'agrees'}")
    raise SystemExit(differs)
