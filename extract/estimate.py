"""What a feature cache costs, said before it is made: bytes in each form, room on the disk, and minutes."""

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from data.errors import InputError
from data.runs import Log
from data.shards import CacheIdentity, bytes_per_image
from data.storage import Storage

MEASURED_SECONDS = 20.0
"""Time over which speed is measured before the time left is told."""


@dataclass(frozen=True)
class Form:
    """One way to store the maps of all images."""

    pool: int
    dtype: Storage
    map_shape: tuple[int, int, int]
    total_bytes: int

    @property
    def options(self) -> str:
        """The command-line options that choose it."""
        return f"--cache.dtype {self.dtype} --cache.pool {self.pool}"


def storage_forms(identity: CacheIdentity, backbone_shape: tuple[int, int, int]) -> list[Form]:
    """Every form of a cache, from the largest to the smallest, its variants counted.

    Args:
        backbone_shape: H, W, D before any pooling.
    """
    dtypes: tuple[Storage, ...] = ("float16", "uint8")
    each = [(pool, dtype, pooled(backbone_shape, pool)) for pool in (1, 2) for dtype in dtypes]
    return [
        Form(pool, dtype, shape, identity.num_images * bytes_per_image(shape, dtype, len(identity.variants)))
        for pool, dtype, shape in each
    ]


def pooled(map_shape: tuple[int, int, int], pool: int) -> tuple[int, int, int]:
    """H, W, D after pooling `pool` x `pool` neighbours; the last row and column of odd sizes count."""
    H, W, D = map_shape
    return math.ceil(H / pool), math.ceil(W / pool), D


def forms_table(identity: CacheIdentity, forms: list[Form]) -> str:
    """The forms in lines for people; a star marks the chosen one."""
    lines = [f"cache: {identity.num_images} images; maps of each: {', '.join(identity.variants)}"]
    for form in forms:
        star = "*" if form == chosen(identity, forms) else " "
        shape, each = "x".join(map(str, form.map_shape)), form.total_bytes / identity.num_images
        lines.append(
            f" {star} {shape:>12} {form.dtype:>7} {each / 1e6:8.3f} MB per image {form.total_bytes / 1e9:9.2f} GB"
            f"   {form.options}"
        )
    return "\n".join(lines)


def chosen(identity: CacheIdentity, forms: list[Form]) -> Form:
    """The form of an identity."""
    return next(form for form in forms if (form.pool, form.dtype) == (identity.pool, identity.dtype))


def check_disk(folder: Path, identity: CacheIdentity, forms: list[Form], num_done: int) -> None:
    """Refuse to begin what the disk cannot hold.

    Args:
        num_done: Shards that are there already.

    Raises:
        InputError: names the forms that would fit.
    """
    wanted = chosen(identity, forms).total_bytes * (1 - num_done / identity.num_shards)
    free = shutil.disk_usage(folder).free
    if wanted <= free:
        return
    fitting = [f"{form.options} ({form.total_bytes / 1e9:.2f} GB)" for form in forms if form.total_bytes <= free]
    instead = f", or choose a form that fits: {', '.join(fitting)}" if fitting else " (no form of this cache fits)"
    raise InputError(
        f"{folder}: the maps need {wanted / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; make room or move run_dir"
        f"{instead}"
    )


class Rate:
    """Tells once, early on, how fast extraction runs and how long it will take."""

    def __init__(self, num_images: int, log: Log) -> None:
        self.num_images, self.log = num_images, log
        self.done, self.started, self.done_at_start, self.told = 0, 0.0, 0, False

    def add(self, num_images: int) -> None:
        """Count a batch; the first one only starts the clock, since decoding it had nothing to hide behind."""
        self.done += num_images
        now = time.monotonic()
        if self.started == 0.0:
            self.started, self.done_at_start = now, self.done
        elif not self.told and now - self.started >= MEASURED_SECONDS and self.done < self.num_images:
            rate = (self.done - self.done_at_start) / (now - self.started)
            minutes = (self.num_images - self.done) / rate / 60
            self.log(f"cache: {rate:.1f} images per second and process, about {minutes:.0f} minutes left")
            self.told = True
