"""From a prediction to the list on the page: findings, most likely first, with band, threshold and how tested each is.

Axes: **C** classes.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.strict_json import read_json

COPY_AGAIN = "copy the whole model folder again"
BANDS = {"head": "Common in training", "medium": "Less common", "tail": "Rare"}


@dataclass(frozen=True)
class Finding:
    """A class as a row of the list."""

    number: int
    """Place in the model's class list."""
    name: str
    probability: float
    threshold: float | None
    band: str | None
    tested: bool

    @property
    def called(self) -> bool | None:
        """Whether the probability is above the class's threshold; None without one."""
        return None if self.threshold is None else self.probability > self.threshold

    @property
    def percent(self) -> str:
        """The probability in words that do not promise certainty."""
        if self.probability < 0.01:
            return "<1 %"
        return ">99 %" if self.probability > 0.99 else f"{100 * self.probability:.0f} %"


def untested_classes(folder: Path) -> frozenset[str]:
    """Classes without a positive case on validation, by a model folder's `metrics.json`; none where it does not say.

    Args:
        folder: A model folder, or the result folder that holds it in `best/`.
    """
    for path in (folder / "best" / "metrics.json", folder / "metrics.json"):
        if path.is_file():
            return frozenset(read_json(path, COPY_AGAIN).get("val", {}).get("absent", []))
    return frozenset()


def rank_findings(
    classes: Sequence[str],
    probabilities: Float[np.ndarray, "C"],
    thresholds: Float[np.ndarray, "C"] | None,
    frequency: Mapping[str, str],
    untested: Set[str],
) -> list[Finding]:
    """All classes, the most probable first; those that were never tested come last, whatever their number says.

    Args:
        probabilities: Calibrated ones where there are any: thresholds are meant for these.
        frequency: head, medium or tail of the classes of which it is known.
        untested: Classes without a positive case on validation; nobody knows how well the model tells them.
    """
    found = [
        Finding(
            number=c,
            name=name,
            probability=float(probabilities[c]),
            threshold=None if thresholds is None else float(thresholds[c]),
            band=frequency.get(name),
            tested=name not in untested,
        )
        for c, name in enumerate(classes)
    ]
    return sorted(found, key=lambda finding: (not finding.tested, -finding.probability, finding.number))
