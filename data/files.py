"""Files that are either complete or absent."""

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from data.errors import InputError


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` so that a crash at any moment leaves the old file or the new one, never a part.

    The bytes go to a temporary name in the same folder, are flushed to disk, and are renamed; the folder is flushed
    too, because on most file systems a rename is only durable after that.
    """
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    with create(temporary) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def create(path: Path) -> BinaryIO:
    """Open a new file for writing; what lay there, a leftover or a link planted to be written through, goes."""
    path.unlink(missing_ok=True)
    return open(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666), "wb")


def append(path: Path, text: str) -> None:
    """Add text to a file, made if need be.

    Raises:
        InputError: The path is a link: whoever planted it would have us write elsewhere.
    """
    if path.is_symlink():
        raise InputError(f"{path}: is a link, which is not written through; remove it")
    flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o666), "a", encoding="utf-8") as file:
        file.write(text)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (names, renames) to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
