"""Where a training run stands, and how it is put down and taken up again at any step.

Everything random is a pure function of (seed, epoch, step), so weights, optimizer, averages and four numbers are the
whole state; there is no generator to save.
"""

import shutil
import signal
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric

from data.errors import InputError
from data.runs import Log
from extract.checkpoint import (
    Content,
    check_folder,
    load_json,
    load_optimizer,
    load_tensors,
    load_weights,
    named_checkpoint,
    newest_checkpoint,
    optimizer_tensors,
    save_folder,
)
from extract.options import TrainingConfig

SAME_SIGNAL_S = 3.0
STOPPED = "stopped on request; run the same command to go on"


@dataclass
class Progress:
    """Position and record of a training run."""

    epoch: int = 0
    """Epochs finished."""

    step: int = 0
    """Optimizer steps finished in the present epoch."""

    best_score: float = -1.0
    """Best validation score so far."""

    best_epoch: int = 0
    """Epoch (from 1) of the best score; 0 before the first."""

    skipped_steps: int = 0
    """Steps left out because a gradient was not finite."""

    skipped_in_a_row: int = 0
    """The latest ones among them, without a good step between."""

    def finished(self, config: TrainingConfig) -> bool:
        """Whether there is nothing left to train: all epochs done, or no better one for `patience` epochs."""
        return self.epoch >= config.epochs or 0 < config.patience <= self.epoch - self.best_epoch


@dataclass
class TrainingState:
    """What a checkpoint holds of one process's training objects."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    mean: AveragedModel | None
    running_loss: MeanMetric
    progress: Progress
    step_ends: list[float] = field(default_factory=list)
    """When each step of the present epoch ended, in seconds of an arbitrary clock; not saved."""

    @property
    def plain_model(self) -> nn.Module:
        """The model without distributed or compiled wrappers."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated and kept: the averaged one if there is an average."""
        if self.mean is not None and self.mean.n_averaged > 0:
            return self.mean.module
        return self.ema.module if self.ema is not None else self.plain_model

    def end_epoch(self, average_from: int) -> None:
        """Take the weights at the end of an epoch's steps into their mean, from epoch `average_from` (from 1) on.

        The mean holds one model per epoch, so it counts as done when it holds this one: a run that was stopped before
        its validation comes by here a second time.
        """
        done = self.progress.epoch + 2 - average_from
        if self.mean is not None and 0 < done != self.mean.n_averaged:
            self.mean.update_parameters(self.plain_model)

    def _averages(self) -> dict[str, nn.Module]:
        """The averaged models by the name of their file."""
        averages = {
            "ema.safetensors": self.ema.module if self.ema is not None else None,
            "mean.safetensors": self.mean,
        }
        return {name: model for name, model in averages.items() if model is not None}

    def save(self, stage_dir: Path, model_files: dict[str, Content]) -> None:
        """Write ``last/``, keeping the former one as ``previous/``; every process calls, the main one writes."""
        sums = self.accelerator.gather(torch.stack([self.running_loss.mean_value, self.running_loss.weight])[None])
        if self.accelerator.is_main_process:
            files = dict(model_files)
            files["model.safetensors"] = self.plain_model.state_dict()
            files["optimizer.safetensors"] = optimizer_tensors(self.plain_model, self._plain_optimizer)
            files |= {name: average.state_dict() for name, average in self._averages().items()}
            refuse_non_finite(files)
            files["state.json"] = {
                "progress": asdict(self.progress),
                "running_loss": sums.tolist(),  # of each process: added up, they would round otherwise later on
                "scaler": self._scaler_state(),
            }
            save_folder(stage_dir / "last", files, keep=stage_dir / "previous")
        self.accelerator.wait_for_everyone()

    def resume(self, stage_dir: Path, named: Path | None = None) -> bool:
        """Go back to the newest undamaged checkpoint of a stage folder, if there is one.

        Args:
            named: Go back to this checkpoint instead.

        Raises:
            InputError: `named` is damaged or no checkpoint: there is no falling back from what was asked for.
        """
        folder = newest_checkpoint(stage_dir) if named is None else named_checkpoint(named)
        if folder is None:
            return False
        load_weights(self.plain_model, load_tensors(folder / "model.safetensors"), str(folder / "model.safetensors"))
        load_optimizer(self.plain_model, self._plain_optimizer, load_tensors(folder / "optimizer.safetensors"))
        for name, average in self._averages().items():
            load_weights(average, load_tensors(folder / name), str(folder / name))
        state = load_json(folder / "state.json")
        try:
            self.progress = Progress(**state["progress"])
            self._resume_loss(torch.tensor(state["running_loss"]))
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError):
            raise InputError(f"{folder / 'state.json'}: not the state of a training run of this version") from None
        self.accelerator.wait_for_everyone()
        if named is None and folder.name == "previous" and self.accelerator.is_main_process:
            # a damaged last/ must not become previous/ at the next save: a crash then would leave nothing whole
            shutil.rmtree(stage_dir / "last", ignore_errors=True)
        return True

    def _resume_loss(self, sums: Float[Tensor, "P 2"]) -> None:
        """Give each process its own sum and weight back; with another number of processes, the first one takes all."""
        process, same = self.accelerator.process_index, len(sums) == self.accelerator.num_processes
        own = sums[process] if same else sums.sum(0) * (process == 0)
        self.running_loss.update(0.0, 0.0)  # changes nothing, but without an update it warns at the epoch's end
        self.running_loss.mean_value.fill_(own[0])
        self.running_loss.weight.fill_(own[1])

    def load_best(self, stage_dir: Path) -> None:
        """Put the weights of ``best/`` into the model."""
        check_folder(stage_dir / "best")
        path = stage_dir / "best" / "model.safetensors"
        load_weights(self.plain_model, load_tensors(path), str(path))

    @property
    def _plain_optimizer(self) -> torch.optim.Optimizer:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _scaler_state(self) -> dict[str, Any] | None:
        return self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else None


