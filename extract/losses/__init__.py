"""Multi-label losses that leave unknown labels out. B samples, C classes.

timm has some of them; its versions clamp probabilities, which kills the gradient of a positive whose logit is -20 or
lower (`AsymmetricLossMultiLabel`), know no unknown labels, and turn doubles into floats. Where they are right, the
tests compare with them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from extract.losses.asymmetric import asymmetric_terms
from extract.losses.class_balanced import class_balanced_weights, head_margin_terms
from extract.losses.distribution_balanced import distribution_balanced_terms
from extract.losses.label_margin import label_margin_terms
from extract.losses.statistics import ClassStatistics, class_statistics

__all__ = ["ClassStatistics", "LossConfig", "class_statistics", "multilabel_loss"]


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss of a training stage."""

    kind: Literal["weighted_asl", "asl", "weighted_bce", "bce", "focal", "db", "db_margin", "ldam"] = "weighted_asl"
    """CheXFusion's weighted asymmetric loss, its parts, or plain binary cross-entropy; focal loss;
    distribution-balanced loss (db) and what a CXR-LT 2026 entry calls by that name (db_margin); label-aware margins
    (ldam)."""

    gamma_neg: float = 4.0
    """Focusing exponent for negatives, >= 0 (asl)."""

    gamma_pos: float = 1.0
    """Focusing exponent for positives, >= 0 (asl)."""

    margin: float = 0.05
    """Probability shifted off easy negatives, in [0, 1) (asl)."""

    focal_gamma: float = 2.0
    """Focusing exponent for both, >= 0 (focal, db)."""

    focal_alpha: float | None = None
    """Weight of positives, in (0, 1), that of negatives being 1 - alpha (focal); none: 1 for both."""

    ldam_margin: float = 0.5
    """Logit subtracted from positives of the rarest class, >= 0; a class with n positives gets it times
    (fewest / n) ** (1/4), so the tail has the largest (ldam)."""

    reweight_after: float = 0.8
    """Share of the epochs after which classes are weighted by their effective number of positives (deferred
    re-weighting, ldam): 0 is from the start, 1 never, 0.8 the paper's."""

    logit_adjustment: float = 0.0
    """Factor tau on each class's log-odds, added to its logits in training only, with any kind; 0: off."""

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 1:
            raise ValueError(f"loss.margin must be in [0, 1), got {self.margin}")
        if min(self.gamma_neg, self.gamma_pos) < 0:
            raise ValueError("loss.gamma_neg and loss.gamma_pos must not be negative")
        for name in ("focal_gamma", "ldam_margin", "logit_adjustment"):
            if getattr(self, name) < 0:
                raise ValueError(f"loss.{name} must not be negative, got {getattr(self, name)}")
        if self.focal_alpha is not None and not 0 < self.focal_alpha < 1:
            raise ValueError(f"loss.focal_alpha must be in (0, 1), got {self.focal_alpha}")
        if not 0 <= self.reweight_after <= 1:
            raise ValueError(f"loss.reweight_after must be in [0, 1], got {self.reweight_after}")


def multilabel_loss(
    logits: Float[Tensor, "B C"],
    targets: Float[Tensor, "B C"],
    statistics: ClassStatistics,
    config: LossConfig,
    done: float = 0.0,
) -> Float[Tensor, ""]:
    """Sum of the loss over known labels; the caller divides by their number in the whole global batch.

    Parts of a batch add up to the batch. (timm's asymmetric loss sums over classes and averages over the batch, which
    makes the learning rate depend on C.) Computed from log-sigmoids in float32, or float64 for logits in float64.

    With `logit_adjustment` tau, log-odds of each class's prevalence times tau are added to the logits (Menon et al.,
    arXiv 2007.07314, one class at a time). Predictions stay without it. It is one number per class, which a
    model can learn to subtract: it says where training starts from, moves thresholds, and need not change the ranking
    within a class.

    Args:
        targets: 1, 0, a soft label between, or NaN for unknown. Unknown ones contribute exactly nothing.
        statistics: Of the training set, as it is without any sampler.
        done: Share of all epochs that is finished, in [0, 1).
    """
    known = ~torch.isnan(targets)
    x = logits if logits.dtype == torch.float64 else logits.float()
    x = torch.where(known, x, 0.0)
    y = torch.where(known, targets, 0.0).to(x.dtype)
    if config.logit_adjustment:
        x = x + config.logit_adjustment * statistics.log_odds
    positive, negative = loss_terms(x, y, statistics, config, done)
    return torch.where(known, y * positive + (1 - y) * negative, 0.0).sum()


def loss_terms(
    x: Float[Tensor, "B C"], y: Float[Tensor, "B C"], statistics: ClassStatistics, config: LossConfig, done: float
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """What each label would cost if it were 1, and if it were 0; a label between takes its share of both.

    Class weights of the weighted kinds are CheXFusion's (Kim, arXiv 2308.03968): exp(1 - prevalence) for positives,
    exp(prevalence) for negatives.

    Args:
        y: 0 where unknown.
    """
    kind = config.kind
    if kind == "focal":
        alpha = config.focal_alpha
        positive, negative = asymmetric_terms(x, config.focal_gamma, config.focal_gamma, 0.0)
        return (positive, negative) if alpha is None else (alpha * positive, (1 - alpha) * negative)
    if kind == "db":
        return distribution_balanced_terms(x, y, statistics, config.focal_gamma)
    if kind == "db_margin":
        return head_margin_terms(x, statistics)
    if kind == "ldam":
        positive, negative = label_margin_terms(x, statistics, config.ldam_margin)
        weight = class_balanced_weights(statistics) if done >= config.reweight_after else 1.0
        return weight * positive, weight * negative
    focus = (config.gamma_neg, config.gamma_pos, config.margin) if kind.endswith("asl") else (0.0, 0.0, 0.0)
    positive, negative = asymmetric_terms(x, *focus)
    if kind.startswith("weighted"):
        positive, negative = positive * statistics.positive_weight, negative * statistics.negative_weight
    return positive, negative
