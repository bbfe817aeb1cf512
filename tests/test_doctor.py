"""The doctor sees what is wrong with a machine, says what to do, and tells nothing about whose machine it is."""

import errno
import fcntl
import importlib.metadata
import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections import namedtuple
from pathlib import Path

import accelerate.commands.config.config_args as accelerate_config
import imagecodecs
import matplotlib
import numpy as np
import pydicom
import pytest
import simplejpeg
import torch
import torchvision.ops

from data.config import parse_config
from extract.config import ExtractConfig
from fusion.doctor import codecs as doctor_codecs
from fusion.doctor import disk as doctor_disk
from fusion.doctor import machine as doctor_machine
from fusion.doctor import report as doctor
from fusion.doctor import self_test as doctor_self_test
from fusion.doctor import software as doctor_software
from fusion.doctor.finding import Finding, guarded
from tests.make_data import make_run

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "extract/configs/cxr_lt_2023.yaml"
Usage = namedtuple("Usage", "total used free")


def recipe(*options, path=RECIPE) -> ExtractConfig:
    return parse_config(ExtractConfig, path, ["--config", str(path), *options])[0]


def tiny(run_dir) -> ExtractConfig:
    return recipe("--config", str(ROOT / "extract/configs/tiny.yaml"), "--run_dir", str(run_dir))


def assert_status(finding: Finding, status: str, *words: str) -> None:
    assert finding.status == status, finding
    assert bool(finding.remedy) == (status != "ok")
    for word in words:
        assert word in finding.found + " " + finding.remedy


def report(capsys, *options) -> tuple[int, list[str]]:
    """Exit status and lines of the command in this process, without the self-test."""
    with pytest.raises(SystemExit) as exit:
        doctor.main(["--skip_self_test", *options])
    return int(exit.value.code or 0), capsys.readouterr().out.splitlines()


# the report


def test_every_check_has_a_line_and_everything_but_ok_has_a_remedy_below(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 8, 1))
    status, lines = report(
        capsys, "--config", str(RECIPE), "--run_dir", str(tmp_path), "--out", str(tmp_path / "r.txt")
    )
    assert status == 1
    assert (tmp_path / "r.txt").read_text().splitlines() == lines
    assert "cannot run" in lines[-1]
    findings = [n for n, line in enumerate(lines) if line[:6].strip() in ("ok", "warn", "fail")]
    names = [
        "python",
        "packages",
        "GPU",
        "accelerate launch",
        *doctor_codecs.CODECS,
        "memory",
        "temporary folder",
        "disk",
        "run folder",
    ]
    for name in names:
        assert sum(line[6:].startswith(f"{name} ") for line in lines) == 1, name
    column = lines[0].index(lines[0][6:].split()[1])
    for n in findings:
        assert lines[n][column - 2 : column] == "  "
        assert lines[n][column] != " "
        assert lines[n + 1].startswith(" " * column + "remedy: ") == (lines[n][:6].strip() != "ok")
    assert any(line.startswith("fail  shared memory") for line in lines)


def test_without_a_failure_the_status_is_0(capsys, monkeypatch):
    calm = [("a", lambda: Finding("ok", "a", "x")), ("bcd", lambda: Finding("warn", "bcd", "y", "do z"))]
    monkeypatch.setattr(doctor, "all_checks", lambda _: calm)
    status, lines = report(capsys)
    assert status == 0
    assert lines[:3] == ["ok    a    x", "warn  bcd  y", "           remedy: do z"]


def test_an_error_of_a_check_is_told_by_its_type_alone():
    def raising():
        raise PermissionError(errno.EACCES, "canary", "/home/canary")

    finding = guarded("memory", raising)
    assert_status(finding, "fail", "PermissionError")
    assert "canary" not in str(finding)


