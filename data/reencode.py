"""Originals to encoded pictures at working size, in worker processes.

A picture is what stage one makes of a file first: the same decoding, the same antialiased resizing, rounded to 8 or 16
bits. Intensity, padding and normalisation are left to stage one, which does them on what it reads.

Axes: **h w** rows and columns at working size.
"""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import simplejpeg
import torch
import xxhash
from jaxtyping import Float, UInt
from torch.utils.data import DataLoader, Dataset

from data.image_shards import Form, PreparedImages
from data.images import ImageError, decode_scaled, read_bytes
from data.scan import inside
from data.transforms import Preprocessing
from data.workers import told_in_one_line

JPEG_QUALITY = 95
# libpng's filter from the row above, and zlib's Z_RLE: against the defaults, on X-rays at 512 px, 0.4 (8 bits) and 0.3
# (16 bits) of the time to encode, 0.55 and 0.65 to decode, 0.92 and 0.98 of the bytes
PNG_UP, PNG_RUNS = 0x20, 3
NARROW_LEVELS = 64
AHEAD = 4  # pictures that each worker may be ahead of the writer


class Outcome(NamedTuple):
    """What became of an original."""

    encoded: bytes = b""
    content: str = ""
    """xxh3_64 of the original's bytes, 16 hexadecimal digits."""
    narrow: bool = False
    """8 bits leave fewer than `NARROW_LEVELS` grey levels."""
    reason: str = ""
    """Why it is left out, or empty."""


class Originals(Dataset):
    """Number in, `Outcome` out."""

    def __init__(self, root: Path, paths: Sequence[str], prepared: PreparedImages) -> None:
        self.root, self.paths, self.form = root.resolve(), paths, prepared.form
        self.preprocessing = Preprocessing(size=prepared.size, resize=prepared.resize)

    def __getitem__(self, index: int) -> Outcome:
        path = self.paths[index]
        try:
            data = read_bytes(inside(path, self.root))
            picture = decode_scaled(data, path, self.preprocessing.size)
        except ImageError as error:
            return Outcome(reason=error.reason)
        pixels = to_integers(self.preprocessing.scaled(*picture).numpy(), self.form)
        if not np.ptp(pixels):  # stage one would refuse it as blank
            return Outcome(reason=f"is blank in {8 * pixels.itemsize} bits at this size: all pixels are equal")
        narrow = pixels.dtype == np.uint8 and bool(np.count_nonzero(np.bincount(pixels.ravel())) < NARROW_LEVELS)
        return Outcome(encode(pixels, self.form), xxhash.xxh3_64_hexdigest(data), narrow)


def to_integers(picture: Float[np.ndarray, "h w"], form: Form) -> UInt[np.ndarray, "h w"]:
    """Grey in [0, 1] to full-scale integers, off by half a level at most."""
    dtype = np.uint16 if form == "png16" else np.uint8
    top = np.iinfo(dtype).max
    return np.rint(picture * np.float32(top)).clip(0, top).astype(dtype)


def encode(pixels: UInt[np.ndarray, "h w"], form: Form) -> bytes:
    """A PNG or JPEG file without any metadata."""
    if form == "jpeg":
        return simplejpeg.encode_jpeg(pixels[..., None], quality=JPEG_QUALITY, colorspace="GRAY")
    return bytes(imagecodecs.png_encode(pixels, level=1, strategy=PNG_RUNS, filter=PNG_UP))


def reencode(originals: Originals, numbers: Sequence[int], workers: int) -> Iterator[Outcome]:
    """Outcomes for the originals' numbers, in order, made by worker processes a few pictures ahead.

    When this process ends, in whatever way, its workers notice within seconds and end too (the DataLoader's watch).

    Raises:
        InputError: a worker that the system killed.
    """
    loader = DataLoader(
        originals,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        collate_fn=_as_it_is,
        prefetch_factor=AHEAD,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(0),
        multiprocessing_context="fork",  # with a server in between, workers would watch that instead of this process
    )
    return told_in_one_line(iter(loader), "lower --workers")  # iter() starts the workers now


def _as_it_is(outcome: Any) -> Any:
    return outcome


def _start_worker(_: int) -> None:
    """Ctrl-C is the writing process's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
