"""What medical X-ray attention and a teacher add to EfficientViT-M, as in the ablation of arXiv 2504.02277; 3 seeds.

    python scripts/ablate_mxa.py            # finished parts are recognised, so an interrupted start goes on
    python scripts/ablate_mxa.py --check    # one cell again, compared with the kept table
    python scripts/ablate_mxa.py --quick    # a look at a tiny phantom: one seed, one epoch; keeps nothing

Phantom images of the usual set, of which some training labels become uncertain (-1), as report labelers leave them, and
positive again by U-ones. Three arms train EfficientViT-M0 on them from the same random weights: U1, U1 + MXA, and
U1 + MXA + KD with the demo's model, trained on the same labels, as the teacher. Single images of the test split are
scored: macro AUROC over the classes that occur, micro AUROC over all their labels pooled, 95 % intervals by patient.
"""

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import _root
import numpy as np
from _experiment import command, keep
from accelerate import Accelerator

from data.manifest import Manifest, read_manifest
from data.metrics import auroc, mean_defined
from data.order import derive_seed
from data.predictions import read_predictions, write_predictions
from data.runs import Log
from data.tables import read_table, write_table
from extract.teacher import load_teacher, predict_probabilities

ARMS = ("U1", "U1 + MXA", "U1 + MXA + KD")
SEEDS, EPOCHS, TEACHER_EPOCHS = (0, 1, 2), 16, 24
SIZE = 96
UNCERTAIN = {"1": 0.15, "0": 0.03}
"""Share of a class's positive and negative training studies whose label becomes -1."""
SMALL = {
    "backbone.name": "efficientvit_m0",
    "backbone.arguments": json.dumps({"img_size": SIZE}),
    "image.size": SIZE,
    "image.channels": 1,
    "image.mean": "[0.5]",
    "image.std": "[0.25]",
    "augmentation.hflip": 0,
    "batch_size": 16,
    "ema_decay": 0.99,
    "mixed_precision": "no",
    "channels_last": "false",
    "num_workers": 0,
}
"""What shrinks the recipe to 2 CPU cores."""


def main() -> None:
    """Prepare, train, predict, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/mxa_ablation"), help="for all parts")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    parser.add_argument("--quick", action="store_true", help="a tiny phantom, one seed, one epoch")
    options = parser.parse_args()
    folder = options.folder.resolve() / ("quick" if options.quick else "full")
    seeds, epochs = (SEEDS[:1], 1) if options.quick else (SEEDS, EPOCHS)
    prepare(folder, "120,20,30" if options.quick else "", 1 if options.quick else TEACHER_EPOCHS)
    test = read_manifest(folder / "data" / "manifest.csv").of_split("test")
    if options.check:
        return check(folder, test, epochs)
    with ThreadPoolExecutor(2) as pool:  # one core each
        list(pool.map(partial(train, folder, epochs), [(arm, seed) for seed in seeds for arm in ARMS]))
    runs = {arm: [predicted(cell(folder, arm, seed), test) for seed in seeds] for arm in ARMS}
    table = compare(runs, test, 50 if options.quick else 1000)
    print("\n".join(lines(table)))
    rates = np.nanmean(read_manifest(folder / "data" / "manifest.csv").of_split("train").labels, axis=0)
    alone = round(scores(np.tile(rates, (len(test), 1)), test.labels, np.ones(len(test)))[1], 4)
    print(f"micro AUROC of the classes' prevalences alone, the same for every image: {alone}")
    command("scripts/roi_boxes.py", "--run_dir", cell(folder, ARMS[1], 0), "--split", "test", threads=1)
    if not options.quick:
        keep("ablate_mxa", {"seeds": list(seeds), "epochs": epochs, "prevalences_micro": alone, "table": table})


def prepare(folder: Path, studies: str, teacher_epochs: int) -> None:
    """Phantom, its table with uncertain labels, the manifest by U-ones, and the teacher; what is there is kept."""
    if not (folder / "phantom" / "manifest.csv").exists():
        size = ["--studies", studies] if studies else []
        command("scripts/prepare.py", "phantom", *size, "--out", folder / "phantom" / "manifest.csv")
    if not (folder / "data" / "manifest.csv").exists():
        images = write_uncertain_table(folder / "phantom" / "manifest.csv", folder / "uncertain.csv")
        words = ["--table", folder / "uncertain.csv", "--images", images, "--classes", "auto", "--min_positives", 1]
        words += ["--split", "split", "--uncertain", "ones", "--out", folder / "data" / "manifest.csv"]
        command("scripts/prepare.py", "table", *words)
    copy_data(folder, folder / "teacher")
    words = ["--run_dir", folder / "teacher", "--epochs", teacher_epochs, "--num_workers", 0]
    command("extract.py", "--config", "extract/configs/demo.yaml", *words, threads=1)


def write_uncertain_table(manifest_path: Path, path: Path) -> Path:
    """Copy a manifest's table with labels of -1 in some training studies; returns the folder of the images."""
    manifest, frame = read_manifest(manifest_path), read_table(manifest_path)
    for name in manifest.classes:
        for label, share in UNCERTAIN.items():
            chosen = frame[(frame["split"] == "train") & (frame[name] == label)]["study_id"].unique()
            rng = np.random.default_rng(derive_seed("uncertain", name, label))
            unsure = rng.permutation(np.sort(chosen.astype(str)))[: round(share * len(chosen))]
            frame.loc[frame["study_id"].isin(unsure), name] = "-1"
    write_table(path, frame)
    return manifest.root


