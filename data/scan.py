"""Open every image of a manifest once, before anything is trained on it.

Each file is read once: its bytes are hashed, then decoded. What cannot be decoded is left out by name (`rejected.csv`)
instead of entering training as a black picture with labels. A second scan reads only files whose size or
modification time changed, as git does with its index; the time decides only that, and enters no digest.
"""

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import xxhash
from tqdm import tqdm

from data.errors import InputError
from data.image_shards import find_member
from data.images import ImageError, check_file, read_bytes, refuse, verify_image
from data.known_bad import known_empty, name_known
from data.manifest import Manifest
from data.tables import read_table, write_table

CHUNK = 512  # images handed to the threads at a time
SAVE_EVERY_S = 60  # a killed scan loses at most this much


class FileRecord(NamedTuple):
    """One line of `images.csv`, all text; of an image in a shard, bytes and mtime_ns are the shard's."""

    path: str
    bytes: str
    mtime_ns: str
    content: str
    height: str
    width: str


@dataclass(frozen=True)
class ScanResult:
    """Which images can be used; axis N runs over the manifest's rows."""

    readable: np.ndarray  # (N,) bool
    content: list[str]  # (N) xxh3_64 of the file's bytes, 16 hexadecimal digits; "" when rejected
    rejected: list[tuple[str, str]]  # (path as in the manifest, reason)


def scan_images(
    manifest: Manifest, out_dir: Path, *, workers: int, max_rejected: float = 0.01, progress: bool = True
) -> ScanResult:
    """Hash and decode every image; write `images.csv` and `rejected.csv` to `out_dir`.

    `rejected.csv` begins with what the manifest's source had left out already.

    Args:
        workers: Threads; the decoders release Python's lock.
        max_rejected: Largest share of the images, in [0, 1], that may be left out.
        progress: Show a bar with the time left.

    Raises:
        InputError: More than `max_rejected` of the images were rejected (both files are written first).
    """
    if workers < 1:
        raise InputError(f"workers must be at least 1, got {workers}")
    paths = list(manifest.images["path"])
    known = _read_known(out_dir / "images.csv")
    empty = known_empty(manifest)
    found: dict[str, FileRecord | str] = {}  # a record, or the reason for rejection
    saved = time.monotonic()
    for path, outcome in _scan(list(dict.fromkeys(paths)), manifest.root, known, workers, progress):
        found[path] = name_known(path, outcome) if isinstance(outcome, str) else empty.get(path, outcome)
        if time.monotonic() - saved > SAVE_EVERY_S:
            _write(out_dir, known | found, manifest.rejected)
            saved = time.monotonic()
    _write(out_dir, found, manifest.rejected)
    records = [found[path] for path in paths]
    result = ScanResult(
        readable=np.array([isinstance(record, FileRecord) for record in records], bool),
        content=[record.content if isinstance(record, FileRecord) else "" for record in records],
        rejected=[(path, reason) for path, reason in found.items() if isinstance(reason, str)],
    )
    check_share(result, max_rejected, out_dir / "rejected.csv")
    return result


def _scan(
    paths: list[str], root: Path, known: dict[str, FileRecord], workers: int, progress: bool
) -> Iterator[tuple[str, FileRecord | str]]:
    """Yield (path, outcome) in the order given."""
    real_root = Path(os.path.realpath(root))
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(paths), desc="checking images", unit="image", disable=not progress) as bar,
    ):
        for start in range(0, len(paths), CHUNK):
            chunk = paths[start : start + CHUNK]
            outcomes = pool.map(lambda path: _scan_one(path, real_root, known.get(path)), chunk)
            for path, outcome in zip(chunk, outcomes, strict=True):
                bar.update()
                yield path, outcome


def _scan_one(path: str, root: Path, known: FileRecord | None) -> FileRecord | str:
    """The record of one file, taken over from the last scan when it is unchanged, or why it is rejected."""
    try:
        file = inside(path, root)
        status = check_file(file)
        stamp = (path, str(status.st_size), str(status.st_mtime_ns))
        if known and known[:3] == stamp:
            return known
        data = read_bytes(file)
        height, width = verify_image(data, path)
        return FileRecord(*stamp, xxhash.xxh3_64_hexdigest(data), str(height), str(width))
    except ImageError as error:
        return error.reason


def inside(path: str, root: Path) -> Path:
    """The file that a manifest path means, if it lies under the image folder (a real path) after following links.

    Raises:
        ImageError: It does not.
    """
    if "\0" in path:
        refuse(path, "has a NUL character in its name")
    member = find_member(root / path)
    file = Path(os.path.realpath(member.shard if member else root / path))
    if not file.is_relative_to(root):
        refuse(path, "leads out of the image folder (a link or ..); name the folder it leads to as the root instead")
    return replace(member, shard=file).path if member else file


def _read_known(table: Path) -> dict[str, FileRecord]:
    """What the last scan found readable; empty at the first."""
    if not table.exists():
        return {}
    frame = read_table(table, required=FileRecord._fields)
    return {row.path: FileRecord(*row) for row in frame[list(FileRecord._fields)].itertuples(index=False)}


def write_rejected(out_dir: Path, rejected: Sequence[tuple[str, str]]) -> None:
    """Write `rejected.csv`: (path below the image folder, reason) of every file that is left out."""
    write_table(out_dir / "rejected.csv", pd.DataFrame(rejected, columns=["path", "reason"], dtype="str"))


def _write(out_dir: Path, found: dict[str, FileRecord | str], before: Sequence[tuple[str, str]]) -> None:
    records = [record for record in found.values() if isinstance(record, FileRecord)]
    rejected = [(path, reason) for path, reason in found.items() if isinstance(reason, str)]
    if records:
        write_table(out_dir / "images.csv", pd.DataFrame(records, columns=FileRecord._fields, dtype="str"))
    else:  # a table without rows is refused when it is read again
        (out_dir / "images.csv").unlink(missing_ok=True)
    write_rejected(out_dir, [*before, *rejected])


def check_share(result: ScanResult, max_rejected: float, table: Path) -> None:
    """Refuse to go on when too much is missing.

    Args:
        max_rejected: Largest share of the images, in [0, 1], that may be left out.
        table: Where all rejected images are listed.

    Raises:
        InputError: names the first ones and the table.
    """
    num_rejected, num_images = int((~result.readable).sum()), len(result.readable)
    if num_rejected > max_rejected * num_images:
        first = "; ".join(f"{path}: {reason}" for path, reason in result.rejected[:3])
        raise InputError(
            f"{num_rejected} of {num_images} images ({num_rejected / num_images:.1%}) cannot be read, more than the "
            f"{max_rejected:.2%} allowed (max_rejected): {first}; all are listed in {table}"
        )