def test_with_a_broken_torch_there_is_still_a_report(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text("raise RuntimeError('operator does not exist in /canary')")
    command = [sys.executable, str(ROOT / "scripts/doctor.py"), "--skip_self_test"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "canary" not in done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for start in ("ok    python", "fail  torchvision", "fail  GPU", "ok    DICOM, RLE", "fail  machine"):
        assert any(line.startswith(start) for line in lines), start


@pytest.mark.slow
def test_the_whole_report_holds_no_path_no_name_and_no_id(tmp_path):
    """One run of everything, from another folder, with a failure in it, in folders and for a user called canary."""
    home, run_dir = tmp_path / "canary_home", tmp_path / "canary_run"
    temporary = Path(tempfile.mkdtemp(prefix="canary_", dir="/tmp"))  # short: workers open sockets in it
    (home / "accelerate").mkdir(parents=True)
    (home / "accelerate/default_config.yaml").write_text("num_processes: canary_value\n")
    manifest = make_run(run_dir)
    before = sorted(tmp_path.rglob("*"))
    names = {name: "canary_name" for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "HF_TOKEN")}
    env = os.environ | names | {"HOME": str(home), "HF_HOME": str(home), "TMPDIR": str(temporary)}
    command = [sys.executable, str(ROOT / "scripts/doctor.py"), "--run_dir", str(run_dir), "--num_workers", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "canary.txt")],
        cwd=temporary,
        env=env | {"MPLCONFIGDIR": matplotlib.get_cachedir(), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    text = done.stdout + done.stderr
    assert "ok    self-test          " in text, text
    assert "fail  accelerate launch" in text
    assert done.returncode == 1
    assert (tmp_path / "canary.txt").read_text() == done.stdout
    (tmp_path / "canary.txt").unlink()
    assert sorted(tmp_path.rglob("*")) == before, "the doctor leaves something behind"
    temporary.rmdir()  # is empty again, too
    ids = set(manifest.images[["image_id", "patient_id", "study_id"]].to_numpy(dtype=str).ravel())
    hosts = [name for name in [socket.gethostname()] if len(name) > 7]  # "cpu" would be a word of the report
    for secret in ("canary", str(tmp_path), str(ROOT), sys.prefix, *hosts, *ids):
        assert secret not in text, secret


# what is installed


def test_the_oldest_python_is_that_of_the_project(monkeypatch):
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert wanted == ">=" + ".".join(map(str, doctor_software.PYTHON))
    assert_status(doctor_software.check_python(), "ok")
    monkeypatch.setattr(doctor_software, "PYTHON", (99, 1))
    assert_status(doctor_software.check_python(), "fail", "99.1", "python99.1 -m venv")


def fake_versions(monkeypatch, **versions):
    """Other versions of some packages; None: not installed."""
    real = importlib.metadata.version

    def version(name):
        if versions.get(name, "") is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions.get(name) or real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)


def test_old_and_missing_packages_are_named_with_the_command(monkeypatch):
    assert_status(doctor_software.check_packages(), "ok", "torch ", "all ")
    fake_versions(monkeypatch, torch="2.0.1", timm=None, pandas="99.0.dev1+local")
    finding = doctor_software.check_packages()
    assert_status(finding, "fail", "torch 2.0.1", "timm missing", 'pip install -U "timm>=', '"torch>=')
    assert "pandas" not in finding.found


