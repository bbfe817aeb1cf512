"""Intervals and numbers as JSON takes them and as people read them; what is undefined is null and a dash."""

from dataclasses import asdict
from typing import Any

import numpy as np

from data.intervals import Interval


def interval(value: Interval) -> dict[str, float | None]:
    """An interval as JSON takes it."""
    return {key: or_none(x) if isinstance(x, float) else x for key, x in asdict(value).items()}


def or_none(value: float) -> float | None:
    """A number as JSON takes it."""
    return None if np.isnan(value) else float(value)


def span(value: dict[str, Any], sign: str = "", digits: int = 3) -> str:
    """``0.512 [0.480, 0.544]``."""
    if value["estimate"] is None:
        return "undefined"
    return f"{value['estimate']:{sign}.{digits}f} [{value['low']:{sign}.{digits}f}, {value['high']:{sign}.{digits}f}]"


def number(value: float | None) -> str:
    """Three digits, or a dash for an undefined number."""
    return "-" if value is None else f"{value:.3f}"
