"""One writer per folder: refused at once with the holder's name, also where a file system has no flock."""

import errno
import fcntl
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import data.lock
from data.lock import FolderInUseError, locked, refuse_if_running, run_folder

ROOT = Path(__file__).resolve().parents[1]
NAMES_HOLDER = re.compile(rf"another run is writing here \(pid {os.getpid()} on \S+ since 20\d\d-")


@pytest.mark.parametrize("script", ["extract.py", "train_fusion.py"])
def test_a_second_start_is_refused_before_anything_heavy_is_loaded(tmp_path, script):
    program = f"""
import atexit, runpy, sys
atexit.register(lambda: print("heavy:", [name for name in ("torch", "numpy") if name in sys.modules]))
sys.argv[1:] = ["--run_dir", {str(tmp_path)!r}]
runpy.run_path({script!r}, run_name="__main__")
"""
    with locked(tmp_path):
        run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert NAMES_HOLDER.search(run.stderr)
    assert "Traceback" not in run.stderr
    assert run.stdout == "heavy: []\n"


def test_only_a_runs_first_process_looks_for_another_run(tmp_path, monkeypatch):
    with locked(tmp_path):
        with pytest.raises(SystemExit, match="another run is writing here"):
            refuse_if_running(["--run_dir", str(tmp_path)], tmp_path / "none.yaml")
        monkeypatch.setenv("RANK", "1")
        refuse_if_running(["--run_dir", str(tmp_path)], tmp_path / "none.yaml")
    monkeypatch.setenv("RANK", "0")
    refuse_if_running(["--run_dir", str(tmp_path)], tmp_path / "none.yaml")
    refuse_if_running(["--run_dir", str(tmp_path / "nowhere")], tmp_path / "none.yaml")
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", "from/default"),
        ("--config a.yaml", "from/a"),
        ("--config a.yaml --config b.yaml", "from/b # x"),
        ("--config=a.yaml --epochs 3", "from/a"),
        ("--config a.yaml --run_dir given", "given"),
        ("--run_dir=first --run_dir second", "second"),
        ("--config none.yaml", "runs/demo"),
    ],
)
def test_the_run_folder_is_read_off_the_command_line_as_the_stage_does(tmp_path, monkeypatch, words, wanted):
    monkeypatch.chdir(tmp_path)
    Path("default.yaml").write_text("epochs: 2\nrun_dir: from/default\n")
    Path("a.yaml").write_text("run_dir:   from/a   # a note\nmodel: {run_dir: other}\n")
    Path("b.yaml").write_text("# run_dir: no\nrun_dir: 'from/b # x'\n")
    assert run_folder(words.split(), Path("default.yaml")) == Path(wanted)


@pytest.fixture
def no_flock(monkeypatch):
    """A network file system without locks."""

    def flock(file, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)


def test_without_flock_a_second_writer_is_refused_and_the_lock_is_given_back(tmp_path, no_flock):
    with locked(tmp_path), pytest.raises(FolderInUseError, match=NAMES_HOLDER), locked(tmp_path):
        pass
    with pytest.raises(RuntimeError), locked(tmp_path):
        raise RuntimeError
    with locked(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_without_flock_a_lock_that_nobody_touches_any_more_is_taken_over(tmp_path, no_flock):
    holder = tmp_path / ".lock-holder"
    holder.write_text("pid 1 on elsewhere since 2020-01-01T00:00:00")
    now = holder.stat().st_mtime
    os.utime(holder, (now, now - data.lock.ABANDONED_S + 5))
    with pytest.raises(FolderInUseError, match="pid 1 on elsewhere"), locked(tmp_path):
        pass
    os.utime(holder, (now, now - data.lock.ABANDONED_S - 5))
    with locked(tmp_path):
        assert str(os.getpid()) in holder.read_text()


def test_without_flock_the_holder_keeps_touching_its_lock(tmp_path, no_flock, monkeypatch):
    monkeypatch.setattr(data.lock, "HEARTBEAT_S", 0.001)
    with locked(tmp_path):
        holder = tmp_path / ".lock-holder"
        os.utime(holder, (0, 0))
        deadline = time.monotonic() + 60  # a watchdog
        while holder.stat().st_mtime == 0 and time.monotonic() < deadline:
            pass
        assert holder.stat().st_mtime > 0


def test_a_fault_of_the_file_system_is_not_taken_for_a_lock(tmp_path, monkeypatch):
    def flock(file, kind):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(OSError, match="Input/output"), locked(tmp_path):
        pass
