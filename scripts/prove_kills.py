"""Kill a stage at random moments until it has been killed often enough; the result must equal an uninterrupted one.

    python scripts/prove_kills.py --stage extract --processes 2 --kills 30

A small phantom is prepared once. One run goes through undisturbed. Another is started, its whole process group killed
(SIGKILL) at a random moment of its work (exponential waits, a third of the work on average), and started again, until
it ends; then every weight of best/ and last/, every byte of the cache and every recorded score are compared, and the
names of all files. One wait in four begins with the program instead of its work, so that looking at what is there is
killed, too. Repeated until the number of kills is reached.
"""

import argparse
import importlib
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import _root
from _bench import commit

CONFIGS = {
    "extract": ["--config", "extract/configs/cxr_lt_2023.yaml", "--config", "extract/configs/tiny.yaml"],
    "fusion": ["--config", "fusion/configs/cxr_lt_2023.yaml", "--config", "fusion/configs/tiny.yaml"],
}
CONFIGS["cache"] = CONFIGS["extract"]
SCRIPTS = {"extract": "extract.py", "cache": "extract.py", "fusion": "train_fusion.py"}
MODULES = {"extract": "extract.train", "cache": "extract.train", "fusion": "fusion.train"}
OPTIONS = {  # long enough to be killed often, with every kind of state; a save after every second step
    "extract": ["--epochs", "5", "--save_steps", "2", "--ema_decay", "0.99", "--num_workers", "1"],
    "cache": [
        "--cache.augmented",
        "60",
        "--cache.flip",
        "true",
        "--augmentation.rotate",
        "9",
        "--cache.shard_megabytes",
        "1",
    ],
    "fusion": ["--epochs", "10", "--save_steps", "2", "--average_from", "3"],
}
WAIT_S = 300
NO_RESULTS = {"log.txt", "environment.json", ".lock"}
EARLY = 0.25  # share of the waits that begin with the program


def main() -> None:
    """Parse the command line, prove, print and keep the result."""
    options = parse()
    os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded
    os.chdir(_root.ROOT)
    if options.processes == 1:
        importlib.import_module(MODULES[options.stage])
    with tempfile.TemporaryDirectory() as folder:
        base = prepared(Path(folder), options)
        whole, seconds = uninterrupted(base, options)
        rng, rounds, kills = random.Random(options.seed), 0, []
        while len(kills) < options.kills:
            rounds += 1
            run_dir = copy_of(base, f"killed_{rounds}")
            met, lasted = kill_until_done(run_dir, options, rng, seconds, options.kills - len(kills))
            kills, seconds = kills + met, min(seconds, lasted)
            compare(whole, run_dir)
            shutil.rmtree(run_dir)
    record = {
        "command": f"python scripts/prove_kills.py --stage {options.stage} --processes {options.processes}"
        f" --kills {options.kills} --seed {options.seed}",
        "stage": options.stage,
        "processes": options.processes,
        "kills": len(kills),
        "kills_during": {moment: kills.count(moment) for moment in sorted(set(kills))},
        "runs_compared": rounds,
        "different": 0,
        "work_s": round(seconds, 1),
    }
    print(json.dumps(record | stamp()))
    if options.out:
        with open(options.out, "a") as file:
            file.write(json.dumps(record | stamp()) + "\n")


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=sorted(SCRIPTS), default="extract")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="append the result to this file, a JSON line")
    return parser.parse_args()


def stamp() -> dict[str, str]:
    """Where and with what this was run."""
    from importlib.metadata import version

    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "accelerate"))
    return {"commit": commit(), "machine": machine, "versions": packages}


def prepared(folder: Path, options: argparse.Namespace) -> Path:
    """A run folder with a phantom, and for stage two a finished cache."""
    base = folder / "base"
    prepare = ["scripts/prepare.py", "phantom", "--studies", "40,10,14", "--out", str(base / "manifest.csv")]
    subprocess.run([sys.executable, *prepare], cwd=_root.ROOT, check=True, capture_output=True)
    if options.stage != "extract":
        words = OPTIONS["cache"] if options.stage == "cache" else []
        command = [sys.executable, "extract.py", *CONFIGS["extract"], *words, "--run_dir", str(base)]
        subprocess.run(command, cwd=_root.ROOT, check=True, capture_output=True)
    if options.stage == "cache":
        shutil.rmtree(base / "cache")
    return base


