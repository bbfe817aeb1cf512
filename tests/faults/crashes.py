"""Every moment at which a command could be cut off: what the disk then holds, and what the same command makes of it.

A command runs once under a `Recorder`, which sees each operation on files below a folder (open for writing, fsync,
rename, removal, new folder) just before it happens and writes down what lies there: once as a killed process leaves it,
and once as a power cut may, where every file that was written and not flushed since is cut in half. Each of these
states, put back, is where a crash would have left the folder; the command is run again on each.

A write is no operation of its own: a kill between two of them leaves a file that is too short, which is what the power
cut leaves, and what the kill before the next operation leaves of bytes still in Python's buffer.

The order of the operations is checked as well. What is renamed is on disk before (a file's bytes, a folder's names and
all below it), and a name that is published (a hidden name becomes an open one) is on disk before the next one is
published, before anything but a temporary file is removed, and before the command ends.
"""

import hashlib
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

State = dict[str, str | None]
"""Name below the folder -> digest of the content; None for a folder."""
Stamp = tuple[int, int, int]
"""Inode, time of the last change, size: whether a file was written since."""
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
        self.disorder: list[str] = []
        """What was renamed or removed before something else was on disk."""
        self._contents: dict[str, bytes] = {}
        self._known: dict[str, tuple[Stamp, str]] = {}
        self._flushed: dict[str, Stamp | None] = {}  # of each file that was written, as it was at its last fsync
        self._unsynced: set[str] = set()  # folders that got a name since their last fsync
        self._published: dict[str, str] = {}  # among them: a finished file or folder
        self._lock, self._fsync = threading.RLock(), os.fsync

    def __enter__(self) -> "Recorder":
        global _active
        _install()
        _active, os.fsync = self, self._flush
        return self

    def __exit__(self, *_: object) -> None:
        global _active
        _active, os.fsync = None, self._fsync
        self._in_order("the end came")
        self.moments.append(("the end", self.look()))

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
                self._opened(name)
        elif event == "os.rename":
            source, target = self._name(arguments[0], arguments[2]), self._name(arguments[1], arguments[3])
            if source is not None and target is not None:
                self._before("rename", target)
                self._renamed(source, target)
        elif event in ("os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link"):
            directory = arguments[-1] if event != "os.truncate" and isinstance(arguments[-1], int) else -1
            if (name := self._name(arguments[0], directory)) is not None:
                self._before(event.removeprefix("os."), name)
                if event == "os.mkdir":
                    self._unsynced |= {name, os.path.dirname(name) or "."}
                elif event in ("os.remove", "os.rmdir") and not _has_part(name, (".tmp-",)):
                    self._in_order(f"{name} was removed")

    def _opened(self, name: str) -> None:
        if not (self.folder / name).exists():
            self._unsynced.add(os.path.dirname(name) or ".")
        self._flushed.setdefault(name, None)
        if not _has_part(name, (".tmp-", ".old-")):
            self.written_in_place.add(name)

    def _renamed(self, source: str, target: str) -> None:
        late = {name for name in self._flushed if below(name, source) and self._dirty(name)}
        late |= {name + "/" for name in self._unsynced if below(name, source)}
        self.disorder += [f"{target} renamed before {name} was on disk" for name in sorted(late)]
        published = _has_part(source, (".",)) and not _has_part(target, (".",))
        if published:
            self._in_order(f"{target} was renamed")
        self._flushed = {_moved(name, source, target): stamp for name, stamp in self._flushed.items()}
        self._unsynced = {_moved(name, source, target) for name in self._unsynced} | {os.path.dirname(target) or "."}
        if published:
            self._published[os.path.dirname(target) or "."] = target

    def _in_order(self, what: str) -> None:
        self.disorder += [f"{what} before the name {name} was on disk" for name in self._published.values()]

    def _flush(self, descriptor: int) -> None:
        name = self._name(f"/proc/self/fd/{descriptor}", resolve=True)
        if name is not None:
            self._before("fsync", name)
        self._fsync(descriptor)
        if name in self._flushed:
            self._flushed[name] = _stamp(self.folder / name)
        self._unsynced.discard(name or "")
        self._published.pop(name or "", None)

    def _dirty(self, name: str) -> bool:
        """Whether a file has bytes that are not on disk."""
        try:
            return name in self._flushed and self._flushed[name] != _stamp(self.folder / name)
        except FileNotFoundError:
            return False

    def _before(self, what: str, name: str) -> None:
        with self._lock:
            self.operations[what] += 1
            self.moments.append((f"{what} {name}", self.look()))
            if any(map(self._dirty, self._flushed)):
                self.moments.append((f"power cut at {what} {name}", self.look(True)))

    def _name(self, path: str | bytes | os.PathLike, directory: int = -1, resolve: bool = False) -> str | None:
        """Below the folder; None elsewhere and in what is skipped."""
        if isinstance(path, int):
            return None
        whole = os.fsdecode(path)
        if directory not in (-1, None) and not os.path.isabs(whole):
            whole = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), whole)
        whole = os.path.realpath(whole) if resolve else os.path.abspath(whole)
        name = os.path.relpath(whole, self.folder)
        return None if any(below(name, other) for other in ("..", *self.skip)) else name

    def _entries(self, top_down: bool = True) -> Iterator[Path]:
        for where, folders, files in os.walk(self.folder, topdown=top_down):
            for entry in [*folders, *files]:
                path = Path(where) / entry
                if not any(below(str(path.relative_to(self.folder)), other) for other in self.skip):
                    yield path

    def look(self, power_cut: bool = False) -> State:
        """What lies in the folder; after a power cut, if it came now."""
        state: State = {}
        for path in self._entries():
            name = str(path.relative_to(self.folder))
            try:
                state[name] = None if path.is_dir() else self._digest(path, name, power_cut and self._dirty(name))
            except FileNotFoundError:  # another thread has renamed it meanwhile
                state.pop(name, None)
        return state

    def _digest(self, path: Path, name: str, halved: bool) -> str:
        stamp = _stamp(path)
        if not halved and name in self._known and self._known[name][0] == stamp and not self._dirty(name):
            return self._known[name][1]
        content = path.read_bytes()
        content = content[: len(content) // 2] if halved else content
        digest = hashlib.sha256(content).hexdigest()
        self._contents.setdefault(digest, content)
        if not halved:
            self._known[name] = (stamp, digest)
        return digest


def below(name: str, other: str) -> bool:
    """Whether a name is another one, or lies in the folder of that name."""
    return name == other or name.startswith(other + "/")


def _moved(name: str, source: str, target: str) -> str:
    return target + name[len(source) :] if below(name, source) else name


def _has_part(name: str, beginnings: tuple[str, ...]) -> bool:
    return any(part.startswith(beginnings) for part in Path(name).parts)


def _stamp(path: Path) -> Stamp:
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


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
        skip: Files and folders that the command only reads.
        in_place: Endings of the files that may be written under their final name.
        most: Try about so many states, evenly spaced, and the last ones; default: all.

    Returns:
        How many operations, states, and states tried there were.
    """
    with Recorder(folder, skip) as recorder:
        command()
    strangers = {name for name in recorder.written_in_place if not name.endswith(in_place)}
    assert not strangers, f"written under their final name: {sorted(strangers)}"
    assert not recorder.disorder, recorder.disorder
    states = list(recorder.states())
    wanted = results(recorder.content(states[-1][1]))
    step = 1 if most is None else max(1, -(-len(states) // most))
    tried = states[::-1][:LAST] + states[::-1][LAST::step]
    for what, state in tried:
        recorder.restore(state)
        command()
        found = results({n: (folder / n).read_bytes() for n, digest in recorder.look().items() if digest})
        assert found == wanted, f"after a crash before {what}: {differing(found, wanted)} differ"
    counts = Counter({f"operations: {what}": number for what, number in recorder.operations.items()})
    return counts + Counter(operations=recorder.operations.total(), states=len(states), tried=len(tried))


def differing(found: dict, wanted: dict) -> list[str]:
    """Names of the results that only one has, or that differ."""
    return sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
