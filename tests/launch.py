"""Start a script on several CPU processes, as a user does."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    stage: ["--config", f"{stage}/configs/cxr_lt_2023.yaml", "--config", f"{stage}/configs/tiny.yaml"]
    for stage in ("extract", "fusion")
}
SECONDS = 300  # a watchdog: what hangs is killed with its whole process group


def command(script, *options, num_processes=2):
    """The command line; with `--cpu --num_processes 2` accelerate 1.15 would silently start one process."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    several = ["--multi_gpu"] if num_processes > 1 else []
    return [*launcher, *several, "--num_processes", str(num_processes), str(script), *map(str, options)]


def start(script, *options, num_processes=2, **extra):
    """Start it in a process group of its own."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"} | extra
    return subprocess.Popen(
        command(script, *options, num_processes=num_processes),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    """Wait for it; (exit status, stdout, stderr)."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        out, err = process.communicate()
        raise AssertionError(f"no end after {SECONDS} s:\n{out[-2000:]}\n{err[-3000:]}") from None
    return process.returncode, out, err


def launch(script, *options, num_processes=2, **extra):
    """Run it to its good end and return what it printed."""
    status, out, err = finish(start(script, *options, num_processes=num_processes, **extra))
    assert status == 0, err[-12000:]
    return out
