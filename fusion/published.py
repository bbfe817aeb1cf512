"""CheXFusion's fusion module wired as in its release, for comparison only: it is not what the paper describes.

What it does, and the paper does not say (Kim, arXiv 2308.03968, beside the released code):

- absent views, up to four, are a learned vector at all positions, and nothing masks them;
- self-attention runs over the groups of a batch, position by position: a group's logits depend on its neighbours (in
  a prediction those of its batch, on several processes those of its process), and its views never hear each other
  before the decoder;
- the position code varies over features and columns, not over rows;
- more than four views: four of them.

Two accidents of the release that would keep it from training without mixed precision are left out: the padding vector
shares its memory with all absent tokens, and the decoder fails on today's torch.

Axes: **G** groups, **V** views (always four), **H W** map size, **h w** half of it, **D** map features, **E** features
inside, **N** = V * h * w tokens of a group, **C** classes.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from extract.heads.ml_decoder import MLDecoder
from fusion.model import FusionModel, ModelConfig, StridedProjection

MAX_VIEWS = 4


def build_model(config: ModelConfig, map_shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """The module that a configuration asks for: ours, or this one."""
    return (PublishedFusion if config.kind == "published" else FusionModel)(config, map_shape, num_classes)


class PublishedFusion(nn.Module):
    """The released module behind the backbone; 22,487,066 parameters at the published sizes and 26 classes.

    Takes what `FusionModel` takes, so that the same training serves both; all groups of a batch belong in one call.

    Args:
        config: Of kind published; uses width, depth, num_heads, dropout and the head's.
        map_shape: (H, W, D) of the cached maps.
    """

    def __init__(self, config: ModelConfig, map_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        (H, W, D), width, head = map_shape, config.width, config.head
        hidden = 8 * width // 3  # torch's default of 2048 at the published width
        self.project = StridedProjection(D, width)
        code = rowless_code(-(-H // 2), -(-W // 2), width)
        self.register_buffer("position_code", code, persistent=False)
        self.padding = nn.Parameter(torch.randn(width))
        self.segment_embedding = nn.Parameter(torch.randn(MAX_VIEWS, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, config.num_heads, hidden, config.dropout) for _ in range(config.depth)
        )
        self.head = MLDecoder(width, num_classes, width=head.width, num_heads=head.num_heads, dropout=head.dropout)

    def forward(
        self,
        maps: Float[Tensor, "G V H W D"],
        view_types: Int[Tensor, "G V"],
        slots: Int[Tensor, "G V"],
    ) -> Float[Tensor, "G C"]:
        """Logits of each group.

        Args:
            maps: Cached feature maps; those of absent views are not looked at.
            view_types: Not used; the release has none.
            slots: 0 to 3, and -1 for an absent view.
        """
        x = self.tokens(maps, slots)
        for block in self.blocks:
            x = block(x)  # not batch_first: attention over G, as released
        return self.head(x)

    def tokens(self, maps: Float[Tensor, "G V H W D"], slots: Int[Tensor, "G V"]) -> Float[Tensor, "G N E"]:
        """Convolved maps with position code, padding vectors for absent views, segment embeddings for all."""
        if maps.is_meta:  # shapes alone, for a count of FLOPs: no slot has a value
            x = self.project(maps) + self.position_code
        else:
            present = slots >= 0
            real = self.project(maps[present][None])[0] + self.position_code  # (views present, h, w, E)
            x = self.padding.to(real.dtype).expand(*slots.shape, *real.shape[1:]).clone()
            x[present] = real
        return (x + self.segment_embedding[:, None, None]).flatten(1, 3)


def rowless_code(height: int, width: int, dim: int) -> Float[Tensor, "height width dim"]:
    """The position code as released: made for channels last and given channels first.

    What should be the row is the feature's number, what should be the feature is the column: column 2j holds the sine
    and column 2j + 1 the cosine of (feature / 10000^(4j / dim)), in every row.
    """
    features, columns = torch.arange(dim), torch.arange(width)
    angle = features * 10000.0 ** (-4 * (columns // 2)[:, None] / dim)
    return torch.where(columns[:, None] % 2 == 0, angle.sin(), angle.cos()).expand(height, -1, -1)
