"""One optimizer step over any number of sub-batches, the same on one process as on many."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from timm.utils import adaptive_clip_grad
from torch import Tensor

from data.errors import InputError
from data.order import derive_seed
from extract.engine import average_buffers, average_gradients, learning_rate, set_learning_rate
from extract.options import OptimizerConfig
from extract.resume import TrainingState

MAX_SKIPPED_IN_A_ROW = 5
MAX_SKIPPED_WITH_SCALER = 40  # a gradient scaler halves its scale, 65536 at first, at every such step


def leave_out(norm: Tensor, state: TrainingState, names: list[str]) -> bool:
    """Whether a step's gradients are not finite, so that it is skipped; the same answer on all processes.

    Raises:
        InputError: several steps in a row were not finite, or running statistics (BatchNorm) took such values over;
            names the first images or groups of the step.
    """
    progress = state.progress
    if torch.isfinite(norm):
        progress.skipped_in_a_row = 0
        return False
    progress.skipped_in_a_row += 1
    progress.skipped_steps += 1
    limit = MAX_SKIPPED_IN_A_ROW if state.accelerator.scaler is None else MAX_SKIPPED_WITH_SCALER
    poisoned = [name for name, buffer in state.plain_model.named_buffers() if not torch.isfinite(buffer).all()]
    if poisoned or progress.skipped_in_a_row >= limit:
        what = f"running statistics {poisoned[0]!r} are" if poisoned else "gradients were"
        raise InputError(
            f"{what} not finite in {progress.skipped_in_a_row} steps in a row (last step: {', '.join(names[:5])});"
            " lower optimizer.lr, use mixed_precision bf16 or no, or look at these inputs"
        )
    return True


def seed_step(seed: int, epoch: int, step: int, rank: int) -> None:
    """Seed torch's generator for one step: dropout becomes a function of (seed, epoch, step, process)."""
    torch.manual_seed(derive_seed("step", seed, epoch, step, rank) % 2**32)


def take_step(
    state: TrainingState,
    sub_losses: Sequence[Callable[[], Tensor]],
    config: OptimizerConfig,
    total_step: int,
    total_steps: int,
    names: list[str],
    head_only: bool = False,
) -> None:
    """Add up the gradients of all sub-batches, clip, and step.

    Args:
        sub_losses: Each runs one forward pass and returns its sum of losses divided by the number of known labels
            in the whole global batch, so that the sum over sub-batches and processes is the mean over that batch.
        names: Images or groups of the global batch, for an error message.
        head_only: The backbone is frozen: its weights have no gradient in this step and its statistics do not move.
            DistributedDataParallel would wait for these gradients, so the head's are averaged here. (Its own search for
            unused weights would do as well, but stays on for the whole run: 0.6 ms per forward pass of
            ConvNeXtV2-Base on a CPU, buckets never reordered, and a warning.)
    """
    accelerator, num_processes = state.accelerator, state.accelerator.num_processes
    set_learning_rate(state.optimizer, learning_rate(total_step, total_steps, config))
    step_loss = torch.zeros((), device=accelerator.device)
    for position, sub_loss in enumerate(sub_losses):
        last = position == len(sub_losses) - 1
        with nullcontext() if last and not head_only else accelerator.no_sync(state.model):
            loss = sub_loss() * num_processes  # gradients are averaged over processes where their sum is wanted
            accelerator.backward(loss)
        step_loss += loss.detach()
    trained = state.plain_model.get_submodule("head") if head_only else state.plain_model
    if head_only:
        average_gradients(trained, accelerator)
    norm = accelerator.clip_grad_norm_(state.model.parameters(), config.clip_norm or float("inf"))
    skipped = leave_out(norm, state, names)
    if config.clip_agc:
        named = state.plain_model.named_parameters()
        body = [weight for name, weight in named if not name.removeprefix("fusion.").startswith("head.")]
        adaptive_clip_grad(body, config.clip_agc)
    # A gradient scaler leaves a non-finite step out itself, and learns from it.
    if accelerator.scaler is not None or not skipped:
        state.optimizer.step()
    if not skipped:
        state.running_loss.update(step_loss)
        average_buffers(trained, accelerator)  # before the average of weights, which takes them over
        if state.ema is not None:
            state.ema.update(state.plain_model, step=total_step)
    state.optimizer.zero_grad()
    state.step_ends.append(time.monotonic())
