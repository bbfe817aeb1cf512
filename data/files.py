"""Files that are either complete or absent."""

import hashlib
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from data.errors import InputError


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write `content` so that a crash at any moment leaves the old file or the new one, never a part.

    The bytes go to a temporary name in the same folder, are flushed to disk, and are renamed; the folder is flushed
    too, because on most file systems a rename is only durable after that.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path, path.with_name(f".tmp-{path.name}")) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def atomic_file(path: Path, temporary: Path) -> Generator[BinaryIO, None, None]:
    """A file to fill, which then gets its name as in `atomic_write`; where that fails, nothing of it is left."""
    try:
        with create(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        name_file(error, path)
        raise


def name_file(error: BaseException, path: Path) -> None:
    """Say which file an error is about: of a disk that takes no more bytes the system tells no name."""
    if isinstance(error, OSError) and error.filename is None:
        error.filename = str(path)


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
    except OSError as error:
        name_file(error, folder)
        raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Flush a file, or a folder with all that is in it, to disk, before it gets its final name."""
    for file in [path] if path.is_file() else sorted(entry for entry in path.rglob("*") if entry.is_file()):
        with open(file, "rb") as content:
            os.fsync(content.fileno())
    for folder in (entry for entry in (path, *path.rglob("*")) if entry.is_dir()):
        sync_folder(folder)


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
