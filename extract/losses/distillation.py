"""What a teacher says beside the labels: multi-label knowledge distillation (arXiv 2504.02277, sections 3.4 and 5).

    loss = (1 - alpha) * loss of the labels + alpha * sum_ij w_j BCE(student's logit_ij, teacher's p_ij) / number of ij

Its sums run over the labels that the teacher knows, and w_j = 1 - mean_i p_ij over the whole batch, so that a label
which the teacher often calls counts less. Everything is written in probabilities: the published code takes the sigmoid
of probabilities, which lifts all targets into [0.5, 0.73].

N images, B those of a batch, C the student's classes, K the teacher's.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor
from torch.nn import functional as F

NORMAL = ("No Finding", "Normal")
"""Names of the class that says that there is no finding."""

NO_FINDINGS = {*NORMAL, "Support Devices"}
"""Classes that are no findings: an image with a pacemaker may be normal (arXiv 1901.07031, section 2)."""


@dataclass(frozen=True, kw_only=True)
class DistillationConfig:
    """A trained model's word beside the labels."""

    teacher: Path | None = None
    """Stage-one folder of a finished run, runs/x/stage_one, or its best/; none: the labels alone."""

    alpha: float = 0.5
    """Share of the teacher in the loss, in [0, 1]; the labels have the rest."""

    targets: Literal["soft", "hard"] = "soft"
    """soft: the teacher's probabilities; hard: 1 where they exceed 0.5, else 0."""

    label_weights: bool = True
    """Weigh each label in the teacher's part by 1 - the teacher's mean probability over the batch."""

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"distillation.alpha must be in [0, 1], got {self.alpha}")


def adapt(
    probabilities: Float[np.ndarray, "N K"],
    teacher_classes: Sequence[str],
    classes: Sequence[str],
    unchecked: Collection[str] = (),
) -> Float32[np.ndarray, "N C"]:
    """A teacher's probabilities in the student's classes, by name; NaN where the teacher does not know the class.

    No Finding (Normal) is the product of 1 - p over the findings that the teacher knows, whether or not it has an
    output of that name: what it says of the whole then agrees with what it says of the parts.

    Args:
        unchecked: Classes of the teacher that count as not known, such as those that it never had a label of.
    """
    known = {name: k for k, name in enumerate(teacher_classes) if name not in unchecked}
    adapted = np.full((len(probabilities), len(classes)), np.nan, dtype=np.float32)
    for c, name in enumerate(classes):
        if name in known:
            adapted[:, c] = probabilities[:, known[name]]
    findings = [k for name, k in known.items() if name not in NO_FINDINGS]
    for c, name in enumerate(classes):
        if name in NORMAL and findings:
            adapted[:, c] = np.prod(1 - probabilities[:, findings], axis=1)
    return adapted


def label_weights(taught: Float[np.ndarray, "B C"]) -> Float32[np.ndarray, "C"]:
    """1 - mean probability of each label over a batch; 0 where the teacher does not know the label."""
    known = ~np.isnan(taught)
    mean = np.where(known, taught, 0).sum(axis=0) / np.maximum(1, known.sum(axis=0))
    return np.where(known.any(axis=0), 1 - mean, 0).astype(np.float32)


def distillation_loss(
    logits: Float[Tensor, "B C"], targets: Float[Tensor, "B C"], weights: Float[Tensor, "C"]
) -> Float[Tensor, ""]:
    """Weighted sum of binary cross-entropies over the labels that the teacher knows; parts of a batch add up.

    Args:
        targets: The teacher's probabilities or decisions; NaN contributes exactly nothing.
    """
    known = ~torch.isnan(targets)
    x = logits if logits.dtype == torch.float64 else logits.float()
    y = torch.where(known, targets, 0.0).to(x.dtype)
    cost = F.binary_cross_entropy_with_logits(torch.where(known, x, 0.0), y, reduction="none")
    return (weights * torch.where(known, cost, 0.0)).sum()


class Lesson:
    """What the teacher says of one global batch; every process knows all of it."""

    def __init__(
        self, taught: Float32[np.ndarray, "N C"], items: Int[np.ndarray, "B"], config: DistillationConfig
    ) -> None:
        self.config, self.taught = config, taught
        batch = taught[items]
        self.num_known = max(1, int((~np.isnan(batch)).sum()))
        self.weights = label_weights(batch) if config.label_weights else np.ones(taught.shape[1], dtype=np.float32)

    def mix(
        self, loss: Float[Tensor, ""], logits: Float[Tensor, "b C"], rows: Int[np.ndarray, "b"], counts: bool
    ) -> Float[Tensor, ""]:
        """The loss of a part of the batch with the teacher's share.

        Args:
            loss: That of its labels, divided by the number of known ones in the whole batch.
            rows: The part's images in the training set.
            counts: False for a process without a share, which only keeps the others company.
        """
        targets = torch.from_numpy(self.taught[rows]).to(logits.device)
        if self.config.targets == "hard":
            targets = torch.where(torch.isnan(targets), targets, (targets > 0.5).to(targets.dtype))
        if not counts:
            targets = torch.full_like(targets, float("nan"))
        weights = torch.from_numpy(self.weights).to(logits.device)
        teacher = distillation_loss(logits, targets, weights) / self.num_known
        return (1 - self.config.alpha) * loss + self.config.alpha * teacher