def cell(folder: Path, arm: str, seed: int, again: str = "") -> Path:
    """The run folder of a cell."""
    return folder / f"{arm.replace(' + ', '_')}_{seed}{again}"


def copy_data(folder: Path, run_dir: Path) -> None:
    """The manifest for a run of its own."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name in ("manifest.csv", "manifest.json"):
        if not (run_dir / name).exists():
            (run_dir / name).symlink_to(folder / "data" / name)


def train(folder: Path, epochs: int, of: tuple[str, int], again: str = "") -> None:
    """One cell."""
    arm, seed = of
    run_dir = cell(folder, arm, seed, again)
    copy_data(folder, run_dir)
    words: dict[str, object] = {"run_dir": run_dir, "seed": seed, "epochs": epochs, **SMALL}
    words["backbone.mxa"] = "true" if "MXA" in arm else "false"
    if "KD" in arm:
        words["distillation.teacher"] = folder / "teacher" / "stage_one"
    options = [word for key, value in words.items() for word in (f"--{key}", value)]
    command("extract.py", "--config", "extract/configs/mxa.yaml", *options, threads=1)


def predicted(run_dir: Path, test: Manifest) -> np.ndarray:
    """Probabilities of the test images by a cell's model, in the order of the manifest; computed once."""
    path = run_dir / "single" / "predictions_test.csv"
    if not path.exists():
        log, sizes = Log(run_dir, speaks=False), {"batch_size": 64, "num_workers": 0}
        values = predict_probabilities(
            load_teacher(run_dir / "stage_one"), test, Accelerator(), flip=False, **sizes, log=log
        )
        write_predictions(path, test.images, values, test.classes)
    ids, values, _ = read_predictions(path)
    order = ids.reset_index().set_index("image_id").loc[test.images["image_id"], "index"].to_numpy()
    return values[order]


def scores(values: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Macro and micro AUROC over the classes that have a positive (there, and in every other arm)."""
    columns = np.flatnonzero((labels > 0.5).any(axis=0))
    macro = mean_defined(np.array([auroc(values[:, c], labels[:, c], weights) for c in columns]))
    pooled = values[:, columns].ravel(), labels[:, columns].ravel()
    return macro, auroc(*pooled, np.repeat(weights, len(columns)))


def compare(runs: dict[str, list[np.ndarray]], test: Manifest, replicates: int) -> dict[str, Any]:
    """Both scores of every arm: by seed, mean over seeds, and what the arm adds to the one before, with intervals.

    Patients are drawn with replacement, the same for all arms and seeds.
    """
    patients, rows = np.unique(test.images["patient_id"].to_numpy(dtype=str), return_inverse=True)
    rng = np.random.default_rng(derive_seed("bootstrap"))
    draws = [
        np.bincount(rng.integers(len(patients), size=len(patients)), minlength=len(patients)) for _ in range(replicates)
    ]
    weights = [np.ones(len(rows)), *(draw[rows].astype(float) for draw in draws)]
    found = {  # replicates (all rows first) x seeds x (macro, micro)
        arm: np.array([[scores(values, test.labels, weight) for values in seeds] for weight in weights])
        for arm, seeds in runs.items()
    }
    table: dict[str, Any] = {}
    for place, (arm, all_scores) in enumerate(found.items()):
        before = found[list(found)[place - 1]] if place else None
        table[arm] = {}
        for k, name in enumerate(("macro", "micro")):
            own = all_scores[:, :, k]
            table[arm][name] = {"by_seed": np.round(own[0], 4).tolist(), "mean": interval(own.mean(axis=1))}
            if before is not None:
                table[arm][name]["added"] = interval((own - before[:, :, k]).mean(axis=1))
    return table


def interval(values: np.ndarray) -> list[float]:
    """Estimate, low, high; the first value is that of all rows."""
    return [round(float(value), 4) for value in (values[0], *np.quantile(values[1:], [0.025, 0.975]))]


def lines(table: dict[str, Any]) -> list[str]:
    """The table as people read it."""
    found = []
    for name in ("macro", "micro"):
        found.append(f"{name + ' AUROC':<16}{'mean over seeds':<28}{'added':<30}by seed")
        for arm, row in table.items():
            mean = "{:.4f} [{:.4f}, {:.4f}]".format(*row[name]["mean"])
            added = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*row[name]["added"]) if "added" in row[name] else ""
            found.append(f"{arm:<16}{mean:<28}{added:<30}{' '.join(f'{value:.4f}' for value in row[name]['by_seed'])}")
        found.append("")
    return found


def check(folder: Path, test: Manifest, epochs: int) -> None:
    """Train the last seed's last arm again and compare with the kept table; leaves with status 1 where it differs."""
    arm, seed = ARMS[-1], SEEDS[-1]
    shutil.rmtree(cell(folder, arm, seed, "_check"), ignore_errors=True)
    train(folder, epochs, (arm, seed), "_check")
    values = predicted(cell(folder, arm, seed, "_check"), test)
    found = scores(values, test.labels, np.ones(len(test)))[0]
    kept = json.loads((_root.ROOT / "scripts" / "results" / "ablate_mxa.json").read_text())
    wanted = kept["table"][arm]["macro"]["by_seed"][-1]
    differs = abs(found - wanted) >= 5e-4
    print(f"{arm}, seed {seed}: macro AUROC {found:.4f}, kept {wanted}: {'DIFFERS' if differs else 'agrees'}")
    raise SystemExit(differs)


if __name__ == "__main__":
    main()
