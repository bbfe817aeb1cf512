"""The fusion transformer. Groups of any numbers of views go through it at once, without padding and without a mask.

Axes: **G** groups, **V** views of each, **N** views of all groups of a pass, **H W** map size, **T** = H * W tokens per
view, **P** = N * T tokens of all groups, **D** map features, **E** features inside, **C** classes.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from data.views import VIEWS
from extract.heads import HeadConfig, build_head
from extract.heads.ml_decoder import MLDecoder
from extract.heads.packing import Buckets, unpacked
from fusion.experts import ExpertAdapter


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Fusion transformer and head."""

    kind: Literal["fusion", "published"] = "fusion"
    """published: CheXFusion's module as released, faults and all (fusion/published.py), only to compare with. It pads
    every group to four views, drops more, has no view types, and takes a batch as one forward pass."""

    width: int = 192
    """Features of a token inside the transformer (E); a multiple of 4, for the two-dimensional position code."""

    depth: int = 2
    """Self-attention layers over the tokens of all views of a group; 0: none, only the head sees all views."""

    num_heads: int = 6
    """Attention heads per layer; divides `width`."""

    feed_forward: int = 0
    """Features inside the feed-forward layers of the transformer; 0: four times `width` (published: 2048, 8/3 of it).
    """

    token_stride: Literal[1, 2, 4] = 1
    """1: every map position a token. 2: a 3x3 convolution with stride 2, as published, a quarter of the tokens.
    4: the mean of each 4x4 positions, as if the cache held pooled maps; a sixteenth of the tokens."""

    num_slots: int = 16
    """Segment embeddings; a group with more views uses them in rounds, nothing is dropped."""

    experts: int = 0
    """View-specific experts before the transformer, mixed by each view's type and content (fusion/experts.py); 0: none.
    """

    dropout: float = 0.1
    """Dropout after attention and in the feed-forward layers of the transformer."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(width=192, num_heads=6))
    """Classifier over all tokens of a group."""

    def __post_init__(self) -> None:
        if self.width % 4:
            raise ValueError(f"model.width must be a multiple of 4, got {self.width}")
        if self.width % self.num_heads:
            raise ValueError(f"model.num_heads={self.num_heads} does not divide model.width={self.width}")
        if self.num_slots < 1:
            raise ValueError(f"model.num_slots must be at least 1, got {self.num_slots}")
        for name in ("feed_forward", "experts"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} must be 0 or more, got {getattr(self, name)}")
        if self.head.mixes_samples:  # a group may be alone in its forward pass, as groups of many views often are
            raise ValueError(
                f"model.head: {self.head.kind} with BatchNorm makes a group's logits depend on the other groups; choose"
                " csra without head.batch_norm, csra_multihead, ml_decoder or linear"
            )
        found = (self.token_stride, self.head.kind, self.experts)
        if self.kind == "published" and found != (2, "ml_decoder", 0):
            raise ValueError(
                "model.kind published has model.token_stride 2, model.head.kind ml_decoder and no model.experts, got"
                f" {found[0]}, {found[1]} and {found[2]}"
            )


class FusionModel(nn.Module):
    """Every token of a group attends to every other one, then the head reads them all (after CheXFusion).

    The published module (Kim, arXiv 2308.03968) attends over the batch instead of the views, masks nothing, and its
    position code does not vary over rows. Here the tokens of all groups lie in a row, sorted into buckets of groups
    with equally many views. Layers that treat each token alike run once on the whole row; attention runs bucket by
    bucket, so it lies within a group by construction, and a group's logits cannot depend on its neighbours or on
    padding.

    A token is its map vector (normalised, projected) + where it lies (rows and columns) + the embedding of its
    view's slot + the embedding of its view's type; experts for views, where asked for, are the first layer over them.

    With torch.compile a pass is one graph, the same for all passes of as many buckets; but which buckets hold a single
    group makes a difference, for torch takes a size of 1 for a constant.

    Args:
        map_shape: (H, W, D) of the cached maps.
    """

    def __init__(self, config: ModelConfig, map_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        H, W, D = map_shape
        width, stride = config.width, config.token_stride
        self.pool = stride if stride == 4 else 1
        self.norm_in = nn.LayerNorm(D)
        self.project: nn.Module = StridedProjection(D, width) if stride == 2 else nn.Linear(D, width)
        H, W = -(-H // stride), -(-W // stride)
        self.register_buffer("position_code", position_code(H, W, width), persistent=False)
        self.slot_embedding = nn.Parameter(torch.randn(config.num_slots, width) * 0.02)
        self.view_embedding = nn.Parameter(torch.randn(len(VIEWS), width) * 0.02)
        hidden = config.feed_forward or 4 * width
        self.blocks = nn.ModuleList(Block(width, config.num_heads, hidden, config.dropout) for _ in range(config.depth))
        self.norm_out = nn.LayerNorm(width)
        self.head = build_head(config.head, width, num_classes)
        self.experts = ExpertAdapter(width, config.experts) if config.experts else None

    def forward(
        self,
        maps: Float[Tensor, "*views H W D"],
        view_types: Int[Tensor, "*views"],
        slots: Int[Tensor, "*views"],
        buckets: Buckets = (),
    ) -> Float[Tensor, "G C"]:
        """Logits of each group.

        Args:
            maps: Cached feature maps, (G, V) of them, any V >= 1; or with `buckets` N of them in a row.
            view_types: Numbers into `VIEWS`.
            slots: Numbers below `num_slots`.
            buckets: (groups, views of each) of every bucket in turn (`fusion.passes.Pass`).
        """
        buckets = buckets or [(view_types.shape[0], view_types.shape[1])]
        x = self.tokens(maps.flatten(0, -4), view_types.flatten(), slots.flatten())
        buckets = [(groups, views * x.shape[1]) for groups, views in buckets]  # from here on in tokens
        x = x.flatten(0, 1)
        for block in self.blocks:
            x = block(x, buckets)
        x = self.norm_out(x)
        if isinstance(self.head, MLDecoder):
            return self.head(x, buckets)
        return torch.cat([self.head(part) for part in unpacked(x, buckets)])

    def tokens(
        self, maps: Float[Tensor, "N H W D"], view_types: Int[Tensor, "N"], slots: Int[Tensor, "N"]
    ) -> Float[Tensor, "N T E"]:
        """The tokens of each view, before any has heard another."""
        x = self.project(self.norm_in(mean_pooled(maps, self.pool))) + self.position_code  # (N, h, w, E)
        of_view = self.slot_embedding[slots] + self.view_embedding[view_types]  # (N, E)
        x = (x + of_view[:, None, None]).flatten(1, 2)
        return x if self.experts is None else self.experts(x, view_types)


def mean_pooled(maps: Float[Tensor, "N H W D"], size: int) -> Float[Tensor, "N h w D"]:
    """Means of `size` x `size` neighbours; the last row and column of sizes that do not divide are means of fewer.

    Before the norm and the projection, which are then done for the means alone.
    """
    if size == 1:
        return maps
    return F.avg_pool2d(maps.permute(0, 3, 1, 2), size, ceil_mode=True).permute(0, 2, 3, 1)


class StridedProjection(nn.Module):
    """3x3 convolution with stride 2 over channels-last maps."""

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, width, 3, stride=2, padding=1)

    def forward(self, maps: Float[Tensor, "N H W D"]) -> Float[Tensor, "N h w E"]:
        """A quarter of the positions."""
        return self.conv(maps.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Pre-norm transformer layer: self-attention over the tokens of a group, then a feed-forward network.

    Args:
        hidden: Features inside the feed-forward network.
    """

    def __init__(self, width: int, num_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_attention, self.norm_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "P E"], buckets: Buckets) -> Float[Tensor, "P E"]:
        """The tokens of all groups in, as many out."""
        x = x + self.drop(self.attend(self.norm_attention(x), buckets))
        return x + self.drop(self.feed_forward(self.norm_feed_forward(x)))

    def attend(self, x: Float[Tensor, "P E"], buckets: Buckets) -> Float[Tensor, "P E"]:
        """Multi-head self-attention within each group.

        Without dropout on the weights: torch's fused CPU kernel, whose memory grows linearly with tokens, has none.
        """
        attended = []
        for part in unpacked(self.query_key_value(x), buckets):
            q, k, v = part.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            heads = F.scaled_dot_product_attention(q, k, v)
            attended.append(heads.transpose(1, 2).flatten(2).flatten(0, 1))
        return self.out(torch.cat(attended))


def position_code(height: int, width: int, dim: int) -> Float[Tensor, "height width dim"]:
    """Sines and cosines of row (first half of the features) and column (second half).

    The frequencies are those of Vaswani et al. (arXiv 1706.03762, section 3.5), each half over its own coordinate.
    """
    frequencies = torch.exp(torch.arange(dim // 4) * (-4 / dim * torch.log(torch.tensor(10000.0))))
    rows, columns = (torch.arange(n)[:, None] * frequencies for n in (height, width))
    row_code = torch.cat([rows.sin(), rows.cos()], dim=1)[:, None].expand(-1, width, -1)
    column_code = torch.cat([columns.sin(), columns.cos()], dim=1)[None].expand(height, -1, -1)
    return torch.cat([row_code, column_code], dim=2)
