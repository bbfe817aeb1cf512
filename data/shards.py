"""The feature cache: what stage one writes and stage two reads.

    cache/000000.tar 000001.tar ...   plain WebDataset shards, one sample per image:
                                      <ordinal>.features.npy  the map, H x W x D, and  <ordinal>.json  ids and checksum
    cache/index.npz                   where each map lies (derived: rebuilt from the shards when missing)
    cache/cache.json                  the authority, written last: what made the maps, each shard's bytes and SHA-256

Images are ordered by patient, then study, then image, so the views of a study and the studies of a patient lie
together. There are no labels and no splits in a shard: both are read live from the manifest. Nothing is ever
unpickled, and only plain files are opened.

Axes: **N** images, **H W** map size, **D** features.
"""

import json
import os
import tarfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import webdataset as wds
import xxhash
from jaxtyping import Float16, Int

from data.errors import InputError
from data.files import atomic_write, sha256_file, sync_folder

FORMAT_VERSION = 1
FEATURES, META = ".features.npy", ".json"
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
        self.tar = wds.TarWriter(self.file, encoder=False, mtime=0.0, user="", group="")

    def write(self, ordinal: int, features: Float16[np.ndarray, "H W D"], ids: dict[str, str]) -> None:
        """Add one image's map; `ids` holds image_id, study_id, patient_id and content."""
        payload = np.ascontiguousarray(features)
        meta = ids | {"xxh3": xxhash.xxh3_64_hexdigest(payload)}
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


def index_shard(path: Path, number: int, map_shape: tuple[int, int, int]) -> list[dict[str, Any]]:
    """Read the headers and ids of a shard; the maps themselves are skipped.

    Raises:
        InputError: not a complete shard of such maps; the message names it.
    """
    header = npy_header(map_shape)
    nbytes = len(header) + 2 * int(np.prod(map_shape))
    rows: list[dict[str, Any]] = []
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key = member.name.split(".")[0]
                if member.name.endswith(FEATURES):
                    file.seek(member.offset_data)
                    if member.size != nbytes or file.read(len(header)) != header:
                        raise InputError(
                            f"{path}: member {member.name} is not a {map_shape} float16 map; rerun extract.py"
                        )
                    rows.append({"key": key, "shard": number, "offset": member.offset_data + len(header)})
                elif member.name.endswith(META) and rows and rows[-1]["key"] == key and member.size < 65536:
                    file.seek(member.offset_data)
                    rows[-1] |= json.loads(file.read(member.size))
                else:
                    raise InputError(
                        f"{path}: unexpected member {member.name!r}; delete this shard and rerun extract.py"
                    )
    except (tarfile.TarError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a readable shard ({error}); delete it and rerun extract.py") from None
    if any("xxh3" not in row for row in rows):
        raise InputError(f"{path}: cut between a map and its ids; delete this shard and rerun extract.py")
    return rows


def build_index(folder: Path, identity: CacheIdentity) -> CacheIndex:
    """Index all shards of a cache from their headers.

    Raises:
        InputError: a shard is missing or damaged, or the maps are not those that the identity counts.
    """
    rows: list[dict[str, Any]] = []
    for number in range(identity.num_shards):
        path = folder / shard_name(number)
        if not path.is_file():
            raise InputError(f"{path}: shard is missing; rerun extract.py")
        rows += index_shard(path, number, identity.map_shape)
    if [int(row["key"]) for row in rows] != list(range(identity.num_images)):
        raise InputError(f"{folder}: holds {len(rows)} maps in a wrong order or number, wanted {identity.num_images}")
    columns = {
        name: np.array([row[name] for row in rows], dtype=np.str_)
        for name in CacheIndex.__annotations__
        if name in rows[0]
    }
    columns["checksum"] = np.array([int(row["xxh3"], 16) for row in rows], dtype=np.uint64)
    columns |= {name: np.array([row[name] for row in rows], dtype=np.int64) for name in ("shard", "offset")}
    return CacheIndex(**columns)


def finish_cache(folder: Path, identity: CacheIdentity, extra: dict[str, Any], shard_sha256: list[str]) -> None:
    """Index the shards and write ``index.npz`` and, last, ``cache.json``."""
    index = build_index(folder, identity)
    shards = [
        {"name": shard_name(n), "bytes": (folder / shard_name(n)).stat().st_size, "sha256": sha256}
        for n, sha256 in enumerate(shard_sha256)
    ]
    record = json.dumps({"identity": identity.to_dict(), "shards": shards} | extra, indent=1, sort_keys=True)
    _save_index(folder, index, record)
    atomic_write(folder / "cache.json", record)


def _save_index(folder: Path, index: CacheIndex, record: str) -> None:
    temporary = folder / ".tmp-index.npz"
    with open(temporary, "wb") as file:
        np.savez(file, made_for=np.array(xxhash.xxh3_64_hexdigest(record.encode())), **vars(index))
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
        values = record["identity"]
        if values["format_version"] != FORMAT_VERSION:
            raise InputError(f"{path}: cache format {values['format_version']}, this version reads {FORMAT_VERSION}")
        values = values | {"map_shape": tuple(values["map_shape"]), "classes": tuple(values["classes"])}
        return record, CacheIdentity(**values)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ({error}); rerun extract.py") from None


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
        made_for = xxhash.xxh3_64_hexdigest((self.folder / "cache.json").read_bytes())
        try:
            with np.load(self.folder / "index.npz", allow_pickle=False) as arrays:
                if str(arrays["made_for"]) == made_for:
                    return CacheIndex(**{name: arrays[name] for name in CacheIndex.__annotations__})
        except (OSError, ValueError, KeyError):
            pass  # missing or damaged: it is derived, the shards are the truth
        index = build_index(self.folder, self.identity)
        _save_index(self.folder, index, (self.folder / "cache.json").read_text(encoding="utf-8"))
        return index

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
            read = os.preadv(self._files[shard], [memoryview(place).cast("B")], int(self.index.offset[n]))
            if read != place.nbytes or xxhash.xxh3_64_intdigest(place) != int(self.index.checksum[n]):
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
    """Compare every shard with the SHA-256 in ``cache.json``; the first that differs is named in an InputError."""
    record, _ = read_cache_record(folder)
    for shard in record["shards"]:
        found = sha256_file(folder / shard["name"])
        if found != shard["sha256"]:
            raise InputError(f"{folder / shard['name']}: SHA-256 {found[:12]}, cache.json says {shard['sha256'][:12]}")
