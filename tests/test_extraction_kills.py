"""A cache whose extraction was killed, again and again, ends with the bytes of one that was not."""

import os
import signal
from pathlib import Path

import pytest

import data.cache
import data.shards
import extract.cache
import extract.train
from data.cache_verify import verify
from tests.launch import FORK, SECONDS, finish, start
from tests.make_data import make_run

ROOT = Path(__file__).resolve().parents[1]
OPTIONS = [
    *("--config", str(ROOT / "extract/configs/cxr_lt_2023.yaml"), "--config", str(ROOT / "extract/configs/tiny.yaml")),
    *("--cache.batch_size", "3", "--cache.flip", "true"),
]
POINTS = [("writer", "close", 1), ("writer", "write", 13), ("cache", "_save_index", 0)]
SCRIPT = "import sys; from tests.test_extraction_kills import work; work(*sys.argv[1:4], sys.argv[4:])"
pytestmark = pytest.mark.slow


def work(module: str, name: str, after: str, options: list[str]) -> None:
    """Stage one, whose last process kills itself at a point: after so many calls of a function."""
    owner = data.shards.ShardWriter if module == "writer" else data.cache
    real, calls = getattr(owner, name), []

    def killing(*arguments: object, **keywords: object) -> object:
        if int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1:
            calls.append(0)
            if len(calls) > int(after):
                os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **keywords)

    setattr(owner, name, killing)
    extract.cache.images_per_shard = lambda *_: 11
    extract.train.main(options)


def run(run_dir: Path, num_processes: int, point: tuple[str, str, int]) -> int:
    """Its exit status: of one process, forked, or of a launcher with several."""
    words = [*map(str, point), *OPTIONS, "--run_dir", str(run_dir)]
    if num_processes == 1:
        process = FORK.Process(target=work, args=(*words[:3], words[3:]))
        process.start()
        process.join(SECONDS)
        return process.exitcode
    script = run_dir.parent / "killing.py"
    script.write_text(SCRIPT)
    return finish(start(script, *words, num_processes=num_processes))[0]


def cache_bytes(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run_dir / "cache").iterdir())}


@pytest.mark.parametrize("num_processes", [1, 2])
def test_killed_extraction_ends_with_the_same_bytes(tmp_path, num_processes, monkeypatch):
    run_dir = tmp_path / "run"
    make_run(run_dir)
    monkeypatch.setattr("extract.cache.images_per_shard", lambda *_: 11)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # of the launched script
    extract.train.main([*OPTIONS, "--run_dir", str(run_dir)])
    wanted = cache_bytes(run_dir)
    assert len([name for name in wanted if name.endswith(".tar")]) == 6
    for path in (run_dir / "cache").iterdir():
        path.unlink()
    for point in POINTS if num_processes == 1 else POINTS[:1]:
        status = run(run_dir, num_processes, point)
        assert status == -signal.SIGKILL if num_processes == 1 else status != 0
        assert not (run_dir / "cache" / "cache.json").exists()
        left = {name: content for name, content in cache_bytes(run_dir).items() if not name.startswith(".tmp-")}
        assert {name: content for name, content in left.items() if name.endswith(".tar")}.items() <= wanted.items()
    assert run(run_dir, num_processes, ("writer", "write", 10**6)) == 0
    assert cache_bytes(run_dir) == wanted
    assert not verify(run_dir / "cache")
