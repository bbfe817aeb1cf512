"""What readers of releases share: where a table lies, and whether it is the one that was published."""

import logging
from collections.abc import Mapping
from pathlib import Path

from data.errors import InputError

log = logging.getLogger(__name__)


def find_table(folder: Path, name: str, option: str, *older: str) -> Path:
    """A table as distributed or unpacked: with or without `.gz`.

    Args:
        option: The command's option that names the folder, for the error.
        older: Other names of the same table, tried in this order after `name`.

    Raises:
        InputError: There is none of them.
    """
    for known in (name, *older):
        for path in (folder / known, folder / known.removesuffix(".gz"), folder / f"{known}.gz"):
            if path.is_file():
                return path
    also = f", nor {' or '.join(older)}" if older else ""
    raise InputError(f"{folder / name}: no such file{also}; {option} wants the folder that holds it")


def compare_with_release(
    where: str,
    name: str,
    num_rows: int,
    published_rows: int,
    positives: Mapping[str, int] | None = None,
    published: Mapping[str, int] | None = None,
    unit: str = "images",
) -> None:
    """Say where a table differs from what is published about it: a part of it, a later release, or read wrongly.

    Args:
        where: The table.
        name: The data set.
        positives: Images (or labels) of each class found in the table.
        published: The same in the release, where it is known; only compared where the number of rows is right.
        unit: What the rows are.
    """
    published = published or {}
    if num_rows != published_rows:
        log.warning("%s: %d %s; %s has %d", where, num_rows, unit, name, published_rows)
        return
    positives = positives or {}
    differ = [label for label, number in positives.items() if published.get(label, number) != number]
    if differ:
        log.warning(
            "%s: %d classes have other numbers of images than published for %s, first %s: %d, published %d",
            *(where, len(differ), name, differ[0], positives[differ[0]], published[differ[0]]),
        )
