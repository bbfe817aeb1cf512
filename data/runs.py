"""A run folder tells its whole story: configuration, environment, log, curves; and has one writer."""

import ctypes
import datetime
import errno
import importlib.metadata
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tqdm import tqdm

from data.config import flatten, read_yaml
from data.errors import InputError, tell_launcher
from data.files import append, atomic_write
from data.lock import FolderInUseError

Item = TypeVar("Item")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "webdataset", "numpy", "pandas", "pydicom", "imagecodecs")
HARMLESS_KEYS = {  # may change between two starts of one run: training does not depend on them
    *("num_workers", "run_dir", "max_rejected", "save_steps", "dry_run", "trial", "resume"),
    *("joint.run", "joint.num_workers"),
    *("template", "test_table", "truth_dir", "bootstrap_replicates"),
    *(f"evaluation.{name}" for name in ("augment", "slot_draws", "normal_gate", "normal_class")),
    *(f"cache.{name}" for name in ("dtype", "pool", "flip", "augmented", "shard_megabytes", "batch_size")),
}
PEER_GONE = ("Connection closed by peer", "Connection reset by peer", "NCCL communicator was aborted", "Broken pipe")
PR_SET_PDEATHSIG = 1
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def run_command(main: Callable[[], None], run_dir: Path | None = None) -> None:
    """Run a command: what a user can mend becomes one line and status 1, a signal 128 plus its number.

    The error is the last thing this process prints, and the last line of the run's ``log.txt``. When it is one of
    several processes, it is handed to their launcher as well, which prints the first one it got.
    """
    follow_launcher()
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing left to flush at the exit
        end_workers()
        raise SystemExit(128 + signal.SIGPIPE) from None
    except BaseException as error:
        line = _one_line(error)
        if line is None:
            if isinstance(error, Exception):
                tell_launcher(error)
            end_workers()
            raise
        error.with_traceback(None)  # its frames hold loaders, and those their workers
        print(line, file=sys.stderr, flush=True)
        log = run_dir / "log.txt" if run_dir is not None else None
        if log is not None and log.is_file() and not log.is_symlink() and _belongs_in_log(error):
            with suppress(OSError):  # a full disk may have no room for it either
                _append(log, line)
        if isinstance(error, Exception):
            tell_launcher(error)
        end_workers()
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None


def _one_line(error: BaseException) -> str | None:
    """What to print for an error that needs no traceback; None for one that does."""
    if isinstance(error, InputError):
        return f"error: {error}"
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return f"error: {error.filename or 'writing'}: {error.strerror}; run the same command again"
    if isinstance(error, RuntimeError) and any(words in str(error) for words in PEER_GONE):
        return "error: another process of this run has failed or was stopped; its message says why"
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on"
    return None


def _belongs_in_log(error: BaseException) -> bool:
    """Not what only follows from another process's error, nor what a second start finds."""
    return not isinstance(error, RuntimeError | FolderInUseError)


def end_workers() -> None:
    """End this process's children now: they are slow to obey SIGTERM, and Python would wait for them at its exit."""
    if children := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report them as failed
        for child in children:
            child.kill()


def follow_launcher() -> None:
    """Ask the kernel for SIGTERM when `accelerate launch` dies, so that no orphan goes on writing to the run folder.

    With one process, the launcher does not pass signals on. A process started from a shell is left alone: nohup and
    closed terminals work as always.
    """
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def keep_config(stage_dir: Path, resolved_yaml: str, defaults: dict[str, Any], later: str | None = None) -> None:
    """Save a stage's resolved configuration as ``config.yaml``, or check that it is the one already there.

    Args:
        defaults: Values of keys that a folder does not know because it was made before they existed.
        later: Section about a later phase, on which nothing in this folder depends.

    Raises:
        InputError: the folder belongs to another configuration; the message names the first key that differs.
    """
    path = stage_dir / "config.yaml"
    if not path.exists():
        atomic_write(path, resolved_yaml)
        return
    try:
        tree = read_yaml(path)
    except InputError:
        tree = None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not readable; delete {stage_dir} to start anew")
    former, wanted = flatten(tree), flatten(yaml.safe_load(resolved_yaml))
    for key in sorted((former.keys() | wanted.keys()) - HARMLESS_KEYS):
        if later is not None and key.startswith(f"{later}."):
            continue
        if (found := former.get(key, defaults.get(key))) != wanted.get(key):
            raise InputError(
                f"{path}: this run was made with {key}={found!r}, now it is {wanted.get(key)!r}; "
                f"choose another run_dir, or delete {stage_dir} to start anew"
            )


def append_metrics(stage_dir: Path, row: dict[str, Any]) -> None:
    """Add one JSON line to ``metrics.jsonl``, replacing lines of the same or a later epoch (a resumed run)."""
    rows = [former for former in read_metrics(stage_dir) if former["epoch"] < row["epoch"]]
    atomic_write(stage_dir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in [*rows, row]))


def read_metrics(stage_dir: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; none if the file is not there yet.

    Raises:
        InputError: A line is no record of an epoch.
    """
    path = stage_dir / "metrics.jsonl"
    if not path.exists():
        return []
    try:
        rows: list[Any] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (ValueError, RecursionError):
        rows = [None]
    if not all(isinstance(row, dict) and type(row.get("epoch")) is int for row in rows):
        raise InputError(f"{path}: damaged, wanted a JSON object with an epoch in each line; move it away to go on")
    return rows


def write_environment(run_dir: Path, device: str) -> None:
    """Write ``environment.json``: versions, machine and commit, without user names, host names or paths."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    try:
        git = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
        commit = git.stdout.strip()
    except OSError:  # no git on this machine
        commit = ""
    record = {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "device": device,
        "commit": commit or "unknown",
        "packages": versions,
    }
    atomic_write(run_dir / "environment.json", json.dumps(record, indent=1))


def _append(path: Path, line: str) -> None:
    append(path, f"{datetime.datetime.now().isoformat(timespec='seconds')} {line}\n")


class Log:
    """Lines for people, on the console and in ``log.txt``; only the main process speaks."""

    def __init__(self, run_dir: Path, speaks: bool) -> None:
        self.path, self.speaks = run_dir / "log.txt", speaks

    def __call__(self, line: str) -> None:
        """Print a line above any progress bar and append it, with the time, to the log."""
        if self.speaks:
            tqdm.write(line)
            _append(self.path, line)

    def start(self, stage: str, num_processes: int, device: str) -> None:
        """The first line of a stage."""
        self(f"{stage} on {num_processes} process{'es' if num_processes > 1 else ''} ({device})")

    def progress(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        """A progress bar with time left on a terminal; on anything else, about one line every ten seconds."""
        interval = 0.2 if sys.stderr.isatty() else 10.0
        return tqdm(items, desc=description, total=total, disable=not self.speaks, mininterval=interval, leave=False)
