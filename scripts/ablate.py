"""What parts of fusion are worth: views in training, segments, shuffling, types, dropout, depth, experts, head, loss.

    python scripts/ablate.py                              # after the demo, about half an hour on two cores; it resumes
    python scripts/ablate.py --only "no types" "depth 0"  # a look at some of them, not kept
    python scripts/ablate.py --check                      # one cell again, compared with the kept table

Phantom, on the demo's cached maps pooled 2 x 2 (16 tokens per view). A cell is the demo's fusion module with one thing
changed, trained by train_fusion.py in a run folder of its own, 3 seeds, one thread each, two at a time. Cells by study
are compared with the demo's module as it is; of the phantom's studies none has more than four views, so the number of
views in training is varied by patient (up to 12 views), against all views by patient. Test always takes all views. More
losses: scripts/compare_losses.py.
"""

import argparse
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import numpy as np
from _experiment import check_cell, command, compare, keep, link_run, table_lines
from matplotlib.figure import Figure

from data.groups import group_images
from data.manifest import Manifest, read_manifest
from data.plots import BLUE, GREY

SEEDS = (0, 1, 2)
BY_STUDY, BY_PATIENT = "as it is", "patients, all views"
PATIENT = ["--grouping.by", "patient", "--batch_size", 16, "--epochs", 6]
"""As fusion/configs/demo_patient.yaml."""
CELLS: dict[str, list[object]] = {
    BY_STUDY: [],
    "no segments": ["--model.num_slots", 1],
    "no shuffling": ["--grouping.shuffle", "false"],
    "no types": ["--grouping.hide_types", "true"],
    "no segments, no types": ["--model.num_slots", 1, "--grouping.hide_types", "true"],
    "view dropout 0": ["--grouping.view_dropout", 0.0],
    **{f"depth {n}": ["--model.depth", n] for n in (0, 1, 4)},
    "4 experts": ["--model.experts", 4],
    "head csra": ["--model.head.kind", "csra"],
    "head csra_multihead": ["--model.head.kind", "csra_multihead"],
    "head linear": ["--model.head.kind", "linear"],
    "loss weighted_asl": ["--loss.kind", "weighted_asl"],
    BY_PATIENT: PATIENT,
    **{f"patients, {n} view{'s' * (n > 1)}": [*PATIENT, "--grouping.max_views", n] for n in (1, 2, 4, 6, 8)},
}
QUICK = ["--retrain_single", "false", "--pooled_mlp", "false", "--bootstrap_replicates", 2, "--num_workers", 1]


def main() -> None:
    """Pool the cache, train all cells, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, default=Path("runs/demo"), help="the demo's run folder")
    parser.add_argument("--only", nargs="+", choices=CELLS, metavar="NAME", default=list(CELLS), help="of the cells")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    options = parser.parse_args()
    run_dir = options.run_dir.resolve()
    prepare(run_dir)
    if options.check:
        return check(run_dir)
    wanted = {*options.only, *map(reference, options.only)}
    names = [name for name in CELLS if name in wanted]
    with ThreadPoolExecutor(2) as pool:  # one core each
        list(pool.map(lambda cell: train(run_dir, *cell), [(name, seed) for seed in SEEDS for name in names]))
    table = {}
    for against in (BY_STUDY, BY_PATIENT):
        if own := [name for name in names if reference(name) == against]:
            runs = {name: {seed: result(run_dir, name, seed) for seed in SEEDS} for name in own}
            part = compare(runs, against, labelled_test(run_dir, against))
            print("\n".join([*table_lines(part, against), ""]))
            table |= part
    plot(table, cells(run_dir) / "ablate.png")
    print(f"plot: {cells(run_dir) / 'ablate.png'}")
    if names == list(CELLS):
        keep("ablate", {"seeds": list(SEEDS), "table": table})


def reference(name: str) -> str:
    """The cell that a cell is compared with."""
    return BY_PATIENT if name.startswith("patients") else BY_STUDY


def cells(run_dir: Path) -> Path:
    """The folder of everything that is made here, beside the run's."""
    return run_dir.with_name(f"{run_dir.name}_ablate")


def prepare(run_dir: Path) -> None:
    """The pooled cache."""
    if not (run_dir / "cache" / "cache.json").exists():
        raise SystemExit(f"error: {run_dir} holds no finished cache; run python scripts/demo.py first")
    target = cells(run_dir) / "cache"
    if not (target / "cache.json").exists():
        command("scripts/cache.py", "convert", run_dir / "cache", "--target", target, "--pool", 2)


def result(run_dir: Path, name: str, seed: int, again: str = "") -> Path:
    """Stage two's folder of a cell: a run of its own on the same data, for a run folder has one writer."""
    return cells(run_dir) / f"{name.replace(', ', '-').replace(' ', '_')}_{seed}{again}" / "fusion"


def train(run_dir: Path, name: str, seed: int, again: str = "") -> None:
    """One cell, unless it is finished: its submission is what it writes last."""
    folder = result(run_dir, name, seed, again)
    if (folder / "submission.zip").exists():
        return
    link_run(run_dir, folder.parent, ["manifest.csv", "manifest.json", "stage_one"])
    words = [*CELLS[name], *QUICK, "--run_dir", folder.parent, "--cache_dir", cells(run_dir) / "cache", "--seed", seed]
    command("train_fusion.py", "--config", "fusion/configs/demo.yaml", *words, threads=1)


def labelled_test(run_dir: Path, against: str) -> Manifest:
    """The test images with the labels that the cells were trained for: their study's, or their patient's."""
    test = read_manifest(run_dir / "manifest.csv").of_split("test")
    if against == BY_STUDY:
        return test
    groups, labels = group_images(test, "patient"), np.empty_like(test.labels)
    for rows, own in zip(groups.rows, groups.labels, strict=True):
        labels[rows] = own
    return Manifest(test.images, labels, test.classes, test.root)


def check(run_dir: Path) -> None:
    """Train the last cell by study again and compare."""
    name = [name for name in CELLS if reference(name) == BY_STUDY][-1]
    again = result(run_dir, name, SEEDS[-1], "_check")
    shutil.rmtree(again.parent, ignore_errors=True)
    train(run_dir, name, SEEDS[-1], "_check")
    check_cell("ablate", name, SEEDS[-1], again, labelled_test(run_dir, BY_STUDY))


def plot(table: dict[str, Any], path: Path) -> None:
    """Each cell's difference from its reference: mean and interval, and every seed as a small dot."""
    shown = {name: row for name, row in table.items() if name != reference(name)}
    figure = Figure(figsize=(7.5, 1.2 + 0.27 * len(shown)), layout="constrained")
    axis = figure.subplots()
    for y, (name, row) in enumerate(shown.items()):
        estimate, low, high = row[f"minus_{reference(name)}"]
        axis.plot(row["by_seed"], [y] * len(SEEDS), ".", color=GREY, markersize=4)
        axis.plot([low, high], [y, y], color=BLUE, linewidth=1)  # an interval need not hold its estimate
        axis.plot(estimate, y, "o", color=BLUE, markersize=5)
    axis.axvline(0, color="black", linewidth=0.7)
    axis.set_yticks(range(len(shown)), list(shown), fontsize=9)
    axis.set(xlabel="test mAP minus that of the reference", ylim=(len(shown) - 0.5, -0.5))
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
