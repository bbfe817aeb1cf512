"""How the end of a worker process is told."""

from collections.abc import Iterator
from typing import TypeVar

from data.errors import InputError

Item = TypeVar("Item")


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
