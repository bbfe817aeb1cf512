"""The second half of stage one: the best model's feature map of every image, as WebDataset shards."""

import hashlib
import json
import time
from collections.abc import Collection
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from data.cache import finish_cache
from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.golden import decoder_versions, golden_decode
from data.manifest import Manifest
from data.order import derive_seed
from data.runs import Log
from data.shard_index import is_whole_shard
from data.shards import CacheIdentity, images_per_shard, patient_hash, shard_name
from data.strict_json import read_json
from extract.backbone import ImageClassifier, map_shape
from extract.checkpoint import check_folder, load_json, load_tensors, load_weights, trained_patients
from extract.config import ExtractConfig
from extract.estimate import Form, check_disk, forms_table, pooled, storage_forms
from extract.extraction import Pictures, extract_shards
from extract.refusal import is_complete, refuse_changes
from extract.writer import Image, plan_batches

ID_COLUMNS = ["image_id", "study_id", "patient_id"]


def write_cache(
    config: ExtractConfig, manifest: Manifest, content: list[str], accelerator: Accelerator, log: Log
) -> None:
    """Cache the maps of all images; finished shards of the same identity are kept, others are refused or made.

    Args:
        content: Content digest of each image file, in manifest order.
    """
    folder = config.run_dir / "cache"
    order = np.lexsort([manifest.images[name].to_numpy(dtype=str) for name in ("image_id", "study_id", "patient_id")])
    manifest = manifest.select(order)
    images = manifest.images[ID_COLUMNS].assign(content=[content[row] for row in order])
    model, backbone_shape = load_best(config, manifest)
    identity = cache_identity(config, backbone_shape, images, manifest.classes)
    refuse_new_split(config.run_dir / "stage_one", manifest)
    if is_complete(folder, identity, images):
        if accelerator.is_main_process:
            (folder / "plan.json").unlink(missing_ok=True)  # of a run that was killed right before it did
        log(f"cache: {identity.num_images} maps are there already")
        return
    if accelerator.is_main_process:
        begin(folder, identity, images, storage_forms(identity, backbone_shape), log)
    accelerator.wait_for_everyone()
    started = time.monotonic()
    digests = extract_share(config, folder, manifest, images, model, identity, accelerator, log)
    accelerator.wait_for_everyone()
    digests = gather_object(sorted(digests.items()))
    if accelerator.is_main_process:
        record = provenance(config.run_dir / "stage_one", manifest, identity)
        finish_cache(folder, identity, record, [digest for _, digest in sorted(digests)])
        (folder / "plan.json").unlink()
        log(f"cache: {identity.num_images} images in {identity.num_shards} shards, {time.monotonic() - started:.0f} s")
    accelerator.wait_for_everyone()


def load_best(config: ExtractConfig, manifest: Manifest) -> tuple[ImageClassifier, tuple[int, int, int]]:
    """The best model of this run, and H, W, D of its maps."""
    best = config.run_dir / "stage_one" / "best"
    check_folder(best)
    torch.manual_seed(derive_seed("weights", config.seed) % 2**32)
    backbone = replace(config.backbone, pretrained=False)  # every weight comes from best/
    model = ImageClassifier(backbone, config.head, config.image.channels, len(manifest.classes))
    load_weights(model, load_tensors(best / "model.safetensors"), str(best))
    return model, map_shape(model.backbone, config.image.channels, config.image.size)


def cache_identity(
    config: ExtractConfig, backbone_shape: tuple[int, int, int], images: pd.DataFrame, classes: tuple[str, ...]
) -> CacheIdentity:
    """What decides the bytes of this run's cache."""
    lines = "".join("\t".join(row) + "\n" for row in images.to_numpy(dtype=str).tolist())
    cache, shape = config.cache, pooled(backbone_shape, config.cache.pool)
    augmentation = asdict(config.augmentation) | {"seed": config.seed} if cache.augmented else {}
    return CacheIdentity(
        backbone=config.backbone.name,
        weights_sha256=sha256_file(config.run_dir / "stage_one" / "best" / "model.safetensors"),
        preprocessing=config.image.to_dict(),
        map_shape=shape,
        images_sha256=hashlib.sha256(lines.encode()).hexdigest(),
        num_images=len(images),
        images_per_shard=images_per_shard(shape, cache.dtype, len(cache.variants), cache.shard_megabytes),
        classes=classes,
        dtype=cache.dtype,
        pool=cache.pool,
        variants=cache.variants,
        augmentation=augmentation,
        golden_decode=golden_decode(),
    )


