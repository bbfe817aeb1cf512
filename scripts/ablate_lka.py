"""Large-kernel attention on the phantom: where the blocks stand, and one phase of training or two.

    python scripts/ablate_lka.py            # about 1 CPU-hour; finished parts are recognised
    python scripts/ablate_lka.py --studies 60,25,30 --epochs 2 --seeds 0 --only dense --folder runs/look  # not kept
    python scripts/ablate_lka.py --check    # one cell again, compared with the kept table

The recipes extract/configs/lka_*.yaml with small.yaml on top, on a slim DenseNet and the demo's slim ResNet (a VGG16
takes hours of CPU), from random weights at 96 px, 3 seeds, one thread each, two at a time. Two phases: half of the
epochs on abnormal images with binary cross-entropy, half on all with focal loss, the new head alone in the first of
them. One phase: as many epochs on all images with one of the losses, so it sees somewhat more images. Scored are single
images of the test split by stage one's own head. A picture of Grad-CAM per backbone stands beside the cells. What this
size can show is how much these choices move at all; it cannot rank them for pretrained backbones on a hundred thousand
images.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import _root  # noqa: F401
import numpy as np
from _experiment import check_cell, command, compare, keep, link_run, table_lines

from data.manifest import Manifest, read_manifest
from fusion.stage_one_report import draw_grad_cam, evaluate, load_run

SEEDS, EPOCHS, STUDIES = (0, 1, 2), 6, "1200,250,450"
SLIM_DENSENET = "{growth_rate: 12, block_config: [2, 4, 4, 2]}"
BACKBONES: dict[str, tuple[list[object], str]] = {
    "dense": (["--backbone.name", "densenet121", "--backbone.arguments", SLIM_DENSENET], "lka_last_two"),
    "resnet": ([], "lka_last_three"),
}
"""Options beside small.yaml, and the placement that the report prefers."""
TWO_PHASES = "2 phases"
SHOWN = ("Cardiomegaly", "Pleural Effusion", "Pneumothorax", "Nodule")


class Cell(NamedTuple):
    """What is trained: a backbone, where its blocks stand, and how."""

    backbone: str
    placement: str
    strategy: str

    @property
    def name(self) -> str:
        return f"{self.backbone} {self.placement.removeprefix('lka_')}, {self.strategy}"


def cells_of(backbone: str) -> list[Cell]:
    """Placements in two phases, the reference first; then one phase of either loss, without and with blocks."""
    best = BACKBONES[backbone][1]
    placements = [Cell(backbone, placement, TWO_PHASES) for placement in ("none", "lka_full", best, "lka_after")]
    return placements + [Cell(backbone, placement, loss) for placement in ("none", best) for loss in ("bce", "focal")]


def main() -> None:
    """Prepare, train all cells, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/lka"), help="for all parts")
    parser.add_argument("--only", nargs="+", choices=BACKBONES, default=list(BACKBONES), help="of the backbones")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of all phases together; fewer for a look")
    parser.add_argument("--studies", default=STUDIES, help="of the phantom: train,val,test; fewer for a look")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    options = parser.parse_args()
    options.folder = options.folder.resolve() / f"{options.studies.replace(',', '_')}_{options.epochs}_epochs"
    data = options.folder / "data" / "manifest.csv"
    if not data.exists():
        command("scripts/prepare.py", "phantom", "--studies", options.studies, "--out", data)
    test = read_manifest(data).of_split("test")
    if options.check:
        check(options, test)
    cells = [cell for backbone in options.only for cell in cells_of(backbone)]
    with ThreadPoolExecutor(2) as pool:  # one core each
        list(pool.map(lambda work: train(options, *work), [(cell, seed) for seed in options.seeds for cell in cells]))
    table: dict[str, Any] = {}
    pairs: dict[str, Any] = {}
    for backbone in options.only:
        table |= compared(options, cells_of(backbone), test)
        pairs |= paired(options, cells_of(backbone), test)
        print(f"pictures: {pictures(options, backbone, test)}")
    asked = (tuple(options.only), tuple(options.seeds), options.epochs, options.studies)
    if asked == (tuple(BACKBONES), SEEDS, EPOCHS, STUDIES):
        keep("ablate_lka", {"seeds": list(SEEDS), "epochs": EPOCHS, "table": table, "pairs": pairs})


def run_of(options: argparse.Namespace, cell: Cell, seed: int, suffix: str = "") -> Path:
    """The run folder of a cell."""
    return options.folder / f"{cell.name.replace(', ', '-').replace(' ', '_')}_{seed}{suffix}"


def scores_of(options: argparse.Namespace, cell: Cell) -> dict[int, Path]:
    """Each seed's folder with its predictions."""
    return {seed: run_of(options, cell, seed) / "stage_one" / "evaluation" for seed in options.seeds}


