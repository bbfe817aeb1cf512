"""The finished feature cache: ``cache.json``, the index, and random access to checked maps.

``cache.json`` is the authority, written last: what made the maps, each shard's bytes and digests. ``index.npz`` says
where each map lies; it is derived, and rebuilt from the shards' headers when missing or damaged.

Axes: **N** images, **H W** map size, **D** features.
"""

import hashlib
import json
import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Float16, Int

from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.shards import (
    FORMAT_VERSION,
    CacheIdentity,
    CacheIndex,
    build_index,
    index_digest,
    shard_name,
)


def finish_cache(folder: Path, identity: CacheIdentity, extra: dict[str, Any], shard_sha256: list[str]) -> None:
    """Index the shards and write ``index.npz`` and, last, ``cache.json``."""
    index = build_index(folder, identity)
    shards = [
        {
            "name": shard_name(n),
            "bytes": (folder / shard_name(n)).stat().st_size,
            "sha256": sha256,
            "index_sha256": index_digest(index, n),
        }
        for n, sha256 in enumerate(shard_sha256)
    ]
    record = {"identity": identity.to_dict(), "shards": shards} | extra
    _save_index(folder, index)
    atomic_write(
        folder / "cache.json", json.dumps(record | {"digest": record_digest(record)}, indent=1, sort_keys=True)
    )


def record_digest(record: dict[str, Any]) -> str:
    """SHA-256 of all of ``cache.json`` but the digest itself."""
    rest = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _save_index(folder: Path, index: CacheIndex) -> None:
    temporary = folder / f".tmp-index-{os.getpid()}.npz"  # several processes may find it missing at the same time
    with open(temporary, "wb") as file:
        np.savez(file, **vars(index))
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / "index.npz")


def read_cache_record(folder: Path) -> tuple[dict[str, Any], CacheIdentity]:
    """``cache.json`` as written, and the identity in it.

    Raises:
        InputError: the cache is missing, unfinished, or of another format.
    """
    path = folder / "cache.json"
    if not path.is_file():
        raise InputError(f"{path}: no finished feature cache here; run extract.py first")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["digest"] != record_digest(record):
            raise ValueError("its digest differs from its content")
        values = record["identity"]
        if values["format_version"] != FORMAT_VERSION:
            raise InputError(f"{path}: cache format {values['format_version']}, this version reads {FORMAT_VERSION}")
        values = values | {"map_shape": tuple(values["map_shape"]), "classes": tuple(values["classes"])}
        return record, CacheIdentity(**values)
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); delete {folder} and rerun extract.py") from None


class FeatureCache:
    """Random access to cached maps by image id; every read is checked.

    Raises:
        InputError: no finished cache, or a shard that is missing, truncated or not the one ``cache.json`` lists.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.record, self.identity = read_cache_record(folder)
        for shard in self.record["shards"]:
            path = folder / shard["name"]
            found = path.stat().st_size if path.is_file() else "no file"
            if found != shard["bytes"]:
                raise InputError(
                    f"{path}: wanted {shard['bytes']} bytes, found {found}; delete it and rerun extract.py"
                )
        self.index = self._load_index()
        self.ordinal = {image_id: n for n, image_id in enumerate(self.index.image_id.tolist())}
        self._files: dict[int, int] = {}

    def _load_index(self) -> CacheIndex:
        """``index.npz``, or, when it is missing or not the one that belongs here, the same built from the shards."""
        try:
            with np.load(self.folder / "index.npz", allow_pickle=False) as arrays:
                index = CacheIndex(**{name: arrays[name] for name in CacheIndex.__annotations__})
            if self._other_shard(index) is None:
                return index
        except (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile):
            pass  # whatever np.load makes of a damaged file: the shards are the truth
        index = build_index(self.folder, self.identity)
        if (other := self._other_shard(index)) is not None:
            raise InputError(
                f"{self.folder / shard_name(other)}: not the shard that cache.json lists (its ids or checksums differ);"
                " delete it and rerun extract.py"
            )
        with suppress(OSError):  # a cache may be read-only
            _save_index(self.folder, index)
        return index

    def _other_shard(self, index: CacheIndex) -> int | None:
        """The first shard of which the index says something else than ``cache.json``."""
        wanted = [shard["index_sha256"] for shard in self.record["shards"]]
        return next((n for n, digest in enumerate(wanted) if index_digest(index, n) != digest), None)

    def read(self, ordinals: Int[np.ndarray, "n"]) -> Float16[np.ndarray, "n H W D"]:
        """Read maps by ordinal, in the order given.

        Raises:
            InputError: a map's bytes do not match its checksum; the message names shard and image.
        """
        maps = np.empty((len(ordinals), *self.identity.map_shape), dtype=np.float16)
        for place, n in zip(maps, ordinals.tolist(), strict=True):
            shard = int(self.index.shard[n])
            if shard not in self._files:
                self._files[shard] = os.open(self.folder / shard_name(shard), os.O_RDONLY)
            read = os.preadv(self._files[shard], [place.data.cast("B")], int(self.index.offset[n]))
            if read != place.nbytes or xxhash.xxh3_64_intdigest(place.data) != int(self.index.checksum[n]):
                raise InputError(
                    f"{self.folder / shard_name(shard)}: the map of image {self.index.image_id[n]!r} is damaged "
                    "(checksum differs); delete this shard and rerun extract.py"
                )
        return maps

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


def verify_shards(folder: Path) -> None:
    """Read every shard and compare it with ``cache.json``; the first that differs is named in an InputError."""
    record, _ = read_cache_record(folder)
    for shard in record["shards"]:
        path = folder / shard["name"]
        found = sha256_file(path) if path.is_file() else "no file"
        if found != shard["sha256"]:
            raise InputError(f"{path}: SHA-256 {found[:12]}, cache.json says {shard['sha256'][:12]}")
