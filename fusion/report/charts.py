"""Small plots as SVG text that needs nothing else; the page's style sheet gives colours and line widths by class.

Coordinates are written with one decimal, so the same numbers always make the same text. **K** points.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from fusion.evaluate.svg import drawing, text

Number = float | int
MOST_POINTS = 72
"""Points kept of a curve: more cannot be seen at this size."""


@dataclass(frozen=True)
class Plot:
    """A plot area with linear scales; `x` and `y` are the values at its ends."""

    x: tuple[Number, Number] = (0.0, 1.0)
    y: tuple[Number, Number] = (0.0, 1.0)
    width: float = 330.0
    height: float = 210.0
    left: Number = 36.0
    bottom: Number = 34.0
    right: Number = 10.0
    top: Number = 10.0

    def across(self, value: Number) -> float:
        """Where a value of x lies."""
        low, high = self.x
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def up(self, value: Number) -> float:
        """Where a value of y lies."""
        low, high = self.y
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.bottom - self.top)

    def line(self, x: Sequence[Number] | np.ndarray, y: Sequence[Number] | np.ndarray, css: str) -> Markup:
        """A line through points; undefined ones are left out."""
        points = [
            f"{self.across(float(a)):.1f},{self.up(float(b)):.1f}"
            for a, b in zip(x, y, strict=True)
            if np.isfinite(a) and np.isfinite(b)
        ]
        return Markup('<polyline class="{}" points="{}"/>').format(css, " ".join(points)) if points else Markup()

    def dot(self, x: Number, y: Number, css: str, title: str = "", radius: float = 3.2) -> Markup:
        """A point with words that show when it is pointed at."""
        said = Markup("<title>{}</title>").format(title) if title else Markup()
        return Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{:g}">{}</circle>').format(
            css, self.across(x), self.up(y), radius, said
        )

    def bar(self, x: Number, wide: Number, y: Number, css: str) -> Markup:
        """A bar from the bottom up to y, `wide` in units of x."""
        left, right, top = self.across(x), self.across(x + wide), self.up(y)
        return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            css, left, top, max(right - left - 0.8, 0.4), max(self.height - self.bottom - top, 0)
        )

    def axes(
        self, x_ticks: Iterable[Number], y_ticks: Iterable[Number], x_label: str = "", y_label: str = ""
    ) -> Markup:
        """Ticks with numbers, grid lines at the ticks of y, and what the axes mean."""
        base, right, marks = self.height - self.bottom, self.width - self.right, Markup()
        for value in y_ticks:
            marks += Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                self.left, right, self.up(value), self.up(value)
            )
            marks += text(self.left - 5, self.up(value) + 3.5, f"{value:g}", "end")
        for value in x_ticks:
            marks += text(self.across(value), base + 13, f"{value:g}", "middle")
        marks += Markup('<line class="axis" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
            self.left, right, base, base
        )
        if x_label:
            marks += text((self.left + right) / 2, self.height - 4, x_label, "middle")
        return marks + (text(self.left, self.top - 5, y_label, "start") if y_label else Markup())

    def draw(self, marks: Markup, name: str, label: str) -> Markup:
        """The finished picture."""
        return drawing(marks, self.width, self.height, f"plot {name}", label)


def thinned(
    x: Float[np.ndarray, "K"], y: Float[np.ndarray, "K"], most: int = MOST_POINTS
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"]]:
    """At most `most` points of a curve, evenly spaced along it, both ends kept."""
    if len(x) <= most:
        return x, y
    along = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], most)).clip(max=len(x) - 1))
    kept = np.unique(np.concatenate([kept, [len(x) - 1]]))
    return x[kept], y[kept]


def ticks(low: Number, high: Number, most: int = 5) -> list[float]:
    """Round numbers between two values, at most `most` + 1 of them."""
    span = max(high - low, 1e-9)
    step = next(
        size * 10.0**power for power in range(-6, 12) for size in (1, 2, 5) if span / (size * 10.0**power) <= most
    )
    first = np.ceil(low / step - 1e-9) + 0.0
    return [float(round(step * k, 10)) + 0.0 for k in np.arange(first, np.floor(high / step + 1e-9) + 1)]
