"""Wrong files by the thousand: each is read or refused in one line, at once and in little memory.

The same inputs each time; `python scripts/prove.py --part fuzz --long` makes others, for as long as it may.
"""

import pytest

from tests.faults.fuzzing import MOST_MB, Outcome, attempt, fuzz
from tests.faults.targets import TARGETS

INPUTS = {"options": 60, "configurations": 500, "indices": 500}
"""Fewer where one takes long: parsing a configuration to its end 50 ms, its text alone 8 ms, an index 4 ms."""


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", TARGETS)
def test_wrong_files_end_in_a_result_or_in_one_line(name):
    outcome = fuzz(name, INPUTS.get(name, 2000))
    assert not outcome.failures, list(outcome.failures)
    assert outcome.memory_mb < MOST_MB
    assert outcome.inputs == INPUTS.get(name, 2000)


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError(), RuntimeError("\n")])
def test_any_other_error_would_be_kept(error):
    def read(data):
        raise error

    outcome = Outcome()
    attempt(read, b"input", outcome)
    (kind,) = outcome.failures
    assert kind.startswith(type(error).__name__)
    assert outcome.failures[kind] == b"input"
