"""Distribution-balanced loss. B samples, C classes."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from extract.losses.statistics import ClassStatistics

# As in the authors' settings for COCO-LT and timm.loss.DistributionBalancedLoss; the paper's letters.
ALPHA, BETA, MU = 0.1, 10.0, 0.2
LAMBDA, KAPPA = 2.0, 0.05


def distribution_balanced_terms(
    x: Float[Tensor, "B C"], y: Float[Tensor, "B C"], statistics: ClassStatistics, focal_gamma: float
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Cost of a positive and of a negative (Wu et al., ECCV 2020, arXiv 2007.09654), with a focal term.

    Negative-tolerant: logits are shifted by the class's log-odds times kappa / lambda, and those of negatives scaled by
    lambda, so that the many easy ones stop pushing early. Equal to timm's loss (which follows the authors' code) at
    `focal_balance` 1 where every class has positives.

    Args:
        y: Labels, 0 where unknown.
        focal_gamma: Exponent of the focal term; 0 leaves it out.
    """
    z = x + KAPPA / LAMBDA * statistics.log_odds
    positive, negative = -F.logsigmoid(z), -F.logsigmoid(-LAMBDA * z) / LAMBDA
    if focal_gamma:
        positive = positive * torch.exp(focal_gamma * F.logsigmoid(-z))
        negative = negative * torch.exp(focal_gamma * F.logsigmoid(LAMBDA * z))
    weight = rebalancing_weights(y, statistics)
    return weight * positive, weight * negative


def rebalancing_weights(y: Float[Tensor, "B C"], statistics: ClassStatistics) -> Float[Tensor, "B C"]:
    """alpha + sigmoid(beta (r - mu)), r how often class-aware sampling wants a sample for this class's sake, over how
    often it gets it for all of its positive classes together: (1 / n_c) / sum of 1 / n over these.

    A sample without a known positive, which such sampling never draws, has the largest weight, 1 + alpha.
    """
    wanted = 1 / statistics.counts
    drawn = (y * wanted).sum(dim=1, keepdim=True)
    ratio = torch.where(drawn > 0, wanted / torch.where(drawn > 0, drawn, 1.0), torch.inf)
    return ALPHA + torch.sigmoid(BETA * (ratio - MU))
