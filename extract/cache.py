"""The second half of stage one: the best model's feature map of every image, as WebDataset shards."""

import hashlib
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.cache import finish_cache, read_cache_record
from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.manifest import Manifest
from data.order import derive_seed
from data.runs import Log
from data.shards import FLOAT16_MAX, CacheIdentity, ShardWriter, index_shard, shard_name
from extract.backbone import ImageClassifier, map_shape
from extract.checkpoint import check_folder, load_json, load_tensors, load_weights
from extract.config import ExtractConfig
from extract.images import ImageDataset, load_batches, plain_requests

BYTES_BESIDE_MAP = 3072  # tar and npy headers, ids, padding


def write_cache(
    config: ExtractConfig, manifest: Manifest, content: list[str], accelerator: Accelerator, log: Log
) -> None:
    """Cache the maps of all images; finished shards of the same identity are kept, others are refused or made.

    A shard is one process's work, and batches never straddle a shard, so its bytes do not depend on what was done
    before or by whom.

    Args:
        content: Content digest of each image file, in manifest order.
    """
    folder = config.run_dir / "cache"
    order = np.lexsort([manifest.images[name].to_numpy(dtype=str) for name in ("image_id", "study_id", "patient_id")])
    manifest, content = manifest.select(order), [content[row] for row in order]
    model, identity = load_best(config, manifest, content)
    refuse_new_split(config.run_dir / "stage_one", manifest)
    if is_complete(folder, identity):
        log(f"cache: {identity.num_images} maps are there already")
        return
    if accelerator.is_main_process:
        begin(folder, identity, log)
    accelerator.wait_for_everyone()
    numbers = range(accelerator.process_index, identity.num_shards, accelerator.num_processes)
    missing = [n for n in numbers if not is_shard(folder, n, identity)]
    model.to(accelerator.device).eval()
    started = time.monotonic()
    for number in log.progress(missing, "caching", total=len(missing)):
        write_shard(folder, number, identity, config, manifest, content, model, accelerator)
    accelerator.wait_for_everyone()
    digests = gather_object([(n, sha256_file(folder / shard_name(n))) for n in numbers])
    if accelerator.is_main_process:
        finish_cache(
            folder,
            identity,
            provenance(config.run_dir / "stage_one", manifest, identity),
            [digest for _, digest in sorted(digests)],
        )
        (folder / "plan.json").unlink()
        log(f"cache: {identity.num_images} maps in {identity.num_shards} shards, {time.monotonic() - started:.0f} s")
    accelerator.wait_for_everyone()


