"""Medical X-ray attention (MXA) beside the attention of EfficientViT-M, in every block (arXiv 2504.02277, section 4).

One region of interest per image is cropped from the map, stretched to the map's size, and passed through channel and
spatial attention (CBAM, arXiv 1807.06521); the result is added to what attention gives for the same input.

Four things differ from the published code. Its box goes through ``int()``, so that no gradient reaches the predictor,
97 % of MXA's weights: here the crop is differentiable in the box. Its four outputs are the corners themselves, which
coincide at the start, so that nearly all boxes are empty and the whole map is taken: here they are position and size,
and every box has an inside. It attends twice in each block and doubles the skip: here once, x + attention + MXA. And
its MXA reads what enters the block: here it reads what attention reads. The numbers of weights are the published ones.

B images, D features, H W size of the map.
"""

import torch
from jaxtyping import Float
from timm.models.efficientvit_msra import EfficientVitBlock
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import InputError

REDUCTION = 16
"""Features of the map over those inside the channel attention."""


class ROIPredictor(nn.Module):
    """A box per image: two convolutions, a sigmoid, the mean over positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(dim, dim // 2, 3, padding=1, bias=False), nn.ReLU(), nn.Conv2d(dim // 2, 4, 1)
        )

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B 4"]:
        """Left, top, right, bottom as shares of the map, in [0, 1]; each side at least one cell long.

        The first two numbers place the box in the room that its size, the last two, leaves: any box inside the map can
        be had, and no other. Numbers near one half, as at the start, are the middle half of each side.
        """
        numbers = self.layers(x)
        numbers = numbers if numbers.dtype == torch.float64 else numbers.float()  # bf16 knows three digits of a place
        across, down, width, height = numbers.sigmoid().mean(dim=(2, 3)).unbind(dim=1)
        cell_height, cell_width = 1 / x.shape[2], 1 / x.shape[3]
        width = cell_width + (1 - cell_width) * width
        height = cell_height + (1 - cell_height) * height
        left, top = across * (1 - width), down * (1 - height)
        return torch.stack([left, top, left + width, top + height], dim=1)


def crop(x: Float[Tensor, "B D H W"], boxes: Float[Tensor, "B 4"]) -> Float[Tensor, "B D H W"]:
    """The inside of each image's box, stretched to the size of the map, bilinear; differentiable in both.

    Output cell j samples the middle of the j-th of W equal parts of the box, as ROI-align (arXiv 1703.06870) does with
    one sample per bin, which has no gradient for the box.

    Args:
        boxes: Left, top, right, bottom as shares of the map, in [0, 1].
    """
    B, _, H, W = x.shape
    left, top, right, bottom = (side[:, None] for side in boxes.unbind(dim=1))
    across, down = ((torch.arange(n, device=x.device, dtype=boxes.dtype) + 0.5) / n for n in (W, H))
    columns = (left + across * (right - left))[:, None, :].expand(B, H, W)
    rows = (top + down * (bottom - top))[:, :, None].expand(B, H, W)
    grid = 2 * torch.stack([columns, rows], dim=-1) - 1
    return F.grid_sample(x.to(grid.dtype), grid, "bilinear", "border", align_corners=False).to(x.dtype)


class CBAM(nn.Module):
    """Channel attention, then spatial attention (eqs. of section 4.2), each a gate between 0 and 1."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.channels = nn.Sequential(
            nn.Linear(dim, dim // REDUCTION, bias=False), nn.ReLU(), nn.Linear(dim // REDUCTION, dim, bias=False)
        )
        self.places = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """The map, with less of what the gates close."""
        gate = (self.channels(x.mean(dim=(2, 3))) + self.channels(x.amax(dim=(2, 3)))).sigmoid()
        x = x * gate[:, :, None, None]
        planes = torch.cat([x.amax(dim=1, keepdim=True), x.mean(dim=1, keepdim=True)], dim=1)
        return x * self.places(planes).sigmoid()


class MXA(nn.Module):
    """Medical X-ray attention: the region of interest of a map, gated."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.roi_predictor = ROIPredictor(dim)
        self.cbam = CBAM(dim)

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """A map of the same size."""
        return self.cbam(crop(x, self.roi_predictor(x)))


class AttentionWithMXA(nn.Module):
    """Attention and MXA of the same input, added up; timm's block adds the one skip."""

    def __init__(self, attention: nn.Module, dim: int) -> None:
        super().__init__()
        self.attention = attention
        self.mxa = MXA(dim)

    def forward(self, x: Float[Tensor, "B D H W"]) -> Float[Tensor, "B D H W"]:
        """A map of the same size."""
        return self.attention(x) + self.mxa(x)


def add_mxa(model: nn.Module, name: str) -> None:
    """Put MXA beside the attention of every block of a timm EfficientViT-M, whose own weights stay as they are.

    Args:
        name: Of the model, for the error.

    Raises:
        InputError: another kind of model.
    """
    blocks = [part for part in model.modules() if isinstance(part, EfficientVitBlock)]
    if not blocks:
        raise InputError(f"backbone.mxa: {name!r} has no EfficientViT blocks; take efficientvit_m0 to efficientvit_m5")
    for block in blocks:
        attention = block.mixer.get_submodule("m")
        block.mixer.m = AttentionWithMXA(attention, int(attention.dim))  # ty: ignore[invalid-argument-type]


def roi_boxes(model: nn.Module, images: Float[Tensor, "B c h w"]) -> dict[str, Float[Tensor, "B 4"]]:
    """The box that each MXA of a model takes from each image, by the module's name, in the order of the forward pass.

    The model is put into evaluation mode, as it was after training.
    """
    boxes: dict[str, Tensor] = {}

    def note(module_name: str, predictor: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return predictor.register_forward_hook(lambda _, __, found: boxes.update({module_name: found.cpu()}))

    named = [(name, part) for name, part in model.named_modules() if isinstance(part, ROIPredictor)]
    hooks = [note(name.removesuffix(".roi_predictor"), part) for name, part in named]
    try:
        with torch.inference_mode():
            model.eval()(images)
    finally:
        for hook in hooks:
            hook.remove()
    return boxes
