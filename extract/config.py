"""Every choice of stage one."""

from dataclasses import dataclass, field, replace
from typing import Literal

from data.shards import PLAIN
from data.storage import Storage
from data.transforms import Augmentation, Preprocessing
from extract.backbone import BackboneConfig
from extract.heads import HeadConfig
from extract.losses import LossConfig
from extract.losses.distillation import DistillationConfig
from extract.options import OptimizerConfig, TrainingConfig
from extract.phases import TrainOn

FLIP = "flip"


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Feature shards."""

    dtype: Storage = "float16"
    """float16: 2 bytes a value, rounded by 0.02 %. uint8: 0.51 of these bytes (0.55 for 7 x 7 maps), an affine code for
    each image and channel, off by 0.2 to 0.3 % RMS for a trained ResNet and 0.5 to 0.7 % for normal random values."""

    pool: Literal[1, 2] = 1
    """2 averages 2 x 2 neighbours: a quarter of the bytes and of stage two's tokens, at half the resolution."""

    flip: bool = False
    """Cache the mirrored image's map too, for training with flips: one more map and forward pass per image."""

    augmented: int = 0
    """Maps of K randomly augmented versions per image (`augmentation`), fixed once and for all, for a cache freezes
    augmentation: K more maps and forward passes per image."""

    shard_megabytes: int = 256
    """Size of a shard, at most; whole images only."""

    batch_size: int = 64
    """Images per forward pass and process while caching. Three batches of images (1 MB each at 512 pixels) and maps are
    in memory at a time."""

    def __post_init__(self) -> None:
        if min(self.shard_megabytes, self.batch_size) < 1:
            raise ValueError("cache.shard_megabytes and cache.batch_size must be at least 1")
        if self.augmented < 0:
            raise ValueError(f"cache.augmented must not be negative, got {self.augmented}")

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of an image's maps, in the order in which a shard holds them."""
        return (PLAIN, *([FLIP] if self.flip else []), *(f"augmented_{k + 1}" for k in range(self.augmented)))


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(TrainingConfig):
    """Stage one: train a backbone on single images, then cache the feature maps of all images as WebDataset shards.

    Without --config it reads extract/configs/demo.yaml: the chest phantom, made on the spot, into runs/demo.
    """

    micro_batch_size: int = 0
    """Largest number of images per forward pass and process, to bound memory; 0: no limit. Gradients add up exactly."""

    channels_last: bool = False
    """Keep images and convolutions channels last in memory; faster on GPUs for DenseNet and ResNet, nothing on CPU."""

    train_on: TrainOn = "all"
    """all: every image of the train and val splits. abnormal: those with a positive label other than "No Finding" or
    "Normal", as the first of two phases (docs/training.md); all images are cached either way."""

    layer_decay: float = 1.0
    """Factor on the learning rate per layer of the backbone, counted from its end; 0.6 to 0.9 for fine-tuning a
    pretrained one, 1 for the same rate everywhere. The head always has the full rate."""

    backbone_lr: float = 1.0
    """Factor on the learning rate of the whole backbone, on top of `layer_decay`; 0.1 as in the CXR-LT 2026 recipes."""

    freeze_backbone_epochs: int = 0
    """Epochs at the beginning in which the head alone learns, so that a new head does not disturb a trained backbone;
    all of them: a linear probe."""

    freeze_lr: float = 1e-3
    """Constant learning rate of the head in these epochs; `optimizer` and its schedule begin after them."""

    num_workers: int = 2
    """Image-decoding workers per process (threads while caching, where 0 means one); 0 decodes in the training process.
    Changes no result."""

    max_rejected: float = 0.01
    """Share of unreadable images above which the run stops; fewer are listed in rejected.csv and left out."""

    image: Preprocessing = field(default_factory=Preprocessing)
    """From file to network input."""

    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random changes to training images."""

    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    """Network that makes the feature map."""

    head: HeadConfig = field(default_factory=HeadConfig)
    """Classifier over the map, for training and as the single-image baseline."""

    loss: LossConfig = field(default_factory=LossConfig)
    """Training loss."""

    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """A teacher beside the labels."""

    cache: CacheConfig = field(default_factory=CacheConfig)
    """Feature shards."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("micro_batch_size", "num_workers", "freeze_backbone_epochs"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected must be in [0, 1], got {self.max_rejected}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1], got {self.layer_decay}")
        if self.layer_decay < 1 and self.backbone.attention.startswith("lka"):
            raise ValueError("layer_decay: timm does not know where attention blocks stand; use backbone_lr with them")
        for name in ("backbone_lr", "freeze_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if self.cache.augmented and self.augmentation == Augmentation():
            raise ValueError("cache.augmented: the augmentation is off; set one, such as --augmentation.rotate 10")

    def phase(self, epoch: int) -> tuple[OptimizerConfig, int, int]:
        """How an epoch (from 0) is optimized: options, and the first and the number of the epochs of their schedule."""
        frozen = min(self.freeze_backbone_epochs, self.epochs)
        if epoch < frozen:
            return replace(self.optimizer, lr=self.freeze_lr, warmup_share=0.0, final_share=1.0), 0, frozen
        return self.optimizer, frozen, self.epochs - frozen
