"""Where each map of a cache lies: read from the shards' own headers, and compared with what ``cache.json`` says.

Axes: **N** images, **K** variants.
"""

import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Int, UInt64

from data.errors import InputError
from data.shards import FOLD, META, META_KEYS, REMAKE, CacheIdentity, member_endings, npy_header, shard_name
from data.storage import payload_bytes

MAX_META_BYTES = 65536
CHECKSUM = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class CacheIndex:
    """Where each of N images' K maps lie, in ordinal order."""

    image_id: np.ndarray
    study_id: np.ndarray
    patient_id: np.ndarray
    content: np.ndarray
    fold: Int[np.ndarray, "N"]
    """Which of the identity's backbones made the maps; 0 where there is one."""
    shard: Int[np.ndarray, "N"]
    offset: Int[np.ndarray, "N K"]
    """First byte of what is read and checked: the values behind the .npy header, or the whole compressed member."""
    nbytes: Int[np.ndarray, "N K"]
    checksum: UInt64[np.ndarray, "N K"]


def index_digest(index: CacheIndex, shard: int) -> str:
    """SHA-256 of what an index says of one shard."""
    start, end = np.searchsorted(index.shard, [shard, shard + 1])
    columns = [getattr(index, name)[start:end].tolist() for name in CacheIndex.__annotations__]
    return hashlib.sha256(json.dumps(columns).encode()).hexdigest()


def index_shard(path: Path, number: int, identity: CacheIdentity) -> list[dict[str, Any]]:
    """Read the headers and ids of a shard; the maps themselves are skipped.

    Raises:
        InputError: missing, or not the complete shard of that number; the message names it.
    """
    rows: list[dict[str, Any]] = []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                _index_member(member, file, rows, identity)
    except FileNotFoundError:
        raise InputError(f"{path}: shard is missing; {REMAKE}") from None
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable shard ({error}); delete it and {REMAKE}") from None
    wanted = identity.ordinals_of(number)
    if [row["key"] for row in rows] != list(wanted) or "checksum" not in rows[-1]:
        raise InputError(
            f"{path}: wanted {len(wanted)} images from number {wanted.start} on, found {len(rows)}, or others; delete"
            f" it and {REMAKE}"
        )
    return [row | {"shard": number} for row in rows]


def _index_member(member: tarfile.TarInfo, file: BinaryIO, rows: list[dict[str, Any]], identity: CacheIdentity) -> None:
    """Add a member to the rows: the plain map starts one, the other variants follow, the ids complete it."""
    number, dot, ending = member.name.partition(".")
    key, ending, endings = int(number), dot + ending, member_endings(identity)
    if not rows or "checksum" in rows[-1]:
        rows.append({"key": key, "offset": [], "nbytes": []})
    row = rows[-1]
    place = len(row["offset"])
    file.seek(member.offset_data)
    if key != row["key"] or not member.isreg() or ending != (*endings, META)[place]:
        raise ValueError(f"unexpected member {member.name!r}")
    if place == len(endings):
        if member.size > MAX_META_BYTES:
            raise ValueError(f"member {member.name} is too large for ids and checksums")
        row |= _read_meta(member.name, file.read(member.size), identity)
        return
    header = npy_header(identity.payload_shape, identity.dtype) if identity.compression == "none" else b""
    nbytes = member.size - len(header)
    if header and (file.read(len(header)) != header or nbytes != payload_bytes(identity.map_shape, identity.dtype)):
        raise ValueError(f"member {member.name} is not a {identity.dtype} map of the cache's shape")
    row["offset"].append(member.offset_data + len(header))
    row["nbytes"].append(nbytes)


def _read_meta(name: str, content: bytes, identity: CacheIdentity) -> dict[str, Any]:
    """Ids, fold and checksums of a sample; a ValueError where they are anything else."""
    meta = json.loads(content)
    if not isinstance(meta, dict) or meta.keys() - {FOLD} != META_KEYS:
        raise ValueError(f"member {name} does not hold ids and checksums")
    checksums, fold = meta.pop("xxh3"), meta.pop(FOLD, 0)
    if not all(isinstance(value, str) for value in meta.values()) or not isinstance(checksums, list):
        raise ValueError(f"member {name} does not hold ids and checksums")
    if len(checksums) != len(identity.variants) or not all(CHECKSUM.fullmatch(str(value)) for value in checksums):
        raise ValueError(f"member {name} does not hold one checksum for each map")
    if type(fold) is not int or not 0 <= fold < len(identity.weights):
        raise ValueError(f"member {name} does not hold the number of a fold")
    return meta | {FOLD: fold, "checksum": [int(value, 16) for value in checksums]}


def build_index(folder: Path, identity: CacheIdentity) -> CacheIndex:
    """Index all shards of a cache from their headers.

    Raises:
        InputError: names the first shard that is missing, damaged or another one.
    """
    rows = [row for n in range(identity.num_shards) for row in index_shard(folder / shard_name(n), n, identity)]
    return to_index(rows)


def to_index(rows: list[dict[str, Any]]) -> CacheIndex:
    """Rows of `index_shard` as columns."""
    dtypes = {"checksum": np.uint64, **dict.fromkeys(("fold", "shard", "offset", "nbytes"), np.int64)}
    return CacheIndex(
        **{
            name: np.array([row[name] for row in rows], dtype=dtypes.get(name, np.str_))
            for name in CacheIndex.__annotations__
        }
    )


def is_whole_shard(folder: Path, number: int, identity: CacheIdentity) -> bool:
    """Whether a shard is there and whole, as far as headers tell; a damaged one is removed, to be made again."""
    path = folder / shard_name(number)
    if not path.exists():
        return False
    try:
        index_shard(path, number, identity)
    except InputError:
        path.unlink()
        return False
    return True
