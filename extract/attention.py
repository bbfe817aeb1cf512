"""Attention blocks between the stages of a convolutional backbone. B images, D features, H W size of a map.

A timm model keeps its own forward pass: a stage and the block behind it become one ``nn.Sequential`` in the stage's
place. (A forward hook would not do: the copy that averages weights would go on calling the original's block.)
"""

from typing import Any, Literal

from jaxtyping import Float
from timm.models.densenet import DenseNet
from timm.models.vgg import VGG
from torch import Tensor, nn

from data.errors import InputError

Placement = Literal["none", "lka_full", "lka_last_three", "lka_last_two", "lka_after"]
LAST = {"lka_last_three": 3, "lka_last_two": 2}


class LKA(nn.Module):
    """Large-kernel attention (Guo et al., arXiv 2202.09741): each feature is multiplied by a gate.

    The gate is a depthwise 5 x 5, a depthwise 7 x 7 with dilation 3 and a 1 x 1 convolution of the map, all with bias:
    23 x 23 positions for D^2 + 77 D weights. It is neither squashed nor kept positive, so a new block does not begin as
    the identity.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw_conv1 = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.dw_conv2 = nn.Conv2d(dim, dim, 7, padding=9, dilation=3, groups=dim)
        self.pw_conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The gated map."""
        return x * self.pw_conv(self.dw_conv2(self.dw_conv1(x)))


def add_attention(model: Any, placement: Placement) -> nn.Module:
    """Put blocks between the stages of a timm model, whose own weights keep their values (their names get a ``.0``).

    Args:
        placement: Behind which stages: each one (full), the three or two deepest, or one block behind the whole model,
            its final norm and pooling included (after).

    Returns:
        What belongs behind the model: a block (after), or nothing to do.

    Raises:
        InputError: the model has no stages of (B, D, H, W) maps, as vision transformers and Swin.
    """
    if placement == "none":
        return nn.Identity()
    stages = stage_names(model)
    if not stages:
        name = type(model).__name__
        raise InputError(f"backbone.attention: {name} has no convolutional stages; take a model such as densenet121")
    if placement == "lka_after":
        return LKA(int(model.num_features))
    for name, dim in stages[-LAST.get(placement, len(stages)) :]:
        model.set_submodule(name, nn.Sequential(model.get_submodule(name), LKA(dim)))
    return nn.Identity()


def stage_names(model: Any) -> list[tuple[str, int]]:
    """Module name and number of features of each stage's end, where timm's ``feature_info`` puts it; but

    - DenseNet: the dense blocks themselves, before their transitions; the last one before the final norm;
    - VGG: the five blocks before their pooling, at stride 1 too; elsewhere stages begin at stride 4, behind the stem.

    None for models whose maps are not (B, D, H, W).
    """
    if getattr(model, "output_fmt", "NCHW") != "NCHW" or getattr(model, "pos_embed", None) is not None:
        return []
    info = getattr(model, "feature_info", [])
    ends = [(each["module"], each["num_chs"], each["reduction"]) for each in getattr(info, "info", info)]
    if isinstance(model, VGG):
        ends = [(name, dim, 4) for name, dim, _ in ends[:-1]]
    if isinstance(model, DenseNet):
        ends[-1] = (f"features.denseblock{len(ends) - 1}", *ends[-1][1:])
    return [(name, dim) for name, dim, stride in ends if stride >= 4]
