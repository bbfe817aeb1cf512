"""A data set's images, decoded and resized once: tar shards at working size, and a manifest that names what is in them.

    python scripts/prepare.py images --manifest runs/full/manifest.csv --size 512 --out runs/small/manifest.csv

What is written is a function of the originals and the options: a run that was killed, or had other workers, ends with
the same bytes. The format, and what stage one sees of it, is in docs/prepared_images.md.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from data.errors import InputError
from data.files import atomic_write
from data.image_shards import RECORD, Form, PreparedImages, read_prepared, refuse_unfit
from data.known_bad import name_known
from data.lock import locked
from data.manifest import Manifest, read_manifest
from data.scan import ScanResult, check_share, write_rejected

if TYPE_CHECKING:  # torch takes seconds to load, and the other sources need none of it
    from data.prepared_shards import Shard, ShardRecord


def prepare(
    manifest: Path,
    folder: Path,
    size: int = 512,
    resize: Literal["stretch", "fit"] = "stretch",
    form: Form = "png",
    workers: int | None = None,
    max_rejected: float = 0.01,
) -> Manifest:
    """Write all images of a manifest at working size; finished shards of the same originals and options are kept.

    Args:
        manifest: The manifest.csv of the originals, which are only read.
        folder: Of the shards; the manifest returned is relative to the folder around it.
        size: Working size: the largest image.size that can be trained on.
        resize: As image.resize in training: "stretch" to a square, or "fit" the longer side.
        form: "png": 8 bits, lossless. "jpeg": 8 bits, half the bytes, faster to read. "png16": 16 bits, lossless.
        workers: Processes that decode; null: one for each core.
        max_rejected: Largest share of the images, in [0, 1], that may be left out.

    Raises:
        InputError: a bad option, a folder that holds something else, another run writing there, or too many images
            that cannot be read.
    """
    from data.prepared_shards import make_shards, plan_shards, remove_leftovers

    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise InputError(f"--workers must be at least 1, got {workers}")
    source = read_manifest(manifest)
    if folder.resolve().parent == manifest.resolve().parent:
        raise InputError(f"--out: {folder.parent} is the folder of the originals' own manifest; choose another one")
    refuse_unfit(source.root, source.images["path"], size, resize)
    prepared = make_identity(size, resize, form)
    with locked(folder):
        claim(folder, prepared)
        shards = plan_shards(source)
        remove_leftovers(folder, shards)
        records = make_shards(folder, source, shards, prepared, workers)
        return finish(folder, source, shards, records, prepared, max_rejected)


def make_identity(size: int, resize: Literal["stretch", "fit"], form: Form) -> PreparedImages:
    """The options, checked, and how this machine decodes."""
    from data.golden import golden_decode
    from data.prepared_shards import IMAGES_PER_SHARD
    from data.transforms import Preprocessing

    Preprocessing(size=size, resize=resize)
    return PreparedImages(
        size=size, resize=resize, form=form, golden_decode=golden_decode(), images_per_shard=IMAGES_PER_SHARD
    )


def claim(folder: Path, prepared: PreparedImages) -> None:
    """Write down what a folder of shards is made with, or check that it was begun with the same.

    Raises:
        InputError: it holds something else, or was begun with other options; names the first that differs.
    """
    if not (folder / RECORD).exists():
        if found := sorted(path.name for path in folder.iterdir() if not path.name.startswith((".lock", ".tmp-"))):
            raise InputError(f"{folder}: holds other files, first {found[0]}; choose another --out")
        atomic_write(folder / RECORD, prepared.to_json())
        return
    former, wanted = asdict(read_prepared(folder)), asdict(prepared)
    for key in wanted:
        if former[key] != wanted[key]:
            what = f"{key} {former[key]}, now it is {wanted[key]}"
            what = "decoders that gave other pixels" if key == "golden_decode" else what
            raise InputError(
                f"{folder}: these images were begun with {what}; choose another --out, or delete {folder} to start anew"
            )


def finish(
    folder: Path,
    source: Manifest,
    shards: "Sequence[Shard]",
    records: "Sequence[ShardRecord]",
    prepared: PreparedImages,
    max_rejected: float,
) -> Manifest:
    """Write rejected.csv and the contact sheet, and make the manifest: the source's rows in the source's order.

    Both lie beside the manifest, where `prepare.py` and stage one write what they leave out; what the source had left
    out already comes first.
    """
    from data.plots import plot_contact_sheet

    members, reasons = [""] * len(source), [""] * len(source)
    for shard, record in zip(shards, records, strict=True):
        for row, member, reason in zip(shard.rows, record.members, record.reasons, strict=True):
            members[row], reasons[row] = member, reason
    paths = source.images["path"].tolist()
    rejected = [(path, name_known(path, reason)) for path, reason in zip(paths, reasons, strict=True) if reason]
    write_rejected(folder.parent, [*source.rejected, *rejected])
    readable = np.array([not reason for reason in reasons])
    check_share(ScanResult(readable, members, rejected), max_rejected, folder.parent / "rejected.csv")
    if not readable.any():
        raise InputError(f"{folder.parent / 'rejected.csv'}: no image can be read")
    named = source.images.assign(path=pd.array([f"{folder.name}/{member}" for member in members], dtype="str"))
    whole = Manifest(named[source.images.columns], source.labels, source.classes, folder.parent)
    manifest = replace(whole.select(readable), rejected=(*source.rejected, *rejected))
    plot_contact_sheet(manifest, prepared.size, prepared.resize, folder.parent / "contact_sheet.jpg")
    account(folder, len(manifest), records)
    return manifest


def account(folder: Path, num_images: int, records: "Sequence[ShardRecord]") -> None:
    """Say what was made, and what to look at."""
    nbytes, narrow = sum(record.nbytes for record in records), sum(record.narrow for record in records)
    print(f"{folder}: {num_images} images in {len(records)} shard{'s' * (len(records) > 1)}, {nbytes / 1e9:.2f} GB")
    print(f"look at {folder.parent / 'contact_sheet.jpg'}")
    if narrow:
        print(f"note: 8 bits leave {narrow} images fewer than 64 grey levels; --form png16 keeps them")
