"""Every image once, as a small square thumbnail: 4 kB for each, so that 100,000 take 0.4 GB.

Bars around the picture are cut off and the rest is stretched to a square, which makes padded, letter-boxed and
resized copies alike. Grey values are ranks within the image (a full histogram equalisation), which no monotone change
of brightness, contrast or gamma alters. What remains between copies is a shift and a scale per axis.

Axes: **H W** an image's rows and columns, **h w** without bars, **S** the side of a thumbnail, **N** images.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import xxhash
from jaxtyping import Float, Float32, UInt8
from tqdm import tqdm

from data.images import ImageError, decode_image, read_bytes
from data.resize import resize

SIDE = 64
BAR_CONTRAST = 0.02  # a row or column whose grey values, all but 2 % of them, span less is a bar, of JPEG noise at most
MOST_CUT = 0.45  # of a side, from either end: an image without contrast keeps its middle
CHUNK = 512  # images handed to the threads at a time


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Equalised thumbnails, their contrast before equalisation, and what could not be read.

    `contrast` is the span between the 2nd and 98th percentile of the image's grey values in [0, 1], NaN where
    unreadable; `content` has the xxh3_64 of each file's bytes, "" where it was not read, and `reasons` says why it was
    not, "" where it was. The thumbnail of an unreadable image is black.
    """

    pixels: UInt8[np.ndarray, "N S S"]
    contrast: Float32[np.ndarray, "N"]
    content: list[str]
    reasons: list[str]


def read_thumbnails(paths: Sequence[Path], workers: int = os.cpu_count() or 1, progress: bool = True) -> Thumbnails:
    """Read and shrink images; one that cannot be read is kept with the reason.

    Args:
        workers: Threads; the decoders release Python's lock.
        progress: Show a bar with the time left.
    """
    pixels = np.zeros((len(paths), SIDE, SIDE), dtype=np.uint8)
    contrast = np.full(len(paths), np.nan, dtype=np.float32)
    content, reasons = [""] * len(paths), [""] * len(paths)

    def read(row: int) -> None:
        try:
            data = read_bytes(paths[row])
            image = decode_image(data, paths[row].name, at_least=2 * SIDE)
        except ImageError as error:
            reasons[row] = error.reason
            return
        content[row] = xxhash.xxh3_64_hexdigest(data)
        low, high = np.quantile(image, (0.02, 0.98))
        contrast[row], pixels[row] = high - low, thumbnail(image)

    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(paths), desc="reading images", unit="image", disable=not progress) as bar,
    ):
        for start in range(0, len(paths), CHUNK):
            for _ in pool.map(read, range(start, min(start + CHUNK, len(paths)))):
                bar.update()
    return Thumbnails(pixels, contrast, content, reasons)


def thumbnail(image: Float[np.ndarray, "H W"], side: int = SIDE) -> UInt8[np.ndarray, "S S"]:
    """Cut off bars, stretch to a square, equalise."""
    image = without_bars(image)
    small = resize(torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)), side, side).numpy()
    return equalised(small)


def without_bars(image: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "h w"]:
    """The image without constant rows and columns around it."""
    top, bottom = _kept(image)
    left, right = _kept(image[top:bottom].T)
    return image[top:bottom, left:right]


def equalised(image: Float[np.ndarray, "S S"]) -> UInt8[np.ndarray, "S S"]:
    """Grey values as ranks from 0 to 255; pixels of one value share the middle of their ranks."""
    _, place, count = np.unique(image, return_inverse=True, return_counts=True)
    ranks = np.cumsum(count) - (count + 1) / 2
    return np.rint(ranks * (255 / max(image.size - 1, 1)))[place].astype(np.uint8).reshape(image.shape)


def _kept(image: Float[np.ndarray, "H W"]) -> tuple[int, int]:
    """First row that is no bar, and the one after the last."""
    low, high = np.quantile(image[:, :: max(1, image.shape[1] // 128)], (0.02, 0.98), axis=1)
    H = len(image)
    content = np.flatnonzero(high - low > BAR_CONTRAST)
    most = int(MOST_CUT * H)
    if not len(content):
        return 0, H
    return min(int(content[0]), most), max(int(content[-1]) + 1, H - most)