def train(options: argparse.Namespace, cell: Cell, seed: int, suffix: str = "") -> None:
    """All phases of one cell, and its scores; finished phases are recognised."""
    run_dir = run_of(options, cell, seed, suffix)
    if (run_dir / "stage_one" / "evaluation" / "metrics_test.json").exists():
        return
    epochs = options.epochs
    if cell.strategy == TWO_PHASES:
        first = run_dir.with_name(f"{run_dir.name}_abnormal")
        phase(options, cell, seed, first, "lka_densenet121_abnormal", epochs // 2, [])
        last: list[object] = ["--backbone.pretrained", first / "stage_one", "--freeze_backbone_epochs", 1]
        epochs -= epochs // 2
    else:
        last = ["--backbone.pretrained", "false", "--freeze_backbone_epochs", 0, "--loss.kind", cell.strategy]
    phase(options, cell, seed, run_dir, "lka_densenet121", epochs, last)
    evaluate(load_run(run_dir, "test"), run_dir / "stage_one" / "evaluation", "test")


def phase(
    options: argparse.Namespace, cell: Cell, seed: int, run_dir: Path, recipe: str, epochs: int, words: Sequence[object]
) -> None:
    """One run of stage one."""
    link_run(options.folder / "data", run_dir, ["manifest.csv", "manifest.json", "phantom"])
    layers = ["--config", f"extract/configs/{recipe}.yaml", "--config", "extract/configs/small.yaml"]
    own = [*BACKBONES[cell.backbone][0], "--backbone.attention", cell.placement, "--patience", 0]
    command("extract.py", *layers, "--run_dir", run_dir, "--seed", seed, "--epochs", epochs, *own, *words, threads=1)


def compared(options: argparse.Namespace, cells: Sequence[Cell], test: Manifest) -> dict[str, Any]:
    """Macro mAP and mean AUROC of each cell, differences from the backbone without blocks in two phases."""
    folders = {cell.name: scores_of(options, cell) for cell in cells}
    table = compare(folders, cells[0].name, test)
    print("\n".join(["", *table_lines(table, cells[0].name), ""]))
    for name, by_seed in folders.items():
        areas = [json.loads((folder / "metrics_test.json").read_text())["mAUROC"] for folder in by_seed.values()]
        table[name]["mAUROC_by_seed"] = [round(area, 4) for area in areas]
        print(f"{name:<24} mean AUROC {np.mean(areas):.4f}   by seed {' '.join(f'{area:.4f}' for area in areas)}")
    return table


def paired(options: argparse.Namespace, cells: Sequence[Cell], test: Manifest) -> dict[str, Any]:
    """Differences in mAP between cells of one phase and those that differ from them in one thing: blocks, or phases."""
    found = {}
    single = [cell for cell in cells if cell.strategy != TWO_PHASES]
    blocks = [(cell, cell._replace(placement="none")) for cell in single if cell.placement != "none"]
    for cell, other in blocks + [(cell, cell._replace(strategy=TWO_PHASES)) for cell in single]:
        runs = {each.name: scores_of(options, each) for each in (cell, other)}
        row = compare(runs, other.name, test)[cell.name]
        name = f"{cell.name} - {other.name}"
        found[name] = {"mAP": row["minus_" + other.name], "by_seed": row["by_seed"]}
        print(f"{name:<52} {'{:+.4f} [{:+.4f}, {:+.4f}]'.format(*found[name]['mAP'])}   by seed {row['by_seed']}")
    return found


def pictures(options: argparse.Namespace, backbone: str, test: Manifest) -> Path:
    """Grad-CAM of the first seed's placements on the first frontal test image of some classes."""
    frontal = test.images["view"].isin(["PA", "AP"]).to_numpy(dtype=bool)
    classes = [name for name in SHOWN if (test.labels[frontal, test.classes.index(name)] == 1).any()]
    rows = [int(np.flatnonzero(frontal & (test.labels[:, test.classes.index(name)] == 1))[0]) for name in classes]
    cells = [cell for cell in cells_of(backbone) if cell.strategy == TWO_PHASES]
    runs = {cell.placement: load_run(run_of(options, cell, options.seeds[0]), "test") for cell in cells}
    path = options.folder / f"grad_cam_{backbone}.png"
    draw_grad_cam(path, runs, test.images["image_id"].iloc[rows].tolist(), classes)
    return path


def check(options: argparse.Namespace, test: Manifest) -> None:
    """Train one cell again and compare."""
    cell = cells_of("dense")[-1]
    again = run_of(options, cell, SEEDS[-1], "_check")
    shutil.rmtree(again, ignore_errors=True)
    train(options, cell, SEEDS[-1], "_check")
    check_cell("ablate_lka", cell.name, SEEDS[-1], again / "stage_one" / "evaluation", test)


if __name__ == "__main__":
    main()
