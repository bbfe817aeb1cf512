"""What pseudo-labels are worth where external sets annotate only some of the classes; stage one, 3 seeds.

    python scripts/compare_self_training.py --own quarter   # about 20 minutes on two cores; it resumes
    python scripts/compare_self_training.py --check         # one cell again, compared with the kept table
    python scripts/compare_self_training.py --quick         # a look at a tiny phantom; keeps nothing

The phantom's training patients are divided, anew for each seed: half or a quarter of the images keep their labels
(own); in two external quarters every other class is unknown, in one of them the odd and in the other the even ones.
Stage one is trained on own alone; on all with unknown labels masked; on all with the first model's soft labels in their
place; and on all with all labels (oracle): the same number of steps everywhere, at 96 px. Single images of the test
split are scored.
"""

import argparse
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import _root  # noqa: F401
import numpy as np
from _experiment import command, compare, keep, table_lines
from accelerate import Accelerator

from data.manifest import Manifest, read_manifest, write_manifest
from data.order import derive_seed
from data.predictions import write_predictions
from data.pseudo_labels import join_manifests
from data.runs import Log
from data.tables import read_table
from extract.teacher import load_teacher, predict_probabilities

ARMS = ("own", "masked", "pseudo", "oracle")
SEEDS = (0, 1, 2)
OWN = {"half": 2, "quarter": 1}
"""Quarters of the training images that keep their labels; two more are external."""
STEPS = 24
"""Quarters of the training images that a model sees in all."""
BATCH = 16
CONFIG = "extract/configs/demo.yaml"
SIZE = 96  # pixels, for time's sake


