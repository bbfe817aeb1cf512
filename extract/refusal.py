"""What a cache was made from against what is wanted now: equal, or refused in words, with the command that helps.

Nothing that maps depend on may differ; what they do not depend on (labels, splits, folders, comments, the machine's
language or clock) is not looked at.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from data.cache import read_cache_record
from data.cache_rewrite import MEBIBYTES
from data.errors import InputError
from data.golden import decoder_versions
from data.shard_index import build_index
from data.shards import CacheIdentity, bytes_per_image, images_per_shard

WORDS = {  # in the order in which differences are looked for: causes before their consequences
    "format_version": "cache format",
    "backbone": "backbone",
    "weights_sha256": "weights of the backbone",
    "fold_weights": "backbones of the folds",
    "golden_decode": "decoding of a test picture",
    "preprocessing": "preprocessing",
    "dtype": "cache.dtype",
    "pool": "cache.pool",
    "variants": "maps per image",
    "augmentation": "augmentation",
    "map_shape": "map shape",
    "images_sha256": "images",
    "num_images": "number of images",
    "classes": "classes of the backbone",
    "images_per_shard": "images per shard (cache.shard_megabytes)",
}
CONSEQUENCES = {"map_shape", "num_images", "images_per_shard"}  # told where nothing else explains them
LOSSLESS = {"compression"}  # the maps are the same
IDS = ("study_id", "patient_id")


def is_complete(folder: Path, identity: CacheIdentity, images: pd.DataFrame) -> bool:
    """Whether a finished cache of this identity is there; one of another identity is refused.

    Args:
        images: What is to be cached, with the columns image_id, study_id, patient_id and content.

    Raises:
        InputError: names what differs, old and new, and how to go on.
    """
    if not (folder / "cache.json").exists():
        return False
    record, found = read_cache_record(folder)
    refuse_changes(folder, found.to_dict() | {"versions": record.get("versions", {})}, identity, images)
    sizes = [(folder / shard["name"], shard["bytes"]) for shard in record["shards"]]
    return all(path.is_file() and path.stat().st_size == size for path, size in sizes)


def refuse_changes(folder: Path, found: dict[str, Any], identity: CacheIdentity, images: pd.DataFrame) -> None:
    """Raise an `InputError` naming everything in which a cache, or one begun, differs from the one wanted.

    Args:
        found: An identity as a dictionary, and ``versions``, the decoders that it was made with.
    """
    wanted = identity.to_dict()
    keys = [*WORDS, *sorted(wanted.keys() - WORDS.keys() - LOSSLESS)]
    differing = [key for key in keys if found.get(key) != wanted[key]]
    if not differing:
        return
    causes = [key for key in differing if key not in CONSEQUENCES] or differing
    what = "; ".join(_difference(folder, key, found, identity, images) for key in causes)
    raise InputError(f"{folder}: this cache was made with {what}; {_remedy(folder, causes, found, identity)}")


def _difference(folder: Path, key: str, found: dict[str, Any], identity: CacheIdentity, images: pd.DataFrame) -> str:
    old, new = found.get(key), identity.to_dict()[key]
    if key == "images_sha256":
        return f"other images ({_image_changes(folder, found, images)})"
    if key == "golden_decode":
        versions = "; ".join(_changes(found.get("versions", {}), decoder_versions())) or "no version changed"
        return f"another decoding of the test picture ({shown(old)}, now {shown(new)}: {versions})"
    if isinstance(old, dict) and isinstance(new, dict):
        return f"another {WORDS[key]} ({'; '.join(f'{key}.{change}' for change in _changes(old, new))})"
    return f"another {WORDS.get(key, key)} ({shown(old)}, now {shown(new)})"


def _changes(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            yield f"{key} {shown(old.get(key))}, now {shown(new.get(key))}"


def _image_changes(folder: Path, found: dict[str, Any], images: pd.DataFrame) -> str:
    """Which images were added, removed, moved to another study or patient, or got another content."""
    try:
        index = build_index(folder, CacheIdentity.from_dict({k: v for k, v in found.items() if k != "versions"}))
    except (InputError, TypeError, KeyError):  # begun only, or damaged
        return f"{found.get('num_images')} images, now {len(images)}; their ids or files differ"
    old = pd.DataFrame({name: getattr(index, name) for name in ("image_id", *IDS, "content")}).set_index("image_id")
    new = images.set_index("image_id")
    both = old.index.intersection(new.index)
    groups = {"added": new.index.difference(old.index), "gone": old.index.difference(new.index)}
    for name, words in (("content", "with other pixels"), *((name, f"with another {name}") for name in IDS)):
        groups[words] = both[(old.loc[both, name] != new.loc[both, name]).to_numpy()]
    return ", ".join(f"{len(ids)} {words}, first {ids[0]!r}" for words, ids in groups.items() if len(ids))


def _remedy(folder: Path, causes: list[str], found: dict[str, Any], identity: CacheIdentity) -> str:
    """The command that repairs it."""
    place = shlex.quote(str(folder))
    anew = f"to make it anew: rm -r {place}, then the same command again"
    if set(causes) <= {"dtype", "pool"}:
        keep = " ".join(f"--cache.{key} {found[key]}" for key in causes)
        if found["dtype"] == "float16" and found["pool"] in (1, identity.pool):  # no value has to be made up
            options = f"--dtype {identity.dtype}{' --pool 2' if 'pool' in causes else ''}{_shard_size(identity)}"
            anew = f"to change it: python scripts/cache.py convert {place} --replace {options}"
        return f"to keep it: {keep}; {anew}"
    if causes == ["golden_decode"]:
        return f"install the former versions, or, {anew}"
    return f"{anew}; to keep both, choose another run_dir"


def _shard_size(identity: CacheIdentity) -> str:
    """The option that gives a converted cache shards of the wanted number of images, where it is needed."""
    form = identity.map_shape, identity.dtype, len(identity.variants)
    if images_per_shard(*form, MEBIBYTES) == identity.images_per_shard:
        return ""
    return f" --shard_megabytes {-(-identity.images_per_shard * bytes_per_image(*form) // 2**20)}"


def shown(value: object) -> str:
    """A value for an error line."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    if len(text) == 64 and not set(text) - set("0123456789abcdef"):  # a digest
        return text[:12]
    return text if len(text) <= 80 else text[:77] + "..."
