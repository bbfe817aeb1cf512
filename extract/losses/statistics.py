"""What losses know of the training set: how often each class is positive. N samples, C classes."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ClassStatistics:
    """Positives and known labels of each class in the training set. A soft label counts as its share of a positive."""

    positives: Float[Tensor, "C"]
    known: Float[Tensor, "C"]

    def to(self, device: torch.device) -> "ClassStatistics":
        """The same numbers on a device."""
        return ClassStatistics(self.positives.to(device), self.known.to(device))

    @property
    def prevalence(self) -> Float[Tensor, "C"]:
        """Share of positives among the known labels; 0 where a class has none known."""
        return self.positives / self.known.clamp(min=1)

    @property
    def positive_weight(self) -> Float[Tensor, "C"]:
        """CheXFusion's weight of positives (arXiv 2308.03968)."""
        return torch.exp(1 - self.prevalence)

    @property
    def negative_weight(self) -> Float[Tensor, "C"]:
        """CheXFusion's weight of negatives."""
        return torch.exp(self.prevalence)

    @property
    def log_odds(self) -> Float[Tensor, "C"]:
        """log(p / (1 - p)) of the prevalence, with at least half a positive and half a negative; 0 if none is known."""
        half = (self.known / 2).clamp(max=0.5)
        positives = torch.maximum(half, torch.minimum(self.positives, self.known - half))
        return torch.where(self.known > 0, torch.log(positives) - torch.log(self.known - positives), 0.0)

    @property
    def counts(self) -> Float[Tensor, "C"]:
        """Positives as weights and margins take them: a class without any counts like the rarest one that has some.

        It would else have an infinite weight or, if that were bounded, leave next to nothing for all others.
        """
        rarest = torch.where(self.positives > 0, self.positives, torch.inf).amin()
        return torch.where(self.positives > 0, self.positives, torch.where(rarest.isfinite(), rarest, 1.0))


def class_statistics(labels: Float[np.ndarray, "N C"]) -> ClassStatistics:
    """Count the known labels of a training set."""
    known = ~np.isnan(labels)
    counts = np.where(known, labels, 0).sum(0), known.sum(0)
    positives, number = (torch.from_numpy(count.astype(np.float32)) for count in counts)
    return ClassStatistics(positives, number)