def refuse_non_finite(files: Mapping[str, Content]) -> None:
    """A checkpoint never holds a weight that is not finite: it would replace a good one.

    Raises:
        InputError: names the first such weight.
    """
    for name, content in files.items():
        for key, tensor in content.items() if name.endswith(".safetensors") and isinstance(content, Mapping) else ():
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                raise InputError(
                    f"{name}: {key!r} is not finite, so this state is not saved; go on from the last checkpoint with a"
                    " lower optimizer.lr"
                )


class StopSignal:
    """SIGTERM, SIGINT, SIGUSR1: in training a question asked after each step, elsewhere they stop the process at once.

    SIGUSR1 is what Slurm's ``--signal=USR1@60`` sends a minute before it kills.

    Outside `deferred`, everything that matters is on disk already. A second signal stops at once everywhere, unless
    it comes so soon that it must be the first one again: what a process group gets, its launcher passes on as well.
    """

    def __init__(self, log: Log | None = None) -> None:
        self.log = log
        self.received: int | None = None
        self._received_at = 0.0
        self._deferring = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.received is not None and now - self._received_at < SAME_SIGNAL_S:
            return
        if self.received is not None or not self._deferring:
            if self.log is not None:
                self.log(STOPPED)
            raise SystemExit(128 + number)
        self.received, self._received_at = number, now

    @contextmanager
    def deferred(self) -> Generator[None, None, None]:
        """Training steps, which must be saved before the process may end."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process was asked to stop; the same answer on all."""
        if accelerator.num_processes == 1:
            return self.received is not None
        flag = torch.tensor(float(self.received is not None), device=accelerator.device)
        return bool(accelerator.reduce(flag, reduction="sum") > 0)

    def leave_if_asked(self, accelerator: Accelerator, log: Log) -> None:
        """End the process, now that all is saved, if any process was asked to stop."""
        if self.agreed(accelerator):
            log(STOPPED)
            raise SystemExit(128 + (self.received or signal.SIGTERM))
