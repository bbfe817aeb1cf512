"""The whole command on a set of any size: made-up pictures as files, some of them copies on another side.

Axes: **N** images, **S** side of a thumbnail, **P** side of a picture.
"""

import resource
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import simplejpeg
import torch
from jaxtyping import UInt8
from torch.nn import functional as F

from data.audit import command, duplicates, result
from data.audit.planting import blends
from data.manifest import MANIFEST_COLUMNS, Manifest, write_manifest
from data.order import derive_seed

PICTURE = 96  # pixels; real files of 512 px take 4 ms each to read and shrink
CHUNK = 500
MOST_COPIES = 200
STAGES = (
    (result, "read_thumbnails"),
    (duplicates, "find_candidates"),
    (duplicates, "align"),
    (duplicates, "confirm"),
    (result, "flag_images"),
    (command, "write_audit"),
)


def measure_scale(pixels: UInt8[np.ndarray, "N S S"], folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Audit `count` made-up pictures with `scripts/audit.py`'s own main: processor seconds by stage, memory, leaks.

    The last 200 (a tenth, if that is less) are crops of the first ones and in test; the originals are in train.

    Args:
        pixels: Thumbnails to blend.
        folder: Where pictures, manifest and audit are written.
    """
    num_copies = write_pictures(pixels, folder, count, seed)
    seconds: dict[str, float] = {}
    began, status = time.process_time(), 0
    with ExitStack() as patches:
        for module, name in STAGES:
            patches.enter_context(patch.object(module, name, _timed(name, getattr(module, name), seconds)))
        try:
            command.main([str(folder / "manifest.csv"), "--workers", "1"])
        except SystemExit as ended:
            status = ended.code
    found = pd.read_csv(folder / "audit" / "copies.csv", dtype="str")
    pairs = {frozenset(place.rpartition("/")[2] for place in row) for row in found[["first", "second"]].to_numpy()}
    planted = {frozenset((f"m{n}", f"m{count - num_copies + n}")) for n in range(num_copies)}
    return {
        "images": count,
        "status": status,
        "processor_seconds": round(time.process_time() - began, 1),
        "by_stage": {name: round(value, 1) for name, value in seconds.items()},
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
        "planted": num_copies,
        "planted_found": len(planted & pairs),
        "others_found": len(pairs - planted),
    }


def write_pictures(pixels: UInt8[np.ndarray, "N S S"], folder: Path, count: int, seed: int) -> int:
    """Write JPEGs and their manifest, three images a patient; returns the number of copies among them."""
    num_copies = min(MOST_COPIES, count // 10)
    rng = np.random.default_rng(derive_seed("scale", seed))
    originals = blends(pixels, num_copies, seed)
    for start in range(0, count, CHUNK):
        (folder / f"{start // CHUNK:05d}").mkdir(parents=True, exist_ok=True)
        made = blends(pixels, min(CHUNK, count - start), derive_seed("scale", seed, start))
        for row, number in enumerate(range(start, start + len(made))):
            image = originals[number] if number < num_copies else made[row]
            if number >= count - num_copies:
                image = cropped(originals[number - count + num_copies], rng)
            shown = F.interpolate(torch.from_numpy(image)[None, None].float(), (PICTURE, PICTURE), mode="bilinear")
            grey = np.rint(shown[0, 0, :, :, None].numpy()).astype(np.uint8)
            (folder / _path(number)).write_bytes(simplejpeg.encode_jpeg(grey, 90, "GRAY"))
    sides = np.where(np.arange(count) >= count - count // 10, "test", "train")
    ids = [f"m{number}" for number in range(count)]
    patients = [f"p{number // 3}" for number in range(count)]
    patients[count - count // 10 :] = [f"t{number // 3}" for number in range(count - count // 10, count)]
    places = [_path(number) for number in range(count)]
    columns = dict(zip(MANIFEST_COLUMNS, (ids, ids, patients, "PA", places, sides, "made up"), strict=True))
    labels = rng.integers(0, 2, (count, 2)).astype(np.float32)
    write_manifest(
        Manifest(pd.DataFrame(columns, dtype="str"), labels, ("Edema", "Mass"), folder), folder / "manifest.csv"
    )
    return num_copies


def cropped(image: UInt8[np.ndarray, "S S"], rng: np.random.Generator) -> UInt8[np.ndarray, "S S"]:
    """80 to 88 % of each side, at its old size."""
    S = len(image)
    top, left = rng.integers(0, S // 8, 2)
    height, width = rng.integers(S * 4 // 5, S * 7 // 8 + 1, 2)
    part = torch.from_numpy(image[top : top + height, left : left + width].astype(np.float32))
    return F.interpolate(part[None, None], (S, S), mode="bilinear")[0, 0].numpy().astype(np.uint8)


def _path(number: int) -> str:
    return f"{number // CHUNK:05d}/{number:06d}.jpg"


def _timed(name: str, function: Callable[..., Any], seconds: dict[str, float]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        began = time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            seconds[name] = time.process_time() - began
            print(f"{name}: {seconds[name]:.0f} processor seconds", flush=True)

    return call