def test_without_a_checkout_the_installed_metadata_are_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor_software, "PYPROJECT", tmp_path / "pyproject.toml")
    wanted = ["numpy>=900", "nowhere>=1; extra == 'dev'", "nowhere; python_version < '3'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: wanted if name == "cxr-fusion" else None)
    assert_status(doctor_software.check_packages(), "fail", 'pip install -U "numpy>=900"')


def test_a_torch_that_is_not_torchvisions_is_seen(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda n: ["torch==2.11.0"] if n == "torchvision" else [])
    fake_versions(monkeypatch, torch="2.11.0+cpu")
    assert_status(doctor_software.check_pairs(), "ok")
    fake_versions(monkeypatch, torch="2.12.0")
    assert_status(doctor_software.check_pairs(), "fail", "wants torch==2.11.0, found 2.12.0", "torch torchvision")


def test_operators_of_another_torch_are_seen(monkeypatch):
    assert_status(doctor_software.check_torchvision(), "ok")

    def missing(*_):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(torchvision.ops, "nms", missing)
    assert_status(doctor_software.check_torchvision(), "fail", "pip install -U --force-reinstall torch torchvision")


@pytest.mark.parametrize(
    ("driver", "cuda", "visible", "status", "word"),
    [
        (False, None, None, "ok", "CPU"),
        (True, None, None, "fail", "without CUDA"),
        (True, "13.2", None, "fail", "update the driver"),
        (True, "13.2", "", "ok", "hidden"),
    ],
)
def test_a_gpu_that_torch_cannot_use_is_seen(monkeypatch, driver, cuda, visible, status, word):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(doctor_software, "driver_present", lambda: driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert_status(doctor_software.check_gpu(), status, word)


@pytest.mark.parametrize(("bf16", "status"), [(True, "ok"), (False, "warn")])
def test_usable_gpus_are_listed_with_memory_and_bf16(monkeypatch, bf16, status):
    for name, value in {"is_available": True, "device_count": 2, "is_bf16_supported": bf16}.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value, **__: value)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda n: ((3 + n) * 10**9, 16 * 10**9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda n: f"Model {n}")
    assert_status(doctor_software.check_gpu(), status, "Model 0 (16 GB, 3 free), Model 1 (16 GB, 4 free)", "bf16")


@pytest.mark.parametrize(
    ("kind", "processes", "gpus", "status", "words"),
    [
        (None, 0, 0, "ok", ["no default configuration", "starts 1 process on the CPU"]),
        (None, 0, 3, "ok", ["starts 3 processes on 3 of 3 GPUs"]),
        ("NO", 1, 0, "ok", ["default configuration", "starts 1 process"]),
        ("'NO'", 2, 1, "warn", ["starts 1 process on 1 of 1 GPU, though 2"]),
        (
            "MULTI_CPU",
            2,
            0,
            "warn",
            ["starts 1 process on the CPU, though 2", "ACCELERATE_USE_CPU=1 accelerate launch"],
        ),
        ("MULTI_GPU", 2, 0, "ok", ["starts 2 processes on the CPU"]),
        ("MULTI_GPU", 4, 2, "fail", ["more processes than GPUs", "--num_processes 2"]),
        ("MULTI_GPU", 2, 4, "warn", ["2 of 4 GPUs", "--multi_gpu --num_processes 4"]),
        ("FSDP", 2, 2, "warn", ["FSDP", "accelerate config"]),
    ],
)
def test_what_accelerate_launch_would_do_is_said(monkeypatch, tmp_path, kind, processes, gpus, status, words):
    path = tmp_path / "default_config.yaml"
    if kind:
        text = f"compute_environment: LOCAL_MACHINE\ndistributed_type: {kind}\nmixed_precision: 'no'\n"
        path.write_text(f"{text}num_processes: {processes}\nnum_machines: 1\nuse_cpu: {str(not gpus).lower()}\n")
    monkeypatch.setattr(accelerate_config, "default_config_file", str(path))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert_status(doctor_software.check_launch(), status, *words)


# image formats


def test_every_format_passes_here():
    for name in doctor_codecs.CODECS:
        assert_status(doctor_codecs.check_codec(name), "ok")


def test_the_samples_are_what_they_are_called_by_other_readers():
    wanted = doctor_codecs.picture(12)
    assert (wanted.min(), wanted.max(), wanted.shape) == (0, 4095, (62, 46))
    syntaxes = {}
    for name in doctor_codecs.CODECS:
        if name.startswith("DICOM"):
            dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(doctor_codecs.CODECS[name][0]()))
            syntaxes[name] = dataset.file_meta.TransferSyntaxUID.name.split(",")[0]
            if name in ("DICOM, plain", "DICOM, RLE"):  # pydicom decodes these by itself
                np.testing.assert_array_equal(dataset.pixel_array, wanted)
    assert list(syntaxes.values()) == [
        "Explicit VR Little Endian",
        "JPEG Lossless",
        "JPEG-LS Lossless Image Compression",
        "JPEG 2000 Image Compression (Lossless Only)",
        "RLE Lossless",
    ]


def wrong_pixels(*_, **__):
    return np.arange(62 * 46, dtype=np.uint16).reshape(62, 46)


def failing(*_, **__):
    raise RuntimeError("canary")


@pytest.mark.parametrize(
    ("name", "package", "function"),
    [
        ("JPEG", simplejpeg, "encode_jpeg"),
        ("PNG, 16 bit", imagecodecs, "png_encode"),
        ("DICOM, JPEG lossless", imagecodecs, "jpeg8_decode"),
        ("DICOM, JPEG-LS", imagecodecs, "jpegls_decode"),
        ("DICOM, JPEG 2000", imagecodecs, "jpeg2k_decode"),
    ],
)
@pytest.mark.parametrize("fault", [wrong_pixels, failing])
def test_a_broken_codec_is_seen(monkeypatch, name, package, function, fault):
    monkeypatch.setattr(package, function, fault)
    finding = doctor_codecs.check_codec(name)
    assert_status(finding, "fail", "pip install -U --force-reinstall")
    assert "canary" not in finding.found
    assert_status(doctor_codecs.check_codec("DICOM, plain"), "ok")


# cores and memory


