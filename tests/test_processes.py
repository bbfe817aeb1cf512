"""Any number of processes, stopped anywhere: the same result, each item once, and never a hang."""

import json
import os
import shutil
import signal
import time

import numpy as np
import pytest
import safetensors.torch
import torch

from data.config import flatten
from data.manifest import read_manifest, write_manifest
from data.predictions import read_predictions
from data.scan import scan_images
from fusion.evaluate.command import main as evaluate
from tests.drive_training import predict
from tests.launch import CONFIGS, SECONDS, drive, finish, start
from tests.make_data import make_cache, make_run
from tests.make_predictions import labelled

pytestmark = pytest.mark.slow


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def largest_difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[key] - b[key]).abs().max()) for key in a)


@pytest.fixture(scope="module")
def doubles(tmp_path_factory):
    """Both stages in double precision on 1, 2 and 3 processes."""
    folders = {}
    for number in (1, 2, 3):
        folders[number] = tmp_path_factory.mktemp("double") / f"on_{number}"
        make_run(folders[number])
        out = drive("train", folders[number], torch.float64, num_processes=number)
        assert f"stage two on {number} process" in out
    return folders


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("stage", ["stage_one", "fusion"])
def test_training_in_double_precision_agrees_after_20_steps_on_any_number_of_processes(doubles, stage, number):
    one = weights(doubles[1] / stage / "last")
    assert largest_difference(one, weights(doubles[number] / stage / "last")) < 1e-9
    steps = safetensors.torch.load_file(doubles[1] / stage / "last" / "optimizer.safetensors")
    assert {int(value) for key, value in steps.items() if key.startswith("step/")} == {20}


@pytest.mark.parametrize("number", [2, 3])
def test_every_image_is_predicted_once_and_alike_on_any_number_of_processes(doubles, number):
    for split in ("val", "test"):
        name = f"fusion/logits_{split}.csv"
        (ids_a, a, _), (ids_b, b, _) = (read_predictions(doubles[n] / name) for n in (1, number))
        wanted = read_manifest(doubles[1] / "manifest.csv").of_split(split).images["image_id"]
        assert ids_a["image_id"].tolist() == ids_b["image_id"].tolist() == wanted.tolist()
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1, np.abs(a).max()))


def test_predictions_of_one_and_two_processes_are_evaluated_alike(tmp_path):
    reports = []
    for number in (1, 2):
        run_dir = tmp_path / f"on_{number}"
        manifest = labelled(run_dir / "images", num_studies=60)
        write_manifest(manifest, run_dir / "manifest.csv")
        make_cache(run_dir / "cache", manifest)
        if number == 1:
            predict(run_dir)  # here: one start less
        else:
            assert drive("predict", run_dir, num_processes=number).count(f"predicted on {number}") == number
        evaluate(["--predictions", str(run_dir / "fusion"), "--replicates", "20"])
        report = json.loads((run_dir / "fusion" / "evaluation_test" / "metrics.json").read_text())
        reports.append(flatten(report))
    assert reports[0].keys() == reports[1].keys()
    assert reports[0]["images.rows"] == reports[1]["images.rows"] > reports[0]["groups.rows"]
    for key, value in reports[0].items():
        assert reports[1][key] == (pytest.approx(value, abs=1e-5) if isinstance(value, float) else value), key


