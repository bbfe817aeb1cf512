"""What fusion is compared with: the same single-image predictions, combined without learning. G groups, C classes."""

import numpy as np
from jaxtyping import Float

from data.views import VIEWS
from fusion.grouping import GroupSet

VIEW_WEIGHTS = {"PA": 7.0, "AP": 7.0, "LATERAL": 3.0, "OTHER": 5.0, "UNKNOWN": 5.0}
"""Weights of CheXFusion's single-image submission (7 frontal, 3 lateral, 5 other)."""

BASELINES = ("single", "mean", "max", "weighted")


def combine(method: str, probabilities: Float[np.ndarray, "V C"], view_types: np.ndarray) -> Float[np.ndarray, "C"]:
    """One prediction for a group from those of its views, in canonical order.

    "single" takes the first view of the canonical order (PA before AP before LATERAL), what a reader would do who may
    look at one image only.
    """
    if method == "single":
        return probabilities[0]
    if method == "max":
        return probabilities.max(axis=0)
    weights = np.array([VIEW_WEIGHTS[VIEWS[number]] for number in view_types]) if method == "weighted" else None
    return np.average(probabilities, axis=0, weights=weights).astype(np.float32)


def baseline_groups(
    method: str, image_probabilities: Float[np.ndarray, "N C"], groups: GroupSet
) -> Float[np.ndarray, "G C"]:
    """Group predictions of a baseline from the probabilities of all N images of a split."""
    parts = zip(groups.rows, groups.view_types, strict=True)
    return np.stack([combine(method, image_probabilities[rows], types) for rows, types in parts])


def to_image_rows(group_values: Float[np.ndarray, "G C"], groups: GroupSet) -> Float[np.ndarray, "N C"]:
    """Give every image of a group its group's values, in manifest order."""
    rows = np.concatenate(groups.rows)
    values = np.empty((len(rows), group_values.shape[1]), dtype=group_values.dtype)
    values[rows] = np.repeat(group_values, groups.num_views, axis=0)
    return values
