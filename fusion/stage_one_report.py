"""The command `scripts/evaluate_stage_one.py`: how good stage one alone is on single images, and where it looks.

Everything comes from the cached maps and stage one's own head; no image passes the backbone again. It writes
``predictions_<split>.csv``, ``metrics_<split>.json`` and ``roc_<split>.png`` into ``<run_dir>/stage_one/evaluation``,
and one picture of Grad-CAM for all runs asked for, a row each.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from jsonargparse import ArgumentParser

from data.cache import FeatureCache
from data.errors import InputError
from data.files import atomic_write
from data.images import read_image
from data.manifest import Manifest, read_manifest
from data.plots import plot_roc
from data.predictions import write_predictions
from data.runs import run_command
from data.summary import groups_of, summary
from data.transforms import Preprocessing
from extract.engine import sigmoid
from fusion.config import GroupingConfig
from fusion.explain import image_grad_cam, to_pixels
from fusion.explanation import known
from fusion.grouping import GroupSet, cached_manifest, make_groups
from fusion.overlay import draw_overlays
from fusion.stage_one import load_head, stage_one_logits
from fusion.train import refuse_trained_patients

Split = Literal["train", "val", "test"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="evaluate_stage_one.py", description="Scores, ROC curves and Grad-CAM of stage one.")
    parser.add_argument("--run_dir", type=Path, nargs="+", required=True, help="runs of extract.py, caches included")
    parser.add_argument("--split", type=Split, default="test", help="train, val or test")
    parser.add_argument("--images", type=str, nargs="+", default=[], help="image ids of the split, for Grad-CAM")
    parser.add_argument(
        "--classes",
        type=str,
        nargs="+",
        default=[],
        help="class of each image (default: the most probable)",
    )
    options = parser.parse_args(argv)
    run_command(lambda: command(options.run_dir, options.split, options.images, options.classes))


def command(run_dirs: Sequence[Path], split: Split, image_ids: Sequence[str], classes: Sequence[str]) -> None:
    """Evaluate every run, then draw the images; prints what it wrote."""
    runs = {str(run_dir): load_run(run_dir, split) for run_dir in run_dirs}
    for run_dir, run in zip(run_dirs, runs.values(), strict=True):
        scores = evaluate(run, run_dir / "stage_one" / "evaluation", split)
        print(f"{run_dir}: {split} mAP {shown(scores['mAP'])}, mean AUROC {shown(scores['mAUROC'])}")
        print(run_dir / "stage_one" / "evaluation")
    if image_ids:
        path = run_dirs[0] / "stage_one" / "evaluation" / "grad_cam.png"
        draw_grad_cam(path, runs, image_ids, classes)
        print(path)


def shown(score: float | None) -> str:
    """A score for people; None where no class allows it."""
    return "undefined" if score is None else f"{score:.3f}"


@dataclass(frozen=True, eq=False)
class StageOneRun:
    """A finished stage one and the images of one split."""

    run_dir: Path
    manifest: Manifest
    """The images that the cache holds."""
    part: Manifest
    """Those of the split."""
    groups: GroupSet
    cache: FeatureCache
    logits: Float[np.ndarray, "N C"]
    """Of the split's images."""


def load_run(run_dir: Path, split: Split) -> StageOneRun:
    """Read a run and predict the split.

    Raises:
        InputError: no finished cache, an empty split, or a patient of val or test that the backbone was trained on.
    """
    cache = FeatureCache(run_dir / "cache")
    manifest = cached_manifest(read_manifest(run_dir / "manifest.csv"), cache)
    refuse_trained_patients(manifest, cache)
    part = manifest.of_split(split)
    if not len(part):
        raise InputError(f"{run_dir / 'manifest.csv'}: no cached image in split '{split}'")
    groups = make_groups(part, cache, GroupingConfig())
    return StageOneRun(run_dir, manifest, part, groups, cache, stage_one_logits(run_dir, groups, cache))


