"""Where a training run stands, and how it is put down and taken up again at any step.

Everything random is a pure function of (seed, epoch, step), so weights, optimizer, averages and four numbers are the
whole state; there is no generator to save.
"""

import shutil
import signal
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import nn
from torchmetrics import MeanMetric

from data.runs import Log
from extract.checkpoint import (
    Content,
    check_folder,
    load_json,
    load_optimizer,
    load_tensors,
    load_weights,
    newest_checkpoint,
    optimizer_tensors,
    save_folder,
)


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


@dataclass
class TrainingState:
    """What a checkpoint holds of one process's training objects."""

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: ModelEmaV3 | None
    running_loss: MeanMetric
    progress: Progress

    @property
    def plain_model(self) -> nn.Module:
        """The model without distributed or compiled wrappers."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def evaluated_model(self) -> nn.Module:
        """The model that is validated and kept: the averaged one if there is an average."""
        return self.ema.module if self.ema is not None else self.plain_model

    def save(self, stage_dir: Path, model_files: dict[str, Content]) -> None:
        """Write ``last/``, keeping the former one as ``previous/``; every process calls, the main one writes."""
        totals = self.accelerator.reduce(torch.stack([self.running_loss.mean_value, self.running_loss.weight]))
        if self.accelerator.is_main_process:
            files = dict(model_files)
            files["model.safetensors"] = self.plain_model.state_dict()
            files["optimizer.safetensors"] = optimizer_tensors(self.plain_model, self._plain_optimizer)
            if self.ema is not None:
                files["ema.safetensors"] = self.ema.module.state_dict()
            files["state.json"] = {
                "progress": asdict(self.progress),
                "running_loss": totals.tolist(),
                "scaler": self._scaler_state(),
            }
            save_folder(stage_dir / "last", files, keep=stage_dir / "previous")
        self.accelerator.wait_for_everyone()

    def resume(self, stage_dir: Path) -> bool:
        """Go back to the newest undamaged checkpoint of a stage folder, if there is one."""
        folder = newest_checkpoint(stage_dir)
        if folder is None:
            return False
        load_weights(self.plain_model, load_tensors(folder / "model.safetensors"), str(folder / "model.safetensors"))
        load_optimizer(self.plain_model, self._plain_optimizer, load_tensors(folder / "optimizer.safetensors"))
        if self.ema is not None:
            load_weights(self.ema.module, load_tensors(folder / "ema.safetensors"), str(folder / "ema.safetensors"))
        state = load_json(folder / "state.json")
        self.progress = Progress(**state["progress"])
        self.running_loss.update(0.0, 0.0)  # changes nothing, but without an update it warns at the epoch's end
        if self.accelerator.is_main_process:  # sums are gathered over processes: one holds the past, the others nothing
            mean_value, weight = state["running_loss"]
            self.running_loss.mean_value.fill_(mean_value)
            self.running_loss.weight.fill_(weight)
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.accelerator.wait_for_everyone()
        if folder.name == "previous" and self.accelerator.is_main_process:
            # a damaged last/ must not become previous/ at the next save: a crash then would leave nothing whole
            shutil.rmtree(stage_dir / "last", ignore_errors=True)
        return True

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


class StopSignal:
    """SIGTERM and SIGINT: in training they become a question asked after each step, elsewhere they stop at once.

    Outside `deferred`, everything that matters is on disk already. A second signal stops at once everywhere.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._deferring = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None or not self._deferring:
            raise SystemExit(128 + number)
        self.received = number

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
            log("stopped on request; run the same command to go on")
            raise SystemExit(128 + (self.received or signal.SIGTERM))
