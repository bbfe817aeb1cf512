"""Classifiers over the tokens of a feature map; both stages use them. B samples, T tokens, D features, C classes.

Tokens are a set to all of them: they ask neither for the rows and columns of a map nor for the number of views. CSRA,
in both forms, and the linear head also have ``class_maps(tokens)``, (B, C, T), whose mean over tokens is the logit.
"""

from dataclasses import dataclass
from typing import Literal

from torch import nn

from extract.heads.csra import CSRA, TEMPERATURES, MultiHeadCSRA
from extract.heads.linear import LinearHead
from extract.heads.ml_decoder import MLDecoder
from extract.heads.mlp import MLPHead


@dataclass(frozen=True, kw_only=True)
class HeadConfig:
    """Classifier over the tokens."""

    kind: Literal["ml_decoder", "csra", "csra_multihead", "mlp", "linear"] = "ml_decoder"
    """ml_decoder: one query per class, cross-attention. csra: mean pooling and class-specific attention of the CXR-LT
    2026 winner; csra_multihead: as first published (arXiv 2108.02456). mlp: mean pooling and two layers with BatchNorm.
    linear: mean pooling and one layer."""

    width: int = 768
    """Features inside the ML-Decoder (published: 768), or of the hidden layer of mlp (published: 512)."""

    num_heads: int = 8
    """Attention heads: of the ML-Decoder, where they divide `width`; of csra_multihead 1, 2, 4, 6 or 8, each with its
    own temperature."""

    dropout: float = 0.1
    """Dropout inside ml_decoder and mlp (published: 0.1 and 0.3), or before the layer of linear; CSRA has none."""

    lam: float = 0.1
    """Weight of the attended features beside the mean of all (csra, csra_multihead); 0.1 to 0.4 as published."""

    batch_norm: bool = False
    """BatchNorm over the features: of the map in front of csra, as the CXR-LT 2026 winner has it; of the mean in front
    of linear, as EfficientViT-M has it."""

    def __post_init__(self) -> None:
        if min(self.width, self.num_heads) < 1:
            raise ValueError(f"head.width and head.num_heads must be at least 1, got {self.width} and {self.num_heads}")
        if self.kind == "ml_decoder" and self.width % self.num_heads:
            raise ValueError(f"head.num_heads must divide head.width, got {self.num_heads} and {self.width}")
        if self.kind == "csra_multihead" and self.num_heads not in TEMPERATURES:
            raise ValueError(f"head.num_heads must be one of {[*TEMPERATURES]} (csra_multihead), got {self.num_heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"head.dropout must be in [0, 1), got {self.dropout}")
        if self.lam < 0:
            raise ValueError(f"head.lam must not be negative, got {self.lam}")
        if self.batch_norm and self.kind not in ("csra", "linear"):
            raise ValueError(f"head.batch_norm belongs to head.kind csra or linear; {self.kind} has no use for it")

    @property
    def mixes_samples(self) -> bool:
        """Whether a sample's logits depend on the others of its forward pass in training, as BatchNorm's do."""
        return self.batch_norm or self.kind == "mlp"


def build_head(config: HeadConfig, dim: int, num_classes: int) -> nn.Module:
    """The configured head over tokens of `dim` features."""
    if config.kind == "linear":
        return LinearHead(dim, num_classes, config.dropout, config.batch_norm)
    if config.kind == "mlp":
        return MLPHead(dim, num_classes, config.width, config.dropout)
    if config.kind == "csra":
        return CSRA(dim, num_classes, config.lam, config.batch_norm)
    if config.kind == "csra_multihead":
        return MultiHeadCSRA(dim, num_classes, config.num_heads, config.lam)
    return MLDecoder(dim, num_classes, width=config.width, num_heads=config.num_heads, dropout=config.dropout)
