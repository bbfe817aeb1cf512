"""Class-specific residual attention, in two forms: the mean over positions plus a little of what each class looks at.

B samples, T tokens (positions), D features, H heads, C classes.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from extract.heads.batch_norm import BatchNorm

MAXIMUM = 99
"""The temperature that stands for infinity, where all attention lies on the maximum."""

TEMPERATURES: dict[int, tuple[int, ...]] = {
    1: (1,),
    2: (1, MAXIMUM),
    4: (1, 2, 4, MAXIMUM),
    6: (1, 2, 3, 4, 5, MAXIMUM),
    8: (1, 2, 3, 4, 5, 6, 7, MAXIMUM),
}
"""Of each head, by the number of heads."""


class CSRA(nn.Module):
    """Residual attention with a convolution of its own for the attention, as in the CXR-LT 2026 winner's last phase.

    With A the softmax over positions n of ``attention(x)``, for each class:
    logit = mean_n(W x_n) + b + lam * (sum_n A_n W x_n + b). So the bias enters 1 + lam times. The original
    (`MultiHeadCSRA`) has no bias and no second convolution: attention and classifier are one.

    Args:
        lam: Weight of the attended features beside the mean, >= 0; 0.1 in the published model.
        batch_norm: BatchNorm over the D features of the map in front of all, as published.
    """

    def __init__(self, dim: int, num_classes: int, lam: float = 0.1, batch_norm: bool = False) -> None:
        super().__init__()
        self.lam = lam
        self.norm = BatchNorm(dim) if batch_norm else None
        self.classifier = nn.Linear(dim, num_classes)
        self.attention = nn.Linear(dim, num_classes, bias=False)
        for layer in (self.classifier, self.attention):
            nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(self.classifier.bias)

    def attend(self, tokens: Float[Tensor, "B T D"]) -> tuple[Float[Tensor, "B T C"], Float[Tensor, "B T C"]]:
        """What each position says, bias included, and how much each class looks at it (sums to 1 over T)."""
        if self.norm is not None:
            tokens = self.norm(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        return self.classifier(tokens), self.attention(tokens).softmax(dim=1)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C"]:
        """Logits."""
        values, attention = self.attend(tokens)
        return values.mean(dim=1) + self.lam * (attention * values).sum(dim=1)

    def class_maps(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C T"]:
        """What each position adds to each logit: (1 + lam T A_n) (W x_n + b); the mean over positions is the logit."""
        values, attention = self.attend(tokens)
        return ((1 + self.lam * tokens.shape[1] * attention) * values).transpose(1, 2)


class MultiHeadCSRA(nn.Module):
    """Class-specific residual attention as first published (Zhu & Wu, arXiv 2108.02456, figure 3, equation 8).

    A head scores every position by a bias-free classifier, s_n = m x_n / |m|, and adds up mean_n(s_n) and lam times the
    mean of the same scores under softmax(temperature * s), which becomes max_n(s_n) at temperature 99. The logit is
    the sum over heads. Dividing by the norm of the weights follows the authors' implementation.

    Args:
        num_heads: H, one of `TEMPERATURES`.
        lam: Weight of the attended score beside the mean, >= 0; shared by all heads.
    """

    def __init__(self, dim: int, num_classes: int, num_heads: int = 1, lam: float = 0.1) -> None:
        super().__init__()
        self.lam, self.temperatures = lam, TEMPERATURES[num_heads]
        self.weight = nn.Parameter(torch.empty(num_heads, num_classes, dim))
        nn.init.xavier_uniform_(self.weight.flatten(0, 1))

    def scores(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "H B T C"]:
        """Score of each position, by head."""
        directions = F.normalize(self.weight, dim=2)
        return F.linear(tokens, directions.flatten(0, 1)).unflatten(2, self.weight.shape[:2]).permute(2, 0, 1, 3)

    def forward(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C"]:
        """Logits."""
        logits = []
        for s, temperature in zip(self.scores(tokens), self.temperatures, strict=True):
            attended = s.amax(dim=1) if temperature == MAXIMUM else ((temperature * s).softmax(dim=1) * s).sum(dim=1)
            logits.append(s.mean(dim=1) + self.lam * attended)
        return torch.stack(logits).sum(dim=0)

    def class_maps(self, tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B C T"]:
        """What each position adds to each logit: the sum over heads of (1 + lam T A_n) s_n; its mean is the logit."""
        maps = []
        for s, temperature in zip(self.scores(tokens), self.temperatures, strict=True):
            if temperature == MAXIMUM:  # all attention on one position, the first of several equal ones
                attention = torch.zeros_like(s).scatter_(1, s.argmax(dim=1, keepdim=True), 1.0)
            else:
                attention = (temperature * s).softmax(dim=1)
            maps.append((1 + self.lam * tokens.shape[1] * attention) * s)
        return torch.stack(maps).sum(dim=0).transpose(1, 2)