def evaluate(run: StageOneRun, out_dir: Path, split: Split) -> dict[str, Any]:
    """Write predictions, scores and ROC curves; the scores as in `data.metrics.summary`."""
    out_dir.mkdir(parents=True, exist_ok=True)
    probabilities, part = sigmoid(run.logits), run.part
    scores = summary(probabilities, part.labels, part.classes, groups_of(run.manifest.of_split("train")))
    write_predictions(out_dir / f"predictions_{split}.csv", part.images, probabilities, part.classes)
    atomic_write(out_dir / f"metrics_{split}.json", json.dumps(scores, indent=1))
    title = f"{run.run_dir.name}: single images, {split}"
    plot_roc(out_dir / f"roc_{split}.png", run.logits, part.labels, part.classes, title)
    return scores


def draw_grad_cam(
    path: Path, runs: Mapping[str, StageOneRun], image_ids: Sequence[str], classes: Sequence[str] = ()
) -> None:
    """One picture: the images side by side, below them each run's Grad-CAM of one class per image.

    Args:
        runs: By the name that a row gets; of the same images and classes.
        classes: One for each image, or one for all; none: the first run's most probable.

    Raises:
        InputError: an unknown image or class, or not one class for each image.
    """
    first = next(iter(runs.values()))
    chosen = choose_classes(first, rows_of(first, image_ids), classes)
    rows = rows_of(first, image_ids)
    images = [read_image(first.part.image_path(row)) for row in rows]
    heats, cells = [], []
    for run in runs.values():
        own = rows_of(run, image_ids)
        heat = [heat_of(run, *of) for of in zip(own, chosen, images, strict=True)]
        shares = [f"p = {sigmoid(run.logits)[row, c]:.2f}" for row, c in zip(own, chosen, strict=True)]
        heats.append(heat)
        cells.append([text + (", no heat" if one.max() == 0 else "") for text, one in zip(shares, heat, strict=True)])
    labels = [known(float(first.part.labels[row, c])) for row, c in zip(rows, chosen, strict=True)]
    titles = [f"{first.part.classes[c]}\n{label}" for c, label in zip(chosen, labels, strict=True)]
    draw_overlays(path, "Grad-CAM of stage one", images, titles, heats, list(runs), cells)


def rows_of(run: StageOneRun, image_ids: Sequence[str]) -> list[int]:
    """Rows of the split's images by id.

    Raises:
        InputError: names the first id that the split does not have.
    """
    rows = {image_id: row for row, image_id in enumerate(run.part.images["image_id"])}
    if unknown := [image_id for image_id in image_ids if image_id not in rows]:
        raise InputError(f"--images {unknown[0]}: {run.run_dir} has no such cached image in this split")
    return [rows[image_id] for image_id in image_ids]


def choose_classes(run: StageOneRun, rows: Sequence[int], classes: Sequence[str]) -> list[int]:
    """The class to draw for each image; errors as in `draw_grad_cam`."""
    if not classes:
        return run.logits[list(rows)].argmax(axis=1).tolist()
    names = list(run.part.classes)
    if unknown := [name for name in classes if name not in names]:
        raise InputError(f"--classes: {unknown[0]!r} is none of the classes {', '.join(names)}")
    if len(classes) not in (1, len(rows)):
        raise InputError(f"--classes: one for all images or one for each of {len(rows)}, got {len(classes)}")
    return [names.index(name) for name in (classes if len(classes) > 1 else list(classes) * len(rows))]


def heat_of(run: StageOneRun, row: int, c: int, image: Float[np.ndarray, "P R"]) -> Float[np.ndarray, "P R"]:
    """Grad-CAM of one image and class over its pixels, its largest value 1: runs differ in the scale of features."""
    ordinal = np.concatenate(run.groups.ordinals)[np.concatenate(run.groups.rows) == row]
    maps = torch.from_numpy(run.cache.read(ordinal)).to(torch.get_default_dtype())
    heat = image_grad_cam(load_head(run.run_dir, run.cache), maps, [c])[0, 0]
    pixels = to_pixels(heat, Preprocessing.from_dict(run.cache.identity.preprocessing), *image.shape).numpy()
    return pixels / max(float(pixels.max()), 1e-12)
