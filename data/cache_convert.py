"""A cache in another storage form: uint8 instead of float16, pooled 2 x 2, or compressed, without recomputing a map."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from imagecodecs import zstd_encode

from data.cache import FeatureCache, read_cache_record
from data.cache_rewrite import MEBIBYTES, Picks, kept_record, stored, write_picks
from data.cache_verify import verify
from data.errors import InputError
from data.files import sync_folder
from data.shards import ZSTD_LEVEL, CacheIdentity, images_per_shard
from data.storage import Storage, decode_maps, encode_maps, pool_maps

ZSTD_MOST = 0.9
"""Share of the bytes that zstd may leave; above, decompression at every read costs more than the disk gains."""
SAMPLE = 64
"""Maps that decide it, and by which the error of a code is measured, spread over the cache."""


def convert(
    source: Path,
    target: Path,
    dtype: Storage | None = None,
    pool: Literal[1, 2] = 1,
    compression: Literal["none", "zstd"] | None = None,
    shard_megabytes: int = MEBIBYTES,
) -> CacheIdentity:
    """Write a cache in another storage form; what is not given stays as it is.

    From float16, the result has the bytes of a cache extracted in that form with shards of the same size.

    Args:
        pool: 2 averages 2 x 2 neighbours.

    Raises:
        InputError: there is nothing to change, the source has lost what is asked for, zstd does not pay, or the
            target holds something else.
    """
    cache = FeatureCache(source)
    identity = converted_identity(cache, dtype, pool, compression, shard_megabytes)
    if identity.compression == "zstd":
        refuse_useless_zstd(cache, identity)
    N = identity.num_images
    picks = Picks([cache], np.zeros(N, dtype=int), np.arange(N))
    write_picks(target, identity, picks, cache.index.fold, kept_record(cache.record))
    return identity


def converted_identity(
    cache: FeatureCache,
    dtype: Storage | None,
    pool: int,
    compression: Literal["none", "zstd"] | None,
    shard_megabytes: int,
) -> CacheIdentity:
    """The identity of the converted cache."""
    old = cache.identity
    H, W, D = old.map_shape
    shape = (-(-H // 2), -(-W // 2), D) if pool == 2 else old.map_shape
    new = replace(
        old,
        dtype=dtype or old.dtype,
        pool=old.pool * pool,
        map_shape=shape,
        compression=compression or old.compression,
        images_per_shard=images_per_shard(shape, dtype or old.dtype, len(old.variants), shard_megabytes),
    )
    if replace(new, images_per_shard=old.images_per_shard) == old:
        raise InputError(f"{cache.folder}: it has this form already; give another --dtype, --pool or --compression")
    if new.pool > 2:
        raise InputError(f"{cache.folder}: its maps are pooled already (pool 2); leave --pool out")
    if old.dtype == "uint8" and (new.dtype, new.pool) != (old.dtype, old.pool):
        raise InputError(
            f"{cache.folder}: uint8 maps can only be compressed, their float16 values are gone; convert the float16"
            " cache, or rerun extract.py with the form wanted"
        )
    return new


def refuse_useless_zstd(cache: FeatureCache, identity: CacheIdentity) -> None:
    """Compress a sample of maps.

    Raises:
        InputError: less than a tenth would be saved; the message says the ratio.
    """
    maps = [m.copy() for n in sample(cache) for m in stored(cache, n, identity)]
    ratio = sum(len(zstd_encode(m.tobytes(), level=ZSTD_LEVEL)) for m in maps) / sum(m.nbytes for m in maps)
    if ratio > ZSTD_MOST:
        raise InputError(
            f"{cache.folder}: zstd leaves {ratio:.0%} of these maps' bytes, and pays at {ZSTD_MOST:.0%} at most (maps"
            " after a ReLU); leave --compression out"
        )


def sample(cache: FeatureCache) -> list[int]:
    """Ordinals spread over a cache."""
    N = cache.identity.num_images
    return np.linspace(0, N - 1, min(N, SAMPLE)).astype(int).tolist()


def coding_error(folder: Path, pool: Literal[1, 2] = 1) -> float:
    """Root mean square error of uint8 codes of a float16 cache, relative to that of the maps, over a sample of them."""
    cache = FeatureCache(folder)
    if cache.identity.dtype != "float16":
        raise InputError(f"{folder}: its maps are coded already, and what the code left out is gone")
    squares = np.zeros(2)
    for n in sample(cache):
        stored_map = cache.read_stored(np.array([n]), np.array([0]))
        exact = (pool_maps(stored_map) if pool == 2 else stored_map).half().float()
        coded = decode_maps(encode_maps(exact, "uint8"), "uint8", (exact.shape[1], exact.shape[2], exact.shape[3]))
        squares += float((coded - exact).square().sum()), float(exact.square().sum())
    return float(np.sqrt(squares[0] / squares[1])) if squares[1] else 0.0


def convert_in_place(
    folder: Path,
    dtype: Storage | None = None,
    pool: Literal[1, 2] = 1,
    compression: Literal["none", "zstd"] | None = None,
    shard_megabytes: int = MEBIBYTES,
) -> CacheIdentity:
    """Convert a cache, and put the result in its place once it is whole and verified; then remove the former one.

    Killed at any moment, there is a whole cache under the folder's name, or the same command puts it there.
    """
    folder = folder.resolve()  # a link to a cache stays a link to it
    new = folder.with_name(f".{folder.name}-converted")
    old = folder.with_name(f".{folder.name}-before-conversion")
    if not old.exists():
        identity = convert(folder, new, dtype, pool, compression, shard_megabytes)
        if faults := verify(new):
            raise InputError(f"{faults[0]}; {folder} is untouched, remove {new} and try again")
        os.rename(folder, old)
    if not folder.exists():
        os.rename(new, folder)
    sync_folder(folder.parent)  # a run that was killed may have renamed it
    _, identity = read_cache_record(folder)
    shutil.rmtree(old)
    return identity
