"""Small pictures for a page, as SVG text that needs nothing else; colours are the page's style sheet's."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

BAR_WIDTH, BAR_HEIGHT = 150.0, 18.0
BINS = 30
SIZE, MARGIN, TOP = 340.0, 34.0, 22.0
NAMED = 4
Point = tuple[str, float, float, str]
"""A class, both sides' average precision, and which side is better as `better` says."""


def interval_bar(value: dict[str, float | None], limit: float, higher_is_better: bool = True) -> Markup:
    """A difference and its interval around 0, coloured by the side that is better where the interval excludes 0.

    Args:
        value: `estimate`, `low` and `high`; drawn empty where they are undefined.
        limit: What the half-width stands for; larger values are cut off at the edge.
    """
    middle, y = BAR_WIDTH / 2, BAR_HEIGHT / 2
    marks = Markup('<line class="zero" x1="{0:g}" x2="{0:g}" y1="1" y2="{1:g}"/>').format(middle, BAR_HEIGHT - 1)
    estimate, low, high = value["estimate"], value["low"], value["high"]
    if estimate is not None and low is not None and high is not None:
        x = [middle + np.clip(v / limit, -1, 1) * (middle - 5) for v in (low, estimate, high)]
        colour = better(value, higher_is_better)
        marks += Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(colour, x[0], x[2], y, y)
        marks += Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="3.6"/>').format(colour, x[1], y)
    return drawing(marks, BAR_WIDTH, BAR_HEIGHT, "bar", "difference with its interval")


def better(value: dict[str, float | None], higher_is_better: bool = True) -> str:
    """Which side is better, "first" or "second"; "neither" where the interval includes 0 or is undefined."""
    low, high = value["low"], value["high"]
    if low is None or high is None or low <= 0 <= high:
        return "neither"
    return "first" if (low > 0) == higher_is_better else "second"


def histogram(differences: Float[np.ndarray, "R"], low: float | None, high: float | None) -> Markup:
    """Differences of all replicates, 0 always in sight; those outside the interval are pale."""
    width, height, base = 340.0, 130.0, 104.0
    defined = differences[~np.isnan(differences)]
    left, right = min(defined.min(initial=0.0), 0.0), max(defined.max(initial=0.0), 0.0)
    counts, edges = np.histogram(defined, bins=BINS, range=(left, right) if left < right else (-1.0, 1.0))
    x = 8 + (edges - edges[0]) / (edges[-1] - edges[0]) * (width - 16)
    zero = float(np.interp(0, edges, x))
    marks = Markup()
    for number, count in enumerate(counts.tolist()):
        middle, tall = (edges[number] + edges[number + 1]) / 2, count / max(counts.max(), 1) * (base - 8)
        inside = low is not None and high is not None and low <= middle <= high
        marks += Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            "inside" if inside else "outside", x[number], base - tall, x[number + 1] - x[number] - 0.6, tall
        )
    marks += Markup('<line class="axis" x1="8" x2="{0}" y1="{1}" y2="{1}"/>').format(width - 8, base)
    marks += Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="2" y2="{1}"/>').format(zero, base)
    for place, value, anchor in ((x[0], edges[0], "start"), (x[-1], edges[-1], "end")):
        if value:
            marks += text(place, base + 16, f"{value:+.3f}", anchor)
    marks += text(zero, base + 16, "0", "middle") if 45 < zero < width - 45 or zero in (x[0], x[-1]) else Markup()
    return drawing(marks, width, height, "histogram", "mAP difference of every bootstrap replicate")


def scatter(points: Sequence[Point], first: str, second: str) -> Markup:
    """Average precision per class, A's and B's.

    B across, A up: above the diagonal A is better; coloured as the bars are, so chance is grey here too. The `NAMED`
    classes furthest from the diagonal are named.
    """
    low, high = MARGIN, SIZE - TOP  # of 0 and 1 across; up, the picture is turned over
    marks = Markup('<line class="zero" x1="{}" y1="{}" x2="{}" y2="{}"/>').format(low, SIZE - low, high, SIZE - high)
    marks += Markup('<path class="axis" d="M{0} {1}V{2}H{3}" fill="none"/>').format(low, SIZE - high, SIZE - low, high)
    for name, a, b, side in points:
        marks += Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}</title></circle>').format(
            side, _across(b), SIZE - _across(a), f"{name}: {a:.3f}, {b:.3f}"
        )
    marks += _names(points)
    for value in (0.0, 0.5, 1.0):
        marks += text(_across(value), SIZE - MARGIN + 15, f"{value:g}", "middle")
        marks += text(MARGIN - 6, SIZE - _across(value) + 4, f"{value:g}", "end")
    marks += text(high, SIZE - 4, f"AP of {second}", "end")
    marks += text(low - 8, SIZE - high - 11, f"AP of {first}", "start")
    return drawing(marks, SIZE, SIZE, "scatter", "average precision of each class")


def _names(points: Sequence[Point]) -> Markup:
    """Names of the classes furthest from the diagonal, on its far side, none above another's line."""
    far = sorted(points, key=lambda point: -abs(point[1] - point[2]))[:NAMED]
    marks, lowest = Markup(), {"end": 0.0, "start": 0.0}
    for name, a, b, _ in sorted(far, key=lambda point: -point[1]):
        anchor, shift = ("end", -7) if a > b else ("start", 7)
        y = max(SIZE - _across(a) + 4, lowest[anchor] + 12)
        lowest[anchor] = y
        marks += text(_across(b) + shift, y, name, anchor)
    return marks


def _across(value: float) -> float:
    return MARGIN + value * (SIZE - MARGIN - TOP)


def text(x: float, y: float, words: str, anchor: str) -> Markup:
    """Words that start, end or have their middle at x."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, words)


def drawing(marks: Markup, width: float, height: float, name: str, label: str) -> Markup:
    """Marks as one picture.

    Args:
        name: Its class in the style sheet.
        label: What it shows, for those who cannot see it.
    """
    return Markup('<svg class="{}" viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        name, width, height, label, marks
    )
