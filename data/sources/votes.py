"""From the votes of several readers to one label.

Axes: **N** images, **R** readers, **C** classes.
"""

from typing import Literal

import numpy as np
from jaxtyping import Float32

NUM_READERS = 3
"""Readers of every training image of VinDr-CXR and VinBigData."""

Votes = Literal["any", "majority", "mean"]


def combine(votes: Float32[np.ndarray, "N R C"], no_finding: int, rule: Votes) -> Float32[np.ndarray, "N C"]:
    """Labels from votes of 0 and 1.

    Args:
        no_finding: Column of the class that says that there is nothing: under "any" one reader who saw something
            overrules it, so that it is 1 only if all say so.
        rule: "any": 1 if one reader says so. "majority": 1 if more than half do. "mean": their share, a soft label.
    """
    shares = votes.mean(axis=1, dtype=np.float64)
    if rule == "mean":
        return shares.astype(np.float32)
    labels = shares > 0.5 if rule == "majority" else shares > 0
    if rule == "any":
        labels[:, no_finding] = shares[:, no_finding] == 1
    return labels.astype(np.float32)
