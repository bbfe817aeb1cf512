"""Small pictures for a page, as SVG text that needs nothing else; colours are the page's style sheet's."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

BAR_WIDTH, BAR_HEIGHT = 150, 18
BINS = 30


def interval_bar(value: dict[str, float | None], limit: float, higher_is_better: bool = True) -> Markup:
    """A difference and its interval around 0, coloured by the side that is better where the interval excludes 0.

    Args:
        value: `estimate`, `low` and `high`; drawn empty where they are undefined.
        limit: What the half-width stands for; larger values are cut off at the edge.
    """
    middle, y = BAR_WIDTH / 2, BAR_HEIGHT / 2
    marks = Markup('<line class="zero" x1="{0}" x2="{0}" y1="1" y2="{1}"/>').format(middle, BAR_HEIGHT - 1)
    estimate, low, high = value["estimate"], value["low"], value["high"]
    if estimate is not None and low is not None and high is not None:
        x = [middle + np.clip(v / limit, -1, 1) * (middle - 5) for v in (low, estimate, high)]
        colour = better(value, higher_is_better)
        marks += Markup('<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(colour, x[0], x[2], y, y)
        marks += Markup('<circle class="{}" cx="{:.1f}" cy="{}" r="3.6"/>').format(colour, x[1], y)
    return _svg(marks, BAR_WIDTH, BAR_HEIGHT, "bar", "difference with its interval")


def better(value: dict[str, float | None], higher_is_better: bool = True) -> str:
    """ "first", "second", or "neither" where the interval includes 0 or is undefined."""
    low, high = value["low"], value["high"]
    if low is None or high is None or low <= 0 <= high:
        return "neither"
    return "first" if (low > 0) == higher_is_better else "second"


def histogram(differences: Float[np.ndarray, "R"], low: float, high: float) -> Markup:
    """Differences of all replicates; those outside the interval are pale."""
    width, height, base = 340, 130, 104
    defined = differences[~np.isnan(differences)]
    edge = max(float(np.abs(defined).max(initial=0)), 1e-6)
    counts, edges = np.histogram(
        defined,
        bins=BINS,
        range=(min(defined.min(initial=0), 0), max(defined.max(initial=0), 0)) if edge > 1e-6 else (-edge, edge),
    )

    def place(value: float) -> float:
        return 8 + (value - edges[0]) / (edges[-1] - edges[0]) * (width - 16)

    marks = Markup()
    for count, left, right in zip(counts.tolist(), edges, edges[1:], strict=False):
        inside = low <= (left + right) / 2 <= high
        tall = count / max(counts.max(), 1) * (base - 8)
        marks += Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            "inside" if inside else "outside", place(left), base - tall, place(right) - place(left) - 0.6, tall
        )
    marks += Markup('<line class="axis" x1="8" x2="{0}" y1="{1}" y2="{1}"/>').format(width - 8, base)
    marks += Markup('<line class="zero" x1="{0:.1f}" x2="{0:.1f}" y1="2" y2="{1}"/>').format(place(0.0), base)
    for value, anchor in ((edges[0], "start"), (edges[-1], "end")):
        marks += _text(place(value), base + 16, f"{value:+.3f}", anchor)
    if 0.15 < (place(0.0) - 8) / (width - 16) < 0.85:
        marks += _text(place(0.0), base + 16, "0", "middle")
    return _svg(marks, width, height, "histogram", "mAP difference of every bootstrap replicate")


def scatter(points: Sequence[tuple[str, float, float]], first: str, second: str) -> Markup:
    """Average precision per class: B across, A up; above the diagonal A is better. The four furthest are named."""
    size, margin = 340, 34

    def place(value: float) -> float:
        return margin + value * (size - margin - 10)

    marks = Markup('<path class="zero" d="M{0} {1}L{2} {3}"/>').format(
        place(0), size - place(0), place(1), size - place(1)
    )
    marks += Markup('<path class="axis" d="M{0} {1}V{2}H{3}" fill="none"/>').format(
        place(0), size - place(1), size - place(0), place(1)
    )
    far = {name for name, _, _ in sorted(points, key=lambda point: -abs(point[1] - point[2]))[:4]}
    for name, a, b in points:
        side = "first" if a > b else "second" if b > a else "neither"
        x, y = place(b), size - place(a)
        marks += Markup(
            '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="4"><title>{}: {:.3f}, {:.3f}</title></circle>'
        ).format(side, x, y, name, a, b)
        if name in far:
            marks += _text(x - 7 if a > b else x + 7, y + 4, name, "end" if a > b else "start")
    for value in (0.0, 0.5, 1.0):
        marks += _text(place(value), size - margin + 15, f"{value:g}", "middle")
        marks += _text(margin - 6, size - place(value) + 4, f"{value:g}", "end")
    marks += _text(place(1), size - 4, f"AP of {second}", "end")
    marks += _text(place(0) + 6, size - place(1) + 6, f"AP of {first}", "start")
    return _svg(marks, size, size, "scatter", "average precision of each class")


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, text)


def _svg(marks: Markup, width: int, height: int, name: str, label: str) -> Markup:
    return Markup('<svg class="{}" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        name, width, height, label, marks
    )
