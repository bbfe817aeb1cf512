"""The feature cache: what stage one writes and stage two reads.

    cache/000000.tar 000001.tar ...   plain WebDataset shards, one sample per image:
                                      <ordinal>.features.npy  the map, H x W x D, and  <ordinal>.json  ids and checksum
    cache/index.npz                   where each map lies (derived: rebuilt from the shards when missing)
    cache/cache.json                  the authority, written last: what made the maps, each shard's bytes, SHA-256 and
                                      digest of its part of the index, and a digest over all that

Images are ordered by patient, then study, then image, so the views of a study and the studies of a patient lie
together. There are no labels and no splits in a shard: both are read live from the manifest. Nothing is ever
unpickled, and only plain files are opened.

What is checked when: opening a cache compares sizes and the index's digests, every read compares a map with its
checksum (together: nothing altered is used), and `verify_shards` reads whole shards, for example after copying.

Axes: **N** images, **H W** map size, **D** features.
"""

import hashlib
import json
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from jaxtyping import Float16, Int
from webdataset.writer import TarWriter

from data.errors import InputError
from data.files import sync_folder

FORMAT_VERSION = 1
FEATURES, META = ".features.npy", ".json"
META_KEYS = {"image_id", "study_id", "patient_id", "content", "xxh3"}
FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """Everything that decides the content of a cache; two equal identities give byte-equal shards."""

    backbone: str
    """timm model name."""

    weights_sha256: str
    """Digest of the model folder's weights."""

    preprocessing: dict[str, Any]
    """Transform from decoded image to network input."""

    map_shape: tuple[int, int, int]
    """H, W, D."""

    images_sha256: str
    """Digest over image, study and patient ids and the content of every image file."""

    num_images: int
    """Images in the cache."""

    images_per_shard: int
    """Samples per shard; the last shard may have fewer."""

    classes: tuple[str, ...]
    """Classes of the model that the backbone comes from."""

    dtype: str = "float16"
    """Storage of the maps."""

    format_version: int = FORMAT_VERSION
    """Of these files."""

    @property
    def num_shards(self) -> int:
        """Shards of the complete cache."""
        return -(-self.num_images // self.images_per_shard)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``cache.json``."""
        return asdict(self) | {"map_shape": list(self.map_shape), "classes": list(self.classes)}


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"{number:06d}.tar"


class ShardWriter:
    """Write one shard under a temporary name; it gets its final name, complete and flushed, at `close`."""

    def __init__(self, folder: Path, number: int) -> None:
        self.path = folder / shard_name(number)
        self.temporary = folder / f".tmp-{self.path.name}"
        self.file: BinaryIO = open(self.temporary, "wb")
        self.tar = TarWriter(self.file, encoder=False, mtime=0.0, user="", group="")

    def write(self, ordinal: int, features: Float16[np.ndarray, "H W D"], ids: dict[str, str]) -> None:
        """Add one image's map; `ids` holds image_id, study_id, patient_id and content."""
        payload = np.ascontiguousarray(features)
        meta = ids | {"xxh3": xxhash.xxh3_64_hexdigest(payload.data)}
        self.tar.write(
            {
                "__key__": f"{ordinal:09d}",  # not an id: WebDataset cuts a key at its first dot
                FEATURES[1:]: npy_header(payload.shape) + payload.tobytes(),
                META[1:]: json.dumps(meta, sort_keys=True, ensure_ascii=True).encode(),
            }
        )

    def close(self) -> None:
        """Finish the shard."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)


def npy_header(shape: tuple[int, ...]) -> bytes:
    """The .npy preamble (version 1.0) of a C-ordered little-endian float16 array."""
    text = f"{{'descr': '<f2', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    padding = -(10 + len(text) + 1) % 64
    return (
        b"\x93NUMPY\x01\x00" + (len(text) + padding + 1).to_bytes(2, "little") + (text + " " * padding + "\n").encode()
    )


@dataclass(frozen=True)
class CacheIndex:
    """Where each of N maps lies, in ordinal order."""

    image_id: np.ndarray
    study_id: np.ndarray
    patient_id: np.ndarray
    content: np.ndarray
    checksum: np.ndarray
    shard: Int[np.ndarray, "N"]
    offset: Int[np.ndarray, "N"]


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
                _index_member(member, file, rows, npy_header(identity.map_shape))
    except FileNotFoundError:
        raise InputError(f"{path}: shard is missing; rerun extract.py") from None
    except (tarfile.TarError, OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a readable shard ({error}); delete it and rerun extract.py") from None
    first = number * identity.images_per_shard
    wanted = range(first, min(first + identity.images_per_shard, identity.num_images))
    if [row["key"] for row in rows] != list(wanted) or not rows[-1].keys() >= META_KEYS:
        raise InputError(
            f"{path}: wanted {len(wanted)} maps from number {first} on, found {len(rows)}, or others; delete it and"
            " rerun extract.py"
        )
    return [row | {"shard": number} for row in rows]


def _index_member(member: tarfile.TarInfo, file: BinaryIO, rows: list[dict[str, Any]], header: bytes) -> None:
    """Add a member to the rows: a map starts one, the ids that follow it complete it."""
    key = int(member.name.split(".")[0])
    file.seek(member.offset_data)
    starts = not rows or rows[-1].keys() >= META_KEYS
    if member.name.endswith(FEATURES) and starts and member.isreg():
        if file.read(len(header)) != header:
            raise ValueError(f"member {member.name} is not a float16 map of the cache's shape")
        rows.append({"key": key, "offset": member.offset_data + len(header)})
    elif member.name.endswith(META) and not starts and rows[-1]["key"] == key and member.size < 65536:
        meta = json.loads(file.read(member.size))
        if not isinstance(meta, dict) or meta.keys() != META_KEYS or not all(isinstance(v, str) for v in meta.values()):
            raise ValueError(f"member {member.name} does not hold ids and checksum")
        rows[-1] |= meta | {"checksum": int(meta["xxh3"], 16)}
    else:
        raise ValueError(f"unexpected member {member.name!r}")


def build_index(folder: Path, identity: CacheIdentity) -> CacheIndex:
    """Index all shards of a cache from their headers.

    Raises:
        InputError: names the first shard that is missing, damaged or another one.
    """
    rows = [row for n in range(identity.num_shards) for row in index_shard(folder / shard_name(n), n, identity)]
    dtypes = {"checksum": np.uint64, "shard": np.int64, "offset": np.int64}
    return CacheIndex(
        **{
            name: np.array([row[name] for row in rows], dtype=dtypes.get(name, np.str_))
            for name in CacheIndex.__annotations__
        }
    )
