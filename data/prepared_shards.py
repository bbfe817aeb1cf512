"""Shards of prepared images: planned from a manifest, each one written whole or not at all, with its record.

A shard is finished when its record `000012.json` stands beside it: where each image lies, or why it was left out. Its
bytes follow from the originals and the options, whatever was interrupted and however many processes decode.
"""

import hashlib
import json
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import xxhash
from tqdm import tqdm
from webdataset.writer import TarWriter

from data.files import atomic_write, create, name_file, sync_folder
from data.image_shards import Member, PreparedImages
from data.images import JPEG_SIGNATURE, ImageError, check_file
from data.manifest import Manifest
from data.reencode import Originals, Outcome, reencode
from data.scan import inside
from data.shards import META

IMAGES_PER_SHARD = 1000
IDS = ["image_id", "study_id", "patient_id"]


@dataclass(frozen=True)
class Shard:
    """The images of one shard, and what was known of their files when it was planned."""

    name: str
    """Of its files, without ending."""

    first: int
    """Number of its first image among all; sample keys count on from there."""

    rows: list[int]
    """Of the manifest; whole patients, studies side by side."""

    inputs: str
    """SHA-256 of ids, paths, sizes and modification times: when it changes, the shard is made anew."""


@dataclass(frozen=True)
class ShardRecord:
    """The content of `000012.json`."""

    inputs: str
    """As in `Shard`."""

    nbytes: int
    """Of the shard."""

    members: list[str]
    """Name of each image as in a manifest, without folder; empty where it was left out."""

    reasons: list[str]
    """Why an image was left out, or empty."""

    narrow: int
    """Images to which 8 bits leave few grey levels."""


def plan_shards(source: Manifest) -> list[Shard]:
    """Images by patient, study and id, cut at the first new patient after `IMAGES_PER_SHARD` images."""
    image_ids, study_ids, patients = (source.images[name].to_numpy(dtype=str) for name in IDS)
    root = Path(os.path.realpath(source.root))
    parts: list[list[int]] = []
    for row in np.lexsort([image_ids, study_ids, patients]).tolist():
        if not parts or (len(parts[-1]) >= IMAGES_PER_SHARD and patients[row] != patients[parts[-1][-1]]):
            parts.append([])
        parts[-1].append(row)
    firsts = np.cumsum([0, *map(len, parts)]).tolist()
    return [Shard(f"{n:06d}", firsts[n], rows, _digest_inputs(source, rows, root)) for n, rows in enumerate(parts)]


def _digest_inputs(source: Manifest, rows: list[int], root: Path) -> str:
    digest = hashlib.sha256()
    for values in source.images[[*IDS, "path"]].iloc[rows].itertuples(index=False, name=None):
        try:
            status = check_file(inside(values[-1], root))
            stamp = [status.st_size, status.st_mtime_ns]
        except ImageError:
            stamp = []  # when it can be read one day, this is another input
        digest.update(json.dumps([*values, *stamp]).encode())
    return digest.hexdigest()


def remove_leftovers(folder: Path, shards: Sequence[Shard]) -> None:
    """Remove unfinished files, and shards beyond the last of a manifest that was longer before."""
    names = {shard.name for shard in shards}
    for path in [*folder.glob(".tmp-*"), *folder.glob("[0-9]" * 6 + ".*")]:
        if path.name.startswith(".tmp-") or path.stem not in names:
            path.unlink()


def read_record(folder: Path, shard: Shard) -> ShardRecord | None:
    """The record of a shard that is there, whole, and of these originals; None where it is to be made."""
    try:
        record = ShardRecord(**json.loads((folder / f"{shard.name}.json").read_text(encoding="utf-8")))
        whole = (folder / f"{shard.name}.tar").stat().st_size == record.nbytes
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return record if whole and record.inputs == shard.inputs else None