def copy_of(base: Path, name: str) -> Path:
    """A fresh copy of the prepared run folder."""
    return Path(shutil.copytree(base, base.with_name(name), symlinks=True))


class Forked:
    """One process of a stage, forked from this one, which has the libraries loaded; as much of a Popen as is used here.

    Loading them takes longer than the work between two kills.
    """

    def __init__(self, run_dir: Path, options: argparse.Namespace) -> None:
        self.errors = run_dir.with_name("errors.txt")
        words = [*CONFIGS[options.stage], *OPTIONS[options.stage], "--run_dir", str(run_dir)]
        self.process = multiprocessing.get_context("fork").Process(target=self.work, args=(options.stage, words))
        self.process.start()
        self.pid = self.process.pid
        os.setpgid(self.pid, self.pid)  # here as well as there: it may be killed before it gets that far

    def work(self, stage: str, words: list[str]) -> None:
        """What the command does after it has loaded its libraries."""
        os.setpgid(0, 0)
        os.environ["ACCELERATE_USE_CPU"] = "1"
        for stream, path in ((1, os.devnull), (2, self.errors)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        importlib.import_module(MODULES[stage]).main(words)

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(MODULES, timeout or 0)
        return None, self.errors.read_text()


def start(run_dir: Path, options: argparse.Namespace) -> subprocess.Popen | Forked:
    """Start the stage in a process group of its own."""
    if options.processes == 1:
        return Forked(run_dir, options)
    several = ["--multi_gpu", "--num_processes", str(options.processes), "--main_process_port", "0"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *several]
    stage = options.stage
    command = [*launcher, SCRIPTS[stage], *CONFIGS[stage], *OPTIONS[stage], "--run_dir", str(run_dir)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=_root.ROOT, env=environment, start_new_session=True, text=True, **quiet)


def starts(run_dir: Path) -> int:
    """How often the stage has begun its work here, by its log."""
    log = run_dir / "log.txt"
    return log.read_text().count(" process") if log.exists() else 0


def wait_for_work(process: subprocess.Popen | Forked, run_dir: Path, before: int, stage: str) -> None:
    """Wait until the stage says that it begins; the stage "cache", until it opens a shard."""
    began, deadline = time.time(), time.monotonic() + WAIT_S
    while starts(run_dir) == before or (stage == "cache" and not any(map(is_shard, being_written(run_dir, began)))):
        if process.poll() == 0 and stage == "cache":
            return  # the last shard was whole already
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{run_dir}: did not start: {process.communicate()[1][-3000:]}")
        time.sleep(0.005)


def being_written(run_dir: Path, began: float) -> set[str]:
    """Names of what has been open or unfinished since `began` (Unix time)."""
    names = set()
    for path in run_dir.rglob(".tmp-*"):
        with suppress(FileNotFoundError):  # finished meanwhile
            names |= {path.name} if path.stat().st_ctime > began else set()
    return names


def is_shard(name: str) -> bool:
    """Whether a name is a shard's."""
    return name.endswith(".tar")


def uninterrupted(base: Path, options: argparse.Namespace) -> tuple[Path, float]:
    """The run that nobody disturbs, and how long its work takes."""
    run_dir = copy_of(base, "whole")
    before = starts(run_dir)
    process = start(run_dir, options)
    wait_for_work(process, run_dir, before, options.stage)
    began = time.monotonic()
    while options.stage == "cache" and process.poll() is None and not (run_dir / "cache" / "cache.json").exists():
        time.sleep(0.005)  # what follows is the end of the program
    written = time.monotonic() - began
    finish(process)
    return run_dir, written if options.stage == "cache" else time.monotonic() - began


def finish(process: subprocess.Popen | Forked) -> None:
    """Wait for a good end."""
    _, errors = process.communicate(timeout=WAIT_S)
    if process.returncode:
        raise SystemExit(f"ended with status {process.returncode}: {errors[-3000:]}")


def kill_until_done(
    run_dir: Path, options: argparse.Namespace, rng: random.Random, seconds: float, most: int
) -> tuple[list[str], float]:
    """Start, kill at a random moment, start again; leave it alone after `most` kills.

    Returns:
        What each kill met; and how long the work took, infinite where it was killed: a machine may be busier at first.
    """
    met: list[str] = []
    while True:
        before, began = starts(run_dir), time.time()
        process = start(run_dir, options)
        if rng.random() >= EARLY:
            wait_for_work(process, run_dir, before, options.stage)
            began = time.time()
        elif options.processes > 1:  # each of them loads the libraries: no moment worth killing
            wait_for_work(process, run_dir, before, "any")
        try:
            process.communicate(timeout=rng.expovariate(3 / seconds) if len(met) < most else WAIT_S)
        except subprocess.TimeoutExpired:
            during = moment(run_dir, options.stage, began) if starts(run_dir) > before else "starting"
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            if len(met) == most:
                raise SystemExit(f"{run_dir}: hangs, {during}, after {most} kills: no end in {WAIT_S} s") from None
            met.append(during)
            print(f"kill {len(met)}: {met[-1]}", flush=True)
            continue
        if process.returncode:
            raise SystemExit(f"{run_dir}: ended with status {process.returncode} after {len(met)} kills")
        return met, float("inf") if met else time.time() - began


def moment(run_dir: Path, stage: str, began: float) -> str:
    """What a run that began at `began` (Unix time) is doing, told by the files that it has open or finished."""
    training = run_dir / ("stage_one" if stage == "extract" else "fusion")
    unfinished = being_written(run_dir, began)
    if unfinished & {".tmp-last", ".tmp-best"}:
        return "saving a checkpoint"
    if any(map(is_shard, unfinished)):
        return "writing a shard"
    if stage != "fusion" and (run_dir / "cache" / "plan.json").exists():
        made = any(path.stat().st_ctime > began for path in (run_dir / "cache").glob("*.tar"))
        return "between shards" if made else "before the first shard"
    if stage != "fusion" and (run_dir / "cache" / "cache.json").exists():
        return "after the last shard"
    if stage == "cache":
        return "before the first shard"
    return "training" if (training / "last").exists() else "before the first checkpoint"


def compare(whole: Path, other: Path) -> None:
    """Every file that a result consists of, and that there are no others; what holds times and paths is left out."""
    if strangers := results(whole) ^ results(other):
        raise SystemExit(f"{min(strangers)}: only one of the uninterrupted run and the killed one has it")
    for name in sorted(results(whole)):
        if name.suffix == ".png" or name.name in {"config.yaml", "digests.json"}:
            continue  # curves show seconds, and a configuration names its run folder
        found, wanted = (scores(p) if p.name == "metrics.jsonl" else content(p, r) for p, r in pair(whole, other, name))
        if found != wanted:
            raise SystemExit(f"{name}: differs from the uninterrupted run")


def results(run_dir: Path) -> set[Path]:
    """Names of all files but those that were there before, and those about this machine and moment."""
    names = {path.relative_to(run_dir) for path in run_dir.rglob("*") if path.is_file()}
    return {name for name in names if name.parts[0] != "phantom" and name.name not in NO_RESULTS}


def pair(whole: Path, other: Path, name: Path) -> list[tuple[Path, Path]]:
    """The same file of both runs, each with its run folder."""
    return [(other / name, other), (whole / name, whole)]


def content(path: Path, run_dir: Path) -> bytes:
    """A file's bytes; `previous/` may be an epoch's or a step's save, so only its presence counts."""
    return b"" if path.parent.name == "previous" else path.read_bytes().replace(str(run_dir).encode(), b"")


def scores(path: Path) -> list[dict]:
    """What was recorded of each epoch, without times."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: value for key, value in row.items() if "seconds" not in key} for row in rows]


if __name__ == "__main__":
    main()
