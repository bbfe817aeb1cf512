"""What worker processes need, and how their end is told."""

import os
import tempfile
from collections.abc import Iterator
from typing import TypeVar

from data.errors import InputError

Item = TypeVar("Item")
MAX_TEMPORARY = 107 - len("/pymp-12345678/listener-12345678")
"""Longest name of a temporary folder: a socket's whole name has at most 107 bytes on Linux."""


def sockets_fit() -> bool:
    """Whether the temporary folder's name leaves room for a socket's."""
    return len(os.fsencode(tempfile.gettempdir())) <= MAX_TEMPORARY


def require_sockets(remedy: str) -> None:
    """Refuse a temporary folder in which workers would wait for ever.

    Raises:
        InputError: its name is too long; ends with the remedy.
    """
    if not sockets_fit():
        raise InputError(
            f"TMPDIR: the temporary folder's name is longer than {MAX_TEMPORARY} characters, which leaves no room for"
            f" the sockets of image workers; {remedy}"
        )


def told_in_one_line(items: Iterator[Item], remedy: str) -> Iterator[Item]:
    """Hand items of a DataLoader on.

    Raises:
        InputError: the system killed a worker; says what helps when memory was the reason.
    """
    try:
        yield from items
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"an image worker ended ({reason}); when memory was the reason, {remedy}, then run the same command again"
        ) from None
