"""JSON that somebody else may have written: parsed and checked key by key before anything uses it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import InputError


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Parse a file that holds a JSON object.

    Args:
        remedy: What makes such a file.

    Raises:
        InputError: It is missing or holds anything else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(f"{path}: missing or not readable; {remedy}") from None
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{path}: damaged, wanted a JSON object; {remedy}")
    return record


def read_texts(path: Path, key: str, remedy: str) -> list[str]:
    """The list of texts under a key of a file that holds a JSON object.

    Raises:
        InputError: As `read_json`, or there is anything else under the key.
    """
    found = read_json(path, remedy).get(key)
    if not isinstance(found, list) or not all(isinstance(text, str) for text in found):
        raise InputError(f"{path}: damaged, wanted a list of texts under {key!r}; {remedy}")
    return found


def check_keys(record: Any, wanted: Mapping[str, type], where: str, remedy: str = "fit it again") -> None:
    """Refuse a JSON object with other keys, or a value of another type (a bool is no number).

    Args:
        remedy: What makes such a file.

    Raises:
        InputError: names the first.
    """
    found = set(record) if isinstance(record, dict) else None
    if found != set(wanted):
        said = "no JSON object" if found is None else ", ".join(sorted(map(str, found))) or "none"
        raise InputError(f"{where}: wanted the keys {', '.join(wanted) or 'none'}, found {said}; {remedy}")
    for key, kind in wanted.items():
        value = record[key]
        if isinstance(value, bool) or not isinstance(value, (float, int) if kind is float else kind):
            raise InputError(f"{where}: {key} must be of type {kind.__name__}, found {json.dumps(value)[:60]}")
