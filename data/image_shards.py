"""Images inside tar shards: how a manifest names one, how it is read, and what the shards were made with.

`images/000012.tar#1536+48213+9f86d081884c7d65` is the image of 48,213 bytes that begins at byte 1,536 of that shard
and has this xxh3_64. The manifest itself is thus the index: a read is one positioned read, checked, by any thread or
process, and nothing has to be kept open, loaded first or rebuilt. Written by `data.prepared_images`.
"""

import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

import xxhash

from data.errors import InputError

Form = Literal["png", "jpeg", "png16"]
MEMBER = re.compile(r"(.+\.tar)#([0-9]{1,15})\+([0-9]{1,15})\+([0-9a-f]{16})", re.DOTALL)
RECORD = "prepared.json"
REMAKE = "delete the shard and run the same prepare.py images command again"


@dataclass(frozen=True)
class Member:
    """A stretch of a shard that is one image file."""

    shard: Path
    offset: int
    nbytes: int
    checksum: str
    """xxh3_64 of these bytes, 16 hexadecimal digits."""

    @property
    def path(self) -> Path:
        """As a manifest names it."""
        return self.shard.with_name(f"{self.shard.name}#{self.offset}+{self.nbytes}+{self.checksum}")

    def read(self) -> bytes:
        """The bytes, fewer where the shard ends before them."""
        with open(self.shard, "rb", buffering=0) as file:
            return os.pread(file.fileno(), self.nbytes, self.offset)

    def fits(self, data: bytes) -> bool:
        """Whether bytes are those that were written."""
        return xxhash.xxh3_64_hexdigest(data) == self.checksum


def find_member(path: Path) -> Member | None:
    """The image in a shard that a path names; None for an ordinary file."""
    found = MEMBER.fullmatch(str(path))
    return Member(Path(found[1]), int(found[2]), int(found[3]), found[4]) if found else None


@dataclass(frozen=True, kw_only=True)
class PreparedImages:
    """What decides the bytes of prepared images, aside from the originals."""

    size: int
    """Working size in pixels, as `Preprocessing.size`."""

    resize: Literal["stretch", "fit"]
    """As `Preprocessing.resize`; what fit leaves black is not stored."""

    form: Form
    """png, png16: 8 and 16 bits, lossless; jpeg: 8 bits, quality 95."""

    golden_decode: str
    """Hash of the pixels that this machine's decoders make of fixed pictures."""

    images_per_shard: int
    """Images of a shard, up to the end of a patient."""

    format_version: int = 1
    """Of these files."""

    def to_json(self) -> str:
        """The content of `prepared.json`."""
        return json.dumps(asdict(self), indent=1) + "\n"


def read_prepared(folder: Path) -> PreparedImages:
    """What the shards of a folder were made with.

    Raises:
        InputError: `prepared.json` is missing or damaged.
    """
    path = folder / RECORD
    try:
        prepared = PreparedImages(**json.loads(path.read_text(encoding="utf-8")))
        if not all(isinstance(getattr(prepared, part.name), (str, int)) for part in fields(prepared)):
            raise ValueError
    except (OSError, ValueError, TypeError, RecursionError):
        raise InputError(f"{path}: missing or damaged; delete {folder} and prepare the images again") from None
    return prepared


def refuse_unfit(root: Path, paths: Iterable[str], size: int, resize: str) -> None:
    """Refuse to make network inputs, or other prepared images, of those prepared smaller or in other proportions.

    Args:
        root: Folder that the paths are relative to.
        paths: As in a manifest; ordinary files are not looked at.
        size: `Preprocessing.size` of what is to be made, and `resize` likewise.

    Raises:
        InputError: names the folder and both values.
    """
    for folder in sorted({os.path.dirname(path) for path in paths if ".tar#" in path}):
        prepared = read_prepared(root / folder)
        if size > prepared.size:
            raise InputError(
                f"{root / folder}: these images were prepared at {prepared.size} pixels, size {size} is wanted; prepare"
                f" the originals with --size {size} and another --out, or lower image.size"
            )
        if resize != prepared.resize:
            raise InputError(
                f"{root / folder}: these images were prepared with resize {prepared.resize}, {resize} is wanted;"
                f" prepare the originals with --resize {resize} and another --out, or change image.resize"
            )
