"""Whether two thumbnails show the same picture: lay one on the other, then compare it patch by patch.

The second thumbnail is explained as gain * warped first + offset, where the warp is a scale and a shift per axis
(crops and stretches), by Gauss-Newton steps from coarse to fine (Lucas and Kanade, IJCAI 1981). Pairs that remain
unlike at a coarse level go no further. The score is the correlation within patches of an eighth of a side, weighted
by their contrast: the same anatomy on another day agrees in the large and differs in the small.

Axes: **M** pairs, **S** side of a thumbnail, **s** side at a level, **P** patches.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from data.audit.candidates import VARIANTS, Pairs, Variant

LEVELS = ((16, 2, 0.88), (32, 2, 0.82), (64, 4, 0.0))  # side, steps, least score to go on
# Of 200 planted copies the lowest reach 0.93 and 0.86 (a clipped one); of other candidates 1 in 4, then 1 in 20 go on.
MOST_STEP = 0.08  # of a half side
BATCH = 512
PATCHES = 8  # along a side, and as many between them
MIN_OVERLAP = 0.7  # part of the second thumbnail that the first one must cover


class Alignment(NamedTuple):
    """`score` in [-1, 1], 0 for pairs given up early; `warp` maps places in `second` to places in `first`.

    A warp is (x scale, x shift, y scale, y shift), where a side runs from -1 to 1; `first` is mirrored before it.
    """

    score: Float32[np.ndarray, "M"]
    warp: Float32[np.ndarray, "M 4"]


def align(pixels: UInt8[np.ndarray, "N S S"], pairs: Pairs, progress: bool = True) -> Alignment:
    """Align and score candidate pairs."""
    parts = [
        _align(pixels, Pairs(*(column[start : start + BATCH] for column in pairs)))
        for start in tqdm(range(0, len(pairs.first), BATCH), desc="aligning", unit_scale=BATCH, disable=not progress)
    ]
    if not parts:
        return Alignment(np.empty(0, np.float32), np.empty((0, 4), np.float32))
    return Alignment(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


@torch.inference_mode()
def _align(pixels: UInt8[np.ndarray, "N S S"], pairs: Pairs) -> Alignment:
    variants = [VARIANTS[number] for number in pairs.variant.tolist()]
    first, second = held(pixels[pairs.first], variants), held(pixels[pairs.second])
    warp = torch.tensor(
        [(v.right - v.left, v.right + v.left - 1, v.bottom - v.top, v.bottom + v.top - 1) for v in variants]
    )
    score, left = torch.zeros(len(variants)), torch.arange(len(variants))
    for side, steps, least in LEVELS:
        small = [F.interpolate(image[left], (side, side), mode="area") for image in (first, second)]
        found, reached = fit(small[0], small[1], warp[left], steps)
        warp[left] = found
        good = reached >= least
        left, reached = left[good], reached[good]
    score[left] = reached
    return Alignment(score.numpy(), warp.numpy())


def held(pixels: UInt8[np.ndarray, "M S S"], variants: Sequence[Variant] = ()) -> Float[Tensor, "M 1 S S"]:
    """Thumbnails in [0, 1], mirrored and inverted as their variants say."""
    images = torch.from_numpy(pixels)[:, None] / 255
    for number, variant in enumerate(variants):
        if variant.flipped:
            images[number] = images[number].flip(2)
        if variant.inverted:
            images[number] = 1 - images[number]
    return images


def fit(
    first: Float[Tensor, "M 1 s s"], second: Float[Tensor, "M 1 s s"], warp: Float[Tensor, "M 4"], steps: int
) -> tuple[Float[Tensor, "M 4"], Float[Tensor, "M"]]:
    """A better warp, and the score it reaches."""
    s = first.shape[-1]
    slope_x, slope_y = torch.zeros_like(first), torch.zeros_like(first)
    slope_x[..., 1:-1] = (first[..., 2:] - first[..., :-2]) * s / 4  # per half side
    slope_y[..., 1:-1, :] = (first[..., 2:, :] - first[..., :-2, :]) * s / 4
    layers = torch.cat([first, slope_x, slope_y, torch.ones_like(first)], dim=1)
    places = (torch.arange(s) + 0.5) * 2 / s - 1
    y, x = torch.meshgrid(places, places, indexing="ij")
    for _ in range(steps):
        warp = _step(_warped(layers, warp, x, y), second, warp, x, y)
    warped = _warped(layers, warp, x, y)
    inside = (warped[:, 3:] > 0.99).float()
    return warp, local_correlation(warped[:, :1], second, inside, max(4, s // PATCHES))


def _warped(layers: Tensor, warp: Float[Tensor, "M 4"], x: Tensor, y: Tensor) -> Float[Tensor, "M 4 s s"]:
    scale_x, shift_x, scale_y, shift_y = warp[:, :, None, None].unbind(1)
    return F.grid_sample(layers, torch.stack([scale_x * x + shift_x, scale_y * y + shift_y], -1), align_corners=False)


def _step(warped: Tensor, second: Tensor, warp: Float[Tensor, "M 4"], x: Tensor, y: Tensor) -> Float[Tensor, "M 4"]:
    """One least-squares step for gain, offset and warp together."""
    image, slope_x, slope_y, ones = warped.unbind(1)
    inside = (ones > 0.99).float()
    columns = [image, torch.ones_like(image), slope_x * x, slope_x, slope_y * y, slope_y, second[:, 0]]
    rows = (torch.stack(columns, dim=1) * inside[:, None]).flatten(2)
    products = rows @ rows.mT
    normal, wanted = products[:, :6, :6], products[:, :6, 6:]
    normal = normal + 1e-4 * normal.diagonal(dim1=1, dim2=2).mean(1)[:, None, None] * torch.eye(6) + 1e-9 * torch.eye(6)
    solved = torch.linalg.solve(normal, wanted)[..., 0]
    step = (solved[:, 2:] / solved[:, :1].clamp(min=0.2)).clamp(-MOST_STEP, MOST_STEP)
    low, high = torch.tensor([0.5, -0.5, 0.5, -0.5]), torch.tensor([1.3, 0.5, 1.3, 0.5])
    return torch.clamp(warp + step, low, high)


def local_correlation(
    first: Float[Tensor, "M 1 s s"], second: Float[Tensor, "M 1 s s"], inside: Float[Tensor, "M 1 s s"], patch: int
) -> Float[Tensor, "M"]:
    """Mean over patches (half overlapping, wholly inside) of their correlation, weighted by both contrasts.

    0 where less than `MIN_OVERLAP` is inside.
    """

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, patch, patch // 2).flatten(1)

    mean_first, mean_second = mean(first), mean(second)
    variance = (mean(first**2) - mean_first**2).clamp(min=0) * (mean(second**2) - mean_second**2).clamp(min=0)
    correlation = (mean(first * second) - mean_first * mean_second) / variance.clamp(min=1e-10).sqrt()
    weight = variance**0.25 * (mean(inside) > 0.999)
    score = (correlation * weight).sum(1) / weight.sum(1).clamp(min=1e-6)
    return torch.where(inside.mean((1, 2, 3)) >= MIN_OVERLAP, score, 0.0)