def test_shared_memory_is_that_of_the_recipes_batches(monkeypatch):
    asked, usage = [], Usage(64e6, 0, 64e6)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    batch = 16 * 3 * 1024 * 1024 * 4  # cached in batches of 16, trained in micro-batches of 8
    finding = doctor_machine.check_shared_memory(recipe(), 3)
    assert_status(finding, "fail", f"{3 * 12 * 2 * batch / 1e6:,.0f} MB wanted", "201.3 MB", "--shm-size=29g")
    assert str(asked[0]) == "/dev/shm"
    assert_status(doctor_machine.check_shared_memory(recipe("--num_workers", "0"), 3), "ok", " 0 MB wanted")
    usage = Usage(9e9, 0, 1.5 * 24 * batch)
    assert_status(doctor_machine.check_shared_memory(recipe(), 1), "warn", "--num_workers 9")
    usage = Usage(9e9, 0, 2.1 * 24 * batch)
    assert_status(doctor_machine.check_shared_memory(recipe(), 1), "ok")


def test_batches_shrink_with_processes_as_training_shares_them():
    config = recipe("--micro_batch_size", "0", "--image.size", "64", "--cache.batch_size", "4")
    assert [doctor_machine.batch_bytes(config, n) // (3 * 64 * 64 * 4) for n in (1, 3, 64)] == [64, 22, 4]


@pytest.fixture
def control_group(monkeypatch, tmp_path):
    """Made-up control groups of this process: the file's name (with its folder) and text."""

    def make(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text + "\n")

    monkeypatch.setattr(doctor_machine, "CGROUP", tmp_path)
    monkeypatch.setattr(doctor_machine, "OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    return make


@pytest.mark.parametrize("version", [1, 2])
def test_the_strictest_control_group_above_this_process_holds(control_group, version):
    if version == 2:
        files = {"a/memory.max": "3000000000", "a/b/memory.max": "max", "memory.max": "9000000000"}
        control_group("0::/a/b\n", {**files, "a/b/cpu.max": "250000 100000", "a/cpu.max": "max 100000"})
    else:
        files = {"memory/a/memory.limit_in_bytes": "3000000000", "cpu/cpu.cfs_quota_us": "250000"}
        files |= {"cpu/cpu.cfs_period_us": "100000", "cpu/a/cpu.cfs_quota_us": "-1"}
        control_group("4:memory:/a\n3:cpu,cpuacct:/a\n", {**files, "cpu/a/cpu.cfs_period_us": "100000"})
    assert doctor_machine.memory_gb()[1] == 3.0
    assert doctor_machine.usable_cores() == 2.5


def test_too_little_memory_is_seen(control_group):
    control_group("0::/\n", {"memory.max": "5000000000"})
    assert_status(
        doctor_machine.check_memory(recipe("--num_workers", "5"), 1), "fail", "limited to 5.0 GB", "_workers 4"
    )
    assert_status(doctor_machine.check_memory(recipe("--num_workers", "4"), 1), "warn", "4.8 GB wanted")
    assert_status(doctor_machine.check_memory(recipe("--num_workers", "1"), 1), "ok")
    assert_status(doctor_machine.check_memory(recipe("--num_workers", "1"), 2), "fail", "2 processes")


def test_more_threads_or_workers_than_cores_are_seen(control_group, monkeypatch):
    control_group("0::/\n", {"cpu.max": "300000 100000"})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert_status(doctor_machine.check_cores(recipe(), 1), "warn", "3 of ", "export OMP_NUM_THREADS=3")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert_status(doctor_machine.check_cores(recipe(), 1), "warn", "12 image-decoding workers", "--num_workers 3")
    assert_status(doctor_machine.check_cores(recipe("--num_workers", "3"), 1), "ok")


def test_the_one_thread_of_accelerate_launch_is_mentioned_where_it_hurts(control_group, monkeypatch):
    control_group("", {})
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    config = recipe("--num_workers", "2")
    assert_status(doctor_machine.check_cores(config, 1), "warn", "OMP_NUM_THREADS=7 accelerate launch extract.py")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert_status(doctor_machine.check_cores(config, 1), "ok")


# files


def test_too_few_open_files_are_seen(monkeypatch, tmp_path):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 999))
    config = recipe("--run_dir", str(tmp_path))
    assert_status(doctor_disk.check_open_files(config), "fail", "at most 256", "ulimit -n 4096")
    assert_status(doctor_disk.check_open_files(tiny(tmp_path)), "ok")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    assert_status(doctor_disk.check_open_files(config), "fail", "--ulimit nofile")


