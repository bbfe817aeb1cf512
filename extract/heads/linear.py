"""Mean pooling and a linear layer. B samples, T tokens, D features, C classes."""

from jaxtyping import Float
from torch import Tensor, nn


class LinearHead(nn.Module):
    """The plain classifier: the mean token, dropout, one linear layer."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C"]:
        """Logits."""
        return self.classifier(self.dropout(tokens.mean(dim=1)))

    def class_maps(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C T"]:
        """What each position adds to each logit, W x_n + b; the mean over positions is the logit without dropout."""
        return self.classifier(tokens).transpose(1, 2)