def main() -> None:
    """Prepare, train, label, train, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/self_training"), help="for all parts")
    parser.add_argument("--own", choices=OWN, default="half", help="share of the training images with all labels")
    parser.add_argument("--check", action="store_true", help="train one cell anew and compare it with the kept table")
    parser.add_argument("--quick", action="store_true", help="a tiny phantom, one epoch, one seed")
    options = parser.parse_args()
    own = OWN[options.own]
    folder = options.folder.resolve() / ("quick" if options.quick else options.own)
    seeds, steps = (SEEDS[:1], own * (own + 2)) if options.quick else (SEEDS, STEPS)
    if not (folder / "phantom" / "manifest.csv").exists():
        words = ["--studies", "120,20,30"] if options.quick else []
        command("scripts/prepare.py", "phantom", *words, "--out", folder / "phantom" / "manifest.csv")
    whole = read_manifest(folder / "phantom" / "manifest.csv")
    if options.check:
        return check(folder, whole, options.own)
    with ThreadPoolExecutor(2) as pool:  # one core each
        for arms in (ARMS[:1], ARMS[1:]):  # the first one makes the teachers
            cells = [(arm, seed) for seed in seeds for arm in arms]
            list(pool.map(partial(train, folder, whole, own, steps), cells))
    runs = {arm: {seed: predicted(folder / f"{arm}_{seed}", whole) for seed in seeds} for arm in ARMS}
    replicates, test = 50 if options.quick else 1000, whole.of_split("test")
    tables = {against: compare(runs, against, test, replicates) for against in ("own", "masked")}
    print("\n\n".join("\n".join(table_lines(table, against)) for against, table in tables.items()))
    if not options.quick:
        keep(f"compare_self_training_{options.own}", {"seeds": list(seeds), "tables": tables})


def train(folder: Path, whole: Manifest, own: int, steps: int, cell: tuple[str, int], again: str = "") -> None:
    """One cell: its manifest, then stage one on it.

    Args:
        own: Quarters with all labels.
        steps: Quarters to see.
    """
    arm, seed = cell
    run_dir = folder / f"{arm}_{seed}{again}"
    if not (run_dir / "manifest.csv").exists():
        make_manifest(folder, whole, own, arm, seed, run_dir / "manifest.csv")
    num_epochs = steps // (own if arm == "own" else own + 2)
    words = ["--seed", seed, "--epochs", num_epochs, "--batch_size", BATCH, "--num_workers", 0]
    words += ["--image.size", SIZE, "--cache.pool", 2]
    command("extract.py", "--config", CONFIG, "--run_dir", run_dir, *words, threads=1)


def make_manifest(folder: Path, whole: Manifest, quarters: int, arm: str, seed: int, path: Path) -> None:
    """What an arm is trained on."""
    own, external = divided(whole, quarters, seed)
    if arm == "own":
        return write_manifest(own, path)
    if arm == "oracle":
        return write_manifest(join_manifests(own, external), path)
    if arm == "masked":
        return write_manifest(join_manifests(own, annotated_in_part(external)), path)
    given, own_dir = path.with_name("external") / "manifest.csv", folder / f"own_{seed}"
    write_manifest(annotated_in_part(external), given)
    words = ["--teacher", own_dir / "stage_one", "--manifest", given, "--join", own_dir / "manifest.csv"]
    command("scripts/pseudo_label.py", *words, "--out", path, "--num_workers", 0, threads=1)
    refuse_changes([own_dir / "manifest.csv", given], path)


def divided(whole: Manifest, quarters: int, seed: int) -> tuple[Manifest, Manifest]:
    """One's own set with val and test, and the external one with all its labels; `source` names the parts.

    All parts are multiples of the batch size, so that all arms take the same number of steps; a few patients are left.
    """
    patients = whole.images["patient_id"].to_numpy(dtype=object)
    is_train = (whole.images["split"] == "train").to_numpy(dtype=bool)
    quarter = max(1, is_train.sum() // (4 * BATCH) - 1) * BATCH
    room = {"own": quarters * quarter, "external_1": quarter, "external_2": quarter}
    names, sizes = np.unique(patients[is_train], return_counts=True)
    part = {}
    for number in np.random.default_rng(derive_seed("divide", seed)).permutation(len(names)):
        fits = [name for name, left in room.items() if sizes[number] <= left]
        if fits:
            part[names[number]] = fits[0]
            room[fits[0]] -= sizes[number]
    assert not any(room.values()), f"no patients of the size that is left over: {room}"
    source = [part.get(patient, "") if train else "own" for patient, train in zip(patients, is_train, strict=True)]
    images = whole.images.assign(source=source).astype({"source": "str"})
    named = Manifest(images, whole.labels, whole.classes, whole.root)
    return tuple(
        named.select(images["source"].str.startswith(name).to_numpy(dtype=bool)) for name in ("own", "external")
    )


def annotated_in_part(external: Manifest) -> Manifest:
    """Each part without every other class that occurs at all."""
    occurring, labels = np.flatnonzero(external.labels.any(axis=0)), external.labels.copy()
    for name, unknown in (("external_1", occurring[1::2]), ("external_2", occurring[::2])):
        rows = np.flatnonzero(external.images["source"] == name)
        labels[rows[:, None], unknown] = np.nan
    return Manifest(external.images, labels, external.classes, external.root)


def refuse_changes(given: list[Path], filled: Path) -> None:
    """Check that every label somebody gave stands in the filled table as it was written."""
    after = read_table(filled).set_index("image_id")
    for path in given:
        before = read_table(path).set_index("image_id")
        for name in read_manifest(path).classes:
            known = before[name][before[name] != ""]
            assert (after.loc[known.index, name] == known).all(), f"{name}: known labels have changed"
    print(f"{filled}: known labels are as they were")


def predicted(run_dir: Path, whole: Manifest) -> Path:
    """Predict the test split with a cell's model; the folder of the predictions."""
    path, test = run_dir / "single" / "predictions_test.csv", whole.of_split("test")
    if not path.exists():
        log, options = Log(run_dir, speaks=False), {"flip": False, "batch_size": 64, "num_workers": 0}
        model = load_teacher(run_dir / "stage_one")
        values = predict_probabilities(model, test, Accelerator(), **options, log=log)
        write_predictions(path, test.images, values, test.classes)
    return path.parent


def check(folder: Path, whole: Manifest, share: str) -> None:
    """Label and train the last seed's pseudo cell again and compare."""
    seed = SEEDS[-1]
    shutil.rmtree(folder / f"pseudo_{seed}_check", ignore_errors=True)
    train(folder, whole, OWN[share], STEPS, ("pseudo", seed), "_check")
    runs = {"pseudo": {seed: predicted(folder / f"pseudo_{seed}_check", whole)}}
    found = compare(runs, "pseudo", whole.of_split("test"), replicates=2)["pseudo"]["mAP_by_seed"][0]
    kept = json.loads((Path(__file__).parent / "results" / f"compare_self_training_{share}.json").read_text())
    wanted = kept["tables"]["masked"]["pseudo"]["mAP_by_seed"][-1]
    print(f"pseudo, seed {seed}: mAP {found}, kept {wanted}: {'agrees' if abs(found - wanted) < 5e-4 else 'DIFFERS'}")
    raise SystemExit(abs(found - wanted) >= 5e-4)


if __name__ == "__main__":
    main()
