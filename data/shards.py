"""The feature cache: what stage one writes and stage two reads.

    cache/000000.tar 000001.tar ...   plain WebDataset shards, one sample per image: <ordinal>.features.npy, the map
                                      (data/storage.py says how), <ordinal>.flip.npy and so on, variants of it if
                                      there are any, and <ordinal>.json, ids and checksums; in a cache compressed
                                      later, .npy.zst, which `zstd -d` turns into .npy
    cache/index.npz                   where each map lies (derived: rebuilt from the shards when missing)
    cache/cache.json                  the authority, written last: what made the maps, each shard's bytes, SHA-256 and
                                      digest of its part of the index, and a digest over all that

Images are ordered by patient, then study, then image, so the views of a study and the studies of a patient lie
together. There are no labels and no splits in a shard: both are read live from the manifest. Nothing is ever
unpickled, and only plain files are opened.

What is checked when: opening a cache compares sizes and the index's digests, every read compares a map with its
checksum (together: nothing altered is used), and `scripts/cache.py verify` reads whole shards, for example after
copying.

Axes: **N** images, **K** variants, **H W** map size, **D** features.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash
from imagecodecs import zstd_encode
from jaxtyping import Shaped
from webdataset.writer import TarWriter

from data.errors import InputError
from data.files import create, sync_folder
from data.storage import STORAGE_DTYPES, Storage, is_finite, payload_bytes, payload_shape

FORMAT_VERSION = 2
REMAKE = "rerun the command that made this cache (extract.py, or cache.py convert or merge)"
"""What repairs a cache that lost a shard: both commands make anew what is missing, and nothing else."""
PLAIN = "plain"
META = ".json"
META_KEYS = {"image_id", "study_id", "patient_id", "content", "xxh3"}
FOLD = "fold"
FLOAT16_MAX = 65504.0
TAR_BLOCK = 512
MAX_MAP_VALUES = 1 << 28  # of one map; the largest backbones at 1024 pixels have a hundredth of it
DIGEST = re.compile("([0-9a-f]{2}){1,64}")
ZSTD_LEVEL = 1  # higher levels gain little on maps and decode no faster


@dataclass(frozen=True, kw_only=True)
class CacheIdentity:
    """Everything that decides the content of a cache; two equal identities give byte-equal shards."""

    backbone: str
    """timm model name."""

    weights_sha256: str
    """Digest of the model folder's weights; of an out-of-fold cache, the first backbone's."""

    preprocessing: dict[str, Any]
    """Transform from decoded image to network input."""

    map_shape: tuple[int, int, int]
    """H, W, D of the stored maps, after pooling."""

    images_sha256: str
    """Digest over image, study and patient ids and the content of every image file."""

    num_images: int
    """Images in the cache."""

    images_per_shard: int
    """Samples per shard; the last shard may have fewer."""

    classes: tuple[str, ...]
    """Classes of the model that the backbone comes from."""

    dtype: Storage = "float16"
    """Storage of the maps."""

    pool: int = 1
    """2: stored maps are 2 x 2 averages of the backbone's."""

    variants: tuple[str, ...] = (PLAIN,)
    """Maps per image: plain, then flip, augmented_1, ..."""

    augmentation: dict[str, Any] = field(default_factory=dict)
    """Random changes and seed behind the augmented variants; empty without any."""

    compression: Literal["none", "zstd"] = "none"
    """Whether members are compressed."""

    fold_weights: tuple[str, ...] = ()
    """Of an out-of-fold cache, the weights' digests of its backbones, which each image's fold counts."""

    golden_decode: str = ""
    """Hash of the pixels that this machine's decoders make of one fixed image."""

    format_version: int = FORMAT_VERSION
    """Of these files."""

    @property
    def num_shards(self) -> int:
        """Shards of the complete cache."""
        return -(-self.num_images // self.images_per_shard)

    @property
    def payload_shape(self) -> tuple[int, ...]:
        """Shape of one stored map."""
        return payload_shape(self.map_shape, self.dtype)

    @property
    def weights(self) -> tuple[str, ...]:
        """Weights' digests of all backbones, in the order in which folds count them."""
        return self.fold_weights or (self.weights_sha256,)

    def ordinals_of(self, shard: int) -> range:
        """Ordinals of a shard's images."""
        first = shard * self.images_per_shard
        return range(first, min(first + self.images_per_shard, self.num_images))

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``cache.json``."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CacheIdentity":
        """The inverse of `to_dict`.

        Raises:
            ValueError, TypeError, KeyError: A field is missing, unknown, or of another type or range.
        """
        lists = ("map_shape", "classes", "variants", "fold_weights")
        fields: dict[str, Any] = values | {name: tuple(values[name]) for name in lists}
        identity = cls(**fields)
        for good, name in (
            (_is_shape(identity.map_shape), "map_shape"),
            *((_is_count(fields[name]), name) for name in ("num_images", "images_per_shard", "pool")),
            *((isinstance(fields[name], str), name) for name in ("backbone", "images_sha256", "golden_decode")),
            *((all(isinstance(t, str) for t in fields[name]), name) for name in ("classes", "variants")),
            *((isinstance(fields[name], dict), name) for name in ("preprocessing", "augmentation")),
            (identity.dtype in STORAGE_DTYPES, "dtype"),
            (identity.compression in ("none", "zstd"), "compression"),
            (identity.variants[:1] == (PLAIN,), "variants"),
            (all(DIGEST.fullmatch(str(digest)) for digest in identity.weights), "weights_sha256"),
        ):
            if not good:
                raise ValueError(f"{name} is {fields[name]!r:.60}")
        return identity


def _is_count(value: object) -> bool:
    return type(value) is int and 1 <= value < 2**40


def _is_shape(shape: tuple[Any, ...]) -> bool:
    """Numbers first: a product with a text in it is a text that fills the memory."""
    return len(shape) == 3 and all(map(_is_count, shape)) and math.prod(shape) <= MAX_MAP_VALUES


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"{number:06d}.tar"


def member_endings(identity: CacheIdentity) -> list[str]:
    """What follows the ordinal in the names of a sample's maps, in the order in which they lie."""
    end = ".npy" if identity.compression == "none" else ".npy.zst"
    return [f".{'features' if name == PLAIN else name}{end}" for name in identity.variants]


def bytes_per_image(map_shape: tuple[int, int, int], dtype: Storage, num_variants: int = 1) -> int:
    """Bytes that an image takes in a shard, tar headers and padding included, for ids of up to about 200 characters."""
    member = len(npy_header(payload_shape(map_shape, dtype), dtype)) + payload_bytes(map_shape, dtype)
    return num_variants * (TAR_BLOCK + -(-member // TAR_BLOCK) * TAR_BLOCK) + 2 * TAR_BLOCK


def images_per_shard(map_shape: tuple[int, int, int], dtype: Storage, num_variants: int, shard_megabytes: int) -> int:
    """Whole images that fit into a shard of that many MiB, at least one."""
    return max(1, shard_megabytes * 2**20 // bytes_per_image(map_shape, dtype, num_variants))


class ShardWriter:
    """Write one shard under a temporary name; it gets its final name, complete and flushed, at `close`."""

    def __init__(self, folder: Path, number: int, identity: CacheIdentity) -> None:
        self.path = folder / shard_name(number)
        self.temporary = folder / f".tmp-{self.path.name}"
        self.identity = identity
        self.file: BinaryIO = create(self.temporary)
        self.tar = TarWriter(self.file, encoder=False, mtime=0, user="", group="")  # 0.0 adds 1 KiB of pax header

    def write(self, ordinal: int, payloads: Sequence[Shaped[np.ndarray, "..."]], ids: dict[str, Any]) -> None:
        """Add one image.

        Args:
            payloads: The stored form of each variant's map, C-contiguous, in the identity's order.
            ids: image_id, study_id, patient_id and content; in an out-of-fold cache fold, too.

        Raises:
            InputError: a map has values that float16 cannot hold; names the image.
        """
        key, checksums = f"{ordinal:09d}", []  # not an id: WebDataset cuts a key at its first dot
        for ending, payload in zip(member_endings(self.identity), payloads, strict=True):
            if not is_finite(payload, self.identity.dtype):
                raise InputError(
                    f"image {ids['image_id']!r}: its map has values beyond float16's {FLOAT16_MAX:.0f}, or NaN;"
                    " no cache can hold it: check the image and the backbone"
                )
            content = b"".join((npy_header(payload.shape, self.identity.dtype), payload.data.cast("B")))
            checked: Any = payload.data
            if self.identity.compression == "zstd":
                content = checked = zstd_encode(content, level=ZSTD_LEVEL)
            checksums.append(xxhash.xxh3_64_hexdigest(checked))
            self.tar.write({"__key__": key, ending[1:]: content})  # one by one: TarWriter sorts the members of a call
        meta = json.dumps(ids | {"xxh3": checksums}, sort_keys=True, ensure_ascii=True)
        self.tar.write({"__key__": key, META[1:]: meta.encode()})

    def close(self) -> None:
        """Finish the shard."""
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        os.replace(self.temporary, self.path)
        sync_folder(self.path.parent)

    def discard(self) -> None:
        """Close and remove what is unfinished: a full disk needs the room."""
        for part in (self.tar, self.file):
            with suppress(OSError):  # what is buffered may not find room either
                part.close()
        self.temporary.unlink(missing_ok=True)


def npy_header(shape: tuple[int, ...], dtype: Storage = "float16") -> bytes:
    """The .npy preamble (version 1.0) of a C-ordered little-endian array."""
    descr = STORAGE_DTYPES[dtype].str
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    padding = -(10 + len(text) + 1) % 64
    return (
        b"\x93NUMPY\x01\x00" + (len(text) + padding + 1).to_bytes(2, "little") + (text + " " * padding + "\n").encode()
    )


def patient_hash(patient_id: str, weights_sha256: str) -> str:
    """Keyed BLAKE2b of a patient id, 16 hexadecimal digits; the key is the digest of the weights that saw the patient.

    Enough to recognise a patient whose id one has, useless for finding out who was trained on without a list to try.
    """
    return hashlib.blake2b(patient_id.encode(), key=bytes.fromhex(weights_sha256), digest_size=8).hexdigest()
