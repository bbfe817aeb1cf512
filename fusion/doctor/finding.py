"""One line of the doctor's report, made so that a report can be passed on.

Findings are written in our own words. Of an error only its type is told: its message may hold a path, and a path may
hold a name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

FRESH_INSTALL = "pip install -e .   (in the repository, inside its own environment)"


@dataclass(frozen=True)
class Finding:
    """What was looked at and what was found; a warning or failure says what to do."""

    status: Literal["ok", "warn", "fail"]
    check: str
    found: str
    remedy: str = ""


def guarded(check: str, look: Callable[[], Finding]) -> Finding:
    """Run one check. Whatever it raises is a failure of that check, so that the others are still made."""
    try:
        return look()
    except ModuleNotFoundError as error:
        return Finding("fail", check, f"the package {(error.name or '?').split('.')[0]} is missing", FRESH_INSTALL)
    except Exception as error:  # a broken installation raises anything
        found = f"stopped with {type(error).__name__}"
        return Finding("fail", check, found, "first mend what fails above; if nothing does: " + FRESH_INSTALL)
