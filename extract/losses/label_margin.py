"""Label-distribution-aware margins. B samples, C classes."""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from extract.losses.statistics import ClassStatistics


def label_margin_terms(
    x: Float[Tensor, "B C"], statistics: ClassStatistics, largest: float
) -> tuple[Float[Tensor, "B C"], Float[Tensor, "B C"]]:
    """Cost of a positive and of a negative: a positive of a rare class must win by more (LDAM, Cao et al., arXiv
    1906.07413).

    Each class is a problem of its own here. Its positives get the margin C / n ** (1/4), n their number; its negatives,
    always many, none. The paper trains a cosine classifier at scale 30; our logits are unbounded, and margins are in
    their unit.

    Args:
        largest: Margin of the rarest class, as the paper sets its constant C.
    """
    counts = statistics.counts
    margin = largest * (counts.amin() / counts) ** 0.25
    return -F.logsigmoid(x - margin), -F.logsigmoid(-x)
