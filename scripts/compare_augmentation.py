"""What a cache gives up by freezing augmentation: fresh augmentation in each epoch, one cached map, 4 cached variants.

    python scripts/compare_augmentation.py            # about 20 CPU-minutes; finished parts are recognised
    python scripts/compare_augmentation.py --check    # one cell again, compared with the kept table
    python scripts/compare_augmentation.py --quick    # a small phantom, few epochs, one seed: does it run?

One frozen backbone, the demo's; the same fusion, steps and seeds; validation and test on plain maps. Arms:

- "one map": each image's plain map, cached once. No augmentation.
- "4 variants": the plain map and 4 augmented ones, cached once; each visit in training draws one of the five.
- "live": every epoch sees every training image in an augmentation of its own, as if the backbone were run at each
  visit. To compute it, epoch e reads variant e of a cache that holds as many as there are epochs; the seeds share them.

Costs are CPU seconds. A cache is extracted once and serves any number of trainings; live pays for the training images'
variants in each training ("recompute"), which is estimated kindly: each file is decoded once, not once per epoch.
"""

import argparse
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _root
import numpy as np
import yaml
from _experiment import check_cell, compare, keep, prepare_run, table_lines, timed

from data.cache import read_cache_record
from data.manifest import read_manifest

EXTRACT, FUSION = "extract/configs/demo.yaml", "fusion/configs/demo.yaml"
PLAIN, FEW, LIVE = "one map", "4 variants", "live"
IMAGES = ["manifest.csv", "manifest.json", "images.csv", "phantom", "stage_one"]
MAPS = ["manifest.csv", "manifest.json", "stage_one"]


def main() -> None:
    """Extract a cache per arm, train each arm with each seed, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, help="the demo's run (default: runs/demo)")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    parser.add_argument("--quick", action="store_true", help="small and short, in runs/quick; keeps nothing")
    options = parser.parse_args()
    run_dir = (options.run_dir or Path("runs/quick" if options.quick else "runs/demo")).resolve()
    epochs = ["--epochs", "2"] if options.quick else []
    num_epochs = 2 if options.quick else yaml.safe_load((_root.ROOT / FUSION).read_text())["epochs"]
    seeds = (0,) if options.quick else (0, 1, 2)
    prepare_run(run_dir, EXTRACT, *epochs, studies="120,40,60" if options.quick else "")
    augmented = {PLAIN: 0, FEW: 4, LIVE: num_epochs}
    extraction = {arm: extract(run_dir, arm, number, epochs) for arm, number in augmented.items()}
    if options.check:
        shutil.rmtree(cell(run_dir, LIVE, seeds[-1], "_check"), ignore_errors=True)
        train(run_dir, LIVE, seeds[-1], epochs, "_check")
        test = read_manifest(run_dir / "manifest.csv").of_split("test")
        again = cell(run_dir, LIVE, seeds[-1], "_check") / "fusion"
        check_cell("compare_augmentation", LIVE, seeds[-1], again, test)
    cells = [(arm, seed) for seed in seeds for arm in augmented]
    with ThreadPoolExecutor(2) as pool:  # one core each
        training = dict(zip(cells, pool.map(lambda c: train(run_dir, *c, epochs), cells), strict=True))
    table = scores(run_dir, seeds, extraction, training)
    print("\n".join(table_lines(table, PLAIN)))
    for arm, row in table.items():
        print(arm, row["cost"])
    if not options.quick:
        keep("compare_augmentation", {"seeds": list(seeds), "table": table})


def scores(
    run_dir: Path, seeds: tuple[int, ...], extraction: dict[str, float], training: dict[tuple[str, int], float]
) -> dict[str, Any]:
    """mAP by arm, and what it costs.

    Args:
        extraction: CPU seconds by arm.
        training: CPU seconds by arm and seed.
    """
    manifest = read_manifest(run_dir / "manifest.csv")
    runs = {arm: {seed: cell(run_dir, arm, seed) / "fusion" for seed in seeds} for arm in extraction}
    table = compare(runs, PLAIN, manifest.of_split("test"))
    share = len(manifest.of_split("train")) / len(manifest)
    for arm, row in table.items():
        once = extraction[PLAIN if arm == LIVE else arm]
        recompute = share * (extraction[LIVE] - extraction[PLAIN]) if arm == LIVE else 0.0
        each = recompute + float(np.mean([training[arm, seed] for seed in seeds]))
        cost = {"extraction_cpu_s": once, "recompute_cpu_s": recompute, "each_training_cpu_s": each}
        row["cost"] = {name: round(value, 1) for name, value in cost.items()}
        if arm != LIVE:
            shards = read_cache_record(target(run_dir, arm) / "cache")[0]["shards"]
            row["cost"]["cache_mb"] = round(sum(shard["bytes"] for shard in shards) / 1e6, 1)
    return table


def target(run_dir: Path, arm: str) -> Path:
    """The run folder of an arm's cache."""
    return run_dir.with_name(f"{run_dir.name}_augmentation") / arm.replace(" ", "_")


def cell(run_dir: Path, arm: str, seed: int, again: str = "") -> Path:
    """The run folder of one training."""
    folder = target(run_dir, arm)
    return folder.with_name(f"{folder.name}_{seed}{again}")


def extract(run_dir: Path, arm: str, augmented: int, options: list[str]) -> float:
    """The arm's cache, from the finished stage one; CPU seconds."""
    words = ["extract.py", "--config", EXTRACT, "--cache.augmented", augmented, "--num_workers", 1, *options]
    return timed(target(run_dir, arm), IMAGES, run_dir, *words)


def train(run_dir: Path, arm: str, seed: int, options: list[str], again: str = "") -> float:
    """One cell; CPU seconds."""
    start = ["scripts/compare_augmentation.py", "live"] if arm == LIVE else ["train_fusion.py"]
    words = [*start, "--config", FUSION, "--cache_dir", target(run_dir, arm) / "cache", "--seed", seed]
    words += ["--retrain_single", "false", "--num_workers", 1, *options]
    return timed(cell(run_dir, arm, seed, again), MAPS, run_dir, *words)


def train_live(argv: list[str]) -> None:
    """Stage two with variant e of each image in epoch e; all else as always."""
    import fusion.train as stage

    drawn = stage.training_views

    def fresh_views(*arguments: Any) -> Any:
        *others, epoch, num_variants = arguments
        assert epoch + 1 < num_variants, "the cache holds the plain map and one variant per epoch"
        views = drawn(*others, epoch, 1)  # the same views in the same slots as in the other arms
        return views._replace(variants=np.full_like(views.variants, epoch + 1))

    stage.training_views = fresh_views
    stage.main(argv)


if __name__ == "__main__":
    train_live(sys.argv[2:]) if sys.argv[1:2] == ["live"] else main()
