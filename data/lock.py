"""One writer per folder, on local disks and on shared ones.

The lock is the kernel's (flock): it vanishes with its process, so a killed run never leaves a folder locked. Where a
network file system has no flock, the holder touches a file every few seconds instead, and a lock that nobody touches
any more is taken over.

Only the standard library is used: `extract.py` looks at the lock before it loads anything heavy.
"""

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from data.errors import InputError, tell_launcher

NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}
HEARTBEAT_S = 5.0
ABANDONED_S = 60.0


class FolderInUseError(InputError):
    """Another run is writing to the folder."""


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Hold `folder` for one writer.

    Raises:
        FolderInUseError: at once if another process holds it; names its pid, host and start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _open_lock(folder) as file:
        if _take(file, folder, fcntl.LOCK_EX):
            file.truncate(0)
            file.write(_who())
            file.flush()
            yield
        else:
            with _held_by_heartbeat(folder):
                yield


def refuse_if_running(words: Sequence[str], default: Path) -> None:
    """Look, before anything heavy is loaded, whether another run holds the folder that a command line names.

    Args:
        words: The command line.
        default: The configuration file read where it names none.

    Raises:
        SystemExit: with status 1 and one line naming the holder's pid, host and start.
    """
    folder = run_folder(words, default)
    if os.environ.get("RANK", "0") != "0" or not (folder / ".lock").is_file():
        return  # only a run's first process locks; the others would find their own run
    try:
        with _open_lock(folder) as file:
            _take(file, folder, fcntl.LOCK_SH)
    except InputError as error:
        tell_launcher(error)
        raise SystemExit(f"error: {error}") from None
    except OSError:
        return  # not ours to judge here


def run_folder(words: Sequence[str], default: Path) -> Path:
    """The run folder of a command line: its last ``--run_dir``, else that of its configuration files.

    A glance, not a parse: what it overlooks is found by `locked` a few seconds later.
    """
    options: dict[str, list[str]] = {"--run_dir": [], "--config": []}
    for position, word in enumerate(words):
        name, equals, value = word.partition("=")
        following = value if equals else next(iter(words[position + 1 :]), "")
        if name in options:
            options[name].append(following)
    found = options["--run_dir"]
    for path in [] if found else options["--config"] or [default]:
        with contextlib.suppress(OSError, ValueError):
            lines = Path(path).read_text(encoding="utf-8").splitlines()
            values = [line.removeprefix("run_dir:").strip() for line in lines if line.startswith("run_dir:")]
            found += [v[1:].partition(v[0])[0] if v[:1] in ("'", '"') else v.partition(" #")[0].strip() for v in values]
    return Path(found[-1]) if found and found[-1] else Path("runs/demo")


def _open_lock(folder: Path) -> TextIO:
    """The file that is locked; never a link, through which the holder's name would be written elsewhere."""
    path = folder / ".lock"
    try:
        return open(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR | os.O_NOFOLLOW, 0o666), "a+")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path}: is a link; remove it") from None


def _who() -> str:
    started = datetime.datetime.now().isoformat(timespec="seconds")
    return f"pid {os.getpid()} on {socket.gethostname()} since {started}"


def _take(file: TextIO, folder: Path, kind: int) -> bool:
    """Whether flock gave the lock; False where the file system has none."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(folder, folder / ".lock") from None
    except OSError as error:
        if error.errno in NO_FLOCK:
            return False
        raise
    return True


def _in_use(folder: Path, path: Path) -> FolderInUseError:
    return FolderInUseError(f"{folder}: another run is writing here ({path.read_text().strip()}); wait or stop it")


@contextmanager
def _held_by_heartbeat(folder: Path) -> Generator[None, None, None]:
    """Hold a folder by a file that only one process can create, and that it touches as long as it lives."""
    path = folder / ".lock-holder"
    if path.exists() and _age(folder, path) > ABANDONED_S:
        path.unlink(missing_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        raise _in_use(folder, path) from None
    with open(descriptor, "w") as file:
        file.write(_who())
    done = threading.Event()
    thread = threading.Thread(target=_touch, args=(path, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        path.unlink(missing_ok=True)


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _age(folder: Path, path: Path) -> float:
    """Seconds since a file was touched, by the clock of the file system, which may not be ours."""
    probe = folder / f".lock-clock-{os.getpid()}"
    probe.touch()
    try:
        return probe.stat().st_mtime - path.stat().st_mtime
    finally:
        probe.unlink()
