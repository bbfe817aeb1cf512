"""A trained image classifier, read from its model folder, that predicts images of any manifest.

Axes: **N** images, **C** classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Float32
from torch import Tensor

from data.config import parse_config
from data.errors import InputError
from data.manifest import Manifest
from data.runs import Log
from data.transforms import Preprocessing
from extract.backbone import ImageClassifier
from extract.checkpoint import check_folder, load_classes, load_json, load_tensors, load_weights, trained_patients
from extract.config import ExtractConfig
from extract.engine import gather_rows
from extract.images import ImageDataset, load_batches, on_device, plain_requests

MODEL_FILES = ("model.safetensors", "config.yaml", "classes.json", "preprocessing.json")


@dataclass(frozen=True, eq=False)
class Teacher:
    """Stage one's model with all that its predictions depend on."""

    model: ImageClassifier
    config: ExtractConfig
    classes: tuple[str, ...]
    weights_sha256: str
    trained_patients: frozenset[str] | None
    """Patients that it has learned from; None if the folder does not tell, as a published one does not."""


def load_teacher(folder: Path) -> Teacher:
    """Read a stage-one folder (its ``best/``) or a model folder, strictly: every file whole, every weight in place.

    Raises:
        InputError: a file is missing or damaged, or the weights are not those of the saved configuration.
    """
    best = folder / "best" if (folder / "best").is_dir() else folder
    missing = [name for name in MODEL_FILES if not (best / name).is_file()]
    if missing:
        raise InputError(f"{best}: {missing[0]} is missing; wanted a folder that extract.py wrote, runs/x/stage_one")
    check_folder(best)
    weights = load_tensors(best / "model.safetensors")
    if not any(name.startswith("backbone.") for name in weights):
        raise InputError(f"{best}: this model has no backbone; wanted a folder that extract.py wrote, runs/x/stage_one")
    config, _ = parse_config(ExtractConfig, best / "config.yaml", [])
    image = Preprocessing.from_dict(load_json(best / "preprocessing.json"))
    config = replace(config, image=image, backbone=replace(config.backbone, pretrained=False))
    classes = load_classes(best)
    model = ImageClassifier(config.backbone, config.head, image.channels, len(classes))
    load_weights(model, weights, str(best))
    data = best.parent / "data.json"
    trained = frozenset(trained_patients(best.parent)) if data.is_file() else None
    return Teacher(model, config, classes, load_json(best / "digests.json")["model.safetensors"], trained)


def predict_probabilities(
    teacher: Teacher,
    images: Manifest,
    accelerator: Accelerator,
    *,
    flip: bool,
    batch_size: int,
    num_workers: int,
    log: Log,
) -> Float32[np.ndarray, "N C"]:
    """Probabilities of all images, on every process, in manifest order.

    Whole batches are dealt to the processes: a batch, and with it every bit, is the same for any number of them.

    Args:
        flip: Mean of the probabilities of the image and its mirror image.

    Raises:
        InputError: an image that cannot be read.
    """
    model = teacher.model.eval().to(accelerator.device)
    batches = plain_requests(np.arange(len(images)), batch_size)
    own = batches[accelerator.process_index :: accelerator.num_processes]
    pixels = load_batches(ImageDataset(images, teacher.config.image), own, num_workers)
    with torch.inference_mode():
        parts = [
            predict_batch(model, on_device(batch, teacher.config, accelerator), flip, accelerator)
            for batch in log.progress(pixels, "predicting", total=len(own))
        ]
    values = torch.cat(parts) if parts else torch.empty(0, len(teacher.classes))
    return gather_rows(accelerator, rows_of(own), values, len(images))


def predict_batch(
    model: ImageClassifier, pixels: Float[Tensor, "B c h w"], flip: bool, accelerator: Accelerator
) -> Float[Tensor, "B C"]:
    """Probabilities in float32, averaged after the sigmoid as CheXFusion does."""
    with accelerator.autocast():
        logits = [model(version) for version in ([pixels, pixels.flip(-1)] if flip else [pixels])]
    return torch.stack([part.float().sigmoid() for part in logits]).mean(dim=0).cpu()


def rows_of(batches: Iterable[list[tuple[int, int]]]) -> np.ndarray:
    """The manifest rows of batches of requests."""
    return np.array([row for row, _ in chain.from_iterable(batches)], dtype=int)
