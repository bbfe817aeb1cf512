"""Mean pooling and two linear layers. B samples, T tokens, D features, W width, C classes."""

from jaxtyping import Float
from torch import Tensor, nn

from extract.heads.batch_norm import BatchNorm


class MLPHead(nn.Module):
    """The mean token through BatchNorm, dropout, linear, ReLU and once more BatchNorm, dropout, linear.

    The head of the CXR-LT 2026 winner's first phase, there with D = 1024, W = 512 and dropout 0.3.
    """

    def __init__(self, dim: int, num_classes: int, width: int = 512, dropout: float = 0.3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            BatchNorm(dim),
            nn.Dropout(dropout),
            nn.Linear(dim, width),
            nn.ReLU(),
            BatchNorm(width),
            nn.Dropout(dropout),
            nn.Linear(width, num_classes),
        )

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C"]:
        """Logits."""
        return self.layers(tokens.mean(dim=1))
