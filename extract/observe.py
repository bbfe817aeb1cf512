"""What one training step and one forward pass cost, watched from outside: loss, gradients, memory, shapes, FLOPs."""

import copy
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from extract.options import OptimizerConfig
from extract.resume import TrainingState


@dataclass
class FirstStep:
    """What was seen during one training step."""

    loss: float = math.nan
    """Mean over the known labels of the global batch; NaN if it was not finite."""

    norm: float | None = None
    """Norm of the gradient before clipping; None if it was not finite."""

    without_gradient: list[str] = field(default_factory=list)
    """Trainable parameters that got none."""

    read_s: float = 0.0
    """Seconds until the first forward pass: reading the batch, in stage one also drawing it."""

    compute_s: float = 0.0
    """Seconds from there to the end of the step."""

    peak_bytes: int = 0
    """CUDA: most memory allocated; CPU: growth of the process's peak memory."""

    inputs: list[tuple[Any, ...]] = field(default_factory=list)
    """Arguments of each forward pass, tensors as shapes without memory (device "meta")."""


def observe_step(state: TrainingState, run: Callable[[], object]) -> FirstStep:
    """Run one step of a training loop and watch it through hooks.

    Args:
        run: Takes one optimizer step with `state`, without clipping.
    """
    seen, model = FirstStep(), state.plain_model
    forward_began: list[float] = []

    def before_forward(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        forward_began.append(time.monotonic())
        seen.inputs.append(without_memory(arguments))

    def before_update(*_: Any) -> None:
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        seen.without_gradient = [name for name, p in trainable.items() if p.grad is None]
        seen.norm = float(nn.utils.get_total_norm([p.grad for p in trainable.values() if p.grad is not None]))

    optimizer = getattr(state.optimizer, "optimizer", state.optimizer)
    hooks = [model.register_forward_pre_hook(before_forward), optimizer.register_step_pre_hook(before_update)]
    memory, began = peak_memory(reset=True), time.monotonic()
    run()
    seen.peak_bytes = peak_memory() - memory
    seen.compute_s, seen.read_s = time.monotonic() - forward_began[0], forward_began[0] - began
    for hook in hooks:
        hook.remove()
    if state.progress.skipped_steps == 0:
        seen.loss = float(state.running_loss.compute())
    return seen


def without_memory(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of a forward pass, tensors on device "meta"."""
    return tuple(value.detach().to("meta") if isinstance(value, Tensor) else value for value in arguments)


def peak_memory(reset: bool = False) -> int:
    """Bytes: most memory ever allocated on the GPU since a reset (which counts as 0), or the process's peak so far."""
    if torch.cuda.is_available():
        if reset:
            torch.cuda.reset_peak_memory_stats()
            return 0
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@dataclass(frozen=True)
class Cost:
    """What the forward passes of a step cost, and what its parts return."""

    items: int
    """Images or groups of all forward passes."""

    shapes: dict[str, tuple[int, ...]]
    """Output of each part in the largest forward pass."""

    flops: dict[str, int]
    """Of each part over all items, a multiplication and an addition counted as two; "" is the whole model."""


def measure_parts(model: nn.Module, inputs: Sequence[tuple[Any, ...]], parts: dict[str, str]) -> Cost:
    """Count shapes and FLOPs of forward passes on shapes alone: no time, no memory, every attention counted."""
    model = copy.deepcopy(model).to("meta").eval()
    shapes: dict[str, tuple[int, ...]] = {}
    items, flops = 0, dict.fromkeys(["", *parts], 0)
    for name in parts:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: shapes.update({name: tuple(output.shape)})
        )
    for arguments in sorted(inputs, key=lambda arguments: arguments[0].numel()):  # the largest comes last
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            items += len(model(*without_memory(arguments)))
        counts = counter.get_flop_counts()
        for name in flops:
            flops[name] += sum(counts.get(".".join([type(model).__name__, name]).rstrip("."), {}).values())
    return Cost(items, shapes, flops)


def part_lines(model: nn.Module, cost: Cost, parts: dict[str, str], item: str) -> list[str]:
    """The model as a table: output, parameters and FLOPs of each part, what lies outside of them, and the total."""
    rows = [["model", "output", "parameters", "trainable", f"forward FLOPs per {item}"]]
    totals = [*count_parameters(model), cost.flops[""]]
    rest = list(totals)
    for name, axes in parts.items():
        numbers = [*count_parameters(model.get_submodule(name)), cost.flops[name]]
        rest = [left - number for left, number in zip(rest, numbers, strict=True)]
        output = " ".join(f"{axis}={size}" for axis, size in zip(axes, cost.shapes[name], strict=True))
        rows.append([name, output, *_numbers(numbers, cost.items)])
    if any(rest):
        rows.append(["outside of these", "", *_numbers(rest, cost.items)])
    return aligned([*rows, ["total", "", *_numbers(totals, cost.items)]], left=2)


def _numbers(numbers: list[int], items: int) -> list[str]:
    return [f"{numbers[0]:,}", f"{numbers[1]:,}", count_text(numbers[2] / items)]


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """(all, trainable)."""
    sizes = [(p.numel(), p.requires_grad) for p in module.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trainable in sizes if trainable)


def step_lines(step: FirstStep, config: OptimizerConfig, reading: str, accelerator: Accelerator) -> list[str]:
    """What one real step showed.

    Args:
        reading: What happened before its first forward pass.
    """
    clipped = f"training clips it at {config.clip_norm:g}" if config.clip_norm else "not clipped in training"
    norm = "not finite" if step.norm is None else f"{step.norm:.4g} ({clipped})"
    if step.norm is None and accelerator.scaler is not None:
        norm += ", as is usual for the first steps in fp16: the gradient scaler lowers its scale"
    memory = "on the GPU" if torch.cuda.is_available() else "above the process's peak until then"
    rows = [
        ["first step", ""],
        ["loss", f"{step.loss:.4f}" if math.isfinite(step.loss) else "not finite"],
        ["gradient norm", norm],
        [reading, f"{step.read_s:.2f} s"],
        ["forward, backward, update", f"{step.compute_s:.2f} s, warm-up included"],
        ["peak memory", f"{bytes_text(step.peak_bytes)} {memory}"],
        ["without gradient", ", ".join(step.without_gradient) or "none"],
    ]
    return aligned(rows, left=2)


def aligned(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows as lines with aligned columns, the first `left` of them to the left, numbers to the right."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    pad = [str.ljust] * left + [str.rjust] * (len(widths) - left)
    return ["  ".join(f(cell, w) for f, cell, w in zip(pad, row, widths, strict=True)).rstrip() for row in rows]


def bytes_text(count: int | float) -> str:
    """Bytes for people: ``12.3 GB``."""
    return f"{count_text(count)}B" if count >= 1000 else f"{count:.0f} B"


def count_text(count: int | float) -> str:
    """A large number for people: ``12.3 G``."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.3g}"
