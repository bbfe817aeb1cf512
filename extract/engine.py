"""What both training loops share: optimizer, schedule, one step's bookkeeping. The loops themselves are written out."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, KwargsHandler, gather_object
from jaxtyping import Float
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn

from data.labels import class_groups
from data.manifest import Manifest
from data.plots import plot_progress
from data.runs import Log, append_metrics
from extract.checkpoint import Content, save_folder
from extract.resume import TrainingState


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
    """Largest gradient norm; 0 switches clipping off."""

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optimizer.lr must be positive, got {self.lr}")
        if not 0 <= self.warmup_share < 1:
            raise ValueError(f"optimizer.warmup_share must be in [0, 1), got {self.warmup_share}")
        if not 0 <= self.final_share <= 1:
            raise ValueError(f"optimizer.final_share must be in [0, 1], got {self.final_share}")
        for name in ("weight_decay", "clip_norm"):
            if getattr(self, name) < 0:
                raise ValueError(f"optimizer.{name} must not be negative, got {getattr(self, name)}")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW (3.4 times as fast per step on CPU as the plain one) without decay on vectors."""
    groups = param_groups_weight_decay(model, config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), fused=True)


def learning_rate(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The rate of optimizer step `step` (0-based), a pure function: nothing to save, nothing to forget to call."""
    warmup = max(1, round(config.warmup_share * total_steps))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup - 1)
    floor = config.final_share
    return config.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group the rate, times its own ``lr_scale`` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def gather_rows(
    accelerator: Accelerator, rows: np.ndarray, values: Float[Tensor, "n C"], total: int
) -> Float[np.ndarray, "total C"]:
    """Collect each process's rows of a table into the whole one, on every process, in row order.

    Exact for any number of processes: values travel with their row numbers, so nothing is padded or repeated.

    Raises:
        AssertionError: a row is missing or came twice.
    """
    parts = gather_object([(rows, values.float().cpu().numpy())])
    all_rows = np.concatenate([part[0] for part in parts])
    assert np.array_equal(np.sort(all_rows), np.arange(total)), "every row exactly once"
    table = np.empty((total, values.shape[1]), dtype=np.float32)
    table[all_rows] = np.concatenate([part[1] for part in parts])
    return table


def sigmoid(logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
    """Probabilities in float32, without overflow at any logit."""
    return torch.from_numpy(logits).sigmoid().numpy()


def ddp_options() -> list[KwargsHandler]:
    """Buffers are averaged by `average_buffers` after each step, not sent around in each forward pass.

    Processes may run different numbers of forward passes per step; a collective inside one would wait forever.
    """
    return [DistributedDataParallelKwargs(broadcast_buffers=False)]


def average_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their running statistics (BatchNorm)."""
    saved = model.state_dict().keys()
    buffers = [buffer for name, buffer in model.named_buffers() if name in saved and buffer.is_floating_point()]
    if accelerator.num_processes == 1 or not buffers:
        return
    mean = accelerator.reduce(torch.cat([buffer.flatten() for buffer in buffers]), reduction="mean")
    for buffer, part in zip(buffers, mean.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def groups_of(train_set: Manifest) -> dict[str, str]:
    """Head, medium or tail of each class."""
    positives = (train_set.labels > 0.5).sum(axis=0).tolist()
    return class_groups(dict(zip(train_set.classes, positives, strict=True)), len(train_set))


def finish_epoch(
    state: TrainingState,
    epochs: int,
    scores: dict[str, Any],
    stage_dir: Path,
    model_files: dict[str, Content],
    log: Log,
    seconds: float,
) -> None:
    """Record an epoch, keep the model in ``best/`` if it is the best so far, save the resume state in ``last/``."""
    progress = state.progress
    progress.epoch, progress.step = progress.epoch + 1, 0
    train_loss = float(state.running_loss.compute())
    state.running_loss.reset()
    score = scores["mAP"] if scores["mAP"] is not None else 0.0  # no class has a positive in validation
    best = score > progress.best_score
    if best:
        progress.best_score, progress.best_epoch = score, progress.epoch
    if state.accelerator.is_main_process:
        append_metrics(stage_dir, {"epoch": progress.epoch, "train_loss": train_loss, "seconds": seconds} | scores)
        plot_progress(stage_dir)
        if best:
            weights = {"model.safetensors": state.evaluated_model.state_dict(), "metrics.json": {"val": scores}}
            save_folder(stage_dir / "best", model_files | weights)
    state.save(stage_dir, model_files)
    left = (epochs - progress.epoch) * seconds / 60
    log(
        f"epoch {progress.epoch}/{epochs}: loss {train_loss:.4f}, validation mAP {score:.3f} (best"
        f" {progress.best_score:.3f} in epoch {progress.best_epoch}), {seconds:.0f} s, about {left:.0f} min left"
    )
