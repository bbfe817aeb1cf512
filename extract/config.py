"""Every choice of stage one."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.shards import PLAIN
from data.storage import Storage
from data.transforms import Augmentation, Preprocessing
from extract.backbone import BackboneConfig
from extract.engine import OptimizerConfig
from extract.heads import HeadConfig
from extract.losses import LossConfig

FLIP = "flip"


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Feature shards."""

    dtype: Storage = "float16"
    """float16: 2 bytes a value, rounded by 0.02 %. uint8: 0.51 of these bytes (0.55 for 7 x 7 maps), an affine code for
    each image and channel, off by 0.4 to 1.0 % RMS."""

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
class ExtractConfig:
    """Stage one: train a backbone on single images, then cache the feature maps of all images as WebDataset shards.

    Without --config it reads extract/configs/demo.yaml: the chest phantom, made on the spot, into runs/demo.
    """

    run_dir: Path = Path("runs/demo")
    """Run folder, shared by both stages; holds manifest.csv (made by scripts/prepare.py) and receives stage_one/ and
    cache/."""

    seed: int = 0
    """Decides weights, order, augmentation and dropout."""

    epochs: int = 10
    """Passes over the training images."""

    batch_size: int = 32
    """Images per optimizer step, over all processes together."""

    micro_batch_size: int = 0
    """Largest number of images per forward pass and process, to bound memory; 0: no limit. Gradients add up exactly."""

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast type of the forward pass."""

    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is validated and cached; 0:
    off."""

    save_steps: int = 1000
    """Steps between two saves within an epoch (0: none); a save at its end comes always."""

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

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""

    cache: CacheConfig = field(default_factory=CacheConfig)
    """Feature shards."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("micro_batch_size", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.max_rejected <= 1:
            raise ValueError(f"max_rejected must be in [0, 1], got {self.max_rejected}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.cache.augmented and self.augmentation == Augmentation():
            raise ValueError("cache.augmented: the augmentation is off; set one, such as --augmentation.rotate 10")
