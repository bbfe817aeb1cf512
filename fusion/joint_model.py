"""Backbone and fusion model as one, of which the last stages learn.

N images of a forward pass (all views of its groups), G groups, C classes.
"""

import torch
from jaxtyping import Float, Int
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import InputError
from extract.backbone import Backbone
from extract.heads.packing import Buckets
from fusion.model import FusionModel


class JointModel(nn.Module):
    """Backbone and fusion model as one: images in, a group's logits out.

    BatchNorm stays on its running statistics: forward passes are small here, and a group's logits must not depend on
    the groups beside it. So gradients of parts of a batch add up exactly, over forward passes and processes.

    Args:
        pool: 2 averages 2 x 2 positions of the map, as the cache did.
        unfreeze: How many of the backbone's last stages learn; the rest keeps weights and behaviour of evaluation.

    Raises:
        InputError: the backbone has fewer stages.
    """

    def __init__(self, backbone: Backbone, fusion: FusionModel, pool: int, unfreeze: int | str) -> None:
        super().__init__()
        self.backbone, self.fusion, self.pool = backbone, fusion, pool
        freeze_stages(backbone.model, unfreeze)
        norms = [part for part in backbone.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        self.kept_still = [*frozen_parts(backbone.model), *norms]

    def forward(
        self,
        images: Float[Tensor, "N c h w"],
        view_types: Int[Tensor, "N"],
        slots: Int[Tensor, "N"],
        buckets: Buckets,
    ) -> Float[Tensor, "G C"]:
        """Logits of each group; its images lie side by side, as in a `fusion.passes.Pass`."""
        maps = live_maps(self.backbone, images, self.pool, self.fusion.slot_embedding.dtype)
        return self.fusion(maps, view_types, slots, buckets)

    def train(self, mode: bool = True) -> "JointModel":
        """Training mode, or evaluation mode; frozen stages and BatchNorm stay in the latter."""
        super().train(mode)
        for part in self.kept_still:
            part.eval()
        return self


def live_maps(
    backbone: Backbone, images: Float[Tensor, "N c h w"], pool: int, dtype: torch.dtype
) -> Float[Tensor, "N H W D"]:
    """Maps as a fusion model takes them, of the shape that the cache has, but stored in none of its forms."""
    maps = backbone(images).to(dtype)
    return F.avg_pool2d(maps.permute(0, 3, 1, 2), 2, ceil_mode=True).permute(0, 2, 3, 1) if pool == 2 else maps


def stages_of(model: nn.Module) -> list[list[str]]:
    """Names of a timm model's weights, stage by stage, the stem first; a final norm belongs to the last stage."""
    stages = list(group_parameters(model, model.group_matcher(coarse=True)).values())  # ty: ignore[not-callable]
    weights = dict(model.named_parameters())
    if len(stages) > 1 and all(weights[name].ndim < 2 for name in stages[-1]):
        stages[-2:] = [stages[-2] + stages[-1]]
    return stages


def freeze_stages(model: nn.Module, unfreeze: int | str) -> None:
    """Let the last `unfreeze` stages of a timm model learn, and nothing else."""
    stages = stages_of(model)
    count = len(stages) if unfreeze == "all" else int(unfreeze)
    if count > len(stages):
        raise InputError(f"joint.unfreeze: this backbone has {len(stages)} stages, its stem counted, found {count}")
    learns = {name for stage in stages[len(stages) - count :] for name in stage}
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in learns)


def frozen_parts(model: nn.Module) -> list[nn.Module]:
    """Parts in which nothing learns, and what has no weights beside them (a vision transformer's first dropout)."""
    weights = {part: list(part.parameters()) for part in model.modules()}
    frozen = [part for part, own in weights.items() if own and not any(weight.requires_grad for weight in own)]
    return [*frozen, *(part for part in model.children() if not weights[part])] if frozen else []
