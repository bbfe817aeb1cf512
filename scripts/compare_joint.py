"""What training the backbone together with the fusion model brings on the phantom, and what it costs; 3 seeds.

    python scripts/compare_joint.py            # about 15 CPU-minutes; finished parts are recognised
    python scripts/compare_joint.py --check    # one cell again, compared with the kept table
    python scripts/compare_joint.py --quick    # a small phantom, few epochs, one seed: does it run?

The demo's backbone and cache. Arms:

- "frozen": stage two as always, from the cache.
- "fusion only": from there the joint phase with `joint.unfreeze 0`. The fusion model alone goes on, on as many freshly
  augmented images: what more training brings without the backbone.
- "joint": the same phase with all of the backbone.

Differences are paired by seed and patient, over the image rows of the test split. Costs are CPU seconds; the joint
phase's are on top of stage two's, and include predicting val and test from images.
"""

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _root  # noqa: F401
import numpy as np
from _experiment import check_cell, command, compare, keep, link_run, prepare_run, table_lines, timed

from data.manifest import read_manifest

EXTRACT, FUSION = "extract/configs/demo.yaml", "fusion/configs/demo.yaml"
FROZEN, FUSION_ONLY, JOINT = "frozen", "fusion only", "joint"
UNFREEZE = {FUSION_ONLY: 0, JOINT: "all"}
PARTS = ["manifest.csv", "manifest.json", "images.csv", "phantom", "stage_one", "cache"]
SCHEDULE = ["--joint.lr", 3e-4, "--joint.backbone_lr", 1.0, "--joint.augment", "true", "--joint.num_workers", 0]


def main() -> None:
    """Train each arm with each seed, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, help="the demo's run (default: runs/demo)")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    parser.add_argument("--quick", action="store_true", help="small and short, in runs/quick; keeps nothing")
    options = parser.parse_args()
    run_dir = (options.run_dir or Path("runs/quick" if options.quick else "runs/demo")).resolve()
    epochs, joint_epochs = (["--epochs", 2], 1) if options.quick else ([], 5)
    phase = ["--joint", "--joint.epochs", joint_epochs, *SCHEDULE]
    seeds = (0,) if options.quick else (0, 1, 2)
    prepare_run(run_dir, EXTRACT, *epochs, studies="120,40,60" if options.quick else "")
    with ThreadPoolExecutor(2) as pool:  # one core each
        costs = {FROZEN: list(pool.map(lambda seed: train_frozen(run_dir, seed, epochs), seeds))}
        if options.check:
            return check(run_dir, seeds[-1], [*epochs, *phase])
        cells = [(arm, seed) for seed in seeds for arm in UNFREEZE]
        spent = dict(zip(cells, pool.map(lambda c: train_joint(run_dir, *c, [*epochs, *phase]), cells), strict=True))
    costs |= {arm: [spent[arm, seed] for seed in seeds] for arm in UNFREEZE}
    runs = {arm: {seed: result(run_dir, arm, seed) for seed in seeds} for arm in costs}
    table = compare(runs, FROZEN, read_manifest(run_dir / "manifest.csv").of_split("test"))
    more = compare(
        {arm: runs[arm] for arm in UNFREEZE}, FUSION_ONLY, read_manifest(run_dir / "manifest.csv").of_split("test")
    )
    for arm, row in table.items():
        row["cpu_s"] = round(float(np.mean(costs[arm])), 1)
    print("\n".join([*table_lines(table, FROZEN), "", *table_lines(more, FUSION_ONLY)]))
    print("CPU seconds:", {arm: row["cpu_s"] for arm, row in table.items()})
    if not options.quick:
        record = {"seeds": list(seeds), "joint_epochs": joint_epochs, "table": table}
        keep("compare_joint", record | {"minus_fusion_only": more[JOINT]})


def cell(run_dir: Path, arm: str, seed: int, again: str = "") -> Path:
    """The run folder of one training."""
    return run_dir.with_name(f"{run_dir.name}_joint") / f"{arm.replace(' ', '_')}_{seed}{again}"


def result(run_dir: Path, arm: str, seed: int, again: str = "") -> Path:
    """The folder of a cell's predictions."""
    return cell(run_dir, arm, seed, again) / "fusion" / ("" if arm == FROZEN else "joint")


def stage_two(seed: int) -> list[object]:
    """The command that all arms share."""
    return ["train_fusion.py", "--config", FUSION, "--seed", seed, "--retrain_single", "false", "--num_workers", 1]


def train_frozen(run_dir: Path, seed: int, options: list) -> float:
    """Stage two; CPU seconds."""
    return timed(cell(run_dir, FROZEN, seed), PARTS, run_dir, *stage_two(seed), *options)


def train_joint(run_dir: Path, arm: str, seed: int, options: list, again: str = "") -> float:
    """The joint phase, from a copy of the seed's finished stage two; CPU seconds."""
    folder = cell(run_dir, arm, seed, again)
    record = folder / "cpu_seconds.json"
    if not record.exists():
        shutil.rmtree(folder, ignore_errors=True)
        link_run(run_dir, folder, PARTS)
        shutil.copytree(result(run_dir, FROZEN, seed), folder / "fusion")
        words = [*stage_two(seed), *options, "--joint.unfreeze", UNFREEZE[arm], "--run_dir", folder]
        record.write_text(json.dumps(round(command(*words, threads=1), 1)))
    return json.loads(record.read_text())


def check(run_dir: Path, seed: int, options: list) -> None:
    """Train the last joint cell again and compare."""
    shutil.rmtree(cell(run_dir, JOINT, seed, "_check"), ignore_errors=True)
    train_joint(run_dir, JOINT, seed, options, "_check")
    test = read_manifest(run_dir / "manifest.csv").of_split("test")
    check_cell("compare_joint", JOINT, seed, result(run_dir, JOINT, seed, "_check"), test)


if __name__ == "__main__":
    main()
