"""Write a cache out of the maps of others: whole, shard by shard, and going on where it was killed.

No image is decoded and no model is run. What made the maps (`weights_sha256`, the patients trained on, versions) is
kept; the caches they came from are recorded by the digest of their ``cache.json``.

Axes: **N** images, **K** variants.
"""

import json
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from data.cache import FeatureCache, finish_cache, read_cache_record
from data.errors import InputError
from data.files import atomic_write, name_file, sha256_file
from data.lock import locked
from data.shard_index import is_whole_shard
from data.shards import FOLD, CacheIdentity, ShardWriter, bytes_per_image, shard_name
from data.storage import encode_maps, pool_maps
from data.strict_json import read_json

MEBIBYTES = 256
"""Size of a shard, as in extraction."""
IDS = ("patient_id", "study_id", "image_id")  # sorting keys, first to last


@dataclass(frozen=True)
class Picks:
    """Where each of the new cache's N images comes from."""

    caches: list[FeatureCache]
    cache: Int[np.ndarray, "N"]
    ordinal: Int[np.ndarray, "N"]

    def ids(self, n: int) -> dict[str, str]:
        """Image, study and patient of the n-th new image, and the digest of its file."""
        index, ordinal = self.caches[self.cache[n]].index, self.ordinal[n]
        return {name: str(getattr(index, name)[ordinal]) for name in (*IDS, "content")}


def stored(cache: FeatureCache, ordinal: int, identity: CacheIdentity) -> list[np.ndarray]:
    """The K maps of an image, in the form that `identity` asks for."""
    K = len(identity.variants)
    payload = cache.read_stored(np.full(K, ordinal), np.arange(K))
    old = cache.identity
    if (old.dtype, old.pool) == (identity.dtype, identity.pool):
        return list(payload.numpy())
    assert old.dtype == "float16", "coded values are not decoded to be coded again"
    maps = payload if old.pool == identity.pool else pool_maps(payload)
    return list(encode_maps(maps, identity.dtype).numpy())


def kept_record(record: dict[str, Any]) -> dict[str, Any]:
    """What stands beside the identity in ``cache.json`` and stays true of the same maps in other shards."""
    return {key: value for key, value in record.items() if key not in {"identity", "shards", "digest"}}


def write_picks(
    target: Path, identity: CacheIdentity, picks: Picks, fold: Int[np.ndarray, "N"], extra: dict[str, Any]
) -> None:
    """Write the cache; shards that a killed run finished are kept.

    Args:
        fold: Of each image, for an out-of-fold cache.
        extra: What ``cache.json`` says beside the identity.

    Raises:
        InputError: the target holds anything else, or the disk is too small.
    """
    plan = {"identity": identity.to_dict(), "from": [cache.record["digest"] for cache in picks.caches]}
    with locked(target):
        begin(target, identity, plan)
        for number in range(identity.num_shards):
            if is_whole_shard(target, number, identity):
                continue
            with new_shard(target, number, identity) as shard:
                for n in identity.ordinals_of(number):
                    ids = picks.ids(n) | ({FOLD: int(fold[n])} if identity.fold_weights else {})
                    shard.write(n, stored(picks.caches[picks.cache[n]], int(picks.ordinal[n]), identity), ids)
        digests = [sha256_file(target / shard_name(number)) for number in range(identity.num_shards)]
        finish_cache(target, identity, extra | {"rewritten_from": plan["from"]}, digests)
        (target / "plan.json").unlink()
    (target / ".lock").unlink(missing_ok=True)


@contextmanager
def new_shard(folder: Path, number: int, identity: CacheIdentity) -> Generator[ShardWriter, None, None]:
    """A shard to write, finished at the end; where that fails, nothing of it is left."""
    shard = ShardWriter(folder, number, identity)
    try:
        yield shard
        shard.close()
    except BaseException as error:
        shard.discard()
        name_file(error, shard.path)
        raise


def begin(target: Path, identity: CacheIdentity, plan: dict[str, Any]) -> None:
    """Claim a folder for one plan.

    Raises:
        InputError: it holds something else, or the disk is too small.
    """
    path = target / "plan.json"
    if (target / "cache.json").exists():
        record, found = read_cache_record(target)
        known = {"identity": found.to_dict(), "from": record.get("rewritten_from")}
    else:
        known = read_json(path, f"delete {target}") if path.exists() else None
    own = {".lock", ".tmp-plan.json"}  # all there is of a run that was killed as it wrote its plan
    strangers = [file.name for file in target.iterdir() if file.name not in own]
    if known != plan and (known is not None or strangers):
        raise InputError(f"{target}: holds another cache, or other files ({min(strangers)}); name a new folder")
    for leftover in target.glob(".tmp-*"):
        leftover.unlink()
    wanted = identity.num_images * bytes_per_image(identity.map_shape, identity.dtype, len(identity.variants))
    free = shutil.disk_usage(target).free + sum(file.stat().st_size for file in target.glob("*.tar"))
    if wanted > free:
        raise InputError(f"{target}: {wanted / 1e9:.2f} GB wanted, {free / 1e9:.2f} GB free; make room or move it")
    atomic_write(path, json.dumps(plan, indent=1, sort_keys=True))
