"""Mean pooling and a linear layer. B samples, T tokens, D features, C classes."""

from jaxtyping import Float
from torch import Tensor, nn

from extract.heads.batch_norm import BatchNorm


class LinearHead(nn.Module):
    """The plain classifier: the mean token, BatchNorm where asked for (as in EfficientViT-M), dropout, a layer."""

    def __init__(self, dim: int, num_classes: int, dropout: float = 0.0, batch_norm: bool = False) -> None:
        super().__init__()
        self.norm = BatchNorm(dim) if batch_norm else None
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C"]:
        """Logits."""
        mean = tokens.mean(dim=1)
        return self.classifier(self.dropout(mean if self.norm is None else self.norm(mean)))

    def class_maps(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C T"]:
        """What each position adds to each logit, W x_n + b; the mean over positions is the logit in evaluation mode."""
        if self.norm is not None:
            tokens = self.norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return self.classifier(tokens).transpose(1, 2)
