"""Any timm backbone as one thing: images in, feature maps out. B images, D features, H W size of the map."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from timm.models.vgg import VGG
from torch import Tensor, nn

from data.errors import InputError
from extract.attention import Placement, add_attention
from extract.checkpoint import load_tensors, load_weights
from extract.dinov2 import is_hugging_face
from extract.heads import HeadConfig, build_head
from extract.mxa import add_mxa
from extract.phases import backbone_weights

Argument = bool | int | float | str | list[int] | list[float] | list[str] | None
"""Plain values only: for `Any`, jsonargparse makes an object of whatever class a configuration file names."""
TIMM_NAME = re.compile(r"[A-Za-z0-9_.]+")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """timm model that turns an image into a feature map."""

    name: str = "resnet18"
    """timm model name."""

    pretrained: bool | Path = False
    """False: random weights. True: timm's own, from the hub. A .safetensors file of this timm model. A folder: the
    stage_one/ of a former phase or its best/, whose backbone is taken and whose head is not."""

    arguments: dict[str, Argument] = field(default_factory=dict)
    """Further arguments of `timm.create_model`, such as drop_path_rate or img_size."""

    attention: Placement = "none"
    """Large-kernel attention (arXiv 2202.09741) in a convolutional model: behind every stage (full), the last
    three, the last two, or one block behind the whole model (after)."""
    mxa: bool = False
    """Medical X-ray attention (arXiv 2504.02277) beside the attention of every block; efficientvit_m0 to m5 only."""
    class_layers: int = 0
    """Of a vision transformer: the class tokens of its last n layers, after the final norm, stand beside the features
    of every position, so that a map has (n + 1) D features. A linear head, which takes the mean over positions, is then
    DINOv2's classifier over class tokens and mean patch token. 0: patches only."""

    def __post_init__(self) -> None:
        if self.class_layers < 0:
            raise ValueError(f"backbone.class_layers must not be negative, got {self.class_layers}")


def create_timm_model(config: BackboneConfig, channels: int) -> Any:
    """A timm model without classifier and pooling.

    Raises:
        InputError: no such model, arguments that it does not take, or weights that are not this model's. timm itself
            keeps silent about weights that a file does not have, and leaves them random.
    """
    if not TIMM_NAME.fullmatch(config.name):  # "hf-hub:" and "local-dir:" read what is elsewhere
        raise InputError(
            f"backbone.name: wanted a name of timm's own models, found {config.name!r}; download other weights"
            " of such a model and name their .safetensors file in backbone.pretrained"
        )
    if "checkpoint_path" in config.arguments:  # timm would open any kind of file
        raise InputError("backbone.arguments: no checkpoint_path; name a .safetensors file in backbone.pretrained")
    fixed: dict[str, Any] = {"num_classes": 0, "global_pool": "", "in_chans": channels}
    keys: set[str] | None = None
    if isinstance(config.pretrained, Path) and not config.pretrained.is_dir():
        if config.pretrained.suffix != ".safetensors" or not config.pretrained.is_file():
            raise InputError(f"backbone.pretrained: {config.pretrained} is not a .safetensors file or a model folder")
        keys = set(load_tensors(config.pretrained))
        if is_hugging_face(keys):
            raise InputError(
                f"backbone.pretrained: {config.pretrained} has Hugging Face's names of weights; convert it once:"
                f" python scripts/import_weights.py --weights {config.pretrained} --out FILE.safetensors"
            )
        fixed["pretrained_cfg_overlay"] = {"file": str(config.pretrained)}
    try:
        from_timm = config.pretrained is True or keys is not None
        model = timm.create_model(config.name, pretrained=from_timm, **fixed, **config.arguments)
    except (RuntimeError, TypeError) as error:
        file = f"{config.pretrained} as " if keys is not None else ""
        raise InputError(f"{file}backbone {config.name!r}: {' '.join(str(error).split())[:300]}") from None
    if isinstance(model, VGG):
        model.pre_logits = nn.Identity()  # its fully connected layers, which would shrink the map to one position
    missing = [key for key in model.state_dict() if keys is not None and key not in keys]
    if missing:
        raise InputError(f"{config.pretrained}: no weight {missing[0]!r}, so not a file of {config.name}")
    return model


