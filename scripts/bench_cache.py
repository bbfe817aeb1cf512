"""Reading cached maps, against raw reading of the same shards and against the standard WebDataset loader.

    python scripts/bench_cache.py [--quick] [--out]

Two caches of random float16 maps are made up: large 32 x 32 x 768, small 7 x 7 x 512. Raw: one thread reads the whole
shards with os.readv into one reused buffer of 8 MiB. Ours: every map delivered in batches (16 large, 256 small) by two
threads, in order and shuffled by group (groups of 1 to 4 views as in CXR-LT), each map checked; the figure without the
check beside it. WebDataset: `.decode().to_tuple().batched()` in a DataLoader of two workers, which stay alive between
epochs; it checks nothing. Warm page cache, wall time, all interleaved; a ratio is that of one round's times for the
same shards, above 1 where ours is faster, the median over rounds. Two reader threads need two free cores:
the machine's load is kept with the result.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import _bench
import _root  # noqa: F401
import numpy as np
import torch
from torch.utils.data import DataLoader
from webdataset.compat import WebDataset

from data.cache import FeatureCache, finish_cache
from data.files import sha256_file
from data.shards import CacheIdentity, ShardWriter, shard_name

THREADS = 2
NUM_SHARDS = 4
RAW_BUFFER = 8 * 2**20
VIEWS_PER_GROUP = (0.45, 0.40, 0.11, 0.04)  # shares of groups with 1, 2, 3, 4 views
SIZES = {"large": ((32, 32, 768), 256, 16), "small": ((7, 7, 512), 8192, 256)}  # map shape, images, batch


def make_cache(folder: Path, map_shape: tuple[int, int, int], num_images: int) -> FeatureCache:
    """Random maps with ids of usual length."""
    identity = CacheIdentity(
        backbone="made up",
        weights_sha256="0" * 64,
        preprocessing={},
        map_shape=map_shape,
        images_sha256="0" * 64,
        num_images=num_images,
        images_per_shard=-(-num_images // NUM_SHARDS),
        classes=("none",),
    )
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(32, *map_shape)).astype(np.float16)
    folder.mkdir()
    for number in range(identity.num_shards):
        writer = ShardWriter(folder, number, identity)
        for n in identity.ordinals_of(number):
            maps[n % 32].flat[0] = n
            ids = {"image_id": f"{n:044d}", "study_id": f"{n // 2:08d}", "patient_id": f"{n // 3:08d}"}
            writer.write(n, [maps[n % 32]], ids | {"content": f"{n:032x}"})
        writer.close()
    names = [shard_name(number) for number in range(identity.num_shards)]
    finish_cache(folder, identity, {"trained_patients": []}, [sha256_file(folder / name) for name in names])
    return FeatureCache(folder)


def shuffled_by_group(num_images: int) -> np.ndarray:
    """Ordinals: groups in random order, the views of each side by side as they lie in the shards."""
    rng = np.random.default_rng(0)
    sizes = rng.choice([1, 2, 3, 4], size=num_images, p=VIEWS_PER_GROUP)
    groups = np.split(np.arange(num_images), np.cumsum(sizes)[np.cumsum(sizes) < num_images])
    return np.concatenate([groups[g] for g in rng.permutation(len(groups))])


def read_raw(folder: Path) -> None:
    """All shards, in order, as fast as one thread can read."""
    buffer = memoryview(bytearray(RAW_BUFFER))
    for number in range(NUM_SHARDS):
        file = os.open(folder / shard_name(number), os.O_RDONLY)
        while os.readv(file, [buffer]):
            pass
        os.close(file)


def batches(order: np.ndarray, batch_size: int, epochs: int) -> Iterator[tuple[None, np.ndarray, np.ndarray]]:
    """Requests for `FeatureCache.stream`."""
    for _ in range(epochs):
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            yield None, part, np.zeros_like(part)


def read_ours(cache: FeatureCache, order: np.ndarray, batch_size: int, epochs: int, checked: bool) -> None:
    """Every map of the cache, `epochs` times."""
    for _ in cache.stream(batches(order, batch_size, epochs), num_threads=THREADS, checked=checked):
        pass


def webdataset_loader(folder: Path, batch_size: int) -> DataLoader:
    """The loader that WebDataset's documentation shows."""
    urls = [str(folder / shard_name(number)) for number in range(NUM_SHARDS)]
    dataset = WebDataset(urls, shardshuffle=False).decode().to_tuple("features.npy").batched(batch_size)  # ty: ignore
    return DataLoader(dataset, batch_size=None, num_workers=THREADS, persistent_workers=True)  # ty: ignore


def seconds(work: Callable[[], object]) -> float:
    """Wall time."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(folder: Path, size: str, quick: bool) -> dict[str, float]:
    """Ratios of one map size, and the rate of raw reading."""
    map_shape, num_images, batch_size = SIZES[size]
    cache = make_cache(folder / size, map_shape, num_images)
    orders = {"ordered": np.arange(num_images), "shuffled": shuffled_by_group(num_images)}
    loader = webdataset_loader(cache.folder, batch_size)
    epochs, rounds = (2, 5) if quick else (4, 15)
    works: dict[str, tuple[Callable[[], object], int]] = {
        "raw": (lambda: [read_raw(cache.folder) for _ in range(epochs)], epochs),
        "webdataset": (lambda: [None for _ in loader], 1),
    }
    for name, order in orders.items():
        for checked in (True, False):
            work = partial(read_ours, cache, order, batch_size, epochs, checked)
            works[name if checked else f"{name}_nochecksum"] = (work, epochs)
    times = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, (work, passes) in works.items():
            times[name].append(seconds(work) / passes)
    taken = {name: np.array(values[1:]) for name, values in times.items()}  # the first round warms caches and workers
    return ratios(size, taken, sum(shard["bytes"] for shard in cache.record["shards"]))


def ratios(size: str, taken: dict[str, np.ndarray], num_bytes: int) -> dict[str, float]:
    """Medians over rounds; prints a table."""
    result = {}
    print(f"{size}: {num_bytes / 1e6:.0f} MB of shards")
    for name, values in taken.items():
        vs_raw = float(np.median(taken["raw"] / values))
        print(f"  {name:<20} {num_bytes / np.median(values) / 1e9:6.2f} GB/s  {vs_raw:5.2f} x raw")
        if name.startswith(("ordered", "shuffled")):
            order, _, suffix = name.partition("_")
            result[f"{size}_{order}_vs_raw{'_' + suffix if suffix else ''}"] = round(vs_raw, 3)
    for name in ("ordered", "ordered_nochecksum"):
        suffix = name.removeprefix("ordered")
        result[f"{size}_vs_webdataset{suffix}"] = round(float(np.median(taken["webdataset"] / taken[name])), 2)
    result[f"{size}_raw_gb_per_s"] = round(float(num_bytes / np.median(taken["raw"]) / 1e9), 2)
    return result


def main() -> None:
    """Both sizes, one after the other."""
    options = _bench.parse_options(__doc__)
    torch.set_num_threads(1)
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in SIZES:
            numbers |= measure(Path(folder), size, options.quick)
    _bench.report("cache", numbers | {"threads": THREADS, "load": round(os.getloadavg()[0], 2)}, options)


if __name__ == "__main__":
    main()
