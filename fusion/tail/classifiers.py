"""Linear classifiers re-trained on frozen features, and tau-normalisation (Kang et al., arXiv 1910.09217).

The paper chooses one label of many; here every class has a classifier of its own, one against the rest, and what is
balanced is its positives and negatives. A consequence: tau-normalisation multiplies all logits of a class by one
number, which cannot change the order of images within the class, and so not the average precision of single images.
Only the mean over the views of a group changes (chest phantom: +0.002 mAP).

Balancing is no gain by itself: on the phantom, whose rarest class has 108 positives, the same classifier without it was
better (0.796 against 0.787 mAP). Both are tuned, and validation says which is mixed in.

Axes: **G** groups (or N images), **D** features, **C** classes.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch.nn.functional import binary_cross_entropy_with_logits

from data.metrics import hard_labels
from fusion.lbfgs import minimise


class Linear(NamedTuple):
    """One linear classifier per class."""

    weights: Float64[np.ndarray, "D C"]
    bias: Float64[np.ndarray, "C"]

    def logits(self, features: Float[np.ndarray, "G D"]) -> Float64[np.ndarray, "G C"]:
        """Logits."""
        return features @ self.weights + self.bias


def class_weights(labels: Float[np.ndarray, "G C"], balanced: bool) -> Float64[np.ndarray, "G C"]:
    """Weight of each label in its class's loss; they add up to 1. Unknown labels and one-sided classes have none.

    Args:
        balanced: Positives have half of the weight and negatives the other half; else each known label has the same.
    """
    known, positive = hard_labels(labels)
    num_positive = positive.sum(axis=0)
    num_negative = known.sum(axis=0) - num_positive
    usable = (num_positive > 0) & (num_negative > 0)
    if balanced:
        of_positive, of_negative = 0.5 / np.maximum(num_positive, 1), 0.5 / np.maximum(num_negative, 1)
    else:
        of_positive = of_negative = 1 / np.maximum(num_positive + num_negative, 1)
    return np.where(positive, of_positive, of_negative) * (known & usable)


def fit_logistic(
    features: Float[np.ndarray, "G D"],
    labels: Float[np.ndarray, "G C"],
    ridges: Iterable[float],
    balanced: bool,
) -> Iterator[tuple[float, Linear]]:
    """Minimise, per class, sum_g weight_g * log loss_g + ridge / 2 * |w|^2, in float64, one ridge after the other.

    The bias is not penalised. With weights of sum 1, scikit-learn's `LogisticRegression(class_weight="balanced")` has
    its minimum at the same place for C = 1 / (ridge * known labels).

    Args:
        ridges: Best from large to small: each solution starts from the one before.
    """
    x, weights = torch.from_numpy(features).double(), torch.from_numpy(class_weights(labels, balanced))
    targets = torch.from_numpy(hard_labels(labels)[1]).double()
    solution = torch.zeros(x.shape[1] + 1, labels.shape[1], dtype=torch.float64)

    def loss(w: torch.Tensor) -> torch.Tensor:
        return binary_cross_entropy_with_logits(x @ w[1:] + w[0], targets, weights, reduction="sum")

    for ridge in ridges:
        solution = minimise(solution, loss, ridge)
        yield ridge, Linear(solution[1:].numpy().copy(), solution[0].numpy().copy())


def natural_probabilities(
    logits: Float64[np.ndarray, "G C"], labels: Float[np.ndarray, "M C"], balanced: bool
) -> Float32[np.ndarray, "G C"]:
    """Probabilities at the classes' own frequencies, from logits trained on `labels`.

    A balanced classifier believes that half of all cases are positive; the log odds of the training share put that
    right (prior correction, King and Zeng 2001) and keep the order within a class. Without it, rare classes could not
    be averaged with the probabilities of another model. A class without positives or negatives keeps its share.
    """
    share = positive_share(labels)
    inside = np.clip(share, 1e-6, 1 - 1e-6)
    shift = np.log(inside / (1 - inside)) if balanced else 0.0
    probabilities = torch.from_numpy(logits + shift).sigmoid().numpy()
    return np.where((share > 0) & (share < 1), probabilities, share).astype(np.float32)


def positive_share(labels: Float[np.ndarray, "G C"]) -> Float64[np.ndarray, "C"]:
    """Positives among the known labels of each class; 0 where none is known."""
    known, positive = hard_labels(labels)
    return positive.sum(axis=0) / np.maximum(known.sum(axis=0), 1)


def tau_normalised(
    logits: Float[np.ndarray, "N C"], weights: Float[np.ndarray, "C D"], bias: Float[np.ndarray, "C"], tau: float
) -> Float[np.ndarray, "N C"]:
    """Logits of a linear head whose weights were divided by their length to the power tau, without its bias.

    With z = w f + b, this is (z - b) / |w|^tau; tau 0 only drops the bias.
    """
    return (logits - bias) / np.linalg.norm(weights, axis=1) ** tau
