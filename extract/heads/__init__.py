"""Classifiers over the tokens of a feature map; both stages use them. B samples, T tokens, D features, C classes."""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from extract.heads.linear import LinearHead
from extract.heads.ml_decoder import MLDecoder


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Classifier over the tokens."""

    kind: Literal["ml_decoder", "linear"] = "ml_decoder"
    """ML-Decoder (one query per class, cross-attention) or mean pooling and a linear layer."""

    width: int = 768
    """Features inside the ML-Decoder."""

    num_heads: int = 8
    """Attention heads of the ML-Decoder; divides `width`."""

    dropout: float = 0.1
    """Dropout inside the ML-Decoder, or before the linear layer."""

    def __post_init__(self) -> None:
        if min(self.width, self.num_heads) < 1 or self.width % self.num_heads:
            raise ValueError(f"head.num_heads must divide head.width, got {self.num_heads} and {self.width}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"head.dropout must be in [0, 1), got {self.dropout}")


def build_head(config: HeadConfig, dim: int, num_classes: int) -> nn.Module:
    """The configured head over tokens of `dim` features."""
    if config.kind == "linear":
        return LinearHead(dim, num_classes, config.dropout)
    return MLDecoder(dim, num_classes, width=config.width, num_heads=config.num_heads, dropout=config.dropout)
