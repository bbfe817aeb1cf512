"""What both training loops share: optimizer, schedule, one step's bookkeeping. The loops themselves are written out."""

import math
import warnings
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, KwargsHandler, gather_object
from jaxtyping import Float
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric

from data.plots import plot_progress
from data.runs import Log, append_metrics
from extract.checkpoint import Content, save_folder
from extract.options import OptimizerConfig, TrainingConfig
from extract.resume import Progress, TrainingState


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, layer_decay: float = 1.0, backbone_lr: float = 1.0
) -> torch.optim.AdamW:
    """Fused AdamW (3.4 times as fast per step on CPU as the plain one) without decay on vectors.

    Args:
        layer_decay: Below 1, timm's layers of ``model.backbone.model`` get the rate times layer_decay ** (layers after
            it), as in BEiT (arXiv 2106.08254); everything else has the full rate.
        backbone_lr: Factor on the rate of all of ``model.backbone.model``.
    """
    if layer_decay == backbone_lr == 1:
        groups = param_groups_weight_decay(model, config.weight_decay)
    else:
        layers = model.get_submodule("backbone.model")
        if layer_decay == 1:
            groups = param_groups_weight_decay(layers, config.weight_decay)
        else:
            groups = param_groups_layer_decay(layers, config.weight_decay, layer_decay=layer_decay)
        for group in groups:
            group["lr_scale"] = group.get("lr_scale", 1.0) * backbone_lr
        layered = {id(parameter) for parameter in layers.parameters()}
        rest = nn.ParameterDict({n.replace(".", "/"): p for n, p in model.named_parameters() if id(p) not in layered})
        groups += param_groups_weight_decay(rest, config.weight_decay)
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


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Accelerate as both stages want it.

    Buffers are averaged by `average_buffers` after each step, not sent around in each forward pass: processes may run
    different numbers of forward passes per step, and a collective inside one would wait forever.

    Processes wait for each other for hours if need be, where torch gives up after 10 minutes on GPUs: the main one
    alone opens all images of a large data set, and writes the results.
    """
    options: list[KwargsHandler] = [
        DistributedDataParallelKwargs(broadcast_buffers=False),
        InitProcessGroupKwargs(timeout=timedelta(hours=12)),
    ]
    return Accelerator(mixed_precision=config.mixed_precision, kwargs_handlers=options)


def make_state(
    model: nn.Module,
    config: TrainingConfig,
    accelerator: Accelerator,
    layer_decay: float = 1.0,
    backbone_lr: float = 1.0,
) -> TrainingState:
    """Everything that training changes, at its start."""
    ema = ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
    mean = AveragedModel(model, use_buffers=True) if config.average_from else None
    if config.compile:
        model.compile()  # in place: names of weights stay as they are
    with warnings.catch_warnings():  # torch renames the option, Accelerate knows the old name only
        warnings.filterwarnings("ignore", message=".*broadcast_buffers.* is deprecated", category=FutureWarning)
        optimizer = build_optimizer(model, config.optimizer, layer_decay, backbone_lr)
        prepared, optimizer = accelerator.prepare(model, optimizer)
    return TrainingState(
        accelerator=accelerator,
        model=prepared,
        optimizer=optimizer,
        ema=ema,
        mean=mean,
        running_loss=MeanMetric().to(accelerator.device),
        progress=Progress(),
    )


def average_gradients(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their gradients, where DistributedDataParallel was told to leave them alone."""
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if accelerator.num_processes == 1:
        return
    mean = accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
    for gradient, part in zip(gradients, mean.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def average_buffers(model: nn.Module, accelerator: Accelerator) -> None:
    """Give all processes the mean of their running statistics (BatchNorm).

    Parts in evaluation mode keep theirs to the bit, which the mean of three equal numbers would not.
    """
    saved = model.state_dict().keys()
    still = {id(buffer) for part in model.modules() if not part.training for buffer in part.buffers(recurse=False)}
    buffers = [
        buffer
        for name, buffer in model.named_buffers()
        if name in saved and buffer.is_floating_point() and id(buffer) not in still
    ]
    if accelerator.num_processes == 1 or not buffers:
        return
    mean = accelerator.reduce(torch.cat([buffer.flatten() for buffer in buffers]), reduction="mean")
    for buffer, part in zip(buffers, mean.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(part.view_as(buffer))


def finish_epoch(
    state: TrainingState,
    config: TrainingConfig,
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
        row = {
            "epoch": progress.epoch,
            "train_loss": train_loss if math.isfinite(train_loss) else None,  # None: every step was skipped
            "seconds": seconds,
            "step_seconds": step_seconds(state),
            "skipped_steps": progress.skipped_steps,
        }
        append_metrics(stage_dir, row | scores)
        plot_progress(stage_dir)
        if best:
            weights = {"model.safetensors": state.evaluated_model.state_dict(), "metrics.json": {"val": scores}}
            save_folder(stage_dir / "best", model_files | weights)
    state.save(stage_dir, model_files)
    left = (config.epochs - progress.epoch) * seconds / 60
    log(
        f"epoch {progress.epoch}/{config.epochs}: loss {train_loss:.4f}, validation mAP {score:.3f} (best"
        f" {progress.best_score:.3f} in epoch {progress.best_epoch}), {seconds:.0f} s, about {left:.0f} min left"
    )
    if progress.finished(config) and progress.epoch < config.epochs:
        log(f"no better epoch in {config.patience}: training ends early")


def step_seconds(state: TrainingState) -> float | None:
    """Median time from the end of one step to the end of the next in this epoch; None with fewer than two steps."""
    gaps = [after - before for before, after in pairwise(state.step_ends)]
    state.step_ends.clear()
    return float(np.median(gaps)) if gaps else None
