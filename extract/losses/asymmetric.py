"""Asymmetric loss, and what other settings make of it: focal loss, binary cross-entropy. B samples, C classes."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


def asymmetric_terms(
    x: Float[Tensor, "B C"], gamma_neg: float, gamma_pos: float, margin: float
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Cost of a positive and of a negative (Ben-Baruch et al., arXiv 2009.14119, eq. 4, 5 and 7).

    With equal gammas and margin 0 it is the focal loss (Lin et al., arXiv 1708.02002, eq. 4; alpha of its eq. 5 is the
    caller's), with gammas 0 the binary cross-entropy. Log-sigmoids instead of clamped probabilities let a positive with
    a very low logit keep its gradient. With a margin, a negative with a very high logit has none, as eq. 5 wants it:
    its p_m stays at 1 - margin.

    Args:
        x: Logits.
        gamma_neg: Focusing exponent for negatives, >= 0: easy ones, with a small p, count less.
        gamma_pos: Focusing exponent for positives, >= 0.
        margin: Probability shifted off easy negatives, in [0, 1).
    """
    log_p, log_not_p = F.logsigmoid(x), F.logsigmoid(-x)
    positive = log_p * torch.exp(gamma_pos * log_not_p) if gamma_pos else log_p
    if margin > 0:
        shifted = (log_p.exp() - margin).clamp(min=0)  # p_m of eq. 5
        negative = shifted**gamma_neg * torch.log1p(-shifted)
    else:  # in logarithms, finite at any logit
        negative = torch.exp(gamma_neg * log_p) * log_not_p if gamma_neg else log_not_p
    return -positive, -negative
