"""The finished feature cache: ``cache.json``, the index, and random access to checked maps.

``cache.json`` is the authority, written last: what made the maps, each shard's bytes and digests. ``index.npz`` says
where each map lies; it is derived, and rebuilt from the shards' headers when missing or damaged.

Axes: **N** images, **H W** map size, **D** features.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from data.errors import InputError
from data.files import atomic_file, atomic_write
from data.reading import BatchBuffer, Item, read_ahead
from data.shard_index import CacheIndex, build_index, index_digest
from data.shards import FORMAT_VERSION, REMAKE, CacheIdentity, shard_name
from data.storage import decode_maps

CPU = torch.device("cpu")


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
    with atomic_file(folder / "index.npz", temporary) as file:
        np.savez(file, **vars(index))


def load_index(folder: Path) -> CacheIndex | None:
    """``index.npz`` as it stands, or nothing where it is missing or no index."""
    try:
        with np.load(folder / "index.npz", allow_pickle=False) as arrays:
            if any(member.compress_type != zipfile.ZIP_STORED for member in arrays.zip.infolist()):
                return None  # not as we write it: a small file could fill the memory
            return CacheIndex(**{name: arrays[name] for name in CacheIndex.__annotations__})
    except (OSError, ValueError, LookupError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile):
        return None  # whatever np.load makes of a damaged file: the shards are the truth


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
        if (found := record["identity"]["format_version"]) != FORMAT_VERSION:
            raise InputError(
                f"{path}: cache format {found}, this version reads {FORMAT_VERSION}; delete {folder} and rerun"
                " extract.py"
            )
        identity = CacheIdentity.from_dict(record["identity"])
        shards = record["shards"]
        if len(shards) != identity.num_shards or any(s["name"] != shard_name(n) for n, s in enumerate(shards)):
            raise ValueError("it lists other shards than its images fill")
        _check_record(record)
        return record, identity
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({error}); delete {folder} and rerun extract.py") from None


def _check_record(record: dict[str, Any]) -> None:
    """Refuse entries beside the identity that are not what `finish_cache` writes, whatever the digest says."""
    for shard in record["shards"]:
        for key, kind in (("bytes", int), ("sha256", str), ("index_sha256", str)):
            if type(shard[key]) is not kind:
                raise ValueError(f"{key} of {shard['name']} is {shard[key]!r:.60}")
    for key in ("trained_patients", "rewritten_from"):
        found = record.get(key, [])
        if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
            raise ValueError(f"{key} is no list of texts")
    if not isinstance(record.get("versions", {}), dict):
        raise ValueError("versions is no object")


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
                raise InputError(f"{path}: wanted {shard['bytes']} bytes, found {found}; delete it and {REMAKE}")
        self.index = self._load_index()
        self.ordinal = {image_id: n for n, image_id in enumerate(self.index.image_id.tolist())}
        self._buffer = BatchBuffer(folder, self.identity, self.index)

    def _load_index(self) -> CacheIndex:
        """``index.npz``, or, when it is missing or not the one that belongs here, the same built from the shards."""
        index = load_index(self.folder)
        if index is not None and other_shard(index, self.record) is None:
            return index
        index = build_index(self.folder, self.identity)
        if (other := other_shard(index, self.record)) is not None:
            raise InputError(
                f"{self.folder / shard_name(other)}: not the shard that cache.json lists (its ids or checksums differ);"
                f" delete it and {REMAKE}"
            )
        with suppress(OSError):  # a cache may be read-only
            _save_index(self.folder, index)
        return index

    def read(self, ordinals: Int[np.ndarray, "n"], variant: int = 0) -> Float[np.ndarray, "n H W D"]:
        """Maps by ordinal, in the order given: float16 as stored, uint8 decoded to float32.

        Raises:
            InputError: a map's bytes do not match its checksum; the message names shard and image.
        """
        payload = self.read_stored(ordinals, np.full(len(ordinals), variant))
        maps = decode_maps(payload, self.identity.dtype, self.identity.map_shape)
        return maps.numpy().copy() if self.identity.dtype == "float16" else maps.numpy()

    def read_stored(self, ordinals: Int[np.ndarray, "n"], variants: Int[np.ndarray, "n"]) -> Shaped[Tensor, "n ..."]:
        """The same in their stored form, which holds until the next read."""
        return self._buffer.read(ordinals, variants)

    def stream(
        self,
        requests: Iterable[tuple[Item, np.ndarray, np.ndarray]],
        device: torch.device = CPU,
        num_threads: int = 2,
        checked: bool = True,
    ) -> Iterator[tuple[Item, Tensor]]:
        """Stored forms of many batches on a device, read ahead by threads (`data.reading.read_ahead`)."""
        pinned = device.type == "cuda"
        buffers = [BatchBuffer(self.folder, self.identity, self.index, pinned, checked) for _ in range(num_threads + 1)]
        return read_ahead(requests, buffers, device)

    def close(self) -> None:
        """Close the shards."""
        self._buffer.close()


def other_shard(index: CacheIndex, record: dict[str, Any]) -> int | None:
    """The first shard of which an index says something else than ``cache.json``."""
    try:
        wanted = [shard["index_sha256"] for shard in record["shards"]]
        return next((n for n, digest in enumerate(wanted) if index_digest(index, n) != digest), None)
    except (ValueError, TypeError):  # columns of other kinds
        return 0
