"""Tiny data sets, made up in a temporary folder: images with a manifest, and feature caches without any image."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pandas as pd
import torch

from data.cache import FeatureCache, finish_cache
from data.files import sha256_file
from data.manifest import MANIFEST_COLUMNS, Manifest, write_manifest
from data.shards import CacheIdentity, ShardWriter, patient_hash, shard_name
from data.storage import Storage, encode_maps

CLASSES = ("Edema", "Nodule", "Hernia")


def make_manifest(root: Path, num_studies: int = 30, seed: int = 0, max_views: int = 3) -> Manifest:
    """Patients with one or two studies of 1 to `max_views` images; every class occurs in every split."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for study in range(num_studies):
        patient = study - (study % 5 == 4)  # every fifth study is its predecessor's patient
        split = ("train", "train", "train", "val", "test")[(patient // 5) % 5]
        y = [float(study % 2), float(study % 3 == 0), float(rng.random() < 0.3)]
        for view in range(1 + study % max_views):
            image_id = f"i{study:03d}.{view}"
            name = ("PA", "LATERAL", "UNKNOWN", "AP", "OTHER")[view % 5]
            rows.append([image_id, f"s{study:03d}", f"p{patient:03d}", name, f"{image_id}.png", split, "made up"])
            labels.append(y)
    frame = pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS), dtype=str)
    return Manifest(frame, np.array(labels, dtype=np.float32), CLASSES, root)


def write_images(manifest: Manifest, size: int = 24, seed: int = 0) -> None:
    """A grey PNG per image: noise, and a bright corner per positive class, so that there is something to learn."""
    rng = np.random.default_rng(seed)
    manifest.root.mkdir(parents=True, exist_ok=True)
    for row in range(len(manifest)):
        pixels = rng.integers(0, 80, (size, size + 3), dtype=np.uint8)
        for c, (y, x) in enumerate(((0, 0), (0, size // 2), (size // 2, 0))):
            pixels[y : y + size // 3, x : x + size // 3] += np.uint8(150 * manifest.labels[row, c])
        manifest.image_path(row).write_bytes(imagecodecs.png_encode(pixels))


def make_run(run_dir: Path, num_studies: int = 30) -> Manifest:
    """A run folder with images and manifest, ready for stage one."""
    manifest = make_manifest(run_dir / "images", num_studies)
    write_images(manifest)
    write_manifest(manifest, run_dir / "manifest.csv")
    return manifest


def make_cache(
    folder: Path,
    manifest: Manifest,
    map_shape: tuple[int, int, int] = (3, 2, 5),
    per_shard: int = 7,
    seed: int = 0,
    dtype: Storage = "float16",
    variants: tuple[str, ...] = ("plain",),
    weights: str = "ab",
    trained: Sequence[str] = (),
    preprocessing: Mapping[str, Any] | None = None,
) -> FeatureCache:
    """A cache of random maps for all images of a manifest, made by a backbone that has learned from some patients."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    order = manifest.images.sort_values(["patient_id", "study_id", "image_id"])
    identity = CacheIdentity(
        backbone="made up",
        weights_sha256=weights * 32,
        preprocessing=dict(preprocessing or {"size": 24}),
        map_shape=map_shape,
        images_sha256="cd" * 32,
        num_images=len(order),
        images_per_shard=per_shard,
        classes=manifest.classes,
        dtype=dtype,
        variants=variants,
    )
    records = order[["image_id", "study_id", "patient_id"]].to_dict("records")
    for number in range(identity.num_shards):
        writer = ShardWriter(folder, number, identity)
        for ordinal in identity.ordinals_of(number):
            ids = {str(k): str(v) for k, v in records[ordinal].items()} | {"content": f"{ordinal:016x}"}
            maps = rng.normal(size=(len(variants), *map_shape)).astype(np.float32)
            writer.write(ordinal, list(encode_maps(torch.from_numpy(maps), dtype).numpy()), ids)
        writer.close()
    digests = [sha256_file(folder / shard_name(number)) for number in range(identity.num_shards)]
    hashes = [patient_hash(patient, identity.weights_sha256) for patient in trained]
    finish_cache(folder, identity, {"trained_patients": hashes, "manifest_sha256": "ef" * 32}, digests)
    return FeatureCache(folder)
