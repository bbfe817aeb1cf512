"""Reading a published model folder, which may come from anywhere: nothing in it is trusted before it was checked.

`fusion.model_folder` says what is in one.
"""

import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from data.errors import InputError
from data.shards import CacheIdentity
from data.storage import STORAGE_DTYPES
from data.strict_json import check_keys, read_json
from data.transforms import Augmentation
from extract.backbone import TIMM_NAME
from extract.checkpoint import check_folder
from extract.config import ExtractConfig
from fusion.config import FusionConfig
from fusion.fitted import load_fitted
from fusion.model_parts import STAGE_ONE, ModelParts, assembled, read_classes, read_config
from fusion.predictor import Predictor

FORMAT = 1
AGAIN = "download or assemble the folder again"
STAGE = ("model.safetensors", "config.yaml", "classes.json", "preprocessing.json", "metrics.json")
FITTED = ("calibration.json", "thresholds.json")
BACKBONE = tuple(f"backbone/{name}" for name in (*STAGE, "digests.json"))
EXPECTED = "example/expected.json"
EXAMPLE_FILES = ("example/frontal.png", "example/lateral.png")
MODEL_FILES = (*STAGE, "config.json", "digests.json", *FITTED, STAGE_ONE, *BACKBONE, EXPECTED)
BESIDE = ("README.md", "LICENSE", ".gitattributes")
"""Files for people, which no prediction depends on."""
OF_OTHERS = (".git", ".cache")
"""Folders of the tools that fetched the folder."""

TOLERANCE, TOLERANCE_MIXED = 0.05, 0.3
"""Largest difference between a logit of the example and the expected one. Other processors round a few values of a map
to the next float16 (2e-4 in a logit of the demo's model), reduced precision rounds more; another grey scale, size or
order of views moves logits by whole numbers."""

REFUSED_ARGUMENTS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Of `timm.create_model`: they load files that the folder's digests know nothing of."""

MAPS = {
    "backbone": str,
    "weights_sha256": str,
    "map_shape": list,
    "dtype": str,
    "pool": int,
    "variants": list,
    "augmentation": dict,
}
"""What the fusion model has to know of the cache that it was trained on."""


def is_published(folder: Path) -> bool:
    """Whether a folder has the published form, whole or not."""
    return (folder / "config.json").is_file()


def read_published(folder: Path, links_within: Path | None = None) -> ModelParts:
    """The model in a published folder.

    Args:
        links_within: Where links may lead: the Hub's cache keeps files apart from their names. None: the folder.

    Raises:
        InputError: A missing, unexpected or altered file, key or weight, a link that leads out.
    """
    refuse_links(folder, links_within or folder)
    check_files(folder)
    joint = (folder / STAGE_ONE).is_file()
    check_plain_backbone(folder / (STAGE_ONE if joint else "backbone/config.yaml"))
    classes = read_classes(folder)
    record = read_json(folder / "config.json", AGAIN)
    where = str(folder / "config.json")
    check_keys(record, {"format": int, "model_type": str, "maps": dict, "no_view": dict}, where, AGAIN)
    if record["format"] != FORMAT:
        raise InputError(f"{where}: format must be {FORMAT}, found {record['format']}; {AGAIN}")
    config = read_config(FusionConfig, folder / "config.yaml")
    return assembled(
        folder=folder,
        backbone_folder=None if joint else folder / "backbone",
        config=config,
        evaluation=config.evaluation,
        identity=read_maps(record["maps"], folder, classes),
        fitted=load_fitted(folder) if (folder / FITTED[0]).is_file() else None,
        no_view=read_no_view(record["no_view"], classes, f"{where}: no_view"),
    )


def refuse_links(folder: Path, root: Path) -> None:
    """Refuse links that lead out of `root`, and links to folders.

    Raises:
        InputError: names the first.
    """
    real = Path(os.path.realpath(root))
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in OF_OTHERS]
        for path in (Path(parent, name) for name in [*folders, *names]):
            if path.is_symlink() and (path.is_dir() or not Path(os.path.realpath(path)).is_relative_to(real)):
                raise InputError(f"{path}: a link that leads out of the model folder; {AGAIN}")


def check_files(folder: Path) -> None:
    """Check that a published folder holds the files it lists, unaltered, and no others.

    Raises:
        InputError: names the first that is missing, unexpected or altered.
    """
    listed = read_json(folder / "digests.json", AGAIN)
    joint, fitted = STAGE_ONE in listed, FITTED[0] in listed or FITTED[1] in listed
    own = [STAGE_ONE] if joint else BACKBONE
    wanted = {*STAGE, "config.json", EXPECTED, *EXAMPLE_FILES, *own, *(FITTED if fitted else ())}
    if missing := sorted(wanted - listed.keys()):
        raise InputError(f"{folder / missing[0]}: missing in digests.json; {AGAIN}")
    if unknown := sorted(listed.keys() - wanted):
        raise InputError(f"{folder / 'digests.json'}: lists {unknown[0]!r}, which no model folder has; {AGAIN}")
    found = {
        str(Path(parent, name).relative_to(folder))
        for parent, _, names in os.walk(folder)
        for name in names
        if Path(parent).relative_to(folder).parts[:1] not in [(other,) for other in OF_OTHERS]
    }
    if unexpected := sorted(found - listed.keys() - {"digests.json", *BESIDE}):
        raise InputError(f"{folder / unexpected[0]}: unexpected in a model folder; remove it, or {AGAIN}")
    check_folder(folder)


