"""Images per second of `prepare.py images` from full-size JPEGs (3056 x 2544, grey), against the bare decoder.

    python scripts/bench_prepare_images.py [--quick] [--out]

Bare: the same processes decode and resize the same files as stage one does, and throw the pictures away. Prepare: the
command's own function, from an empty folder to shards flushed to disk, index, records and contact sheet. Both start
their workers in the time measured. Wall time, 1 and 2 workers, 8-bit PNG and JPEG of 512 x 512 pixels; ways
interleaved, median ratio over rounds. The pictures are read from memory (page cache). Beside it, for each working and
network size, the lowest PSNR in decibels of network inputs made of prepared pictures against those of the originals,
and the mean size of a prepared picture.
"""

import tempfile
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Literal, get_args

import _bench
import _full_size
import _root  # noqa: F401
import numpy as np
import pandas as pd

from data.image_shards import Form
from data.images import decode_scaled, read_scaled
from data.manifest import MANIFEST_COLUMNS, Manifest, write_manifest
from data.prepared_images import make_identity, prepare
from data.reencode import Originals, Outcome, encode, reencode, to_integers
from data.transforms import Preprocessing

SIZE = 512
WORKERS = (1, 2)
FORMS: tuple[Form, ...] = ("png", "jpeg")
WORKING_SIZES, NETWORK_SIZES = (512, 1024), (224, 384, 512)
MODES: tuple[Literal["stretch", "fit"], ...] = ("stretch", "fit")


class Bare(Originals):
    """Decodes and resizes, and keeps nothing."""

    def __getitem__(self, index: int) -> Outcome:
        """The first half of what prepares an image."""
        self.preprocessing.scaled(*read_scaled(self.root / self.paths[index], SIZE))
        return Outcome()


def write_originals(folder: Path, count: int) -> tuple[Manifest, str]:
    """As many files as images, of a few different pictures, and their manifest."""
    jpegs, source = _full_size.full_size_jpegs(4)
    for n in range(count):
        (folder / f"{n}.jpg").write_bytes(jpegs[n % len(jpegs)])
    rows = [[f"i{n}", f"s{n}", f"p{n}", "PA", f"{n}.jpg", "train", "bench"] for n in range(count)]
    images = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS), dtype="str")
    manifest = Manifest(images, np.zeros((count, 1), np.float32), ("none",), folder)
    write_manifest(manifest, folder / "manifest.csv")
    return manifest, source


def bare_seconds(manifest: Manifest, workers: int) -> float:
    """Time to decode and resize all images."""
    originals = Bare(manifest.root, manifest.images["path"].tolist(), make_identity(SIZE, "stretch", "png"))
    started = time.perf_counter()
    assert sum(1 for _ in reencode(originals, range(len(manifest)), workers)) == len(manifest)
    return time.perf_counter() - started


def prepare_seconds(manifest: Manifest, form: Form, workers: int) -> float:
    """Time to prepare them into an empty folder."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        started = time.perf_counter()
        prepare(manifest.root / "manifest.csv", Path(folder) / "images", SIZE, form=form, workers=workers)
        return time.perf_counter() - started


def fidelity(originals: list[bytes]) -> dict[str, float]:
    """Lowest PSNR over pictures, and mean kilobytes of a picture, by form and sizes."""
    found: dict[str, list[float]] = {}
    for mode, size, data in product(MODES, WORKING_SIZES, originals):
        working = Preprocessing(size=size, resize=mode)
        picture = working.scaled(*decode_scaled(data, "bench", size)).numpy()
        for form in get_args(Form):
            small = encode(to_integers(picture, form), form)
            found.setdefault(f"{form}_{mode}_{size}_kilobytes", []).append(len(small) / 1000)
            for network in NETWORK_SIZES:
                image = Preprocessing(size=network, resize=mode)
                ours, theirs = (image.resized(*decode_scaled(each, "bench", network)) for each in (small, data))
                error = float((ours - theirs).double().square().mean())
                found.setdefault(f"{form}_{mode}_{size}_to_{network}_psnr_db", []).append(-10 * np.log10(error))
    return {name: round(min(v) if "psnr" in name else float(np.mean(v)), 1) for name, v in found.items()}


def main() -> None:
    """Measure and report."""
    options = _bench.parse_options(__doc__)
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        manifest, source = write_originals(Path(folder), 32 if options.quick else 400)
        for _ in range(1 if options.quick else 7):
            for workers in WORKERS:
                seconds.setdefault(f"bare_{workers}", []).append(bare_seconds(manifest, workers))
                for form in FORMS:
                    seconds.setdefault(f"{form}_{workers}", []).append(prepare_seconds(manifest, form, workers))
    numbers: dict[str, float | str] = {**fidelity(_full_size.full_size_jpegs(1 if options.quick else 6)[0])}
    for name, taken in seconds.items():
        numbers[f"{name}_images_per_second"] = round(len(manifest) / float(np.median(taken)), 1)
        print(f"{name:>8}: {numbers[f'{name}_images_per_second']} images per second")
    for form in FORMS:
        for workers in WORKERS:
            ratios = np.array(seconds[f"bare_{workers}"]) / np.array(seconds[f"{form}_{workers}"])
            numbers[f"{form}_{SIZE}_vs_bare_decoder_{workers}"] = round(float(np.median(ratios)), 3)
    _bench.report("prepare_images", numbers | {"images": source, "num_images": len(manifest)}, options)


if __name__ == "__main__":
    main()