def make_shards(
    folder: Path, source: Manifest, shards: Sequence[Shard], prepared: PreparedImages, workers: int
) -> list[ShardRecord]:
    """The records of all shards; those that are missing are made, one behind the other, all workers on each.

    Raises:
        InputError: a worker that the system killed.
        OSError: the disk takes no more.
    """
    records = {shard.name: record for shard in shards if (record := read_record(folder, shard))}
    missing = [shard for shard in shards if shard.name not in records]
    rows = [row for shard in missing for row in shard.rows]
    if records:
        print(f"{folder}: {len(records)} of {len(shards)} shards are there already")
    if rows:
        originals = Originals(source.root, source.images["path"].tolist(), prepared)
        outcomes = _counted(reencode(originals, rows, min(workers, len(rows))), len(source), len(rows))
        for shard in missing:
            ids = source.images[IDS].iloc[shard.rows].to_dict("records")
            records[shard.name] = write_shard(folder, shard, ids, outcomes)
            if shard is missing[0] and len(missing) > 1:
                whole = records[shard.name].nbytes / len(shard.rows) * len(source)
                tqdm.write(f"{folder}: about {whole / 1e9:.2f} GB when all is done, judged by {shard.name}.tar")
    return [records[shard.name] for shard in shards]


def _counted(outcomes: Iterator[Outcome], num_images: int, num_missing: int) -> Iterator[Outcome]:
    """Hand outcomes on and show progress: on anything but a terminal, a line every ten seconds."""
    with tqdm(
        desc="preparing images",
        unit="image",
        total=num_images,
        initial=num_images - num_missing,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,
    ) as bar:
        for number, outcome in enumerate(outcomes, start=1):
            bar.update()
            if number == num_missing:  # nobody asks for more
                bar.close()
            yield outcome


def write_shard(folder: Path, shard: Shard, ids: Sequence[dict[str, str]], outcomes: Iterator[Outcome]) -> ShardRecord:
    """Write a shard under a temporary name, give it its own when it is flushed, then write its record.

    Args:
        ids: image_id, study_id and patient_id of each image.
        outcomes: As many are taken as the shard has images.
    """
    path, temporary = folder / f"{shard.name}.tar", folder / f".tmp-{shard.name}.tar"
    try:
        checksums, taken = _write_tar(temporary, shard.first, ids, outcomes)
        places = _find_images(temporary)
        assert len(places) == sum(map(bool, checksums)), f"{temporary} is not what was written"
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        name_file(error, path)
        raise
    sync_folder(folder)
    found = iter(places)
    record = ShardRecord(
        inputs=shard.inputs,
        nbytes=path.stat().st_size,
        members=[Member(path, *next(found), checksum).path.name if checksum else "" for checksum in checksums],
        reasons=[outcome.reason for outcome in taken],
        narrow=sum(outcome.narrow for outcome in taken),
    )
    atomic_write(folder / f"{shard.name}.json", json.dumps(asdict(record), indent=0) + "\n")
    return record


def _write_tar(
    path: Path, first: int, ids: Iterable[dict[str, str]], outcomes: Iterator[Outcome]
) -> tuple[list[str], list[Outcome]]:
    """Image, then ids, of each sample; checksum of each image ("" where left out), and the outcomes without it."""
    checksums, taken = [], []
    with create(path) as file:
        with TarWriter(file, encoder=False, mtime=0, user="", group="") as tar:  # 0.0 adds 1 KiB of pax header
            for ordinal, (own, outcome) in enumerate(zip(ids, outcomes, strict=False), start=first):
                taken.append(outcome._replace(encoded=b""))
                checksums.append("" if outcome.reason else xxhash.xxh3_64_hexdigest(outcome.encoded))
                if outcome.reason:
                    continue
                key = f"{ordinal:09d}"  # not an id: WebDataset cuts a key at its first dot
                meta = json.dumps(own | {"content": outcome.content, "xxh3": checksums[-1]}, sort_keys=True)
                ending = "jpg" if outcome.encoded.startswith(JPEG_SIGNATURE) else "png"
                tar.write({"__key__": key, ending: outcome.encoded})  # one by one: TarWriter sorts a call's members
                tar.write({"__key__": key, META[1:]: meta.encode()})
        file.flush()
        os.fsync(file.fileno())
    return checksums, taken


def _find_images(path: Path) -> list[tuple[int, int]]:
    """First byte and length of each image of a shard, from its headers."""
    with tarfile.open(path, "r:") as tar:
        return [(member.offset_data, member.size) for member in tar if not member.name.endswith(META)]
