"""Whether a cache is what it was when it was finished: every byte is read, and every fault is named."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.cache import load_index, other_shard, read_cache_record
from data.errors import InputError
from data.files import sha256_file
from data.reading import BatchBuffer
from data.shard_index import CacheIndex, index_digest, index_shard, to_index
from data.shards import REMAKE, CacheIdentity, shard_name

FILES = {"cache.json", "index.npz", ".lock"}


def verify(folder: Path) -> list[str]:
    """Compare all of a cache with ``cache.json``; one line for each fault, none if it is whole."""
    try:
        record, identity = read_cache_record(folder)
    except InputError as error:
        return [str(error)]
    return [*_other_files(folder, record), *_index_faults(folder, record), *_shard_faults(folder, record, identity)]


def _other_files(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    known = FILES | {shard["name"] for shard in record["shards"]}
    for path in sorted(folder.iterdir()):
        if path.name not in known:
            yield f"{path}: does not belong to this cache; cache.json does not list it: remove it"


def _index_faults(folder: Path, record: dict[str, Any]) -> Iterator[str]:
    path = folder / "index.npz"
    index = load_index(folder)
    if index is None:
        yield f"{path}: {'damaged' if path.exists() else 'missing'}; delete it, the next reader rebuilds it"
    elif (other := other_shard(index, record)) is not None:
        yield f"{path}: differs from cache.json in {shard_name(other)}; delete it, the next reader rebuilds it"


def _shard_faults(folder: Path, record: dict[str, Any], identity: CacheIdentity) -> Iterator[str]:
    names = {shard["sha256"]: shard["name"] for shard in record["shards"]}
    for number, shard in enumerate(record["shards"]):
        path = folder / shard["name"]
        if not path.is_file():
            yield f"{path}: missing; {REMAKE}"
            continue
        sha256, size = sha256_file(path), path.stat().st_size
        details = list(_content_faults(folder, number, shard, identity))
        if sha256 != shard["sha256"]:
            what = f"SHA-256 is {sha256[:12]}, cache.json says {shard['sha256'][:12]}"
            if size != shard["bytes"]:
                what += f"; it has {size} bytes instead of {shard['bytes']}"
            if sha256 in names:
                what = f"holds {names[sha256]}: shards were swapped or copied"
            yield f"{path}: {'; '.join([what, *details])}; delete it and {REMAKE}"
        elif details:
            yield f"{path}: {'; '.join(details)}, and was so from the beginning; delete it and {REMAKE}"


def _content_faults(folder: Path, number: int, shard: dict[str, Any], identity: CacheIdentity) -> Iterator[str]:
    """What is wrong inside a shard: its structure, its ids, or the maps of which images."""
    path = folder / shard["name"]
    try:
        rows = index_shard(path, number, identity)
    except InputError as error:
        yield str(error).removeprefix(f"{path}: ").partition(";")[0]
        return
    index = to_index(rows)
    if index_digest(index, number) != shard["index_sha256"]:
        yield "its ids or checksums are not those that cache.json lists"
    if damaged := list(_damaged_maps(folder, identity, index)):
        yield f"damaged maps: {', '.join(damaged)}"


def _damaged_maps(folder: Path, identity: CacheIdentity, index: CacheIndex) -> Iterator[str]:
    """Image id and variant of each map of one shard that differs from its checksum."""
    buffer = BatchBuffer(folder, identity, index)
    try:
        for n, image_id in enumerate(index.image_id.tolist()):
            for variant, name in enumerate(identity.variants):
                try:
                    buffer.read(np.array([n]), np.array([variant]))
                except InputError:
                    yield f"{image_id!r} ({name})"
    finally:
        buffer.close()
