"""What the joint phase goes on from: two finished models that belong together, images that are those of the cache."""

import json
from dataclasses import replace
from pathlib import Path

from accelerate import Accelerator

from data.cache import FeatureCache
from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.manifest import Manifest
from data.runs import Log
from extract.cache import refuse_new_split
from extract.checkpoint import check_folder, load_json, load_tensors, load_weights, trained_patients
from extract.config import ExtractConfig
from extract.teacher import load_teacher
from extract.train import readable_images
from fusion.config import FusionConfig
from fusion.joint_model import JointModel
from fusion.model import FusionModel


def load_start(
    config: FusionConfig, manifest: Manifest, cache: FeatureCache
) -> tuple[JointModel, ExtractConfig, dict[str, str]]:
    """Stage one's best backbone and stage two's best model, strictly; stage one's options; digests of both weights.

    Raises:
        InputError: a folder is damaged, or the cache does not come from this backbone and its preprocessing.
    """
    best, folders = config.stage_dir / "best", config.run_dir / "stage_one"
    teacher = load_teacher(folders)
    found, wanted = teacher.weights_sha256, cache.identity.weights_sha256
    several = cache.index.fold.any()
    if several or found != wanted:
        other = "several" if several else f"another one ({wanted[:12]})"
        raise InputError(
            f"{cache.folder}: --joint goes on with the backbone in {folders / 'best'} (weights {found[:12]}), these"
            f" maps come from {other}; name its cache in cache_dir"
        )
    if teacher.config.image.to_dict() != cache.identity.preprocessing:
        raise InputError(f"{cache.folder}: made with another preprocessing than {folders / 'best'}; rerun extract.py")
    check_folder(best)
    fusion = FusionModel(config.model, cache.identity.map_shape, len(manifest.classes))
    load_weights(fusion, load_tensors(best / "model.safetensors"), str(best))
    model = JointModel(teacher.model.backbone, fusion, cache.identity.pool, config.joint.unfreeze)
    return model, teacher.config, {"stage_one": found, "fusion": sha256_file(best / "model.safetensors")}


def refuse_leaks_and_changes(
    config: FusionConfig,
    manifest: Manifest,
    cache: FeatureCache,
    stage_one: ExtractConfig,
    accelerator: Accelerator,
    log: Log,
) -> set[str]:
    """Check that no patient of val or test was learned from, and that image files are those behind the cached maps.

    Returns:
        Patients that stage one was trained on.

    Raises:
        InputError: names the first such patient or image.
    """
    for folder in (config.run_dir / "stage_one", config.stage_dir):
        refuse_new_split(folder, manifest)
    scan = replace(stage_one, run_dir=config.run_dir, num_workers=config.joint.num_workers)
    readable, content = readable_images(scan, accelerator, log)
    now = dict(zip(readable.images["image_id"], content, strict=True))
    changed = [
        name for name in manifest.images["image_id"] if now.get(name) != cache.index.content[cache.ordinal[name]]
    ]
    if changed:
        raise InputError(
            f"manifest.csv: {len(changed)} image files are not the cached ones, first image {changed[0]}; put them"
            " back, or rerun extract.py in a new run_dir"
        )
    return trained_patients(config.run_dir / "stage_one")


def keep_start(stage_dir: Path, digests: dict[str, str]) -> None:
    """Write down in ``start.json`` which weights the phase goes on from, or check that they are still those.

    Raises:
        InputError: the backbone or the fusion model was trained anew since.
    """
    path = stage_dir / "start.json"
    if not path.exists():
        atomic_write(path, json.dumps(digests, indent=1))
    elif load_json(path) != digests:
        raise InputError(f"{path}: this phase began with other weights than those now in best/; delete {stage_dir}")
