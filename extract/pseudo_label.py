"""The command `scripts/pseudo_label.py`: a teacher fills in what an external set does not say.

The rules are in `data/pseudo_labels.py`. The result is a manifest like any other, beside it ``pseudo_labels.json``
(teacher, options, counts per class) and ``predictions/``, the teacher's word in parts, from which a killed run goes on.

Axes: **N** images, **C** classes.
"""

import hashlib
import json
import shlex
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float32

from data.config import parse_config, to_dict
from data.errors import InputError
from data.files import atomic_write
from data.image_shards import refuse_unfit
from data.lock import locked
from data.manifest import Manifest, read_manifest, write_manifest
from data.predictions import read_predictions, write_predictions
from data.pseudo_labels import (
    ExternalSet,
    fill_unknown,
    in_classes_of,
    join_manifests,
    label_counts,
    refuse_same_content,
)
from data.runs import Log, run_command
from data.scan import scan_images
from extract.engine import make_accelerator
from extract.teacher import Teacher, load_teacher, predict_probabilities

PART = 4096
"""Images whose predictions are kept together: what a kill loses at most."""


@dataclass(frozen=True, kw_only=True)
class PseudoLabelConfig:
    """Fill in the unknown labels of an external set with a teacher's probabilities, and join it with one's own set."""

    teacher: Path
    """Stage-one folder of a finished run, runs/x/stage_one, or its best/."""

    manifest: Path
    """The external set's manifest, made by scripts/prepare.py. Only its train split is filled in."""

    out: Path
    """The manifest to write, runs/<name>/manifest.csv; extract.py trains on it."""

    join: Path | None = None
    """Manifest whose rows go first, unchanged: one's own. Of the external set only train rows follow."""

    source: str = ""
    """What the column `source` says of the external rows; empty: what it says now."""

    rename: dict[str, str] = field(default_factory=dict)
    """External class name to the teacher's: {"Effusion": "Pleural Effusion"}."""

    joint: dict[str, list[str]] = field(default_factory=dict)
    """External label that means "at least one of these findings": {"Nodule/Mass": ["Nodule", "Mass"]}."""

    drop: list[str] = field(default_factory=list)
    """External classes to leave out: ["ILD"]."""

    flip: bool | None = None
    """Average over the image and its mirror image; by default if the teacher was trained with flips."""

    allow_seen: bool = False
    """Label patients that the teacher was trained on, too. It remembers them, so its labels are overconfident."""

    batch_size: int = 32
    """Images per forward pass and process."""

    num_workers: int = 2
    """Decoding workers per process."""

    max_rejected: float = 0.01
    """Share of unreadable images above which nothing is written."""

    def __post_init__(self) -> None:
        if self.out.name != "manifest.csv":
            raise ValueError(f"out must be called manifest.csv, the stages look for that name; got {self.out}")
        if self.out.resolve() in [path.resolve() for path in (self.manifest, self.join) if path]:
            raise ValueError(f"out must be another file than those it is made from, got {self.out}")
        if self.batch_size < 1 or self.num_workers < 0:
            raise ValueError("batch_size must be at least 1 and num_workers not negative")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run; a fault of the input ends it with one line."""
    config, _ = parse_config(PseudoLabelConfig, None, argv)
    run_command(lambda: run(config), config.out.parent)


def run(config: PseudoLabelConfig) -> None:
    """Fill in, join, write."""
    teacher = load_teacher(config.teacher)
    accelerator = make_accelerator(teacher.config)
    with locked(config.out.parent) if accelerator.is_main_process else nullcontext():
        log = Log(config.out.parent, accelerator.is_main_process)
        log.start("pseudo-labels", accelerator.num_processes, accelerator.device.type)
        external = read_external(config, teacher, log)
        own = read_manifest(config.join) if config.join else None
        refuse_seen(config, teacher, own, external.manifest, log)
        whole = join_manifests(own, external.manifest) if own else external.manifest
        content = external_content(config, whole, external.manifest, accelerator)
        probabilities = predict_kept(config, teacher, external.manifest, content, accelerator, log)
        if accelerator.is_main_process:
            filled = fill_unknown(external, probabilities)
            write_manifest(join_manifests(own, filled) if own else filled, config.out)
            report(config, teacher, label_counts(external.manifest, filled), log)
        accelerator.wait_for_everyone()


def read_external(config: PseudoLabelConfig, teacher: Teacher, log: Log) -> ExternalSet:
    """The external set in the teacher's classes.

    Raises:
        InputError: a class without counterpart, or no training images.
    """
    manifest = read_manifest(config.manifest)
    refuse_unfit(manifest.root, manifest.images["path"], teacher.config.image.size, teacher.config.image.resize)
    if config.source:
        images = manifest.images.assign(source=config.source).astype({"source": "str"})
        manifest = Manifest(images, manifest.labels, manifest.classes, manifest.root)
    external = in_classes_of(manifest, teacher.classes, config.rename, config.joint, config.drop)
    num_train = len(manifest.of_split("train"))
    if not num_train:
        raise InputError(f"{config.manifest}: no image in split 'train', and no other split is filled in")
    left_out = ", and only these are joined" if config.join else ""
    log(f"{config.manifest}: {num_train} of {len(manifest)} images are for training{left_out}")
    return external


def refuse_seen(
    config: PseudoLabelConfig, teacher: Teacher, own: Manifest | None, external: Manifest, log: Log
) -> None:
    """Refuse a teacher that remembers: the external images it would label, or those that the student is scored on.

    Raises:
        InputError: names the first such patient.
    """
    if teacher.trained_patients is None:
        log(f"note: no data.json beside {config.teacher} tells whether the teacher has learned from these images")
        return
    seen = sorted(teacher.trained_patients & set(external.of_split("train").images["patient_id"]))
    if seen and not config.allow_seen:
        raise InputError(
            f"{config.manifest}: {len(seen)} patients to be labelled are among those that the teacher was trained on,"
            f" first {seen[0]}; it remembers them: leave them out, use another fold's model, or add --allow_seen"
        )
    if own is None:
        return
    held_out = own.images.loc[own.images["split"] != "train", "patient_id"]
    leaks = sorted(teacher.trained_patients & set(held_out))
    if leaks:
        raise InputError(
            f"{config.join}: the teacher was trained on {len(leaks)} patients of val or test, first {leaks[0]}; its"
            " labels would carry them into training: take a teacher of this split"
        )


def external_content(
    config: PseudoLabelConfig, whole: Manifest, external: Manifest, accelerator: Accelerator
) -> list[str]:
    """Content digest of each external image, "" where it cannot be read, on every process.

    The main process opens all images of the manifest to be; stage one then finds them checked (``images.csv``).
    """
    found = None
    if accelerator.is_main_process:
        workers = max(1, config.num_workers)
        scan = scan_images(whole, config.out.parent, workers=workers, max_rejected=config.max_rejected)
        refuse_same_content(whole, scan.content)
        digests = dict(zip(whole.images["image_id"], scan.content, strict=True))
        found = [digests.get(image_id, "") for image_id in external.images["image_id"]]
    (content,) = broadcast_object_list([found])
    return content


def predict_kept(
    config: PseudoLabelConfig,
    teacher: Teacher,
    external: Manifest,
    content: list[str],
    accelerator: Accelerator,
    log: Log,
) -> Float32[np.ndarray, "N C"]:
    """The teacher's probabilities of all readable training images, NaN elsewhere; part by part, each kept on disk.

    Only the main process's result is whole.
    """
    flip = teacher.config.augmentation.hflip > 0 if config.flip is None else config.flip
    wanted = (external.images["split"] == "train").to_numpy(dtype=bool) & (np.array(content) != "")
    rows = np.flatnonzero(wanted)
    parts = [rows[i : i + PART] for i in range(0, len(rows), PART)]
    folder = config.out.parent / "predictions" / digest_of(teacher, flip, external, content)
    names = [folder / f"{number:05d}.csv" for number in range(len(parts))]
    (there,) = broadcast_object_list([[name.exists() for name in names]])
    log(f"teacher {config.teacher}: {len(rows)} images{', with their mirror images' if flip else ''}")
    if any(there):
        log(f"{sum(there)} of {len(parts)} parts are there already: {folder}")
    probabilities = np.full((len(external), len(teacher.classes)), np.nan, dtype=np.float32)
    for part, name, done in zip(parts, names, there, strict=True):
        images = external.select(part)
        if not done:
            options = {"flip": flip, "batch_size": config.batch_size, "num_workers": config.num_workers}
            values = predict_probabilities(teacher, images, accelerator, **options, log=log)
            if accelerator.is_main_process:
                write_predictions(name, images.images, values, teacher.classes)
        if accelerator.is_main_process:
            probabilities[part] = read_predictions(name)[1]
    return probabilities


def digest_of(teacher: Teacher, flip: bool, external: Manifest, content: list[str]) -> str:
    """Names the predictions by all that decides them."""
    images = list(zip(external.images["image_id"], external.images["split"], content, strict=True))
    parts = [teacher.weights_sha256, teacher.config.image.digest, flip, PART, images]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def report(config: PseudoLabelConfig, teacher: Teacher, counts: dict[str, dict[str, int]], log: Log) -> None:
    """Say, and write down, how many labels were known, filled in and left unknown."""
    record = {
        "teacher_sha256": teacher.weights_sha256,
        "external_sha256": read_manifest(config.manifest).digest,
        "options": to_dict(config),
        "labels": counts,
    }
    path = config.out.parent / "pseudo_labels.json"
    atomic_write(path, json.dumps(record, indent=1, ensure_ascii=False))
    width = max(map(len, counts))
    log(f"{'labels of external images':<{width}}    known   filled  unknown")
    for name, row in counts.items():
        log(f"{name:<{width}} {row['known']:>8,} {row['filled']:>8,} {row['unknown']:>8,}")
    log(f"next: accelerate launch extract.py --run_dir {shlex.quote(str(config.out.parent))} --config ...")