def test_the_cache_is_weighed_without_computing_a_map(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    config = tiny(run_dir)
    assert doctor_disk.cache_bytes(config) == 0
    assert_status(doctor_disk.check_disk(config), "ok", "no manifest")
    images = len(make_run(run_dir, num_studies=25))
    wanted = doctor_disk.cache_bytes(config)
    assert wanted == images * 2560  # 128 + 512 bytes in two tar blocks, two tar headers, a block of ids
    (run_dir / "manifest.json").write_text(json.dumps({"splits": {"train": {"images": 377_110}}}))
    assert doctor_disk.cache_bytes(recipe("--run_dir", str(run_dir))) // 10**9 == 593
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2e12, 0, 500e9))
    assert_status(doctor_disk.check_disk(recipe("--run_dir", str(run_dir))), "fail", "377,110", "larger disk")


def test_a_finished_cache_needs_no_room(tmp_path, monkeypatch):
    make_run(tmp_path / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(9, 8, 1))
    assert_status(doctor_disk.check_disk(tiny(tmp_path / "run")), "fail", "make room")
    (tmp_path / "run/cache").mkdir()
    (tmp_path / "run/cache/cache.json").write_text("{}")
    assert_status(doctor_disk.check_disk(tiny(tmp_path / "run")), "ok")


def test_a_sound_run_folder_passes_and_is_left_as_it_was(tmp_path):
    assert_status(doctor_disk.check_run_folder(tmp_path / "not" / "yet"), "ok")
    assert not list(tmp_path.iterdir())


def refuse_flock(*_):
    raise OSError(errno.ENOLCK, "canary")


def non_atomic_replace(a, b):
    os.unlink(b)
    for _ in range(50):
        os.sched_yield()
    os.rename(a, b)


def read_only(*_, **__):
    raise OSError(errno.EROFS, "canary", "/canary")


@pytest.mark.parametrize(
    ("where", "name", "fault", "words"),
    [
        (fcntl, "flock", refuse_flock, ["no flock (No locks available)", "nolock"]),
        (fcntl, "flock", lambda *_: None, ["lets two in", "local disk"]),
        (os, "replace", non_atomic_replace, ["missing for a moment", "--run_dir"]),
        (tempfile, "mkdtemp", read_only, ["cannot be written to (Read-only file system)", "--run_dir"]),
    ],
)
def test_a_file_system_that_cannot_hold_a_run_is_seen(tmp_path, monkeypatch, where, name, fault, words):
    monkeypatch.setattr(doctor_disk, "REPLACEMENTS", 300)
    monkeypatch.setattr(where, name, fault)
    finding = doctor_disk.check_run_folder(tmp_path)
    assert_status(finding, "fail", *words)
    assert "canary" not in str(finding)


# the self-test

DONE = [
    {"step": "phantom", "seconds": 1.2},
    {"step": "stage one", "seconds": 6.8},
    {"step": "stage two", "seconds": 3.0, "rows": 17},
    {"step": "GPU against CPU", "seconds": 0.1, "differences": []},
]


@pytest.mark.parametrize(
    ("lines", "timed_out", "status", "words"),
    [
        (DONE, False, "ok", ["phantom 1 s, stage one 7 s, stage two 3 s", "17 rows"]),
        (DONE[:1], True, "fail", ["stage one: not finished", "extract.py --config"]),
        (DONE[:2], False, "fail", ["stage two: stopped (the process died)", "train_fusion.py --config"]),
        (
            [{"step": "phantom", "error": "OSError"}],
            False,
            "fail",
            ["phantom: stopped (OSError)", "prepare.py phantom"],
        ),
        ([*DONE[:3], DONE[3] | {"differences": [1e-6]}], False, "ok", ["differ by 1e-06"]),
        ([*DONE[:3], DONE[3] | {"differences": [1e-6, 0.3]}], False, "fail", ["differ by 0.3", "nvidia-smi"]),
    ],
)
def test_the_self_test_says_where_it_stopped_and_how_to_see_why(monkeypatch, lines, timed_out, status, words):
    monkeypatch.setattr(doctor_self_test, "run_child", lambda _: (lines, timed_out))
    assert_status(doctor_self_test.check_self_test(), status, *words)


def test_a_step_that_fails_is_told_by_its_type_and_one_that_hangs_is_ended(monkeypatch, tmp_path):
    (tmp_path / "run").write_text("a file where a folder belongs")
    lines, timed_out = doctor_self_test.run_child(str(tmp_path))
    assert (lines, timed_out) == ([{"step": "phantom", "error": "SystemExit"}], False)
    monkeypatch.setattr(doctor_self_test, "TIMEOUT_S", 0.01)
    assert doctor_self_test.run_child(str(tmp_path)) == ([], True)
