"""A teacher's word on all training images, asked once: a frozen model folder, in the student's classes.

The teacher sees each image as its own preprocessing makes it, without augmentation, before training begins. So teacher
and student may differ in size, channels and intensities, every process knows the whole table (label weights need the
global batch), and a run that goes on asks again and hears the same, to the bit.

N training images, C the student's classes.
"""

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float32

from data.errors import InputError
from data.manifest import Manifest
from data.runs import Log
from extract.checkpoint import load_json
from extract.config import ExtractConfig
from extract.losses.distillation import adapt
from extract.phases import model_folder
from extract.teacher import Teacher, load_teacher, predict_probabilities


@dataclass(frozen=True, eq=False)
class Taught:
    """What a student is taught, and of whom its teacher has learned."""

    probabilities: Float32[np.ndarray, "N C"]
    patients: Set[str]


def ask_teacher(
    config: ExtractConfig, folder: Path, manifest: Manifest, train_set: Manifest, accelerator: Accelerator, log: Log
) -> Taught:
    """The teacher's probabilities for the training images, NaN for classes that it does not know.

    Args:
        config: The student's.
        folder: The teacher's.
        manifest: All images of the student's run.

    Raises:
        InputError: no whole model folder, no class in common, or a teacher that knows a patient of val or test.
    """
    teacher = load_teacher(folder)
    refuse_taught_patients(teacher, folder, manifest, log)
    unchecked = never_labelled(folder)
    known = [name for name in manifest.classes if name in teacher.classes and name not in unchecked]
    if not known:
        raise InputError(f"distillation.teacher: {folder} has no class of manifest.csv, {', '.join(manifest.classes)}")
    log(f"teacher {folder}: {teacher.config.backbone.name}, knows {len(known)} of {len(manifest.classes)} classes")
    sizes = {"batch_size": config.cache.batch_size, "num_workers": config.num_workers}
    values = predict_probabilities(teacher, train_set, accelerator, flip=False, **sizes, log=log)
    return Taught(adapt(values, teacher.classes, manifest.classes, unchecked), teacher.trained_patients or frozenset())


def never_labelled(folder: Path) -> set[str]:
    """Classes without a single known label in the teacher's validation: nobody knows what their outputs mean."""
    path = model_folder(folder) / "metrics.json"
    val = load_json(path).get("val", {})
    scores = val.get("per_class", {}) if isinstance(val, dict) else None
    if not isinstance(scores, dict) or not all(isinstance(s, dict) and "known" in s for s in scores.values()):
        raise InputError(f"{path}: damaged, wanted scores by class under val.per_class; train it again")
    return {name for name, score in scores.items() if not score["known"]}


def refuse_taught_patients(teacher: Teacher, folder: Path, manifest: Manifest, log: Log) -> None:
    """Refuse a teacher that knows a patient of val or test, for it would tell the student.

    Raises:
        InputError: names the first such patient.
    """
    if teacher.trained_patients is None:
        log(f"note: no data.json beside {folder} tells whether the teacher has learned from patients of val or test")
        return
    held_out = set(manifest.images.loc[manifest.images["split"] != "train", "patient_id"])
    if seen := sorted(teacher.trained_patients & held_out):
        raise InputError(
            f"manifest.csv: {len(seen)} patients of val or test were trained on by distillation.teacher, first"
            f" {seen[0]}; use one split by patient for both"
        )