def test_with_fixed_weights_three_processes_write_the_shards_of_one(doubles, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(doubles[1], run_dir, ignore=shutil.ignore_patterns("cache", "fusion"))
    shutil.copytree(doubles[1] / "stage_one", run_dir / "stage_one", dirs_exist_ok=True)
    drive("train", run_dir, torch.float64, num_processes=3)  # stage one is finished already
    names = sorted(path.name for path in (doubles[1] / "cache").iterdir())
    assert names == sorted(path.name for path in (run_dir / "cache").iterdir())
    for name in names:
        assert (run_dir / "cache" / name).read_bytes() == (doubles[1] / "cache" / name).read_bytes(), name


def test_a_run_stopped_mid_epoch_goes_on_over_2_1_and_3_processes_with_each_group_once_per_epoch(doubles, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(doubles[1], run_dir, ignore=shutil.ignore_patterns("fusion"))
    for number, stop_after in ((2, 2), (1, 3), (3, 2), (2, 99)):  # 2 + 3 + 2 + 2 steps of 3 epochs of 3
        out = drive("visits", run_dir, stop_after, num_processes=number)
        assert f"world {number}" in out
        for path in sorted(run_dir.glob("visits-*.jsonl")):
            path.rename(run_dir / f"{path.stem}-{number}-{stop_after}.done")
    seen: dict[int, list[str]] = {0: [], 1: [], 2: []}
    for path in run_dir.glob("*.done"):
        for line in path.read_text().splitlines():
            epoch, ids = json.loads(line)
            seen[epoch] += ids
    wanted = sorted(read_manifest(run_dir / "manifest.csv").of_split("train").images["study_id"].unique())
    assert all(sorted(ids) == wanted for ids in seen.values())
    whole = tmp_path / "whole"
    shutil.copytree(doubles[1], whole, ignore=shutil.ignore_patterns("fusion"))
    drive("visits", whole, 99, num_processes=1)
    difference = largest_difference(weights(whole / "fusion" / "last"), weights(run_dir / "fusion" / "last"))
    assert difference < 2e-5, "single precision"


@pytest.mark.parametrize("number", [2, 3])
def test_0_to_7_images_shards_and_groups_end_without_a_hang(tmp_path, number):
    assert drive("counts", tmp_path, num_processes=number).count(f"counted on {number}") == number


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Stage one on two processes, never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    make_run(run_dir)
    drive("stage", run_dir, "extract", *LONG, num_processes=2)
    return run_dir


LONG = ["--epochs", "6", "--batch_size", "3"]


def wait_for(path, words, process=None):
    """Wait until a log holds some words; a watchdog ends what hangs."""
    deadline = time.monotonic() + SECONDS
    while not (path.exists() and words in path.read_text()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def children(pid):
    """Processes that a process has started."""
    path = f"/proc/{pid}/task/{pid}/children"
    with open(path) as file:
        return [int(child) for child in file.read().split()]


def stopped(run_dir, strike):
    """Two processes in their first epoch, struck; what the launcher wrote at its end."""
    make_run(run_dir)
    process = start("extract.py", *CONFIGS["extract"], *LONG, "--run_dir", run_dir)
    wait_for(run_dir / "log.txt", "epoch 1/6", process)
    strike(process.pid)
    status, _, err = finish(process)
    assert status != 0
    assert "stopped on request" in (run_dir / "log.txt").read_text()
    state = json.loads((run_dir / "stage_one" / "last" / "state.json").read_text())["progress"]
    assert state["epoch"] < 6
    return err


def test_sigterm_to_one_process_saves_ends_with_its_number_and_resumes_to_the_same_bits(uninterrupted, tmp_path):
    run_dir = tmp_path / "run"
    err = stopped(run_dir, lambda launcher: os.kill(max(children(launcher)), signal.SIGTERM))
    assert "exitcode  : 143" in err, err[-3000:]
    drive("stage", run_dir, "extract", *LONG, num_processes=2)
    for folder in ("best", "last"):
        a, b = weights(run_dir / "stage_one" / folder), weights(uninterrupted / "stage_one" / folder)
        assert largest_difference(a, b) == 0


def test_sigterm_to_the_group_launcher_included_saves(tmp_path):
    stopped(tmp_path / "run", lambda launcher: os.killpg(launcher, signal.SIGTERM))


def test_an_orphan_of_a_killed_launcher_saves_and_ends(tmp_path):
    run_dir = tmp_path / "run"
    make_run(run_dir)
    process = start("extract.py", *CONFIGS["extract"], *LONG, "--run_dir", run_dir, num_processes=1)
    wait_for(run_dir / "log.txt", "epoch 1/6", process)
    process.kill()
    wait_for(run_dir / "log.txt", "stopped on request")
    assert (run_dir / "stage_one" / "last" / "digests.json").exists()
    process.communicate()


def test_the_launchers_last_words_are_the_first_error_with_the_files_name(tmp_path):
    run_dir = tmp_path / "run"
    make_run(run_dir)
    scan_images(read_manifest(run_dir / "manifest.csv"), run_dir, workers=2, progress=False)
    path = sorted((run_dir / "images").glob("*.png"))[5]
    times = path.stat()
    path.write_bytes(path.read_bytes()[:-60] + bytes(60))  # behind the scan's back: same size, same time
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    status, _, err = finish(start("extract.py", *CONFIGS["extract"], "--run_dir", run_dir, "--num_workers", 2))
    assert status != 0
    assert err[err.index("Root Cause") :].count(f"{path}: is a cut PNG") == 1
    assert (
        (run_dir / "log.txt").read_text().splitlines()[-1].endswith(f"error: {path}: is a cut PNG: its end is missing")
    )
