"""What one training phase learns from and hands to the next: a backbone, and the list of patients that it has seen.

A phase is a run of stage one. The next one names its model folder in ``backbone.pretrained``, takes the backbone and
starts with a new head, on other classes if need be. A phase may leave images out of training and validation; the split
by patient is the manifest's in any case.
"""

from pathlib import Path
from typing import Literal

from torch import Tensor

from data.errors import InputError
from data.manifest import Manifest
from extract.checkpoint import check_folder, load_tensors, trained_patients

PREFIX = "backbone."
NORMAL = ("No Finding", "Normal")
"""Classes that say that there is nothing to find."""

TrainOn = Literal["all", "abnormal"]


def for_training(manifest: Manifest, train_on: TrainOn) -> Manifest:
    """The manifest without the images of train and val that a phase leaves out; test is whole.

    Args:
        train_on: "abnormal" keeps images with a positive label (above 0.5) of a class other than `NORMAL`.

    Raises:
        InputError: no image is left to train or to validate on.
    """
    if train_on == "all":
        return manifest
    findings = [c for c, name in enumerate(manifest.classes) if name not in NORMAL]
    abnormal = (manifest.labels[:, findings] > 0.5).any(axis=1)  # unknown is not positive
    kept = manifest.select(abnormal | (manifest.images["split"] == "test").to_numpy(dtype=bool))
    for split in ("train", "val"):
        if not len(kept.of_split(split)):
            raise InputError(f"manifest.csv: train_on abnormal leaves no image in split '{split}'; use train_on all")
    return kept


def model_folder(folder: Path) -> Path:
    """A model folder: the folder itself, or the ``best/`` of a stage folder."""
    return folder / "best" if (folder / "best").is_dir() else folder


def backbone_weights(folder: Path) -> dict[str, Tensor]:
    """A former phase's backbone as a state dict, every file compared with its digest; the head is left out.

    Raises:
        InputError: no whole model folder, or a model without a backbone, such as a fusion model.
    """
    folder = model_folder(folder)
    check_folder(folder)
    weights = load_tensors(folder / "model.safetensors")
    backbone = {key.removeprefix(PREFIX): value for key, value in weights.items() if key.startswith(PREFIX)}
    if not backbone:
        raise InputError(f"backbone.pretrained: {folder} holds no backbone; name a folder that extract.py made")
    return backbone


def former_patients(pretrained: bool | Path) -> set[str]:
    """Patients that former phases were trained on, as far as is known.

    A stage folder lists them in ``data.json``, those of phases before it included. A published model folder does not,
    nor does a file of weights.
    """
    if not isinstance(pretrained, Path) or not pretrained.is_dir():
        return set()
    stage_dir = model_folder(pretrained).parent
    return trained_patients(stage_dir) if (stage_dir / "data.json").is_file() else set()


def refuse_former_patients(former: set[str], manifest: Manifest) -> None:
    """Refuse to start from a backbone that knows a patient of val or test, before any time is spent on training.

    Raises:
        InputError: names the first such patient.
    """
    held_out = set(manifest.images.loc[manifest.images["split"] != "train", "patient_id"])
    if seen := sorted(former & held_out):
        raise InputError(
            f"manifest.csv: {len(seen)} patients of val or test were trained on in the phase that backbone.pretrained"
            f" names, first {seen[0]}; use one split by patient for both phases"
        )
