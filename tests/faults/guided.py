"""Wrong files by the million, led by the lines of code that they reach: libFuzzer, by way of atheris.

    pip install -e '.[fuzz]'
    python -m tests.faults.guided --target shards --seconds 600 --seed 1

Half of the inputs are libFuzzer's own changes of what reached something new, half those of mutations.py. What fails is
kept in the folder of `--keep`. Prints one JSON line; leaves with another status than 0 if the process itself was ended.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import atheris

LED_BY = ["data", "extract", "fusion", "pydicom", "yaml"]
with atheris.instrument_imports(include=LED_BY):
    from tests.faults.fuzzing import Outcome, attempt, peak_mb, reset_peak, signal, warn_of_slow
    from tests.faults.mutations import mutated, mutated_json
    from tests.faults.targets import TARGETS

MOST_BYTES = 1 << 16


def main() -> None:
    """Fuzz one target until its time is over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), required=True)
    parser.add_argument("--seconds", type=float, default=60.0, help="of wall time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path(), help="folder for the inputs that failed")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGVTALRM, warn_of_slow)
    with tempfile.TemporaryDirectory() as folder:
        start(options, Path(folder))


def start(options: argparse.Namespace, folder: Path) -> None:
    """Hand the target to libFuzzer, which never returns."""
    with atheris.instrument_imports(include=LED_BY):
        (folder / "files").mkdir()
        corpus, read = TARGETS[options.target](folder / "files")
        read(corpus[0])  # what is imported late
    for made in (folder / "corpus", options.keep):
        made.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(corpus):
        (folder / "corpus" / str(number)).write_bytes(data)
    outcome, ends, before = Outcome(), time.monotonic() + options.seconds, reset_peak()

    def one_input(data: bytes) -> None:
        if time.monotonic() > ends:
            outcome.memory_mb = round(peak_mb() - before, 1)
            shutil.rmtree(folder)
            finish(outcome, options)
        outcome.inputs += 1
        attempt(read, data, outcome)

    def change(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, most)
        with contextlib.suppress(ValueError, RecursionError):
            if rng.random() < 0.7:
                return json.dumps(mutated_json(json.loads(data), rng)).encode()[:most]
        return mutated([data, *corpus], rng)[:most]

    limits = [f"-seed={options.seed + 1}", f"-max_len={MOST_BYTES}", "-len_control=0", "-rss_limit_mb=8000"]
    words = [sys.argv[0], *limits, f"-artifact_prefix={options.keep.resolve()}/", str(folder / "corpus")]
    atheris.Setup(words, one_input, custom_mutator=change)
    atheris.Fuzz()


def finish(outcome: Outcome, options: argparse.Namespace) -> None:
    """Print what was found and leave at once: libFuzzer has no other end."""
    for number, data in enumerate(outcome.failures.values()):
        (options.keep / f"failed_{options.target}_{options.seed}_{number}").write_bytes(data)
    numbers = {"inputs": outcome.inputs, "refused": outcome.refused, "slowest_s": outcome.slowest_s}
    numbers |= {"cpu_s": round(time.process_time()), "memory_mb": outcome.memory_mb}
    print(json.dumps({"target": options.target, **numbers, "got_through": outcome.got_through}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
