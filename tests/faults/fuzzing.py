"""Read wrong files by the thousand; each must end in a result or in our own error, soon, and in little memory.

    python -m tests.faults.fuzzing [--target NAME] [--inputs N] [--seconds N] [--seed N] [--keep FOLDER]

The same seed makes the same inputs. What fails is written to the folder of `--keep`, one file for each kind of failure.
"""

import argparse
import contextlib
import json
import random
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import InputError
from tests.faults.mutations import mutated, mutated_json
from tests.faults.targets import TARGETS

MOST_S = 5  # of CPU time for one input
WATCHDOG_S = 20  # what takes longer is stopped
MOST_MB = 1500


@dataclass
class Outcome:
    """What became of the inputs of one target."""

    inputs: int = 0
    refused: int = 0
    slowest_s: float = 0.0
    memory_mb: float = 0.0
    failures: dict[str, bytes] = field(default_factory=dict)
    """The first input of each kind, by the exception and the line that raised it."""

    @property
    def got_through(self) -> list[str]:
        """The kinds of failure; memory is one that no single input answers for."""
        return [*self.failures, *["memory"] * (self.memory_mb > MOST_MB)]


class TooSlowError(BaseException):
    """Nothing in the code may catch the watchdog."""


def warn_of_slow(number: int, frame: object) -> None:
    raise TooSlowError


def fuzz(name: str, inputs: int, seconds: float = float("inf"), seed: int = 0) -> Outcome:
    """Feed a target until `inputs` are read or `seconds` of wall time are over."""
    rng, outcome, ends = random.Random(f"{name} {seed}"), Outcome(), time.monotonic() + seconds
    former = signal.signal(signal.SIGVTALRM, warn_of_slow)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corpus, read = TARGETS[name](Path(folder))
        records = [record for record in map(_as_json, corpus) if record is not None]
        read(corpus[0])  # or damage would not be what is refused
        before = reset_peak()
        while outcome.inputs < inputs and time.monotonic() < ends:
            outcome.inputs += 1
            of_json = records and rng.random() < 0.5
            attempt(read, _dumped(mutated_json(rng.choice(records), rng)) if of_json else mutated(corpus, rng), outcome)
        outcome.memory_mb = round(peak_mb() - before, 1)
    signal.signal(signal.SIGVTALRM, former)
    return outcome


def attempt(read: Callable[[bytes], object], data: bytes, outcome: Outcome) -> None:
    """Read one input and write down what happened."""
    start = time.process_time()
    signal.setitimer(signal.ITIMER_VIRTUAL, WATCHDOG_S)
    try:
        read(data)
    except InputError as error:
        outcome.refused += 1
        if "\n" in str(error):
            outcome.failures.setdefault("an error of several lines", data)
    except (Exception, TooSlowError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "/tests/" not in frame.filename and "site-packages" not in frame.filename]
        place = f"{Path((own or frames)[-1].filename).name}:{(own or frames)[-1].lineno}"
        outcome.failures.setdefault(f"{type(error).__name__} at {place}", data)
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    took = time.process_time() - start
    outcome.slowest_s = max(outcome.slowest_s, round(took, 2))
    if took > MOST_S:
        outcome.failures.setdefault(f"longer than {MOST_S} s", data)


def reset_peak() -> float:
    """Forget the most memory that was ever held; what is held now, in MB."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_mb()


def peak_mb() -> float:
    """The most memory held since `reset_peak`, in MB; where there is no /proc, since the process began."""
    try:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _as_json(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _dumped(record: object) -> bytes:
    return json.dumps(record).encode()


def main() -> None:
    """Print a line for each target; status 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=list(TARGETS), action="append", help="may be repeated; default: all")
    parser.add_argument("--inputs", type=int, default=10**12, help="of each target")
    parser.add_argument("--seconds", type=float, default=60.0, help="of wall time for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the inputs that failed")
    options, failed = parser.parse_args(), False
    for name in options.target or TARGETS:
        began = time.process_time()
        outcome = fuzz(name, options.inputs, options.seconds, options.seed)
        cpu = time.process_time() - began
        print(
            f"{name:18} {outcome.inputs:9,} inputs, {outcome.refused:9,} refused, {cpu:7.1f} CPU s,"
            f" slowest {outcome.slowest_s:5.2f} s, {outcome.memory_mb:6.1f} MB",
            flush=True,
        )
        for kind in outcome.got_through:
            failed = True
            print(f"  FAILED {kind}", flush=True)
        for number, data in enumerate(outcome.failures.values() if options.keep else ()):
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{name}_{options.seed}_{number}").write_bytes(data)
    raise SystemExit(failed)


if __name__ == "__main__":
    main()
