"""A small model in training on the CPU: what the loops hand to the functions they share."""

from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import nn

from extract import engine
from extract.options import OptimizerConfig, TrainingConfig
from extract.step import take_step

B, D, C = 11, 4, 3
DEFAULT = OptimizerConfig()


@pytest.fixture
def accelerator():
    for state in (AcceleratorState, GradientState, PartialState):  # one per process by design; one per test here
        state._reset_state()
    return Accelerator(cpu=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(D, 6), nn.LayerNorm(6), nn.Linear(6, C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.first(x))))


def make_state(accelerator, dtype=torch.float32, decay=0.0, **options):
    torch.manual_seed(0)
    return engine.make_state(Net().to(dtype), TrainingConfig(ema_decay=decay, **options), accelerator)


def inputs(dtype=torch.float32):
    rng = torch.Generator().manual_seed(5)
    return torch.randn(B, D, generator=rng, dtype=dtype), torch.randn(B, C, generator=rng, dtype=dtype)


def run_steps(state, cuts, steps=3, start=0, config=DEFAULT, dtype=torch.float32):
    x, y = inputs(dtype)
    for step in range(start, start + steps):
        edges = [0, *cuts, B]
        losses = [
            lambda a=a, b=b, step=step: ((state.model(x[a:b] + step / 10) - y[a:b]) ** 2).sum() / (B * C)
            for a, b in pairwise(edges)
        ]
        take_step(state, losses, config, step, 8, ["a"])


def weights(state):
    return torch.cat([p.detach().flatten() for p in state.plain_model.parameters()])
