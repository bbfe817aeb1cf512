"""Every moment at which a command could be cut off: what the disk then holds, and what the same command makes of it.

A command runs once under a `Recorder`, which sees each operation on files below a folder (open for writing, fsync,
rename, removal, new folder) just before it happens and writes down what lies there: once as a killed process leaves it,
and once as a power cut may, where every file that was written and not flushed since is cut in half. Each of these
states, put back, is where a crash would have left the folder; the command is run again on each.
"""

import hashlib
import os
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

State = dict[str, str | None]
"""Name below the folder -> digest of the content; None for a folder."""
WRITES = os.O_WRONLY | os.O_RDWR
LAST = 4  # states that are always tried: what is nearly finished must not be taken for it
_active: "Recorder | None" = None


class Recorder:
    """Watches all operations on files below a folder, from whatever library and thread."""

    def __init__(self, folder: Path, skip: tuple[str, ...] = ()) -> None:
        self.folder, self.skip = folder, skip
        self.moments: list[tuple[str, State]] = []
        """What was about to happen, and what lay there: before each operation, and at the end."""
        self.operations: Counter[str] = Counter()
        self.written_in_place: set[str] = set()
        """Files opened for writing under their final name."""
        self.renamed_unflushed: set[str] = set()
        self._contents: dict[str, bytes] = {}
        self._known: dict[str, tuple[tuple[int, int, int], str]] = {}
        self._dirty: set[str] = set()
        self._lock, self._fsync = threading.RLock(), os.fsync

    def __enter__(self) -> "Recorder":
        global _active
        _install()
        _active, os.fsync = self, self._flush
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active, os.fsync = None, self._fsync
        self.moments.append(("the end", self._look(False)))

    def states(self) -> Iterator[tuple[str, State]]:
        """The distinct states, in the order in which they came about; the last one is the finished folder."""
        seen = set()
        for what, state in self.moments:
            key = tuple(sorted(state.items(), key=lambda item: item[0]))
            if key not in seen:
                seen.add(key)
                yield what, state

    def restore(self, state: State) -> None:
        """Make the folder what it was."""
        for path in self._entries(top_down=False):
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        for name, digest in sorted(state.items()):
            path = self.folder / name
            path.mkdir(parents=True, exist_ok=True) if digest is None else path.write_bytes(self._contents[digest])

    def content(self, state: State) -> dict[str, bytes]:
        """The files of a state."""
        return {name: self._contents[digest] for name, digest in state.items() if digest is not None}

    def heard(self, event: str, arguments: tuple) -> None:
        """One of Python's audit events, on whatever files."""
        if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)) and (arguments[2] or 0) & WRITES:
            if (name := self._name(arguments[0])) is not None:
                self._before("open", name)
                self._dirty.add(name)
                if not any(part.startswith((".tmp-", ".old-")) for part in Path(name).parts):
                    self.written_in_place.add(name)
        elif event == "os.rename":
            source, target = self._name(arguments[0], arguments[2]), self._name(arguments[1], arguments[3])
            if source is not None and target is not None:
                self._before("rename", target)
                self._renamed(source, target)
        elif event in ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"):
            directory = arguments[-1] if event != "os.truncate" and isinstance(arguments[-1], int) else -1
            if (name := self._name(arguments[0], directory)) is not None:
                self._before(event.removeprefix("os."), name)

    def _renamed(self, source: str, target: str) -> None:
        for name in [name for name in self._dirty if name == source or name.startswith(source + "/")]:
            self.renamed_unflushed.add(target + name[len(source) :])
            self._dirty.discard(name)
            self._dirty.add(target + name[len(source) :])

    def _flush(self, descriptor: int) -> None:
        name = self._name(f"/proc/self/fd/{descriptor}", resolve=True)
        if name is not None:
            self._before("fsync", name)
        self._fsync(descriptor)
        self._dirty.discard(name or "")

    def _before(self, what: str, name: str) -> None:
        with self._lock:
            self.operations[what] += 1
            self.moments.append((f"{what} {name}", self._look(False)))
            if self._dirty:
                self.moments.append((f"power cut at {what} {name}", self._look(True)))

    def _name(self, path: str | bytes | os.PathLike, directory: int = -1, resolve: bool = False) -> str | None:
        """Below the folder; None elsewhere and in what is skipped."""
        if isinstance(path, int):
            return None
        whole = os.fsdecode(path)
        if directory not in (-1, None) and not os.path.isabs(whole):
            whole = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), whole)
        whole = os.path.realpath(whole) if resolve else os.path.abspath(whole)
        name = os.path.relpath(whole, self.folder)
        return None if name.startswith(("..", *self.skip)) else name

    def _entries(self, top_down: bool = True) -> Iterator[Path]:
        for where, folders, files in os.walk(self.folder, topdown=top_down):
            for entry in [*folders, *files]:
                path = Path(where) / entry
                if not str(path.relative_to(self.folder)).startswith(self.skip or ("\0",)):
                    yield path

    def _look(self, power_cut: bool) -> State:
        state: State = {}
        for path in self._entries():
            name = str(path.relative_to(self.folder))
            try:
                state[name] = None if path.is_dir() else self._digest(path, name, power_cut and name in self._dirty)
            except FileNotFoundError:  # another thread has renamed it meanwhile
                state.pop(name, None)
        return state

    def _digest(self, path: Path, name: str, halved: bool) -> str:
        status = path.stat()
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if not halved and name in self._known and self._known[name][0] == stamp and name not in self._dirty:
            return self._known[name][1]
        content = path.read_bytes()
        content = content[: len(content) // 2] if halved else content
        digest = hashlib.sha256(content).hexdigest()
        self._contents.setdefault(digest, content)
        if not halved:
            self._known[name] = (stamp, digest)
        return digest


def _install(installed: list[bool] = []) -> None:  # noqa: B006  an audit hook stays for the life of a process
    if not installed:
        installed.append(True)
        inside = threading.local()

        def hook(event: str, arguments: tuple) -> None:
            if _active is None or not event.startswith(("open", "os.")) or getattr(inside, "busy", False):
                return
            inside.busy = True
            try:
                _active.heard(event, arguments)
            finally:
                inside.busy = False

        sys.addaudithook(hook)


def crash_everywhere(
    folder: Path,
    command: Callable[[], object],
    results: Callable[[dict[str, bytes]], dict],
    skip: tuple[str, ...] = (),
    in_place: tuple[str, ...] = (),
    most: int | None = None,
) -> Counter[str]:
    """Run a command, then again from every state that a crash could have left; all must end alike.

    Args:
        folder: Where the command writes; restored before each run.
        results: What counts of the files of a finished folder.
        skip: Names, or beginnings of names, that the command only reads.
        in_place: Endings of the files that may be written under their final name.
        most: Try about so many states, evenly spaced, and the last ones; default: all.

    Returns:
        How many operations, states, and states tried there were.
    """
    with Recorder(folder, skip) as recorder:
        command()
    strangers = {name for name in recorder.written_in_place if not name.endswith(in_place)}
    assert not strangers, f"written under their final name: {sorted(strangers)}"
    unflushed = {name for name in recorder.renamed_unflushed if not name.endswith(in_place)}
    assert not unflushed, f"renamed before they were on disk: {sorted(unflushed)}"
    states = list(recorder.states())
    wanted = results(recorder.content(states[-1][1]))
    step = 1 if most is None else max(1, -(-len(states) // most))
    tried = states[::-1][:LAST] + states[::-1][LAST::step]
    for what, state in tried:
        recorder.restore(state)
        command()
        found = results({n: (folder / n).read_bytes() for n, digest in recorder._look(False).items() if digest})
        differ = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        assert not differ, f"after a crash before {what}: {differ} differ"
    counts = Counter({f"operations: {what}": number for what, number in recorder.operations.items()})
    return counts + Counter(operations=recorder.operations.total(), states=len(states), tried=len(tried))


def without_leftovers(folder: Path) -> None:
    """Empty a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
