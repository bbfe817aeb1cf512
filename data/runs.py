"""A run folder tells its whole story: configuration, environment, log, curves; and has one writer."""

import datetime
import errno
import fcntl
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tqdm import tqdm

from data.config import flatten
from data.errors import InputError
from data.files import atomic_write

Item = TypeVar("Item")
PACKAGES = ("torch", "torchvision", "timm", "accelerate", "webdataset", "numpy", "pandas", "pydicom", "imagecodecs")
HARMLESS_KEYS = {  # may change between two starts of one run: training does not depend on them
    *("num_workers", "run_dir", "max_rejected", "save_steps"),
    *("template", "test_table", "truth_dir", "bootstrap_replicates"),
    *(f"cache.{name}" for name in ("dtype", "pool", "flip", "augmented", "shard_megabytes", "batch_size")),
}
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}


def run_command(main: Callable[[], None]) -> None:
    """Run a command; an `InputError` or a disk that takes no more becomes one line and status 1, an interrupt 130."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error.filename or 'writing'}: {error.strerror}; run the same command again", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def locked(folder: Path) -> Generator[None, None, None]:
    """Hold `folder` for one writer; a second one is refused at once, naming the first.

    The lock is the kernel's (flock): it vanishes with its process, so a killed run never leaves a folder locked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(
                f"{folder}: another run is writing here ({file.read().strip()}); wait or stop it"
            ) from None
        file.truncate(0)
        started = datetime.datetime.now().isoformat(timespec="seconds")
        file.write(f"pid {os.getpid()} on {socket.gethostname()} since {started}")
        file.flush()
        yield


def keep_config(stage_dir: Path, resolved_yaml: str) -> None:
    """Save a stage's resolved configuration as ``config.yaml``, or check that it is the one already there.

    Raises:
        InputError: the folder belongs to another configuration; the message names the first key that differs.
    """
    path = stage_dir / "config.yaml"
    if not path.exists():
        atomic_write(path, resolved_yaml)
        return
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError):
        tree = None
    if not isinstance(tree, dict):
        raise InputError(f"{path}: not readable; delete {stage_dir} to start anew")
    former, wanted = flatten(tree), flatten(yaml.safe_load(resolved_yaml))
    for key in sorted((former.keys() | wanted.keys()) - HARMLESS_KEYS):
        if former.get(key) != wanted.get(key):
            raise InputError(
                f"{path}: this run was made with {key}={former.get(key)!r}, now it is {wanted.get(key)!r}; "
                f"choose another run_dir, or delete {stage_dir} to start anew"
            )


def append_metrics(stage_dir: Path, row: dict[str, Any]) -> None:
    """Add one JSON line to ``metrics.jsonl``, replacing lines of the same or a later epoch (a resumed run)."""
    rows = [former for former in read_metrics(stage_dir) if former["epoch"] < row["epoch"]]
    atomic_write(stage_dir / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in [*rows, row]))


def read_metrics(stage_dir: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl``; none if the file is not there yet."""
    path = stage_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


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


class Log:
    """Lines for people, on the console and in ``log.txt``; only the main process speaks."""

    def __init__(self, run_dir: Path, speaks: bool) -> None:
        self.path, self.speaks = run_dir / "log.txt", speaks

    def __call__(self, line: str) -> None:
        """Print a line above any progress bar and append it, with the time, to the log."""
        if self.speaks:
            tqdm.write(line)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{datetime.datetime.now().isoformat(timespec='seconds')} {line}\n")

    def start(self, stage: str, num_processes: int, device: str) -> None:
        """The first line of a stage."""
        self(f"{stage} on {num_processes} process{'es' if num_processes > 1 else ''} ({device})")

    def progress(self, items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
        """A progress bar with time left on a terminal; on anything else, about one line every ten seconds."""
        interval = 0.2 if sys.stderr.isatty() else 10.0
        return tqdm(items, desc=description, total=total, disable=not self.speaks, mininterval=interval, leave=False)
