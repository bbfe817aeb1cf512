"""How alike two sets of predictions rank: Spearman's correlation, which sees of a class what average precision sees.

Axes: **N** rows, **C** and **D** columns (classes).
"""

import numpy as np
import pandas as pd
from jaxtyping import Float


def rank_correlations(a: Float[np.ndarray, "N C"], b: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "C D"]:
    """Spearman's correlation of every column of `a` with every column of `b`; NaN where a column has one value."""
    ranks = [pd.DataFrame(values).rank().to_numpy(np.float64) for values in (a, b)]
    centred = [rank - rank.mean(axis=0) for rank in ranks]
    lengths = [np.sqrt((rank**2).sum(axis=0)) for rank in centred]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centred[0].T @ centred[1]) / (lengths[0][:, None] * lengths[1][None, :])
