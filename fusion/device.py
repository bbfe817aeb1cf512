"""Where a model predicts, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from data.errors import InputError
from fusion.model_parts import ModelParts

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}


def device_of(name: str) -> torch.device:
    """A device by name; auto: the GPU if there is one.

    Raises:
        InputError: No such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise InputError(f"--device {name}: there is no such device here; wanted auto, cpu, cuda or cuda:N") from None
    return device


def precision_on(parts: ModelParts, device: torch.device) -> tuple[partial, partial]:
    """Contexts in which the backbone and the fusion model run."""
    own = parts.config.mixed_precision
    first = own if parts.joint else parts.stage_one.mixed_precision
    return partial(autocast, first, device), partial(autocast, own, device)


def autocast(mixed_precision: str, device: torch.device) -> AbstractContextManager:
    """The precision in which a stage was trained."""
    dtype = PRECISIONS.get(mixed_precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