def load_best(config: ExtractConfig, manifest: Manifest, content: list[str]) -> tuple[ImageClassifier, CacheIdentity]:
    """The best model of this run, and the identity of the cache that it makes."""
    best = config.run_dir / "stage_one" / "best"
    check_folder(best)
    torch.manual_seed(derive_seed("weights", config.seed) % 2**32)
    backbone = replace(config.backbone, pretrained=False)  # every weight comes from best/
    model = ImageClassifier(backbone, config.head, config.image.channels, len(manifest.classes))
    load_weights(model, load_tensors(best / "model.safetensors"), str(best))
    H, W, D = map_shape(model.backbone, config.image.channels, config.image.size)
    ids = manifest.images[["image_id", "study_id", "patient_id"]].to_numpy(dtype=str).tolist()
    lines = "".join("\t".join([*row, digest]) + "\n" for row, digest in zip(ids, content, strict=True))
    return model, CacheIdentity(
        backbone=config.backbone.name,
        weights_sha256=sha256_file(best / "model.safetensors"),
        preprocessing=config.image.to_dict(),
        map_shape=(H, W, D),
        images_sha256=hashlib.sha256(lines.encode()).hexdigest(),
        num_images=len(manifest),
        images_per_shard=max(1, config.cache.shard_megabytes * 2**20 // (2 * H * W * D + BYTES_BESIDE_MAP)),
        classes=manifest.classes,
    )


def is_complete(folder: Path, identity: CacheIdentity) -> bool:
    """Whether a finished cache of this identity is there; one of another identity is refused.

    Raises:
        InputError: names what differs and how to go on.
    """
    if not (folder / "cache.json").exists():
        return False
    record, found = read_cache_record(folder)
    refuse_other(folder, found.to_dict(), identity)
    sizes = [(folder / shard["name"], shard["bytes"]) for shard in record["shards"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in sizes)


def refuse_other(folder: Path, found: dict, identity: CacheIdentity) -> None:
    """Raise an `InputError` naming the first field in which a cache differs from the one wanted."""
    for key, wanted in identity.to_dict().items():
        if found.get(key) != wanted:
            raise InputError(
                f"{folder}: this cache was made with another {key} ({short(found.get(key))}, now {short(wanted)});"
                " delete the folder and rerun extract.py, or choose another run_dir"
            )


def short(value: object) -> str:
    """A value for an error line."""
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else text[:77] + "..."


def begin(folder: Path, identity: CacheIdentity, log: Log) -> None:
    """Claim a cache folder for one identity and check that the disk can hold it."""
    plan = folder / "plan.json"
    if plan.exists():
        refuse_other(folder, json.loads(plan.read_text()), identity)
    of_unknown_origin = [] if plan.exists() or (folder / "cache.json").exists() else list(folder.glob("*.tar"))
    for leftover in [*folder.glob(".tmp-*"), *of_unknown_origin]:
        leftover.unlink()
    done = sum(is_shard(folder, n, identity) for n in range(identity.num_shards))
    H, W, D = identity.map_shape
    wanted = identity.num_images * (2 * H * W * D + BYTES_BESIDE_MAP) * (1 - done / identity.num_shards)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    log(
        f"cache: {identity.num_images} maps of {H}x{W}x{D} float16 need {wanted / 1e9:.2f} GB"
        f" ({free / 1e9:.0f} GB free), {done} of {identity.num_shards} shards are there"
    )
    if wanted > free:
        raise InputError(f"{folder}: {wanted / 1e9:.2f} GB wanted, {free / 1e9:.2f} GB free; make room or move run_dir")
    atomic_write(plan, json.dumps(identity.to_dict(), indent=1, sort_keys=True))


def is_shard(folder: Path, number: int, identity: CacheIdentity) -> bool:
    """Whether a shard is there and whole; a damaged one is removed, to be made again."""
    path = folder / shard_name(number)
    if not path.exists():
        return False
    try:
        index_shard(path, number, identity)
    except InputError:
        path.unlink()
        return False
    return True


@torch.inference_mode()
def write_shard(
    folder: Path,
    number: int,
    identity: CacheIdentity,
    config: ExtractConfig,
    manifest: Manifest,
    content: list[str],
    model: ImageClassifier,
    accelerator: Accelerator,
) -> None:
    """Decode, run and write the images of one shard.

    Raises:
        InputError: a map has a value that float16 cannot hold; names the image.
    """
    first = number * identity.images_per_shard
    rows = np.arange(first, min(first + identity.images_per_shard, identity.num_images))
    requests = plain_requests(rows, config.cache.batch_size)
    loader = load_batches(ImageDataset(manifest, config.image), requests, config.num_workers)
    ids = manifest.images[["image_id", "study_id", "patient_id"]].to_dict("records")
    writer = ShardWriter(folder, number)
    for batch, pixels in zip(requests, loader, strict=True):
        with accelerator.autocast():
            maps = model.backbone(pixels.to(accelerator.device)).float()
        largest = maps.abs().amax(dim=(1, 2, 3)).tolist()
        halves = maps.half().cpu().numpy()
        for (row, _), features, peak in zip(batch, halves, largest, strict=True):
            if not peak < FLOAT16_MAX:
                raise InputError(
                    f"image {ids[row]['image_id']!r}: its map reaches {peak}, beyond float16's {FLOAT16_MAX}"
                )
            writer.write(row, features, ids[row] | {"content": content[row]})
    writer.close()


def keep_training_data(stage_dir: Path, train_set: Manifest, val_set: Manifest, finished: bool) -> None:
    """Write down in ``data.json`` what a stage learns from, or check that it goes on with the same.

    Args:
        finished: Training is done and its product does not depend on labels, as stage one's maps do not.

    Raises:
        InputError: training was begun with other images, labels or splits.
    """
    path = stage_dir / "data.json"
    digest = hashlib.sha256(f"{train_set.digest} {val_set.digest}".encode()).hexdigest()
    if not path.exists():
        patients = sorted(train_set.images["patient_id"].unique())
        atomic_write(path, json.dumps({"digest": digest, "trained_patients": patients}, indent=1))
    elif not finished and load_json(path)["digest"] != digest:
        raise InputError(
            f"{path}: this training was begun with other images, labels or splits than manifest.csv now holds;"
            f" delete {stage_dir} to start anew, or choose another run_dir"
        )


def refuse_new_split(stage_dir: Path, manifest: Manifest) -> None:
    """Refuse to go on with a backbone that was trained on a patient of today's val or test split.

    Raises:
        InputError: names the first such patient.
    """
    trained = set(load_json(stage_dir / "data.json")["trained_patients"])
    held_out = manifest.images.loc[manifest.images["split"] != "train", "patient_id"]
    seen = sorted(trained & set(held_out))
    if seen:
        raise InputError(
            f"manifest.csv: {len(seen)} patients of val or test were trained on in {stage_dir}, first {seen[0]}; the"
            " split changed since then: choose another run_dir, or delete stage_one and cache"
        )


def provenance(stage_dir: Path, manifest: Manifest, identity: CacheIdentity) -> dict:
    """What ``cache.json`` records beside the identity: the table used and who was trained on.

    The patients that the backbone learned from stand as keyed hashes (key: the weights' digest), enough for stage two
    to refuse validating or testing on them, useless for finding out who they are without a list to try.
    """
    trained = load_json(stage_dir / "data.json")["trained_patients"]  # not today's train split, which may have changed
    return {
        "manifest_sha256": manifest.digest,
        "trained_patients": sorted(patient_hash(patient, identity.weights_sha256) for patient in trained),
    }


def patient_hash(patient_id: str, weights_sha256: str) -> str:
    """Keyed BLAKE2b of a patient id, 16 hexadecimal digits."""
    return hashlib.blake2b(patient_id.encode(), key=bytes.fromhex(weights_sha256), digest_size=8).hexdigest()
