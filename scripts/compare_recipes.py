"""The recipes of challenge winners, and of other backbones, shrunk and trained through both stages beside a plain one.

    python scripts/compare_recipes.py phantom                  # about 15 CPU-minutes; finished parts are recognised
    python scripts/compare_recipes.py phantom --of backbones   # LKA, MXA with and without a teacher, CXformer
    python scripts/compare_recipes.py real --images FOLDER     # public X-rays with a metadata.csv, 3 patient splits
    python scripts/compare_recipes.py phantom --check          # one cell again, compared with the kept table

Each recipe is layered with small.yaml: random weights, 6 epochs at 96 px, then stage two. The winners' all get the
same small backbone; of the other recipes, whose point is the backbone, each gets its own at its smallest. A recipe of
two phases spends half of the epochs on each, on the same images; MXA's teacher is the plain run's model. What such a
size can show is that recipes run, feed stage two and do not break; it cannot rank them for pretrained backbones at
full size, for which they were made.
"""

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _root  # noqa: F401
import numpy as np
from _experiment import check_cell, command, compare, keep, link_run, table_lines

from data.manifest import read_manifest


@dataclass(frozen=True)
class Recipe:
    """Configurations of stage one, phase after phase, and of stage two, and what small.yaml leaves to be said."""

    phases: list[str]
    fusion: str
    options: tuple[object, ...] = ()
    taught: bool = False


PLAIN = Recipe(["demo"], "demo")
LKA = ("--backbone.name", "densenet121", "--backbone.arguments", "{growth_rate: 12, block_config: [2, 4, 4, 2]}")
MXA = ("--backbone.name", "efficientvit_m0", "--backbone.arguments", "{img_size: 96}", "--backbone.mxa", "true")
VIT = "{img_size: 98, patch_size: 14, depth: 4, embed_dim: 96, num_heads: 3, init_values: 1.0}"
CXFORMER = ("--backbone.name", "vit_small_patch14_reg4_dinov2", "--backbone.arguments", VIT, "--image.size", 98)
SETS: dict[str, dict[str, Recipe]] = {
    "winners": {
        "plain": PLAIN,
        "CheXFusion": Recipe(["cxr_lt_2023"], "cxr_lt_2023"),
        "CXR-LT 2026": Recipe(["cxr_lt_2026_mimic", "cxr_lt_2026_padchest"], "cxr_lt_2026"),
    },
    "backbones": {
        "plain": PLAIN,
        "LKA": Recipe(["lka_densenet121_abnormal", "lka_densenet121"], "demo", LKA),
        "MXA": Recipe(["mxa"], "demo", MXA),
        "MXA, teacher": Recipe(["mxa"], "demo", MXA, taught=True),
        "CXformer": Recipe(["cxformer_chexpert"], "demo", (*CXFORMER, "--backbone.class_layers", 4)),
    },
}
"""The last of each is trained anew by --check."""
SEEDS, EPOCHS = (0, 1, 2), 6
REAL = ["--classes", "auto", "--min_positives", 20, "--study_labels", "any"]


def main() -> None:
    """Prepare, train all cells, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["phantom", "real"])
    parser.add_argument("--of", choices=SETS, default="winners", help="which recipes")
    parser.add_argument("--images", type=Path, help="folder of metadata.csv and its images (real)")
    parser.add_argument("--folder", type=Path, default=Path("runs/recipes"), help="for all parts")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of stage one; fewer for a look")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    options = parser.parse_args()
    folder = options.folder.resolve() / options.data
    for seed in SEEDS:
        prepare(options, folder, seed)
    kept = f"compare_recipes_{options.data}" if options.of == "winners" else f"compare_{options.of}_{options.data}"
    if options.check:
        name = list(SETS[options.of])[-1]
        again = cell(folder, name, SEEDS[-1], "_check")
        shutil.rmtree(again, ignore_errors=True)
        train(options, folder, name, SEEDS[-1], "_check")
        test = read_manifest(source(options, folder, SEEDS[-1]) / "manifest.csv").of_split("test")
        check_cell(kept, name, SEEDS[-1], again / "fusion", test)
    with ThreadPoolExecutor(2) as pool:  # one core each; teachers, the plain ones, come first
        for names in (["plain"], [name for name in SETS[options.of] if name != "plain"]):
            list(pool.map(lambda c: train(options, folder, *c), [(name, seed) for seed in SEEDS for name in names]))
    table = tables(options, folder)
    if options.epochs == EPOCHS:
        keep(kept, {"seeds": list(SEEDS), "epochs": EPOCHS, "table": table})


def source(options: argparse.Namespace, folder: Path, seed: int) -> Path:
    """The folder that holds a seed's manifest: one phantom for all, one split of patients for each."""
    return folder / ("data" if options.data == "phantom" else f"split_{seed}")


