"""Images that look wrong: blank, grey inverted, turned, or no chest at all, by comparison with the set's own mean.

Most images of a set are right, so the mean of its frontal thumbnails is a chest. An image that resembles the mean with
black and white exchanged is inverted, one that resembles the turned mean is turned, one that resembles none of these
is listed as perhaps no chest. Laterals have a mean of their own, images of other views may follow either. A flag is a
reason to look, not a verdict.

Axes: **N** images, **S** side of a thumbnail, **R** ways to hold an image.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from data.audit.candidates import Variant, grids
from data.audit.duplicates import LEAST_CONTRAST
from data.audit.thumbnails import Thumbnails

LEAST_IMAGES = 40  # for a mean to be a chest
LEAST_LIKENESS = 0.35  # correlation with a mean, of anything that is held to be a chest
MARGIN = 0.25  # by which another way to hold an image must fit better than the given one
KINDS = {"frontal": ("PA", "AP"), "lateral": ("LATERAL",)}
HOLDS = ("", "turned by 90 degrees", "upside down", "turned by 270 degrees")


class Flag(NamedTuple):
    """An image (row) to look at, and why."""

    row: int
    fault: str
    detail: str


def flag_images(thumbnails: Thumbnails, views: list[str]) -> tuple[list[Flag], list[str]]:
    """Flagged images, and notes on what could not be checked."""
    unread = [Flag(row, "blank" if "blank" in reason else "unreadable", reason) for row, reason in _unread(thumbnails)]
    plain = [
        Flag(row, "blank", f"grey values span {thumbnails.contrast[row]:.1%} of full scale")
        for row in np.flatnonzero(thumbnails.contrast < LEAST_CONTRAST).tolist()
    ]
    usable = thumbnails.contrast >= LEAST_CONTRAST
    likeness, notes = np.full((len(views), 2 * len(HOLDS)), -np.inf, dtype=np.float32), []
    for kind, names in KINDS.items():
        own = usable & np.isin(views, names)
        if own.sum() < LEAST_IMAGES:
            notes.append(f"{own.sum()} {kind} images with contrast: too few ({LEAST_IMAGES}) to know what is usual")
            continue
        may_be = usable & ~np.isin(views, [name for other, n in KINDS.items() if other != kind for name in n])
        fits = resemblance(thumbnails.pixels[may_be], mean_thumbnail(thumbnails.pixels[own]))
        likeness[may_be] = np.maximum(likeness[may_be], fits)
    checked = np.flatnonzero(np.isfinite(likeness[:, 0]))
    found = [_judge(row, likeness[row]) for row in checked.tolist()]
    return [*unread, *plain, *(flag for flag in found if flag)], notes


def mean_thumbnail(pixels: UInt8[np.ndarray, "N S S"]) -> Float32[np.ndarray, "S S"]:
    """Mean of the thumbnails that resemble the mean of all best, three quarters of them."""
    mean = pixels.mean(axis=0, dtype=np.float32)
    likeness = grids(pixels, Variant()) @ grids(mean[None], Variant())[0]
    return pixels[likeness >= np.quantile(likeness, 0.25)].mean(axis=0, dtype=np.float32)


def resemblance(pixels: UInt8[np.ndarray, "N S S"], mean: Float32[np.ndarray, "S S"]) -> Float32[np.ndarray, "N R"]:
    """Correlation with the mean held in 4 ways (turned counter-clockwise), then the same with its grey inverted.

    An image and its mirror image count the same.
    """
    held = np.stack([np.rot90(mean, turns) for turns in range(len(HOLDS))])
    means = np.stack([grids(held, Variant(flipped=flipped)) for flipped in (False, True)])
    fits = (grids(pixels, Variant()) @ means.reshape(-1, means.shape[-1]).T).reshape(len(pixels), 2, len(HOLDS))
    return np.concatenate([fits.max(axis=1), (-fits).max(axis=1)], axis=1)


def _unread(thumbnails: Thumbnails) -> list[tuple[int, str]]:
    return [(row, reason) for row, reason in enumerate(thumbnails.reasons) if reason]


def _judge(row: int, likeness: Float32[np.ndarray, "R"]) -> Flag | None:
    best = int(likeness.argmax())
    detail = f"correlation {likeness[0]:.2f} as it is, {likeness[best]:.2f} {_name(best)}"
    if likeness[best] < LEAST_LIKENESS:
        return Flag(row, "perhaps no chest", f"correlation with the usual {likeness[best]:.2f} at best")
    if likeness[best] - likeness[0] < MARGIN:
        return None
    return Flag(row, "inverted" if best >= len(HOLDS) else "rotated", detail)


def _name(hold: int) -> str:
    words = [HOLDS[hold % len(HOLDS)], "with grey inverted" if hold >= len(HOLDS) else ""]
    return " and ".join(word for word in words if word)
