"""Wrong files by the thousand: each is read or refused in one line, at once and in little memory.

The same inputs each time; `python scripts/prove.py --part fuzz --hours 3` makes others, led by the lines they reach.
"""

import time
from pathlib import Path

import pytest

from data.files import sha256_file
from tests.faults import fuzzing
from tests.faults.fuzzing import MOST_S, Outcome, attempt, fuzz
from tests.faults.targets import TARGETS
from tests.launch import unchecked

INPUTS = 2000


@pytest.mark.parametrize("name", TARGETS)
def test_wrong_files_end_in_a_result_or_in_one_line(name):
    outcome = unchecked(fuzz, name, INPUTS)
    assert not outcome.got_through
    assert outcome.slowest_s <= MOST_S
    assert outcome.inputs == INPUTS


def is_checked():
    """Whether calls of our functions are checked by beartype."""
    return hasattr(sha256_file, "__wrapped__")


def test_they_are_read_as_for_users_without_type_checks():
    assert (is_checked(), unchecked(is_checked)) == (True, False)


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError(), RuntimeError("\n")])
def test_any_other_error_would_be_kept(error):
    def read(data):
        raise error

    outcome = Outcome()
    attempt(read, b"input", outcome)
    (kind,) = outcome.failures
    assert kind.startswith(type(error).__name__)
    assert outcome.failures[kind] == b"input"


def test_an_input_that_takes_long_would_be_kept(monkeypatch):
    monkeypatch.setattr(fuzzing, "MOST_S", 0.02)

    def read(data):
        start = time.process_time()
        while time.process_time() - start < 0.03:
            pass

    outcome = Outcome()
    attempt(read, b"input", outcome)
    assert outcome.failures == {"longer than 0.02 s": b"input"}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system cannot forget a peak of memory")
def test_the_memory_of_earlier_tests_hides_nothing(monkeypatch):
    monkeypatch.setattr(fuzzing, "TARGETS", {"large": lambda folder: ([b"input"], lambda data: len(b"x" * (64 << 20)))})
    assert b"x" * (256 << 20)
    monkeypatch.setattr(fuzzing, "MOST_MB", 40)
    outcome = fuzz("large", 1)
    assert 60 < outcome.memory_mb < 80
    assert outcome.got_through == ["memory"]
