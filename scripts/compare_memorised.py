"""A backbone's features of its own training images look better than they are: how much, and do out-of-fold caches help?

    python scripts/compare_memorised.py            # about 40 CPU-minutes; finished parts are recognised
    python scripts/compare_memorised.py --check    # one cell again, compared with the kept table
    python scripts/compare_memorised.py --quick    # a small phantom, few epochs, one seed: does it run?

First, the mAP of stage one's head on its training, validation and test images. Second, stage two on training maps of
different origin; validation and test maps come from the full backbone throughout:

- "ordinary": of the full backbone, which was trained on these images.
- "out of fold": of one of 3 backbones, the one that has not seen the patient (`folds.py split`, `cache.py merge`).
- "out of fold, aligned": the same maps, each fold's times a matrix that carries it into the full backbone's space.

A caveat for the second arm. Backbones trained apart may see the same and still say it in different channels, even from
equal initial weights: the merged cache mixes 3 feature spaces, none of them that of the test maps. That should be mild
where all start from one pretrained model and move little; here they start from random weights, and "R2 as they are"
shows how far apart they end. Starting the folds from the full backbone would keep the space but leak: it has seen the
images they hold out. The third arm is the cheap remedy: a matrix fitted by least squares on validation images that
neither backbone was trained on, without labels.
A second caveat: a fold's backbone learns from fewer images (2/3 of train and val), so its maps are a little worse; the
difference "train out of fold minus test by folds" has no memorisation left and compares equally trained backbones.
"""

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _root  # noqa: F401
from _experiment import check_cell, command, compare, keep, link_run, prepare_run, table_lines
from _memorised import align, memorisation_gap

from data.manifest import read_manifest

EXTRACT, FUSION = "extract/configs/demo.yaml", "fusion/configs/demo.yaml"
ORDINARY, APART, ALIGNED = "ordinary", "out of fold", "out of fold, aligned"
CACHES = {ORDINARY: "cache", APART: "cache_out_of_fold", ALIGNED: "cache_aligned"}
FOLDS = 3


def main() -> None:
    """Train the folds, merge and align their caches, train stage two on each, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, help="the demo's run (default: runs/demo)")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    parser.add_argument("--quick", action="store_true", help="small and short, in runs/quick; keeps nothing")
    options = parser.parse_args()
    demo = (options.run_dir or Path("runs/quick" if options.quick else "runs/demo")).resolve()
    epochs = ["--epochs", "2"] if options.quick else []
    seeds = (0,) if options.quick else (0, 1, 2)
    prepare_run(demo, EXTRACT, *epochs, studies="120,40,60" if options.quick else "")
    run_dir = demo.with_name(f"{demo.name}_memorised")
    link_run(demo, run_dir, ["manifest.csv", "manifest.json", "images.csv", "phantom", "stage_one", "cache"])
    fit, test = out_of_fold_caches(run_dir, epochs), read_manifest(run_dir / "manifest.csv").of_split("test")
    if options.check:
        shutil.rmtree(cell(run_dir, ALIGNED, seeds[-1], "_check"), ignore_errors=True)
        train(run_dir, ALIGNED, seeds[-1], epochs, "_check")
        again = cell(run_dir, ALIGNED, seeds[-1], "_check") / "fusion"
        check_cell("compare_memorised", ALIGNED, seeds[-1], again, test)
    with ThreadPoolExecutor(2) as pool:  # one core each
        list(pool.map(lambda c: train(run_dir, *c, epochs), [(arm, seed) for seed in seeds for arm in CACHES]))
    gap = memorisation_gap(run_dir)
    runs = {arm: {seed: cell(run_dir, arm, seed) / "fusion" for seed in seeds} for arm in CACHES}
    table = compare(runs, ORDINARY, test)
    print("\n".join(f"stage one, {name:<40}{v[0]:.4f} [{v[1]:.4f}, {v[2]:.4f}]" for name, v in gap.items()))
    print("\n".join(f"test maps of each fold against the full backbone's, R2 {how}: {r2}" for how, r2 in fit.items()))
    print("\n".join(table_lines(table, ORDINARY)))
    if not options.quick:
        record = {"folds": FOLDS, "stage_one": gap, "test_maps_r2_by_fold": fit}
        keep("compare_memorised", {"seeds": list(seeds), "table": table} | record)


def out_of_fold_caches(run_dir: Path, epochs: list[str]) -> dict[str, list[float]]:
    """Train the folds' backbones and write the two out-of-fold caches; R2 of the alignment by fold."""
    command("scripts/folds.py", "split", "--manifest", run_dir / "manifest.csv", "--folds", FOLDS)
    folds = [run_dir / f"fold_{number}" for number in range(FOLDS)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda fold: extract(fold, epochs), folds))
    merged, aligned = run_dir / CACHES[APART], run_dir / CACHES[ALIGNED]
    if not (merged / "cache.json").exists():  # this run's first: val and test are taken from it
        caches = [run_dir / "cache", *(fold / "cache" for fold in folds)]
        command("scripts/cache.py", "merge", *caches, "--target", merged)
    return align(run_dir, merged, aligned)


def extract(fold: Path, options: list[str]) -> None:
    """Stage one of a fold, with the seed and so the initial weights of the full one."""
    if not (fold / "cache" / "cache.json").exists():
        command("extract.py", "--config", EXTRACT, "--run_dir", fold, "--num_workers", 1, *options, threads=1)


def cell(run_dir: Path, arm: str, seed: int, again: str = "") -> Path:
    """The run folder of one training of stage two."""
    return run_dir / "cells" / f"{CACHES[arm]}_{seed}{again}"


def train(run_dir: Path, arm: str, seed: int, options: list[str], again: str = "") -> None:
    """One cell."""
    folder = cell(run_dir, arm, seed, again)
    link_run(run_dir, folder, ["manifest.csv", "manifest.json", "stage_one"])
    words = ["--cache_dir", run_dir / CACHES[arm], "--seed", seed, "--retrain_single", "false", "--num_workers", 1]
    command("train_fusion.py", "--config", FUSION, "--run_dir", folder, *words, *options, threads=1)


if __name__ == "__main__":
    main()
