"""A run folder has one writer and one configuration, and tells what happened in it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import InputError
from data.lock import locked
from data.runs import Log, append_metrics, keep_config, read_metrics, run_command, write_environment

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, pathlib
from data.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("size", [1, 10**6])
def test_a_reader_that_leaves_early_gets_no_traceback(size):
    code = f"from data.runs import run_command; run_command(lambda: print('x' * {size}))"
    command = [sys.executable, "-c", "import sys; sys.stdin.read();" + code]
    pipes = {name: subprocess.PIPE for name in ("stdin", "stdout", "stderr")}
    process = subprocess.Popen(command, cwd=ROOT, text=True, **pipes)
    process.stdout.close()
    process.stdout = None
    assert process.communicate("")[1] == ""
    assert process.returncode == 141


def test_a_folder_made_before_a_key_existed_goes_on_while_the_key_has_its_default(tmp_path):
    keep_config(tmp_path, "a: 1\n", {})
    for _ in range(2):
        keep_config(tmp_path, "a: 1\nnew: {key: 5}\n", {"new.key": 5})
        with pytest.raises(InputError, match=r"made with new.key=5, now it is 6"):
            keep_config(tmp_path, "a: 1\nnew: {key: 6}\n", {"new.key": 5})


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path, holder):
    with pytest.raises(InputError, match=rf"pid {holder.pid} on .* since 20\d\d-") as refusal, locked(tmp_path):
        pass
    assert str(tmp_path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_killed_process_leaves_no_folder_locked(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path):
        assert f"pid {os.getpid()} " in (tmp_path / ".lock").read_text()
    with locked(tmp_path), pytest.raises(InputError), locked(tmp_path):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), locked(tmp_path / "new"):
        raise RuntimeError
    with locked(tmp_path / "new"):
        pass


def test_another_configuration_is_refused_naming_its_key(tmp_path):
    keep_config(tmp_path / "stage", "a: 1\nloss: {gamma: 4.0, kind: asl}\n", {})
    keep_config(tmp_path / "stage", "# a comment\nloss: {kind: asl, gamma: 4.0}\na: 1\n", {})  # same values
    with pytest.raises(InputError, match=r"config.yaml: .*loss.gamma=4.0, now it is 2.0"):
        keep_config(tmp_path / "stage", "a: 1\nloss: {gamma: 2.0, kind: asl}\n", {})
    with pytest.raises(InputError, match="a=1, now it is None"):
        keep_config(tmp_path / "stage", "loss: {gamma: 4.0, kind: asl}\n", {})
    with pytest.raises(InputError, match="extra=None, now it is 5"):
        keep_config(tmp_path / "stage", "a: 1\nextra: 5\nloss: {gamma: 4.0, kind: asl}\n", {})


def test_workers_and_the_folders_own_name_may_change(tmp_path):
    keep_config(tmp_path, "num_workers: 2\nrun_dir: runs/a\n", {})
    keep_config(tmp_path, f"num_workers: 0\nrun_dir: {tmp_path}\n", {})
    assert (tmp_path / "config.yaml").read_text() == "num_workers: 2\nrun_dir: runs/a\n", "the first stays on record"


@pytest.mark.parametrize("damaged", ["", "a: [1", "- a\n", "\x00"])
def test_a_damaged_saved_configuration_is_one_line(tmp_path, damaged):
    (tmp_path / "config.yaml").write_text(damaged)
    with pytest.raises(InputError, match=r"config.yaml: not readable; delete"):
        keep_config(tmp_path, "a: 1\n", {})


def test_metrics_of_a_repeated_epoch_and_of_later_ones_are_replaced(tmp_path):
    assert read_metrics(tmp_path) == []
    for epoch in (1, 2, 3):
        append_metrics(tmp_path, {"epoch": epoch, "mAP": None, "train_loss": epoch / 3})
    append_metrics(tmp_path, {"epoch": 2, "mAP": 0.5, "train_loss": 0.0})
    assert read_metrics(tmp_path) == [
        {"epoch": 1, "mAP": None, "train_loss": 1 / 3},
        {"epoch": 2, "mAP": 0.5, "train_loss": 0.0},
    ]


def test_the_environment_tells_versions_and_no_name_of_host_user_or_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("USER", "canary-user")
    monkeypatch.setattr(socket, "gethostname", lambda: "canary-host")
    write_environment(tmp_path, "cpu")
    text = (tmp_path / "environment.json").read_text()
    record = json.loads(text)
    assert re.match(r"\d+\.\d+", record["packages"]["torch"])
    assert re.fullmatch(r"[0-9a-f]{40}|unknown", record["commit"])
    for secret in (os.uname().nodename, "canary", str(Path.home()), str(ROOT), str(tmp_path)):
        assert secret not in text


def test_the_environment_is_written_on_a_machine_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    write_environment(tmp_path, "cpu")
    assert json.loads((tmp_path / "environment.json").read_text())["commit"] == "unknown"


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("a.csv: row 3: wrong"), 1, "error: a.csv: row 3: wrong\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to go on\n"),
        (OSError(28, "No space left on device"), 1, "error: writing: No space left on device; run the same"),
    ],
)
def test_what_a_user_can_cause_ends_in_one_line(capsys, error, status, line):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    shown = capsys.readouterr().err
    assert (stop.value.code, shown.count("\n")) == (status, 1)
    assert shown.startswith(line)


def test_our_own_mistakes_keep_their_traceback():
    for error in (ValueError("ours"), FileNotFoundError(2, "ours")):

        def main(error=error):
            raise error

        with pytest.raises(type(error)):
            run_command(main)


def test_only_the_main_process_writes_the_log(tmp_path):
    Log(tmp_path, speaks=False)("silent")
    assert not (tmp_path / "log.txt").exists()
    Log(tmp_path, speaks=True)("grün")
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").endswith(" grün\n")
    assert list(Log(tmp_path, speaks=False).progress([1, 2], "x")) == [1, 2]
