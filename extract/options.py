"""The choices that both stages share: how to train, and the optimizer."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data.sampling import SamplerConfig


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW with linear warm-up and cosine decay, stepped once per optimizer step."""

    lr: float = 1e-3
    """Peak learning rate for the global batch."""

    weight_decay: float = 0.05
    """Decoupled decay of matrices and kernels; biases, norms and other vectors have none."""

    warmup_share: float = 0.1
    """Share of all steps over which the rate rises from 0 to `lr`."""

    final_share: float = 0.01
    """Rate of the last step, as a share of `lr`."""

    clip_norm: float = 1.0
    """Largest gradient norm over all weights together; 0 switches it off."""

    clip_agc: float = 0.0
    """Largest gradient norm of each unit as a share of its weights' norm, outside the head (adaptive gradient clipping,
    Brock et al., arXiv 2102.06171; they use 0.01); 0 switches it off."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr must be positive, got {self.lr}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"optimizer.warmup_share must be in [0, 1), got {self.warmup_share}")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"optimizer.final_share must be in [0, 1], got {self.final_share}")
        for name in ("weight_decay", "clip_norm", "clip_agc"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What a training loop needs to know, whichever stage it belongs to."""

    run_dir: Path = Path("runs/demo")
    """Run folder of both stages; holds manifest.csv, made by scripts/prepare.py."""

    dry_run: bool = False
    """Show shapes, parameters, FLOPs, memory and the first batch, then stop; trains nothing."""

    trial: bool = False
    """Put two batches through everything, in <run_dir>/trial, then say what time and disk the full run needs."""

    resume: Path | None = None
    """Go back to this checkpoint folder, say runs/x/stage_one/previous; without it a run goes on from its newest."""

    seed: int = 0
    """Decides weights, order, random changes of the input and dropout."""

    epochs: int = 10
    """Passes over the training set."""

    patience: int = 0
    """End training after this many epochs without a better validation score; 0: never. The learning rate is planned for
    all epochs either way."""

    batch_size: int = 32
    """Images (stage one) or groups (stage two) per optimizer step, over all processes together."""

    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Autocast type of the forward pass."""

    compile: bool = False
    """Compile the model with torch.compile in training; worth its minutes on a GPU. A resumed run then equals an
    uninterrupted one to tolerance, not to the bit."""

    ema_decay: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is validated and kept; 0:
    off."""

    average_from: int = 0
    """Epoch from which on the plain mean of the weights at the end of each epoch is what is validated and kept
    (stochastic weight averaging, Izmailov et al., arXiv 1803.05407); 0: off."""

    save_steps: int = 1000
    """Steps between two saves within an epoch (0: none); a save at its end comes always."""

    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """Optimizer and schedule."""

    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    """Which training images (stage one) or groups (stage two) an epoch visits, and how often."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("patience", "average_from", "save_steps"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.ema_decay and self.average_from:
            raise ValueError("ema_decay and average_from both average the weights; set one of them to 0")
        if self.average_from > self.epochs:
            raise ValueError(f"average_from must not exceed epochs={self.epochs}, got {self.average_from}")
