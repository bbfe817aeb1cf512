"""The command `scripts/roi_boxes.py`: the regions that a trained MXA model takes, drawn on images.

B images, S side of the network's input.
"""

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from data.config import parse_config
from data.errors import InputError
from data.manifest import Manifest, read_manifest
from data.order import derive_seed
from data.plots import save_figure
from data.runs import run_command
from extract.images import ImageDataset
from extract.mxa import roi_boxes
from extract.teacher import load_teacher

COLOURS = ("#e4572e", "#ffc914", "#17bebb")
"""Of the boxes of the first, second and third stage of EfficientViT-M."""
COLUMNS = 4


@dataclass(frozen=True, kw_only=True)
class ROIBoxesConfig:
    """Draw the regions of interest of a model with backbone.mxa."""

    run_dir: Path = Path("runs/mxa")
    """Run whose stage_one/best is shown, on images of its manifest.csv."""

    split: Literal["train", "val", "test"] = "val"
    """Split that the images come from."""

    images: list[str] | None = None
    """The image_id of each image to show; none: a draw from the split."""

    count: int = 8
    """How many, where they are drawn."""

    seed: int = 0
    """Of the draw."""

    out: Path | None = None
    """Picture to write; by default <run_dir>/stage_one/roi_boxes.png."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count must be at least 1, got {self.count}")


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and draw."""
    config, _ = parse_config(ROIBoxesConfig, None, argv)
    run_command(lambda: draw(config))


def draw(config: ROIBoxesConfig) -> None:
    """Write the picture and, per block, the mean box over these images.

    Raises:
        InputError: no trained model, one without MXA, or no such image.
    """
    trained = load_teacher(config.run_dir / "stage_one")
    if not trained.config.backbone.mxa:
        raise InputError(f"{config.run_dir}: its model has no medical X-ray attention (backbone.mxa), so no boxes")
    manifest = chosen(config, read_manifest(config.run_dir / "manifest.csv"))
    dataset = ImageDataset(manifest, trained.config.image)
    pixels = torch.stack([dataset[row, 0] for row in range(len(manifest))])
    boxes = {name: found.numpy() for name, found in roi_boxes(trained.model.backbone.model, pixels).items()}
    out = config.out or config.run_dir / "stage_one" / "roi_boxes.png"
    plot_boxes(pixels[:, 0].numpy(), boxes, manifest, out)
    for name, found in boxes.items():
        sides = zip(("left", "top", "right", "bottom"), found.mean(axis=0), found.std(axis=0), strict=True)
        print(f"{short(name):<18}" + "  ".join(f"{side} {mean:.3f} ({sd:.3f})" for side, mean, sd in sides))
    print(f"mean (standard deviation) over {len(manifest)} images, as shares of the image; picture: {out}")


def chosen(config: ROIBoxesConfig, manifest: Manifest) -> Manifest:
    """The images to show.

    Raises:
        InputError: an image that the manifest does not have, or an empty split.
    """
    ids = manifest.images["image_id"]
    if config.images:
        if missing := [name for name in config.images if name not in set(ids)]:
            raise InputError(f"--images: manifest.csv has no image {missing[0]!r}")
        return manifest.select(np.array([int(np.flatnonzero(ids == name)[0]) for name in config.images]))
    part = manifest.of_split(config.split)
    if not len(part):
        raise InputError(f"manifest.csv: no image in split {config.split}")
    rng = np.random.default_rng(derive_seed("roi boxes", config.seed))
    return part.select(np.sort(rng.permutation(len(part))[: config.count]))


def short(name: str) -> str:
    """``stages.1.blocks.0.mixer.m.mxa`` as people say it."""
    _, stage, _, block, *_ = name.split(".")
    return f"stage {int(stage) + 1}, block {int(block) + 1}"


def plot_boxes(
    images: Float[np.ndarray, "B S S"], boxes: dict[str, Float[np.ndarray, "B 4"]], shown: Manifest, path: Path
) -> None:
    """Draw every image with one box per block, coloured by stage, later blocks with thinner lines.

    A box is drawn where its share of the map lies in the image. Convolutions of stride 2 may shift a map against the
    image by up to half a cell, 8 pixels in the first stage and 32 in the last; and every cell has seen its neighbours.

    Args:
        boxes: By module, left, top, right, bottom as shares of the map.
    """
    rows, side = -(-len(images) // COLUMNS), images.shape[-1]
    figure = Figure(figsize=(3 * COLUMNS, 3.5 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.axis("off")
    for place, axis in enumerate(axes[: len(images)]):
        axis.imshow(images[place], cmap="gray", extent=(0, side, side, 0))
        for name, found in boxes.items():
            stage, block = (int(name.split(".")[i]) for i in (1, 3))
            left, top, right, bottom = found[place] * side
            width, thin = right - left, 2.2 - 0.5 * min(block, 3)
            colour = COLOURS[stage]
            axis.add_patch(Rectangle((left, top), width, bottom - top, edgecolor=colour, linewidth=thin, fill=False))
        positive = [name for name, y in zip(shown.classes, shown.labels[place], strict=True) if y > 0.5]
        title = f"{shown.images['view'].iat[place]}: {', '.join(positive) or 'none'}"
        axis.set_title("\n".join(textwrap.wrap(title, 36)[:3]), fontsize=7)
    handles = [Rectangle((0, 0), 1, 1, edgecolor=colour, fill=False) for colour in COLOURS]
    figure.legend(handles, [f"stage {n + 1}" for n in range(3)], loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path, dpi=100)
