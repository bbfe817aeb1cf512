"""A disk that is full from any operation of a command on, and what the same command makes of it when there is room."""

import contextlib
import errno
import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.runs import run_command
from tests.faults.commands import quietly
from tests.faults.crashes import Recorder, differing

NEEDS_ROOM = ("open", "fsync", "rename", "mkdir")


class FullDisk(Recorder):
    """After so many operations whatever needs room fails; what only gives room goes on as usual."""

    def __init__(self, folder: Path, skip: tuple[str, ...] = (), room: float = float("inf")) -> None:
        super().__init__(folder, skip)
        self.room, self.met = room, ""

    def _before(self, what: str, name: str) -> None:
        if what in NEEDS_ROOM:
            self.operations[what] += 1
            if self.operations.total() > self.room:
                self.met = self.met or f"{what} {name}"
                named = [] if what == "fsync" else [str(self.folder / name)]  # of bytes the system tells no name
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)


def fill_everywhere(
    folder: Path,
    command: Callable[[], object],
    results: Callable[[dict[str, bytes]], dict],
    skip: tuple[str, ...] = (),
    most: int | None = None,
) -> Counter[str]:
    """Run a command on a disk that is full from each operation on, and again with room; all must end alike.

    Args:
        folder: Where the command writes; restored before each run.
        results: What counts of the files of a finished folder.
        skip: Files and folders that the command only reads.
        most: Try about so many operations, evenly spaced; default: all.

    Returns:
        How many operations that need room there were, and how many were tried.
    """
    folder.mkdir(parents=True, exist_ok=True)
    start = Recorder(folder, skip)
    before = start.look()
    with FullDisk(folder, skip) as whole:
        quietly(command)()
    wanted, total = results(start.content(start.look())), whole.operations.total()
    tried = range(0, total, 1 if most is None else max(1, -(-total // most)))
    for room in tried:
        start.restore(before)
        with FullDisk(folder, skip, room) as disk:
            said = last_words(command)
        assert str(folder) in said, f"{disk.met}: {said}"
        assert "No space left on device" in said, f"{disk.met}: {said}"
        assert said.endswith(("run the same command again", "make room or name another folder")), f"{disk.met}: {said}"
        left = [str(path) for path in folder.rglob(".tmp-*")]
        assert not left, f"{disk.met}: left {left}"
        quietly(command)()
        found = results(start.content(start.look()))
        assert found == wanted, f"{disk.met}: {differing(found, wanted)} differ"
    return whole.operations + Counter(operations=total, tried=len(tried))


def last_words(command: Callable[[], Any]) -> str:
    """The one line with which a command ends that fails: no traceback, no second line."""
    errors, status = io.StringIO(), None
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        try:
            run_command(command)
        except SystemExit as end:
            status = end.code
    assert status == 1, f"went on, on a full disk, and ended with status {status}"
    lines = [line for line in errors.getvalue().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, errors.getvalue()
    assert errors.getvalue().endswith(lines[0] + "\n"), errors.getvalue()
    return lines[0]
