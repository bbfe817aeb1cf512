"""Multi-label losses that leave unknown labels out. B samples, C classes."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss of a training stage."""

    kind: Literal["weighted_asl", "asl", "weighted_bce", "bce"] = "weighted_asl"
    """CheXFusion's weighted asymmetric loss, its parts, or plain binary cross-entropy."""

    gamma_neg: float = 4.0
    """Focusing exponent for negatives, >= 0 (asl)."""

    gamma_pos: float = 1.0
    """Focusing exponent for positives, >= 0 (asl)."""

    margin: float = 0.05
    """Probability shifted off easy negatives, in [0, 1) (asl)."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"loss.margin must be in [0, 1), got {self.margin}")
        if min(self.gamma_neg, self.gamma_pos) < 0:
            raise ValueError("loss.gamma_neg and loss.gamma_pos must not be negative")


def prevalence(labels: Float[np.ndarray, "N C"]) -> Float[Tensor, "C"]:
    """Share of positives among the known labels of each class; 0 where a class has none known."""
    known = ~np.isnan(labels)
    positives = np.where(known, labels, 0).sum(0)
    return torch.from_numpy((positives / np.maximum(known.sum(0), 1)).astype(np.float32))


def multilabel_loss(
    logits: Float[Tensor, "B C"],
    targets: Float[Tensor, "B C"],
    class_prevalence: Float[Tensor, "C"],
    config: LossConfig,
) -> Float[Tensor, ""]:
    """Sum of the loss over known labels; the caller divides by their number in the whole global batch.

    The asymmetric loss is that of Ben-Baruch et al. (arXiv 2009.14119, eq. 4, 5 and 7); the class weights are
    CheXFusion's (Kim, arXiv 2308.03968): exp(1 - prevalence) for positives, exp(prevalence) for negatives. It differs
    from the published code in being computed from log-sigmoids in float32, so that a positive with a very low
    logit keeps its gradient, and in its mean over B and C being left to the caller (a sum over classes, timm's
    default, makes the learning rate depend on C).

    Args:
        targets: 1, 0, a soft label between, or NaN for unknown. Unknown ones contribute exactly nothing.
    """
    known = ~torch.isnan(targets)
    x = logits if logits.dtype == torch.float64 else logits.float()
    y = torch.where(known, targets, 0.0).to(x.dtype)
    log_p, log_not_p = F.logsigmoid(x), F.logsigmoid(-x)
    if config.kind in ("asl", "weighted_asl"):
        positive = torch.exp(config.gamma_pos * log_not_p) * log_p
        if config.margin > 0:
            shifted = (log_p.exp() - config.margin).clamp(min=0)  # p_m of eq. 5
            negative = shifted**config.gamma_neg * torch.log1p(-shifted)
        else:  # in logarithms, finite at any logit
            negative = torch.exp(config.gamma_neg * log_p) * log_not_p
    else:
        positive, negative = log_p, log_not_p
    if config.kind.startswith("weighted"):
        positive = positive * torch.exp(1 - class_prevalence)
        negative = negative * torch.exp(class_prevalence)
    loss = -(y * positive + (1 - y) * negative)
    return torch.where(known, loss, 0.0).sum()
