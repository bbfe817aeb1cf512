"""Class weights by the effective number of samples, and the loss of a CXR-LT 2026 entry that uses them.

B samples, C classes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from extract.losses.statistics import ClassStatistics

BETA = 0.9999
MOST_MARGIN = 0.2


def class_balanced_weights(statistics: ClassStatistics) -> Float[Tensor, "C"]:
    """(1 - b) / (1 - b ** n) for n positives (Cui et al., arXiv 1901.05555), b = 0.9999.

    Their mean over the classes that have positives is 1.
    """
    weights = (1 - BETA) / -torch.expm1(math.log(BETA) * statistics.counts)
    present = (statistics.positives > 0).to(weights.dtype)
    return weights * present.sum().clamp(min=1) / torch.where(present.any(), (weights * present).sum(), weights.sum())


def head_margin_terms(
    x: Float[Tensor, "B C"], statistics: ClassStatistics
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Cost of a positive and of a negative in what a published CXR-LT 2026 entry calls "distribution-balanced".

    Binary cross-entropy weighted by the square root of `class_balanced_weights`, with a logit subtracted from
    positives: 0.2 for the most frequent class, falling to 0 for the rarest as 1 / weight does, so in the opposite order
    to `label_margin_terms`. Nothing of the loss of that name (arXiv 2007.09654) is in it. Here for comparison.
    """
    weights = class_balanced_weights(statistics)
    inverse = 1 / weights
    spread = inverse.amax() - inverse.amin()
    margin = MOST_MARGIN * (inverse - inverse.amin()) / torch.where(spread > 0, spread, 1.0)
    scale = weights.sqrt()
    return -scale * F.logsigmoid(x - margin), -scale * F.logsigmoid(-x)
