"""A cache whose extraction was killed, again and again, ends with the bytes of one that was not."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import extract.train
from data.cache_verify import verify
from tests.make_data import make_run

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = [
    *("--config", str(ROOT / "extract/configs/cxr_lt_2023.yaml"), "--config", str(ROOT / "extract/configs/tiny.yaml")),
    *("--cache.batch_size", "3", "--cache.flip", "true"),
]
KILLING = """
import os, signal, sys
import data.cache, data.shards, extract.cache, extract.train

module, name, after = sys.argv[1:4]
owner = data.shards.ShardWriter if module == "writer" else data.cache
real, calls = getattr(owner, name), []

def killing(*arguments, **options):
    if int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
        calls.append(0)
        if len(calls) > int(after):
            os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)

setattr(owner, name, killing)
extract.cache.images_per_shard = lambda *_: 11
extract.train.main(sys.argv[4:])
"""
POINTS = [("writer", "close", 1), ("writer", "write", 13), ("cache", "_save_index", 0)]
pytestmark = pytest.mark.slow


def run(run_dir: Path, num_processes: int, point: tuple[str, str, int]) -> subprocess.CompletedProcess:
    """Stage one in processes of its own, the last of which kills itself at a point."""
    script = run_dir.parent / "killing.py"
    script.write_text(KILLING)
    command = [sys.executable]
    if num_processes > 1:
        command += ["-m", "accelerate.commands.launch", "--multi_gpu", "--main_process_port", "0"]
        command += ["--num_processes", str(num_processes)]
    options = [*map(str, point), *OPTIONS, "--run_dir", str(run_dir)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*command, str(script), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def cache_bytes(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run_dir / "cache").iterdir())}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_extraction_ends_with_the_same_bytes(tmp_path, num_processes, monkeypatch):
    run_dir = tmp_path / "run"
    make_run(run_dir)
    monkeypatch.setattr("extract.cache.images_per_shard", lambda *_: 11)
    extract.train.main([*OPTIONS, "--run_dir", str(run_dir)])
    wanted = cache_bytes(run_dir)
    assert len([name for name in wanted if name.endswith(".tar")]) == 6
    for path in (run_dir / "cache").iterdir():
        path.unlink()
    for point in POINTS if num_processes == 1 else POINTS[:1]:
        killed = run(run_dir, num_processes, point)
        assert killed.returncode == -signal.SIGKILL if num_processes == 1 else killed.returncode != 0, killed.stderr
        assert not (run_dir / "cache" / "cache.json").exists()
        left = {name: content for name, content in cache_bytes(run_dir).items() if not name.startswith(".tmp-")}
        assert {name: content for name, content in left.items() if name.endswith(".tar")}.items() <= wanted.items()
    last = run(run_dir, num_processes, ("writer", "write", 10**6))
    assert last.returncode == 0, last.stderr[-3000:]
    assert cache_bytes(run_dir) == wanted
    assert not verify(run_dir / "cache")
