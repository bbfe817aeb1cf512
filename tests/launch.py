"""Start the stages on several CPU processes: as a user does, or, to test many cases in little time, forked."""

import importlib
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    stage: [f"--config={ROOT / stage / 'configs' / name}" for name in ("cxr_lt_2023.yaml", "tiny.yaml")]
    for stage in ("extract", "fusion")
}
SECONDS = 300  # a watchdog: what hangs is killed
FORK = multiprocessing.get_context(
    "forkserver"
)  # its server loads the libraries once and has never run a backward pass
FORK.set_forkserver_preload(["tests.drive_training"])


def unchecked(work, *arguments):
    """What a function returns in a process of its own, where no type is checked at run time: so it is for users.

    Here beartype would refuse much that is wrong, and hide that nothing else does.
    """
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send, args=(sender, work, *arguments))
    process.start()
    sender.close()
    try:
        assert receiver.poll(SECONDS), f"{work.__name__}{arguments}: no end after {SECONDS} s"
        return receiver.recv()
    except EOFError:
        raise AssertionError(f"{work.__name__}{arguments} ended its process") from None
    finally:
        process.kill()  # what hangs; what has answered is done
        process.join()


def _send(sender, work, *arguments):
    sender.send(work(*arguments))


def run(stage, run_dir, *options):
    """A stage in this process, on the recipe layered with tiny.yaml."""
    importlib.import_module(f"{stage}.train").main([*CONFIGS[stage], "--run_dir", str(run_dir), *options])


def command(script, *options, num_processes=2):
    """The command line; with `--cpu --num_processes 2` accelerate 1.15 would silently start one process."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"]
    several = ["--multi_gpu"] if num_processes > 1 else []
    return [*launcher, *several, "--num_processes", str(num_processes), str(script), *map(str, options)]


def start(script, *options, num_processes=2):
    """Start it in a process group of its own."""
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
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


def launch(script, *options, num_processes=2):
    """Run it to its good end and return what it printed."""
    status, out, err = finish(start(script, *options, num_processes=num_processes))
    assert status == 0, err[-12000:]
    return out


def drive(job, folder, *arguments, num_processes):
    """Run a job of drive_training.py on forked processes; what all of them printed."""
    from tests.drive_training import child

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder.mkdir(parents=True, exist_ok=True)
    outputs = [folder / f".printed-{rank}" for rank in range(num_processes)]
    processes = [
        FORK.Process(target=child, args=(rank, num_processes, port, str(outputs[rank]), job, folder, *arguments))
        for rank in range(num_processes)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    hanging = [process for process in processes if process.is_alive()]
    for process in hanging:
        process.kill()
    printed = [path.read_text() for path in outputs]
    for path in outputs:
        path.unlink()
    assert not hanging, f"no end after {SECONDS} s:\n" + "\n".join(text[-4000:] for text in printed)
    assert all(process.exitcode == 0 for process in processes), "\n".join(text[-6000:] for text in printed)
    return "".join(printed)