def prepare(options: argparse.Namespace, folder: Path, seed: int) -> None:
    """The manifest, where it is not there yet."""
    manifest = source(options, folder, seed) / "manifest.csv"
    if manifest.exists():
        return
    if options.data == "phantom":
        command("scripts/prepare.py", "phantom", "--out", manifest)
    else:
        words = ["--table", options.images / "metadata.csv", "--images", options.images, *REAL, "--seed", seed]
        command("scripts/prepare.py", "table", *words, "--out", manifest)


def cell(folder: Path, recipe: str, seed: int, again: str = "") -> Path:
    """The run folder of a cell."""
    return folder / f"{recipe.replace(',', '').replace(' ', '_')}_{seed}{again}"


def train(options: argparse.Namespace, folder: Path, name: str, seed: int, again: str = "") -> None:
    """Both stages of one cell; a recipe of several phases trains them one after the other."""
    run_dir, recipe = cell(folder, name, seed, again), SETS[options.of][name]
    former: list[object] = (
        ["--distillation.teacher", cell(folder, "plain", seed) / "stage_one"] if recipe.taught else []
    )
    for number, phase in enumerate(recipe.phases):
        last = number == len(recipe.phases) - 1
        here = run_dir if last else run_dir.with_name(f"{run_dir.name}_phase_{number + 1}")
        parts = ["manifest.csv", "manifest.json", *(["phantom"] if options.data == "phantom" else [])]
        link_run(source(options, folder, seed), here, parts)
        layers = ["--config", f"extract/configs/{phase}.yaml", "--config", "extract/configs/small.yaml"]
        frozen = ["--freeze_backbone_epochs", 1 if number else 0]  # phase one starts from random weights here
        words = ["--run_dir", here, "--seed", seed, "--epochs", options.epochs // len(recipe.phases), *frozen]
        command("extract.py", *layers, *recipe.options, *words, *former, threads=1)
        former = ["--backbone.pretrained", here / "stage_one"]
    layers = ["--config", f"fusion/configs/{recipe.fusion}.yaml", "--config", "fusion/configs/small.yaml"]
    command("train_fusion.py", *layers, "--run_dir", run_dir, "--seed", seed, threads=1)


def tables(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Fusion and best baseline per recipe and seed; on the phantom, with one test set, against the plain recipe too."""
    table: dict[str, Any] = {}
    if options.data == "phantom":
        runs = {r: {seed: cell(folder, r, seed) / "fusion" for seed in SEEDS} for r in SETS[options.of]}
        table = compare(runs, "plain", read_manifest(folder / "data" / "manifest.csv").of_split("test"))
        print("\n".join(table_lines(table, "plain")))
    for recipe in SETS[options.of]:
        reports = [json.loads((cell(folder, recipe, s) / "fusion" / "metrics.json").read_text()) for s in SEEDS]
        rows = [unit(report) for report in reports]
        if options.data == "real":
            table[recipe] = {"mAP_by_seed": [round(r["images"]["methods"]["fusion"]["mAP"], 4) for r in reports]}
        means = {key: round(float(np.mean([row[key] for row in rows])), 4) for key in ("fusion", "baseline")}
        table[recipe] = table.get(recipe, {}) | {"groups": rows}
        shown = "  ".join("{:+.3f} [{:+.3f}, {:+.3f}]".format(*row["difference"]) for row in rows)
        print(f"{recipe:<14} fusion {means['fusion']:.3f}, best baseline {means['baseline']:.3f}; difference {shown}")
    return table


def unit(report: dict[str, Any]) -> dict[str, Any]:
    """Macro mAP over groups of fusion and of the baseline that was best on validation, head, medium and tail."""
    best, part = report["best_baseline_on_validation"], report["groups"]
    fusion, difference = part["methods"]["fusion"], part["differences"][f"fusion - {best}"]
    return {
        "fusion": fusion["mAP"],
        "baseline": part["methods"][best]["mAP"],
        "best_baseline": best,
        "difference": [round(difference[key], 4) for key in ("estimate", "low", "high")],
        "bands": [fusion[f"mAP_{band}"] for band in ("head", "medium", "tail")],
    }


if __name__ == "__main__":
    main()