def begin(folder: Path, identity: CacheIdentity, images: pd.DataFrame, forms: list[Form], log: Log) -> None:
    """Claim a cache folder for one identity, say what it will cost and check that the disk can hold it."""
    plan = folder / "plan.json"
    if plan.exists():
        refuse_changes(folder, read_json(plan, f"delete {folder} and rerun extract.py"), identity, images)
    of_unknown_origin = [] if plan.exists() or (folder / "cache.json").exists() else list(folder.glob("*.tar"))
    for leftover in [*folder.glob(".tmp-*"), *of_unknown_origin]:
        leftover.unlink()
    done = sum(is_whole_shard(folder, n, identity) for n in range(identity.num_shards))
    folder.mkdir(parents=True, exist_ok=True)
    log(forms_table(identity, forms))
    if done:
        log(f"cache: {done} of {identity.num_shards} shards are there already")
    check_disk(folder, identity, forms, done)
    record = identity.to_dict() | {"versions": decoder_versions()}
    atomic_write(plan, json.dumps(record, indent=1, sort_keys=True))


def extract_share(
    config: ExtractConfig,
    folder: Path,
    manifest: Manifest,
    images: pd.DataFrame,
    model: ImageClassifier,
    identity: CacheIdentity,
    accelerator: Accelerator,
    log: Log,
) -> dict[int, str]:
    """Make this process's missing shards; SHA-256 by number of all its shards, former ones included.

    A shard is one process's work, so its bytes do not depend on what was done before or by whom.
    """
    numbers = range(accelerator.process_index, identity.num_shards, accelerator.num_processes)
    missing = [n for n in numbers if not is_whole_shard(folder, n, identity)]
    former = {n: sha256_file(folder / shard_name(n)) for n in numbers if n not in missing}
    sources = [
        Image(manifest.image_path(row), {str(k): str(v) for k, v in ids.items()})
        for row, ids in enumerate(images.to_dict("records"))
    ]
    pictures = Pictures(config.image, config.augmentation, config.cache.augmented, config.seed)
    batches = plan_batches(missing, identity, config.cache.batch_size)
    return former | extract_shards(
        folder, batches, sources, pictures, model.backbone, identity, accelerator, config.num_workers, log
    )


def keep_training_data(
    stage_dir: Path, train_set: Manifest, val_set: Manifest, finished: bool, former: Collection[str] = ()
) -> None:
    """Write down in ``data.json`` what a stage learns from, or check that it goes on with the same.

    Args:
        finished: Training is done and its product does not depend on labels, as stage one's maps do not.
        former: Patients that the weights at the start were trained on.

    Raises:
        InputError: training was begun with other images, labels or splits.
    """
    path = stage_dir / "data.json"
    digest = hashlib.sha256(f"{train_set.digest} {val_set.digest}".encode()).hexdigest()
    if not path.exists():
        patients = sorted({*train_set.images["patient_id"], *former})
        atomic_write(path, json.dumps({"digest": digest, "trained_patients": patients}, indent=1))
    elif not finished and load_json(path).get("digest") != digest:
        raise InputError(
            f"{path}: this training was begun with other images, labels or splits than manifest.csv now holds;"
            f" delete {stage_dir} to start anew, or choose another run_dir"
        )


def refuse_new_split(stage_dir: Path, manifest: Manifest) -> None:
    """Refuse to go on with a backbone that was trained on a patient of today's val or test split.

    Raises:
        InputError: names the first such patient.
    """
    trained = trained_patients(stage_dir)
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
    trained = trained_patients(stage_dir)  # not today's train split, which may have changed
    return {
        "manifest_sha256": manifest.digest,
        "versions": decoder_versions(),
        "trained_patients": sorted(patient_hash(patient, identity.weights_sha256) for patient in trained),
    }
