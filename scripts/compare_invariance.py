"""Does a group's prediction depend on what is computed beside it? Ours and the published wiring, same trained weights.

    python scripts/compare_invariance.py      # after compare_fusion.py, under a minute

The finished cells of compare_fusion.py predict the test split again: with other batch sizes, with the groups listed in
other orders, and on two processes (accelerate launch). Shown is the largest change of a logit, relative to the largest
logit (at least 1), and the change of the mAP over groups. Ours must stay within 1e-5.
"""

import argparse
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import numpy as np
from _experiment import command, keep
from compare_fusion import OURS, PUBLISHED, STRIDE_2, cell

from data.predictions import read_predictions
from fusion.grouping import GroupSet
from fusion.inference import predict_groups
from fusion.missing_views import FinishedRun, load_run, reduced
from fusion.scoring import group_map

BATCH_SIZES = (1, 7, 450)
ORDERS = 3
TOLERANCE = 1e-5


def main() -> None:
    """Predict again and again, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="the demo's run folder")
    run_dir = parser.parse_args().run_dir.resolve()
    table: dict[str, dict[str, Any]] = {}
    for arm in (OURS, STRIDE_2, PUBLISHED):
        run = load_run(cell(run_dir, arm, 0))
        plain = logits(run, run.test, 32)
        table[arm] = {name: change(run, plain, other) for name, other in others(run, run_dir, arm)}
        for name, (moved, gained) in table[arm].items():
            print(f"{arm:<20}{name:<28}largest change of a logit {moved:8.1e}, of the mAP {gained:+.4f}", flush=True)
    worst = max(moved for arm in (OURS, STRIDE_2) for moved, _ in table[arm].values())
    assert worst <= TOLERANCE, f"ours changes by {worst:.1e}"
    keep("compare_invariance", {"seed": 0, "groups": len(run.test), "table": table})


def logits(run: FinishedRun, groups: GroupSet, batch_size: int) -> np.ndarray:
    """Of some groups, at most 4 * batch_size views in a forward pass, padding included."""
    return predict_groups(replace(run.config, batch_size=batch_size), groups, run.cache, run.model, run.accelerator)


def others(run: FinishedRun, run_dir: Path, arm: str) -> Iterator[tuple[str, np.ndarray]]:
    """The same predictions, made in other circumstances."""
    for size in BATCH_SIZES:
        yield f"batches of {size}", logits(run, run.test, size)
    everything = [np.ones(len(rows), dtype=bool) for rows in run.test.rows]
    for seed in range(ORDERS):
        order = np.random.default_rng(seed).permutation(len(run.test))
        again = np.empty_like(run.test.labels)
        again[order] = logits(run, reduced(run.test, order, everything), 32)
        yield f"listed in another order, {seed + 1}", again
    yield "two processes", on_two_processes(run, cell(run_dir, arm, 0))


def on_two_processes(run: FinishedRun, folder: Path) -> np.ndarray:
    """A finished run's predictions, written again by two processes."""
    again = folder.with_name(f"{folder.name}_2_processes")
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(folder, again, symlinks=True)
    (again / "fusion" / "logits_test.csv").unlink()
    os.environ["ACCELERATE_USE_CPU"] = "1"  # with --cpu, accelerate 1.15 would start one process
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2, "--main_process_port", 0]
    command(*launch, "train_fusion.py", "--config", folder / "fusion" / "config.yaml", "--run_dir", again, threads=1)
    assert "stage two on 2 processes" in (again / "log.txt").read_text()
    _, values, _ = read_predictions(again / "fusion" / "logits_test.csv")
    return values[[rows[0] for rows in run.test.rows]]


def change(run: FinishedRun, plain: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Largest change of a logit, relative to the largest one, and the change of the mAP."""
    largest = max(1.0, float(np.abs(plain).max()))
    return float(np.abs(other - plain).max()) / largest, group_map(other, run.test) - group_map(plain, run.test)


if __name__ == "__main__":
    main()
