"""K-fold cross-validation by patient: one manifest becomes k run folders, and the command `scripts/folds.py`.

The images of train and val are divided into k parts, no patient in two. In fold i, part i is `val`, the other parts are
`train`, and `test` stays `test`. A fold is a run like any other: both stages train on it without knowing. Afterwards
every image of train and val has a prediction by a model that was not trained on its patient (`data/out_of_fold.py`).

Axes: **N** images, **C** classes.
"""

import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from jsonargparse import ArgumentParser

from data.errors import InputError
from data.files import atomic_write
from data.lock import locked
from data.manifest import Manifest, read_manifest, write_manifest
from data.runs import Log, run_command
from data.scan import scan_images
from data.splits import split_patients

FOLD = re.compile(r"fold_(0|[1-9]\d*)")
TEST = -1
"""In place of a fold's number: the image belongs to the test split, which no fold touches."""
SPLIT_AGAIN = "run scripts/folds.py split again with the same --folds and --seed"


def main(join: Callable[..., None], argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1.

    Args:
        join: `fusion.out_of_fold.join_folds`. It is handed in: `data` imports nothing of `fusion`, and a split should
            not wait for torch.
    """
    arguments = _parser().parse_args(argv)
    options = vars(arguments[arguments.subcommand])
    run_command(lambda: {"split": split_folds, "join": join}[arguments.subcommand](**options))


def split_folds(manifest: Path, folds: int = 5, seed: int = 0) -> None:
    """Write `fold_<i>/manifest.csv` for every fold beside a manifest, and what was learned by opening its images.

    The division is a function of manifest, number of folds and seed. Folders that hold it already are left alone, so
    a killed split goes on when it is run again. A fold's manifest is the last file to appear in its folder.

    Raises:
        InputError: Fewer than 2 folds, more folds than patients, no test images, or a fold folder of another split.
    """
    if manifest.name != "manifest.csv":
        raise InputError(f"--manifest {manifest}: the file must be called manifest.csv; the stages look for that name")
    run_dir, whole = manifest.parent, read_manifest(manifest)
    part = divide(whole, folds, seed)
    with locked(run_dir):
        log = Log(run_dir, speaks=True)
        _refuse_more_folds(run_dir, folds)
        parts = [fold_manifest(whole, part, number) for number in range(folds)]
        todo = [n for n, fold in enumerate(parts) if not _is_there(run_dir / f"fold_{n}" / "manifest.csv", fold)]
        known_images = _scan_once(whole, run_dir, log) if todo else None
        for number in todo:
            folder = run_dir / f"fold_{number}"
            if known_images is not None:
                atomic_write(folder / "images.csv", known_images)
            write_manifest(parts[number], folder / "manifest.csv")
        _report(run_dir, whole, parts, todo, log)


def divide(manifest: Manifest, num_folds: int, seed: int) -> Int[np.ndarray, "N"]:
    """The fold that holds out each image, `TEST` for the test split; rare classes are balanced first.

    Raises:
        InputError: Fewer than 2 folds, more folds than patients in train and val, or no test images.
    """
    if num_folds < 2:
        raise InputError(f"--folds must be at least 2, got {num_folds}")
    is_test = (manifest.images["split"] == "test").to_numpy(dtype=bool)
    if not is_test.any():
        raise InputError(
            "manifest.csv: no image in split 'test', and both stages want one; prepare it with other tables"
        )
    rest = manifest.select(~is_test)
    num_patients = rest.images["patient_id"].nunique()
    if num_folds > num_patients:
        raise InputError(
            f"--folds {num_folds}: train and val have {num_patients} patients, and a fold needs at least one"
        )
    fractions = {str(number): 1.0 for number in range(num_folds)}
    part = np.full(len(manifest), TEST, dtype=np.int64)
    part[~is_test] = split_patients(rest.images["patient_id"].tolist(), rest.labels, fractions, seed).astype(np.int64)
    return part


def fold_manifest(manifest: Manifest, part: Int[np.ndarray, "N"], number: int) -> Manifest:
    """The same rows in the same order, with the splits of one fold."""
    splits = np.where(part == TEST, "test", np.where(part == number, "val", "train"))
    images = manifest.images.assign(split=splits.astype(object)).astype({"split": manifest.images["split"].dtype})
    return Manifest(images, manifest.labels, manifest.classes, manifest.root)


def find_folds(run_dir: Path) -> list[Path]:
    """The fold folders of a run, by number.

    Raises:
        InputError: There are none, a number is left out, or a folder has no manifest yet.
    """
    numbers = _fold_numbers(run_dir)
    if not numbers:
        command = f"python scripts/folds.py split --manifest {shlex.quote(str(run_dir / 'manifest.csv'))}"
        raise InputError(f"{run_dir}: no folders fold_0, fold_1, ...; make them with: {command}")
    gap = next((number for number in range(len(numbers)) if number not in numbers), None)
    if gap is not None:
        raise InputError(f"{run_dir / f'fold_{gap}'}: missing, although there is fold_{max(numbers)}; {SPLIT_AGAIN}")
    folders = [run_dir / f"fold_{number}" for number in numbers]
    for folder in folders:
        if not (folder / "manifest.csv").exists():
            raise InputError(f"{folder / 'manifest.csv'}: missing, the split was not finished; {SPLIT_AGAIN}")
    return folders


def stage_commands(run_dir: Path, fold: str, name: str = "fusion") -> str:
    """Both stages on one fold as a shell line, with the configurations used so far ("..." where there is none yet).

    Args:
        fold: Its number, or a shell variable that holds it.
        name: Of stage two's folder.
    """
    target = f"--run_dir {shlex.quote(str(run_dir))}/fold_{fold}"
    named = "" if name == "fusion" else f" --name {shlex.quote(name)}"
    commands = [
        f"accelerate launch extract.py --config {_config_in_use(run_dir, fold, 'stage_one')} {target}",
        f"accelerate launch train_fusion.py --config {_config_in_use(run_dir, fold, name)} {target}{named}",
    ]
    return " && ".join(commands)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="folds.py", description="K-fold cross-validation with out-of-fold predictions.")
    commands = parser.add_subcommands(required=True)
    split = ArgumentParser(description="Divide train and val by patient: one run folder per fold, beside the manifest.")
    split.add_argument("--manifest", type=Path, required=True, help="the manifest to divide, runs/<name>/manifest.csv")
    split.add_argument("--folds", type=int, default=5, help="how many parts, from 2 on; each is held out once")
    split.add_argument("--seed", type=int, default=0, help="breaks ties between patients")
    commands.add_subcommand("split", split, help="make fold_0, fold_1, ... from a manifest")
    join = ArgumentParser(
        description="Put trained folds together: out-of-fold and averaged test predictions, scores, submission."
    )
    join.add_argument("--run_dir", type=Path, required=True, help="the folder that holds fold_0, fold_1, ...")
    join.add_argument("--name", type=str, default="fusion", help="stage two's folder in each fold")
    join.add_argument("--template", type=Path | None, default=None, help="the challenge's sample submission")
    join.add_argument("--out", type=Path | None, default=None, help="folder to write (default: RUN_DIR/NAME)")
    commands.add_subcommand("join", join, help="put the predictions of trained folds together")
    return parser


def _fold_numbers(run_dir: Path) -> list[int]:
    matches = [FOLD.fullmatch(path.name) for path in run_dir.glob("fold_*") if path.is_dir()]
    return sorted(int(match[1]) for match in matches if match)


def _refuse_more_folds(run_dir: Path, num_folds: int) -> None:
    for number in _fold_numbers(run_dir):
        path = run_dir / f"fold_{number}" / "manifest.csv"
        if number >= num_folds and path.exists():
            raise InputError(
                f"{path}: left from a split into more than --folds {num_folds}; take the former number, or delete the"
                f" folders {run_dir / 'fold_*'} to split anew"
            )


def _is_there(path: Path, wanted: Manifest) -> bool:
    """Whether a fold was written before; False also if its run was moved and it looks for images at the old place.

    Raises:
        InputError: The folder holds another split.
    """
    if not path.exists():
        return False
    found = read_manifest(path, accept_edits=True)
    if found.digest != wanted.digest:
        origin, folders = path.parents[1] / "manifest.csv", path.parents[1] / "fold_*"
        raise InputError(
            f"{path}: holds other splits or labels than these --folds and --seed make of {origin};"
            f" take the former ones, or delete the folders {folders} to split anew"
        )
    return os.path.abspath(found.root) == os.path.abspath(wanted.root)


def _scan_once(manifest: Manifest, run_dir: Path, log: Log) -> bytes | None:
    """Open every image now, so that no fold has to; `images.csv`, or None without a readable image.

    Nothing is refused here: how many images may be unreadable is stage one's choice (`max_rejected`).
    """
    scan = scan_images(manifest, run_dir, workers=os.cpu_count() or 1, max_rejected=1.0)
    if not scan.readable.all():
        log(f"{(~scan.readable).sum()} of {len(manifest)} images cannot be read: see {run_dir / 'rejected.csv'}")
    path = run_dir / "images.csv"
    return path.read_bytes() if path.exists() else None


def _report(run_dir: Path, manifest: Manifest, parts: list[Manifest], todo: list[int], log: Log) -> None:
    """Print each fold's size, the classes that cannot have a positive patient in every fold, and the next commands."""
    for number, fold in enumerate(parts):
        held_out, before = fold.of_split("val").images, "" if number in todo else " (there already)"
        counts = f"{len(held_out)} images of {held_out['patient_id'].nunique()} patients held out"
        log(f"{run_dir / f'fold_{number}'}: {counts}, {len(fold.of_split('train'))} to train on{before}")
    rest = manifest.select((manifest.images["split"] != "test").to_numpy(dtype=bool))
    patients = rest.images["patient_id"].to_numpy(dtype=object)
    counts = [len(set(patients[column > 0.5])) for column in rest.labels.T]
    rare = [f"{name} ({count})" for name, count in zip(rest.classes, counts, strict=True) if count < len(parts)]
    if rare:
        log(f"note: fewer positive patients than folds, so some folds cannot be scored on them: {', '.join(rare)}")
    log(f"when all folds are trained: python scripts/folds.py join --run_dir {shlex.quote(str(run_dir))}")
    numbers = " ".join(str(number) for number in range(len(parts)))
    log(f"next: for i in {numbers}; do {stage_commands(run_dir, '$i')}; done")


def _config_in_use(run_dir: Path, fold: str, stage: str) -> str:
    """The resolved configuration of a stage: this fold's, another fold's, or that of a run beside them."""
    folders = [run_dir / f"fold_{fold}", *(run_dir / f"fold_{n}" for n in _fold_numbers(run_dir)), run_dir]
    paths = [folder / stage / "config.yaml" for folder in folders]
    return next((shlex.quote(str(path)) for path in paths if path.exists()), "...")
