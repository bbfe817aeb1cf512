"""The doctor's checks of files: the run folder, space for the cache, and how many files may be open."""

import fcntl
import json
import os
import resource
import shutil
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import torch

from data.shards import bytes_per_image
from extract.backbone import Backbone, map_shape
from extract.config import ExtractConfig
from extract.estimate import pooled
from extract.images import MAX_TEMPORARY, sockets_fit
from fusion.doctor.finding import Finding

FEW_FILES, FILES_PER_WORKER = 200, 16  # open in a training process beside shards: libraries, pipes, passed batches
REPLACEMENTS = 100


def check_open_files(config: ExtractConfig) -> Finding:
    """The limit of open files against shards, which stage two keeps open, and batches under way."""
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    shards = -(-cache_bytes(config) // (config.cache.shard_megabytes * 2**20))
    wanted = FEW_FILES + FILES_PER_WORKER * config.num_workers + shards
    if limit == resource.RLIM_INFINITY:
        return Finding("ok", "open files", f"no limit, about {wanted} wanted")
    found = f"at most {limit}, about {wanted} wanted ({shards} shards of the cache among them)"
    if limit >= wanted:
        return Finding("ok", "open files", found)
    remedy = f"ulimit -n {max(4096, 2 * wanted)}"
    if most != resource.RLIM_INFINITY and most < wanted:
        remedy += "   (as root, or LimitNOFILE= of the service, or docker run --ulimit nofile=...), "
        remedy += "or larger shards: --cache.shard_megabytes 1024"
    return Finding("fail", "open files", found, remedy)


def check_temporary_folder(config: ExtractConfig) -> Finding:
    """Image workers send batches through sockets in the temporary folder, and a socket's name is short."""
    if sockets_fit() or not config.num_workers:
        return Finding("ok", "temporary folder", "its name leaves room for the sockets of image workers")
    found = f"its name is longer than {MAX_TEMPORARY} characters: image workers cannot open their sockets"
    return Finding("fail", "temporary folder", found, "export TMPDIR=/tmp   (or --num_workers 0)")


def num_images(run_dir: Path) -> int:
    """Images of the run's manifest, as counted when it was written; 0 where there is none."""
    try:
        splits = json.loads((run_dir / "manifest.json").read_text())["splits"]
        return sum(int(split["images"]) for split in splits.values())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return 0


def map_bytes(config: ExtractConfig) -> int:
    """Bytes of one cached map; found on torch's meta device, where nothing is computed."""
    with torch.device("meta"):
        backbone = Backbone(replace(config.backbone, pretrained=False), config.image.channels)
    shape = pooled(map_shape(backbone, config.image.channels, config.image.size), config.cache.pool)
    return bytes_per_image(shape, config.cache.dtype, len(config.cache.variants))


def cache_bytes(config: ExtractConfig) -> int:
    """Bytes of the complete cache; 0 without a manifest."""
    images = num_images(config.run_dir)
    return images * map_bytes(config) if images else 0


def existing(run_dir: Path) -> Path:
    """The run folder, or what is there of the way to it."""
    path = Path(os.path.abspath(run_dir))
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_disk(config: ExtractConfig) -> Finding:
    """Free space at the run folder against the cache that is to come."""
    free = shutil.disk_usage(existing(config.run_dir)).free
    found, remedy = f"{free / 1e9:,.1f} GB free at the run folder", "make room, or choose --run_dir on a larger disk"
    if (config.run_dir / "cache" / "cache.json").is_file():
        return Finding("ok", "disk", f"{found}; the cache is there already")
    if not num_images(config.run_dir):
        if free < 2e9:
            return Finding("warn", "disk", f"{found}; the demo alone takes 1 GB", remedy)
        return Finding("ok", "disk", f"{found}; no manifest there yet")
    wanted = cache_bytes(config)
    done = sum(shard.stat().st_size for shard in (config.run_dir / "cache").glob("*.tar"))
    found += f"; the cache of {num_images(config.run_dir):,} images takes {wanted / 1e9:,.1f} GB"
    found += f", {done / 1e9:,.1f} are there"
    if wanted - done > free:
        return Finding("fail", "disk", found, f"{remedy}, or a smaller --image.size")
    return Finding("warn", "disk", found, remedy) if wanted - done > 0.9 * free else Finding("ok", "disk", found)


def check_run_folder(run_dir: Path) -> Finding:
    """The run folder can be written, its file system locks, and a renamed file is never seen half or missing."""
    elsewhere = "choose --run_dir on a local disk that you may write to"
    try:
        with tempfile.TemporaryDirectory(prefix=".doctor-", dir=existing(run_dir)) as name:
            folder = Path(name)
            if (found := lock_fault(folder)) is not None:
                remedy = "mount it with locks (NFS: without nolock; Lustre: with flock), or " + elsewhere
                return Finding("fail", "run folder", found, remedy)
            if not replaces_atomically(folder):
                found = "a file that is replaced is missing for a moment"
                return Finding("fail", "run folder", found, "a file system without atomic rename: " + elsewhere)
    except OSError as error:
        return Finding("fail", "run folder", f"cannot be written to ({os.strerror(error.errno or 0)})", elsewhere)
    return Finding("ok", "run folder", "can be written; flock holds; rename is atomic")


def lock_fault(folder: Path) -> str | None:
    """What is wrong with flock in `folder`: not there, or without effect."""
    with open(folder / "lock", "w") as first, open(folder / "lock") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"its file system has no flock ({os.strerror(error.errno or 0)})"
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        return "flock lets two in: two runs could write there at once"


def replaces_atomically(folder: Path) -> bool:
    """Read a file while a thread replaces it again and again: every time it must be one of the two, whole."""
    contents, path, wrong = (b"a" * 70_000, b"b" * 70_000), folder / "file", []
    path.write_bytes(contents[0])
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            try:
                wrong.extend([path] * (path.read_bytes() not in contents))
            except OSError:  # not found, or a stale handle of a network file system
                wrong.append(path)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(REPLACEMENTS):
            (folder / "new").write_bytes(contents[number % 2])
            os.replace(folder / "new", path)
    finally:
        done.set()
        reader.join()
    return not wrong
