"""Settings chosen on validation, one for each frequency band, so that rare classes need not share those of common ones.

Per class the choice would rest on a handful of positives. Only validation labels come in here.

G groups, C classes.
"""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from data.metrics import mean_defined, per_class

Setting = TypeVar("Setting")
Bands = dict[str, list[int]]
"""head, medium and tail: the columns of their classes; a band may be empty."""
WEIGHTS = tuple(np.round(np.arange(0.1, 1.01, 0.1), 1).tolist())
"""Shares of the other classifier in a mixture, beside 0."""
MIXED_BANDS = ("medium", "tail")


def bands_of(groups: Mapping[str, str], classes: Sequence[str]) -> Bands:
    """The columns of each band, from the band of each class."""
    return {band: [c for c, name in enumerate(classes) if groups[name] == band] for band in ("head", "medium", "tail")}


def best_per_band(
    options: Mapping[Setting, Float[np.ndarray, "G C"]], labels: Float[np.ndarray, "G C"], bands: Bands
) -> dict[str, Setting]:
    """The setting with the highest mean AP over a band's classes; the first of equals, and where nothing is defined."""
    ap = {setting: per_class(scores, labels).ap for setting, scores in options.items()}

    def quality(setting: Setting, columns: list[int]) -> float:
        return float(np.nan_to_num(mean_defined(ap[setting][columns]), nan=-1.0))

    return {band: max(options, key=lambda setting: quality(setting, columns)) for band, columns in bands.items()}


def assemble(
    options: Mapping[Setting, Float[np.ndarray, "G C"]], chosen: Mapping[str, Setting], bands: Bands
) -> Float[np.ndarray, "G C"]:
    """Each band's columns from the setting chosen for it."""
    scores = next(iter(options.values())).copy()
    for band, columns in bands.items():
        scores[:, columns] = options[chosen[band]][:, columns]
    return scores


def mixtures(
    base: Float[np.ndarray, "G C"], others: Mapping[str, Float[np.ndarray, "G C"]]
) -> dict[tuple[str, float], Float[np.ndarray, "G C"]]:
    """(1 - weight) base + weight other, for every other classifier and weight; the base itself comes first."""
    mixed = {("", 0.0): base}
    for name, scores in others.items():
        mixed |= {(name, weight): (1 - weight) * base + weight * scores for weight in WEIGHTS}
    return mixed


def choose_mixture(
    base: Float[np.ndarray, "G C"],
    others: Mapping[str, Float[np.ndarray, "G C"]],
    labels: Float[np.ndarray, "G C"],
    bands: Bands,
) -> dict[str, tuple[str, float]]:
    """Classifier and weight for the medium and the tail; head classes keep the base."""
    chosen = best_per_band(mixtures(base, others), labels, {band: bands[band] for band in MIXED_BANDS})
    return {"head": ("", 0.0)} | chosen
