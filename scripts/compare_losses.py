"""Losses and samplers on the demo's cached maps, given a long tail: macro, head, medium and tail mAP, 3 seeds.

    python scripts/compare_losses.py                                  # after the demo; finished cells are recognised
    python scripts/compare_losses.py --methods bce ldam --seeds 1     # a look at some of them, not kept
    python scripts/compare_losses.py --check                          # one cell again, compared with the kept table

Phantom, study by study. The demo's findings are all frequent, so most positive training labels of the medium and tail
classes are hidden (unknown) from fusion; validation and test keep theirs, and the maps come from the demo's backbone,
which saw all labels. A cell is a small fusion module on maps pooled 2 x 2, one thread each, two at a time.
"""

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _root  # noqa: F401
import numpy as np
from _experiment import check_cell, command, compare, keep, table_lines

from data.label_spaces import CXR_LT_2023_GROUPS
from data.manifest import Manifest, read_manifest, write_manifest
from data.order import derive_seed

SMALL = ["--model.width", 64, "--model.depth", 1, "--model.head.width", 64, "--epochs", 16, "--batch_size", 32]
QUICK = ["--retrain_single", "false", "--bootstrap_replicates", 2, "--num_workers", 1]
KEPT = {"head": 1.0, "medium": 0.25, "tail": 0.06}
"""Share of the positive studies that training is told of: about 2 to 5 % and 1 % positive studies."""

LOSSES = {
    "bce": ["--loss.kind", "bce"],
    "weighted_bce": ["--loss.kind", "weighted_bce"],
    "asl": ["--loss.kind", "asl"],
    "weighted_asl": ["--loss.kind", "weighted_asl"],
    "focal": ["--loss.kind", "focal"],
    "db": ["--loss.kind", "db"],
    "db_margin": ["--loss.kind", "db_margin"],
    "ldam": ["--loss.kind", "ldam", "--loss.reweight_after", 1],
    "ldam-drw": ["--loss.kind", "ldam"],
    "bce, adjusted": ["--loss.kind", "bce", "--loss.logit_adjustment", 1],
}
SAMPLERS = ("repeat_factor", "class_aware", "square_root", "co_occurrence", "repeat_factor_as_coded")
THRESHOLD = 0.1
METHODS = LOSSES | {
    f"{loss}, {sampler}": [*LOSSES[loss], "--sampler.kind", sampler, "--sampler.threshold", THRESHOLD]
    for loss in ("bce", "weighted_asl")
    for sampler in SAMPLERS
}
SEEDS = (0, 1, 2)


def main() -> None:
    """Convert, hide labels, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="the demo's run folder")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="bce comes with them")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), choices=range(1, len(SEEDS) + 1))
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    options = parser.parse_args()
    run_dir, seeds = options.run_dir.resolve(), SEEDS[: options.seeds]
    methods = [method for method in METHODS if method in {"bce", *options.methods}]
    prepare(run_dir)
    if options.check:
        return check(run_dir)
    with ThreadPoolExecutor(2) as pool:  # one core each
        list(pool.map(lambda cell: train(run_dir, *cell), [(method, seed) for seed in seeds for method in methods]))
    runs = {method: {seed: result(run_dir, method, seed) for seed in seeds} for method in methods}
    test = read_manifest(run_dir / "manifest.csv").of_split("test")
    table = compare(runs, "bce", test, groups=CXR_LT_2023_GROUPS)
    print("\n".join(table_lines(table, "bce")))
    if (methods, seeds) == (list(METHODS), SEEDS):
        keep("compare_losses", {"seeds": list(SEEDS), "positives": positives(run_dir), "table": table})


def cells(run_dir: Path) -> Path:
    """The folder of everything that is made here, beside the run's."""
    return run_dir.with_name(f"{run_dir.name}_losses")


def prepare(run_dir: Path) -> None:
    """The pooled cache and the manifest with a long tail."""
    if not (run_dir / "cache" / "cache.json").exists():
        raise SystemExit(f"error: {run_dir} holds no finished cache; run python scripts/demo.py first")
    if not (cells(run_dir) / "cache" / "cache.json").exists():
        target = cells(run_dir) / "cache"
        command("scripts/cache.py", "convert", run_dir / "cache", "--target", target, "--pool", 2)
    path = cells(run_dir) / "manifest.csv"
    if not path.exists():
        write_manifest(long_tail(read_manifest(run_dir / "manifest.csv")), path)


def long_tail(manifest: Manifest) -> Manifest:
    """The manifest with most positive training labels of medium and tail classes made unknown, study by study."""
    labels, studies = manifest.labels.copy(), manifest.images["study_id"].to_numpy(dtype=str)
    train = (manifest.images["split"] == "train").to_numpy(dtype=bool)
    for c, name in enumerate(manifest.classes):
        positive = np.unique(studies[train & (labels[:, c] > 0.5)])
        rng = np.random.default_rng(derive_seed("long tail", name))
        number = round(KEPT[CXR_LT_2023_GROUPS[name]] * len(positive))
        hidden = rng.permutation(positive)[number:]
        labels[train & np.isin(studies, hidden), c] = np.nan
    return Manifest(manifest.images, labels, manifest.classes, manifest.root.resolve())


def positives(run_dir: Path) -> dict[str, int]:
    """Positive training studies of each class that has any."""
    train = read_manifest(cells(run_dir) / "manifest.csv").of_split("train")
    first = ~train.images["study_id"].duplicated().to_numpy(dtype=bool)
    counts = (train.labels[first] > 0.5).sum(axis=0).tolist()
    return {name: number for name, number in zip(train.classes, counts, strict=True) if number}


def result(run_dir: Path, method: str, seed: int, again: str = "") -> Path:
    """The folder of a cell: a run of its own on the same data, for a run folder has one writer."""
    return cells(run_dir) / f"{method.replace(', ', '-')}_{seed}{again}" / "fusion"


def train(run_dir: Path, method: str, seed: int, again: str = "") -> None:
    """One cell, unless it is finished: its submission is what it writes last."""
    folder = result(run_dir, method, seed, again)
    if (folder / "submission.zip").exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    for path in (cells(run_dir) / "manifest.csv", cells(run_dir) / "manifest.json", run_dir / "stage_one"):
        if not (folder.parent / path.name).exists():
            (folder.parent / path.name).symlink_to(path)
    words = [*SMALL, *QUICK, *METHODS[method], "--run_dir", folder.parent, "--cache_dir", cells(run_dir) / "cache"]
    command("train_fusion.py", "--config", "fusion/configs/demo.yaml", *words, "--seed", seed, threads=1)


def check(run_dir: Path) -> None:
    """Train the last cell again and compare."""
    method, seed = list(METHODS)[-1], SEEDS[-1]
    again = result(run_dir, method, seed, "_check")
    shutil.rmtree(again.parent, ignore_errors=True)
    train(run_dir, method, seed, "_check")
    check_cell("compare_losses", method, seed, again, read_manifest(run_dir / "manifest.csv").of_split("test"))


if __name__ == "__main__":
    main()
