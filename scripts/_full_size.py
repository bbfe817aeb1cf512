"""JPEGs of the size and weight of MIMIC-CXR-JPG's, made on the spot, for benches."""

import csv
import io
import os
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 3056, 2544
NOISE = 1.75  # grey levels; gives files of 1.5 MB at quality 95, MIMIC-CXR-JPG's mean


def full_size_jpegs(count: int) -> tuple[list[bytes], str]:
    """Grey JPEGs of 3056 x 2544 pixels, and in words where they come from.

    Real chest X-rays, enlarged, where CXR_SHARED_DATA names a folder with real_cxr/, else phantoms; detector noise is
    added after enlarging, for without it files are small and decode too fast.
    """
    folder = os.environ.get("CXR_SHARED_DATA")
    real = folder is not None and (Path(folder) / "real_cxr" / "metadata.csv").is_file()
    small = _real_pictures(Path(str(folder)) / "real_cxr", count) if real else _phantoms(count)
    rng = np.random.default_rng(0)
    return [_jpeg(picture, rng) for picture in small], "real X-rays, enlarged" if real else "phantoms, enlarged"


def _real_pictures(folder: Path, count: int) -> list[Image.Image]:
    with open(folder / "metadata.csv", encoding="utf-8", newline="") as file:
        paths = [folder / row["path"] for row in csv.DictReader(file)]
    return [Image.open(paths[n]).convert("L") for n in np.linspace(0, len(paths) - 1, count).astype(int)]


def _phantoms(count: int) -> list[Image.Image]:
    from data.phantom.patient import sample_patient
    from data.phantom.radiograph import Taking, radiograph

    pixels = [radiograph(sample_patient(n), {}, "PA", Taking(), 512) for n in range(count)]
    return [Image.fromarray((picture * 255).round().astype(np.uint8)) for picture in pixels]


def _jpeg(picture: Image.Image, rng: np.random.Generator) -> bytes:
    large = np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    noisy = (large + rng.normal(0, NOISE, large.shape)).clip(0, 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
