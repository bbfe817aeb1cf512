"""From a full-size JPEG (3056 x 2544, grey) to 1024 x 1024: our decoding against Pillow's, in time and in decibels.

    python scripts/bench_decode.py [--quick] [--out]

Baseline: Pillow decodes all of it, then resizes with its antialiased bicubic filter; also what PSNR is measured
against, on the scale of 8 bits. Draft: Pillow decodes at half the scale first. Ours: `decode_image` and `Preprocessing`
as in training, strict (whole or refused), to float32. CPU time of one thread, methods interleaved, median ratio over
images and rounds.
"""

import io
import time
from collections.abc import Callable

import _bench
import _full_size
import _root  # noqa: F401
import numpy as np
import torch
from PIL import Image

from data.images import decode_image
from data.transforms import Preprocessing

SIZE = 1024
PREPROCESSING = Preprocessing(size=SIZE)


def pillow(data: bytes) -> np.ndarray:
    """All pixels decoded, antialiased bicubic."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def draft(data: bytes) -> np.ndarray:
    """Decoded at the smallest scale that is large enough, antialiased bicubic."""
    with Image.open(io.BytesIO(data)) as image:
        image.draft("L", (SIZE, SIZE))
        return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def ours(data: bytes) -> np.ndarray:
    """What stage one does."""
    return PREPROCESSING.resized(decode_image(data, "bench", at_least=SIZE)).numpy()[0]


def seconds(decode: Callable[[bytes], np.ndarray], data: bytes) -> float:
    """CPU time of one call."""
    started = time.process_time()
    decode(data)
    return time.process_time() - started


def decibels(reference: np.ndarray, image: np.ndarray) -> float:
    """Peak signal-to-noise ratio on the scale of 8 bits."""
    return float(10 * np.log10(255**2 / np.mean((reference.astype(np.float64) - image) ** 2)))


def main() -> None:
    """Measure and report."""
    options = _bench.parse_options(__doc__)
    torch.set_num_threads(1)
    jpegs, source = _full_size.full_size_jpegs(4 if options.quick else 12)
    methods = {"pillow": pillow, "jpeg": ours, "draft": draft}
    times: dict[str, list[float]] = {name: [] for name in methods}
    for round_ in range(4 if options.quick else 12):
        for data in jpegs:
            for name, decode in methods.items():
                taken = seconds(decode, data)
                if round_:  # the first is for warming up
                    times[name].append(taken)
    numbers: dict[str, float | str] = {}
    for name in ("jpeg", "draft"):
        ratios = np.array(times["pillow"]) / np.array(times[name])
        numbers[f"{name}_1024_vs_pillow"] = round(float(np.median(ratios)), 3)
        scale = 255 if name == "jpeg" else 1
        psnr = [decibels(pillow(data), methods[name](data) * np.float64(scale)) for data in jpegs]
        numbers[f"{name}_1024_psnr_db"] = round(float(np.mean(psnr)), 2)
        numbers[f"{name}_1024_psnr_db_lowest"] = round(min(psnr), 2)
    for name, taken in times.items():
        numbers[f"{name}_ms"] = round(1e3 * float(np.median(taken)), 2)
        print(f"{name:>8}: {numbers[f'{name}_ms']} ms")
    numbers |= {"images": source, "mean_megabytes": round(float(np.mean([len(data) for data in jpegs])) / 1e6, 3)}
    _bench.report("decode", numbers, options)


if __name__ == "__main__":
    main()
