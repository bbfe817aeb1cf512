"""Images, caches and groups for the bench of stage two's training step."""

from dataclasses import dataclass
from pathlib import Path

import _full_size
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from data.cache import FeatureCache, finish_cache
from data.files import sha256_file
from data.images import decode_image, read_image
from data.shards import CacheIdentity, ShardWriter, shard_name
from data.storage import decode_maps, pool_maps
from data.transforms import Preprocessing
from extract.backbone import Backbone, BackboneConfig
from fusion.config import GroupingConfig
from fusion.grouping import GroupSet, training_views
from fusion.model import ModelConfig
from fusion.passes import Pass, make_passes

VIEWS_PER_GROUP = (0.45, 0.40, 0.11, 0.04)  # shares of groups with 1, 2, 3, 4 views
NUM_CLASSES, NUM_SLOTS = 26, 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Work:
    """Images, caches and groups of one size."""

    size: int
    batch_size: int
    groups: GroupSet
    paths: list[Path]
    backbone: Backbone
    caches: dict[int, FeatureCache]
    """By pooling."""

    @property
    def num_batches(self) -> int:
        """Different batches; later steps go through them again."""
        return len(self.groups) // self.batch_size

    def batch(self, step: int) -> np.ndarray:
        """Group numbers of a step."""
        first = step % self.num_batches * self.batch_size
        return np.arange(first, first + self.batch_size)

    def one_pass(self, step: int) -> Pass:
        """The groups of a step, packed."""
        numbers, grouping = self.batch(step), GroupingConfig(view_dropout=0, type_dropout=0)
        views = [training_views(self.groups, n, grouping, NUM_SLOTS, 0, step) for n in numbers.tolist()]
        (one,) = make_passes(ModelConfig(), numbers, views)
        return one


def preprocessing(size: int) -> Preprocessing:
    """As ImageNet's weights want it."""
    return Preprocessing(size=size, channels=3, mean=MEAN, std=STD)


def make_work(folder: Path, size: int, batch_size: int, num_batches: int) -> Work:
    """Write images, run the backbone once, write the caches."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    counts = rng.choice([1, 2, 3, 4], size=batch_size * num_batches, p=VIEWS_PER_GROUP)
    ends = np.cumsum(counts)
    ordinals = [np.arange(end - count, end) for end, count in zip(ends, counts, strict=True)]
    names = [f"s{n}" for n in range(len(counts))]
    labels = (rng.random((len(counts), NUM_CLASSES)) < 0.1).astype(np.float32)
    types = [rng.integers(0, 5, count) for count in counts]
    groups = GroupSet(names, names, labels, ordinals, ordinals, types, ["made up"] * len(counts))
    paths = write_images(folder, size, int(ends[-1]))
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name="convnext_tiny"), 3).eval().to(memory_format=torch.channels_last)
    work = Work(size, batch_size, groups, paths, backbone, {})
    maps = [recomputed(work, np.arange(n, min(n + 8, len(paths))), bf16=False) for n in range(0, len(paths), 8)]
    pools = (1, 2) if size == 512 else (1,)
    work.caches = {pool: make_cache(folder / f"cache_{pool}", torch.cat(maps), size, pool) for pool in pools}
    return work


def write_images(folder: Path, size: int, count: int) -> list[Path]:
    """Grey JPEGs of the network's size, as the published code reads them; all different."""
    large, _ = _full_size.full_size_jpegs(4)
    small = [preprocessing(size).resized(decode_image(data, "bench", at_least=size))[0].numpy() for data in large]
    rng, paths = np.random.default_rng(1), []
    for n in range(count):
        pixels = np.roll(small[n % 4], n, axis=1) * 255 + rng.normal(0, 2, (size, size))
        paths.append(folder / f"{n}.jpg")
        Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8)).save(paths[-1], quality=95)
    return paths


def make_cache(folder: Path, maps: Tensor, size: int, pool: int) -> FeatureCache:
    """One shard of float16 maps."""
    stored = (pool_maps(maps) if pool == 2 else maps).half().numpy()
    identity = CacheIdentity(
        backbone="convnext_tiny",
        weights_sha256="0" * 64,
        preprocessing=preprocessing(size).to_dict(),
        map_shape=stored.shape[1:],
        images_sha256="0" * 64,
        num_images=len(stored),
        images_per_shard=len(stored),
        classes=("none",),
        pool=pool,
    )
    folder.mkdir()
    writer = ShardWriter(folder, 0, identity)
    for n, one in enumerate(stored):
        ids = {"image_id": f"i{n}", "study_id": f"s{n}", "patient_id": f"p{n}", "content": f"{n:032x}"}
        writer.write(n, [np.ascontiguousarray(one)], ids)
    writer.close()
    finish_cache(folder, identity, {"trained_patients": []}, [sha256_file(folder / shard_name(0))])
    return FeatureCache(folder)


@torch.no_grad()
def recomputed(work: Work, ordinals: np.ndarray, bf16: bool) -> Tensor:
    """Maps of some images from their files, grey and packed."""
    image = preprocessing(work.size)
    pixels = torch.stack([image(read_image(work.paths[n], at_least=work.size)) for n in ordinals])
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return work.backbone(pixels.contiguous(memory_format=torch.channels_last)).float()


def cached(work: Work, pool: int, ordinals: np.ndarray) -> Tensor:
    """The same maps from the cache."""
    cache = work.caches[pool]
    stored = cache.read_stored(ordinals, np.zeros_like(ordinals))
    return decode_maps(stored, cache.identity.dtype, cache.identity.map_shape).float()