class Backbone(nn.Module):
    """A timm model without its classifier, with its own final norm, as a map of tokens.

    The map comes from timm's ``forward`` with ``num_classes=0, global_pool=""``, which applies a model's final norm
    (``forward_features`` leaves it out for ConvNeXt: the map's standard deviation is then 0.79 instead of 1.00).
    Vision transformers' patches are laid out as a map. Their register tokens take part in the forward pass and are
    left out of the map; so are their class tokens, but for those that `BackboneConfig.class_layers` puts beside the
    patches: features 0 to D - 1 are the patch's, then follow the class tokens, the last layer's last.

    Raises:
        InputError: class tokens of a model that has none, or of more layers than it has.
    """

    def __init__(self, config: BackboneConfig, channels: int) -> None:
        super().__init__()
        self.model = create_timm_model(config, channels)
        self.class_layers = config.class_layers
        if config.class_layers:
            check_class_layers(config, self.model)
        self.dim = int(self.model.num_features) * (1 + config.class_layers)
        self.num_prefix_tokens = int(getattr(self.model, "num_prefix_tokens", 0))
        self.after = add_attention(self.model, config.attention)  # after timm's weights, which do not know it
        if config.mxa:  # after timm's weights, which know nothing of it
            add_mxa(self.model, config.name)
        if isinstance(config.pretrained, Path) and config.pretrained.is_dir():
            load_weights(self, backbone_weights(config.pretrained), str(config.pretrained))

    def forward(self, images: Float[Tensor, "B c h w"]) -> Float[Tensor, "B H W D"]:
        """Feature maps, channels last."""
        if self.class_layers:
            return self.beside_class_tokens(images)
        x = self.after(self.model(images))
        if x.ndim == 3:  # tokens of a vision transformer
            return square(x[:, self.num_prefix_tokens :])
        return x if x.shape[-1] == self.dim else x.permute(0, 2, 3, 1)

    def beside_class_tokens(self, images: Float[Tensor, "B c h w"]) -> Float[Tensor, "B H W D"]:
        """Patches of the last layer with the class tokens of the last `class_layers` beside each of them."""
        layers = self.model.forward_intermediates(
            images,
            indices=self.class_layers,
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        patches = square(layers[-1][0])
        class_tokens = torch.cat([prefix[:, 0] for _, prefix in layers], dim=-1)
        return torch.cat([patches, class_tokens[:, None, None].expand(*patches.shape[:3], -1)], dim=-1)


def check_class_layers(config: BackboneConfig, model: Any) -> None:
    """Check that a timm model has the class tokens that `BackboneConfig.class_layers` asks for.

    Raises:
        InputError: it has none, or fewer layers.
    """
    if getattr(model, "cls_token", None) is None or not hasattr(model, "forward_intermediates"):
        raise InputError(f"backbone.class_layers: {config.name} has no class token; set it to 0")
    if config.class_layers > len(model.blocks):
        raise InputError(
            f"backbone.class_layers: {config.name} has {len(model.blocks)} layers, found {config.class_layers}"
        )


def square(tokens: Float[Tensor, "B T D"]) -> Float[Tensor, "B H W D"]:
    """Patch tokens as a map, row by row."""
    return tokens.unflatten(1, (round(tokens.shape[1] ** 0.5), -1))


class ImageClassifier(nn.Module):
    """Stage one's model: a backbone and a head over its map, one image at a time.

    While `backbone_frozen`, training reaches the head alone: the backbone runs without gradients and in evaluation
    mode, BatchNorm on its running statistics and without drop-path. Its maps are then those that evaluation and the
    cache will see, and its weights and statistics stay as they are, to the bit.
    """

    backbone_frozen: bool = False

    def __init__(self, backbone: BackboneConfig, head: HeadConfig, channels: int, num_classes: int) -> None:
        super().__init__()
        self.backbone = Backbone(backbone, channels)
        self.head = build_head(head, self.backbone.dim, num_classes)

    def forward(self, images: Float[Tensor, "B c h w"]) -> Float[Tensor, "B C"]:
        """Logits."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.backbone_frozen):
            maps = self.backbone(images)
        return self.head(maps.flatten(1, 2))

    def train(self, mode: bool = True) -> "ImageClassifier":
        """Training mode, or evaluation mode; a frozen backbone stays in the latter."""
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        return self


def map_shape(backbone: Backbone, channels: int, size: int) -> tuple[int, int, int]:
    """(H, W, D) of the map of a `size` x `size` image."""
    was_training = backbone.training
    device = next(backbone.parameters()).device
    with torch.inference_mode():
        H, W, D = backbone.eval()(torch.zeros(1, channels, size, size, device=device)).shape[1:]
    backbone.train(was_training)
    return H, W, D
