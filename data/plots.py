"""Pictures of a run that need no viewer: curves and what the network sees."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor

from data.files import atomic_write
from data.images import read_scaled
from data.manifest import Manifest
from data.metrics import auroc, roc_curve
from data.runs import read_metrics
from data.transforms import Preprocessing

BLUE, ORANGE, GREY = "#1f5f99", "#d1651a", "#888888"
matplotlib.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}
matplotlib.rcParams["text.parse_math"] = False  # names of classes and views are text, whatever dollars are in them


def plot_progress(stage_dir: Path) -> None:
    """Draw ``progress.png`` from ``metrics.jsonl``: training loss and validation mAP over epochs."""
    rows = read_metrics(stage_dir)
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [np.nan if row["train_loss"] is None else row["train_loss"] for row in rows]  # None: no step was taken
    left.plot(epochs, losses, color=BLUE, marker="o", markersize=3)
    left.set(xlabel="epoch", ylabel="training loss")
    for key, label, color in (("mAP", "mAP", ORANGE), ("mAUROC", "mAUROC", GREY)):
        right.plot(
            epochs,
            [np.nan if row[key] is None else row[key] for row in rows],
            color=color,
            marker="o",
            markersize=3,
            label=label,
        )
    known = [row for row in rows if row["mAP"] is not None]  # None: no class had a positive in validation
    if known:
        best = max(known, key=lambda row: row["mAP"])
        right.annotate(f"{best['mAP']:.3f}", (best["epoch"], best["mAP"]), (0, 6), textcoords="offset points")
    right.set(xlabel="epoch", ylabel="validation", ylim=(0, 1))
    right.legend(frameon=False)
    save_figure(figure, stage_dir / "progress.png", dpi=110)


def save_figure(figure: Figure, path: Path, dpi: int) -> None:
    """Write a picture in the format of its name: whole, or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=path.suffix[1:], dpi=dpi)
    atomic_write(path, buffer.getvalue())


def plot_roc(
    path: Path, scores: Float[np.ndarray, "N C"], targets: Float[np.ndarray, "N C"], classes: Sequence[str], title: str
) -> None:
    """Draw the ROC curve of every class that has positives and negatives, beside the list of areas, largest first."""
    areas = {c: auroc(scores[:, c], targets[:, c]) for c in range(len(classes))}
    drawn = sorted((c for c, area in areas.items() if not np.isnan(area)), key=lambda c: -areas[c])
    figure = Figure(figsize=(9.5, max(5.2, 1.2 + 0.2 * len(drawn))), layout="constrained")
    axis = figure.subplots()
    for place, c in enumerate(drawn):
        label = f"{classes[c]} {areas[c]:.3f} ({int((targets[:, c] > 0.5).sum())})"
        color, style = matplotlib.colormaps["tab10"](place % 10), ("-", "--", ":", "-.")[place // 10 % 4]
        axis.plot(*roc_curve(scores[:, c], targets[:, c]), color=color, linestyle=style, linewidth=1.1, label=label)
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=0.7)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(0, 1), ylim=(0, 1.005), aspect="equal", title=title)
    if drawn:
        heading = f"mean AUROC {np.mean([areas[c] for c in drawn]):.3f}\nclass, AUROC (positives)"
        figure.legend(title=heading, frameon=False, fontsize=8, loc="outside right upper")
    save_figure(figure, path, dpi=110)


def plot_batch(pixels: Float[Tensor, "B c S S"], images: Manifest, path: Path) -> None:
    """Draw up to 16 network inputs of a batch, with view and positive classes: what the network sees."""
    count = min(16, len(pixels))
    figure = Figure(figsize=(11, 3.3 * -(-count // 4)), layout="constrained")
    axes = np.atleast_1d(figure.subplots(-(-count // 4), 4, squeeze=False)).flatten()
    for place, axis in enumerate(axes):
        axis.axis("off")
        if place >= count:
            continue
        axis.imshow(pixels[place, 0].cpu().numpy(), cmap="gray")
        positive = [name for name, y in zip(images.classes, images.labels[place], strict=True) if y > 0.5]
        title = ", ".join(positive) or ("not labelled" if np.isnan(images.labels[place]).all() else "none")
        axis.set_title("\n".join(textwrap.wrap(f"{images.images['view'].iat[place]}: {title}", 32)[:3]), fontsize=7)
    save_figure(figure, path, dpi=80)


def plot_contact_sheet(manifest: Manifest, size: int, resize: Literal["stretch", "fit"], path: Path) -> None:
    """Draw up to 16 images of a manifest, evenly spaced, as a network of this input size sees them."""
    rows = np.unique(np.linspace(0, len(manifest) - 1, min(16, len(manifest))).astype(int))
    preprocessing = Preprocessing(size=size, resize=resize)
    pixels = [preprocessing.resized(*read_scaled(manifest.image_path(int(row)), size)) for row in rows]
    plot_batch(torch.stack(pixels), manifest.select(rows), path)
