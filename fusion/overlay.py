"""Pictures of a group: its views side by side, below them the heat of some classes laid over each.

Axes: **V** views, **K** classes, **P R** rows and columns of an image, which may differ between views.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from data.plots import save_figure

HEIGHT = 2.6  # inches of a picture
HOT = "inferno"


def draw_overlays(
    path: Path,
    title: str,
    images: Sequence[Float[np.ndarray, "_P _R"]],
    view_titles: Sequence[str],
    heat: Sequence[Sequence[Float[np.ndarray, "_P _R"]]],
    row_titles: Sequence[str],
    cell_titles: Sequence[Sequence[str]],
) -> None:
    """Write a PNG: a row of the views, then a row per class with its heat over every view.

    Colours run from 0 to the class's largest heat in any view, so a view that has less of it is fainter.

    Args:
        images: Grey values in [0, 1], one per view.
        heat: Per class and view, in the image's size; negative values are not drawn.
        row_titles: Per class, beside its row.
        cell_titles: Per class and view, below the picture.
    """
    widths = [min(max(image.shape[1] / image.shape[0], 0.4), 2.5) for image in images]
    margin = 1.9  # inches for the row titles
    size = (margin + HEIGHT * sum(widths) * 1.04, 0.55 + (HEIGHT + 0.3) * (1 + len(heat)))
    figure = Figure(figsize=size, dpi=100)
    figure.suptitle(title, x=0.02, ha="left", y=1 - 0.12 / size[1], va="top", fontsize=11)
    grid = figure.add_gridspec(
        1 + len(heat),
        len(images),
        width_ratios=widths,
        left=margin / size[0],
        right=0.99,
        top=1 - 0.6 / size[1],
        bottom=0.25 / size[1],
        wspace=0.04,
        hspace=0.12,
    )
    for v, image in enumerate(images):
        axes = figure.add_subplot(grid[0, v])
        axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        axes.set_title(view_titles[v], fontsize=9, pad=3)
        axes.set_axis_off()
    for k, row in enumerate(heat):
        most = max(float(values.max()) for values in row)
        for v, values in enumerate(row):
            axes = figure.add_subplot(grid[1 + k, v])
            strength = np.clip(values / most, 0, 1) if most > 0 else np.zeros_like(values)
            axes.imshow(images[v], cmap="gray", vmin=0, vmax=1)
            axes.imshow(strength, cmap=HOT, vmin=0, vmax=1, alpha=0.75 * np.sqrt(strength))
            axes.set(xticks=[], yticks=[])
            axes.set_xlabel(cell_titles[k][v], fontsize=8, labelpad=2)
            for spine in axes.spines.values():
                spine.set_visible(False)
            if v == 0:
                words = "\n".join(
                    line for part in row_titles[k].split("\n") for line in textwrap.wrap(part, 24) or [""]
                )
                axes.annotate(
                    words, (-0.05, 0.5), xycoords="axes fraction", ha="right", va="center", fontsize=9, linespacing=1.4
                )
    save_figure(figure, path, dpi=100)
