"""Wrong files by the thousand: each is read or refused in one line, at once and in little memory.

The same inputs each time; `python scripts/prove.py --part fuzz --hours 3` makes others, led by the lines they reach.
"""

import pytest

from tests.faults.fuzzing import MOST_MB, Outcome, attempt, fuzz
from tests.faults.targets import TARGETS

INPUTS = 2000


@pytest.mark.filterwarnings("ignore:Invalid value for VR")
@pytest.mark.parametrize("name", TARGETS)
def test_wrong_files_end_in_a_result_or_in_one_line(name):
    outcome = fuzz(name, INPUTS)
    assert not outcome.failures, list(outcome.failures)
    assert outcome.memory_mb < MOST_MB
    assert outcome.inputs == INPUTS


@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError(), RuntimeError("\n")])
def test_any_other_error_would_be_kept(error):
    def read(data):
        raise error

    outcome = Outcome()
    attempt(read, b"input", outcome)
    (kind,) = outcome.failures
    assert kind.startswith(type(error).__name__)
    assert outcome.failures[kind] == b"input"