def check_plain_backbone(path: Path) -> None:
    """Refuse a stage-one configuration whose backbone timm would fetch, or read from another file.

    Raises:
        InputError: names the key.
    """
    backbone = read_config(ExtractConfig, path).backbone
    if not TIMM_NAME.fullmatch(backbone.name):
        raise InputError(f"{path}: backbone.name must be a name of timm's own models, found {backbone.name!r}")
    if refused := sorted(REFUSED_ARGUMENTS & backbone.arguments.keys()):
        raise InputError(f"{path}: backbone.arguments.{refused[0]} is not taken from a model folder")


def read_maps(record: dict[str, Any], folder: Path, classes: tuple[str, ...]) -> CacheIdentity:
    """The form of the maps that the fusion model was trained on, as the identity of a cache without images."""
    where = f"{folder / 'config.json'}: maps"
    check_keys(record, MAPS, where, AGAIN)
    shape, variants, augmentation = record["map_shape"], record["variants"], dict(record["augmentation"])
    known = all(re.fullmatch("plain|flip|augmented_[0-9]{1,4}", str(name)) for name in variants)
    if not (len(shape) == 3 and all(type(size) is int and 1 <= size <= 1 << 16 for size in shape)):
        raise InputError(f"{where}: map_shape must be three whole numbers, found {shape}; {AGAIN}")
    if record["dtype"] not in STORAGE_DTYPES or record["pool"] not in (1, 2):
        raise InputError(f"{where}: unknown dtype {record['dtype']!r} or pool {record['pool']}; {AGAIN}")
    if not variants or variants[0] != "plain" or not known:
        raise InputError(f"{where}: unknown variants {variants}; {AGAIN}")
    if any(name.startswith("augmented") for name in variants):
        try:
            seed = augmentation.pop("seed")
            Augmentation(**augmentation)
        except (KeyError, TypeError) as error:
            raise InputError(f"{where}: augmentation is not complete ({error}); {AGAIN}") from None
        if type(seed) is not int:
            raise InputError(f"{where}: augmentation.seed must be a whole number, found {seed!r}; {AGAIN}")
    lists = {"map_shape": tuple(shape), "variants": tuple(variants)}
    preprocessing = read_json(folder / "preprocessing.json", AGAIN)
    values: dict[str, Any] = record | lists | {"preprocessing": preprocessing, "classes": classes}
    return CacheIdentity(**values, images_sha256="", num_images=0, images_per_shard=1)


def read_no_view(record: dict[str, Any], classes: tuple[str, ...], where: str) -> Float64[np.ndarray, "C"] | None:
    """The logits of no view at all, class by class; None where the folder was made without them."""
    if not record:
        return None
    check_keys(record, dict.fromkeys(classes, float), where, AGAIN)
    values = np.array([record[name] for name in classes], dtype=np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{where}: wanted finite numbers; {AGAIN}")
    return values


def check_example(model: Predictor, folder: Path) -> None:
    """Predict the folder's example and compare it with what the model said where the folder was made.

    Raises:
        InputError: names the class that differs most, the logit wanted and found.
    """
    path = folder / EXPECTED
    record = read_json(path, AGAIN)
    check_keys(record, {"images": dict, "logits": dict, "probabilities": dict}, str(path), AGAIN)
    check_keys(record["logits"], dict.fromkeys(model.classes, float), f"{path}: logits", AGAIN)
    check_keys(record["images"], {Path(name).name: str for name in EXAMPLE_FILES}, f"{path}: images", AGAIN)
    files = [folder / "example" / name for name in record["images"]]
    found = model.predict_study(files, list(record["images"].values())).logits
    wanted = np.array([record["logits"][name] for name in model.classes])
    mixed = model.parts.config.mixed_precision != "no" or model.parts.stage_one.mixed_precision != "no"
    tolerance = TOLERANCE_MIXED if mixed else TOLERANCE
    c = int(np.argmax(np.abs(found - wanted)))
    if not math.isfinite(wanted[c]) or abs(found[c] - wanted[c]) > tolerance:
        raise InputError(
            f"{path}: the model does not say here what it said where it was made: {model.classes[c]!r}, wanted logit"
            f" {wanted[c]:.3f}, found {found[c]:.3f}; {AGAIN}, or compare versions of torch, timm and this package"
        )
