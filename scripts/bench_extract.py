"""Extraction from full-size JPEGs to shards, against the bare forward pass of the same backbone.

    python scripts/bench_extract.py [--quick] [--out]

ConvNeXt-T with random weights, 3 channels, float32. One torch thread plays the device on all sides, and the second
core is free for decoding and writing. Bare: the forward pass alone, over pictures that are in memory. Overlapped: what
extract.py does (`extract_shards`, one decoding thread; start, end, checksums and flushing to disk included). Serial:
the loop one would write first (decode with Pillow, resize, forward, write, one after the other). Wall time, the three
interleaved; ratios of images per second, median over rounds.
"""

import tempfile
import time
from pathlib import Path

import _bench
import _full_size
import _root  # noqa: F401
import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image as PillowImage

from data.files import sha256_file
from data.golden import golden_decode
from data.runs import Log
from data.shards import CacheIdentity, ShardWriter, images_per_shard
from data.transforms import Augmentation, Preprocessing
from extract.backbone import Backbone, BackboneConfig, map_shape
from extract.extraction import Pictures, extract_shards
from extract.writer import Image, plan_batches

BATCH_SIZES = {224: 8, 512: 4}
SHARD_MEGABYTES = 16


def write_images(folder: Path, count: int) -> tuple[list[Image], str]:
    """As many files as images, of a few different pictures."""
    jpegs, source = _full_size.full_size_jpegs(4)
    images = []
    for n in range(count):
        path = folder / f"{n}.jpg"
        path.write_bytes(jpegs[n % len(jpegs)])
        ids = {"image_id": f"i{n}", "study_id": f"s{n}", "patient_id": f"p{n}", "content": f"{n:016x}"}
        images.append(Image(path, ids))
    return images, source


def identity_of(backbone: Backbone, preprocessing: Preprocessing, count: int) -> CacheIdentity:
    """Of a float16 cache with several shards."""
    shape = map_shape(backbone, 3, preprocessing.size)
    return CacheIdentity(
        backbone="convnext_tiny",
        weights_sha256="0" * 64,
        preprocessing=preprocessing.to_dict(),
        map_shape=shape,
        images_sha256="0" * 64,
        num_images=count,
        images_per_shard=images_per_shard(shape, "float16", 1, SHARD_MEGABYTES),
        classes=("none",),
        golden_decode=golden_decode(),
    )


@torch.inference_mode()
def bare(backbone: Backbone, size: int, count: int) -> None:
    """The forward pass alone."""
    batch_size = BATCH_SIZES[size]
    pixels = torch.randn(batch_size, 3, size, size).contiguous(memory_format=torch.channels_last)
    for _ in range(count // batch_size):
        backbone(pixels)


def overlapped(backbone: Backbone, images: list[Image], identity: CacheIdentity, accelerator: Accelerator) -> None:
    """What extract.py does."""
    preprocessing = Preprocessing.from_dict(identity.preprocessing)
    with tempfile.TemporaryDirectory() as folder:
        batches = plan_batches(range(identity.num_shards), identity, BATCH_SIZES[preprocessing.size])
        pictures = Pictures(preprocessing, Augmentation(), 0, 0)
        log = Log(Path(folder), speaks=False)
        extract_shards(Path(folder), batches, images, pictures, backbone, identity, accelerator, 1, log)


@torch.inference_mode()
def serial(backbone: Backbone, images: list[Image], identity: CacheIdentity) -> None:
    """One thing after the other."""
    preprocessing = Preprocessing.from_dict(identity.preprocessing)
    size = preprocessing.size
    with tempfile.TemporaryDirectory() as folder:
        for batch in plan_batches(range(identity.num_shards), identity, BATCH_SIZES[size]):
            if batch.ordinals.start % identity.images_per_shard == 0:
                shard = ShardWriter(Path(folder), batch.shard, identity)
            grey = []
            for n in batch.ordinals:
                with PillowImage.open(images[n].path) as image:
                    small = np.array(image.resize((size, size), PillowImage.Resampling.BICUBIC), np.float32)
                grey.append(torch.from_numpy(small)[None] / 255)
            pixels = preprocessing.normalised(torch.stack(grey)).contiguous(memory_format=torch.channels_last)
            maps = backbone(pixels).half().numpy()
            for place, n in enumerate(batch.ordinals):
                shard.write(n, [np.ascontiguousarray(maps[place])], images[n].ids)
            if batch.ends_shard:
                shard.close()
                sha256_file(shard.path)


def measure(size: int, images: list[Image], rounds: int, accelerator: Accelerator) -> dict[str, list[float]]:
    """Seconds per image of each way, a value per round."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name="convnext_tiny"), 3).eval().to(memory_format=torch.channels_last)
    preprocessing = Preprocessing(size=size, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    identity = identity_of(backbone, preprocessing, len(images))
    ways = {
        "bare": lambda: bare(backbone, size, len(images)),
        "overlapped": lambda: overlapped(backbone, images, identity, accelerator),
        "serial": lambda: serial(backbone, images, identity),
    }
    bare(backbone, size, BATCH_SIZES[size])  # warms up
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            seconds[name].append((time.perf_counter() - started) / len(images))
    return seconds


def main() -> None:
    """Measure and report."""
    options = _bench.parse_options(__doc__)
    torch.set_num_threads(1)
    accelerator = Accelerator(cpu=True)
    numbers: dict[str, float | str] = {}
    with tempfile.TemporaryDirectory() as folder:
        counts = {224: 16, 512: 8} if options.quick else {224: 96, 512: 40}
        images, source = write_images(Path(folder), max(counts.values()))
        for size, count in counts.items():
            seconds = measure(size, images[:count], 2 if options.quick else 5, accelerator)
            bare_seconds = np.array(seconds["bare"])
            for way, key in (("overlapped", "rate"), ("serial", "serial")):
                ratio = float(np.median(bare_seconds / np.array(seconds[way])))
                numbers[f"{key}_vs_bare_forward_{size}"] = round(ratio, 3)
                print(f"{size} px, {way}: {1 / np.median(seconds[way]):.2f} images/s, {ratio:.3f} of the bare forward")
            numbers[f"bare_images_per_second_{size}"] = round(1 / float(np.median(bare_seconds)), 3)
    _bench.report("extract", numbers | {"images": source}, options)


if __name__ == "__main__":
    main()
