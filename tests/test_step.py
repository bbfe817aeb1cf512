"""One optimizer step: exact over sub-batches, clipped, and careful with gradients that are not finite."""

import numpy as np
import pytest
import torch

from data.errors import InputError
from extract.engine import learning_rate, set_learning_rate
from extract.options import OptimizerConfig
from extract.step import MAX_SKIPPED_IN_A_ROW, MAX_SKIPPED_WITH_SCALER, seed_step, take_step
from tests.make_state import DEFAULT, B, accelerator, inputs, make_state, run_steps, weights

__all__ = ["accelerator"]  # a fixture


@pytest.mark.parametrize("cuts", [[1], [4, 5], list(range(1, B))])
def test_a_step_over_sub_batches_equals_one_over_the_whole_batch(accelerator, cuts):
    whole, parts = (make_state(accelerator, torch.float64) for _ in range(2))
    run_steps(whole, [], dtype=torch.float64)
    run_steps(parts, cuts, dtype=torch.float64)
    torch.testing.assert_close(weights(whole), weights(parts), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.running_loss.compute(), parts.running_loss.compute(), rtol=1e-6, atol=0)
    assert (weights(whole) - weights(make_state(accelerator, torch.float64))).abs().max() > 1e-4


def test_the_reported_loss_is_the_mean_over_steps(accelerator):
    state, (x, y), expected = make_state(accelerator), inputs(), []

    def sub_loss():
        loss = (state.model(x) - y).square().mean()
        expected.append(float(loss.detach()))
        return loss

    for _ in range(3):
        take_step(state, [sub_loss], DEFAULT, 4, 8, [])
    assert len(set(expected)) == 3
    assert float(state.running_loss.compute()) == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize(("clip_norm", "wanted"), [(0.01, 0.01), (0.0, None), (1e9, None)])
def test_the_gradient_of_all_sub_batches_together_is_clipped(accelerator, clip_norm, wanted):
    state, (x, y), norms = make_state(accelerator), inputs(), []
    state.optimizer.optimizer.register_step_pre_hook(
        lambda *_: norms.append(torch.cat([p.grad.flatten() for p in state.plain_model.parameters()]).norm())
    )
    losses = [lambda rows=rows: (state.model(x[rows]) - y[rows]).square().sum() for rows in (slice(4), slice(4, B))]
    full = torch.autograd.grad((state.model(x) - y).square().sum(), list(state.plain_model.parameters()))
    take_step(state, losses, OptimizerConfig(clip_norm=clip_norm), 0, 8, [])
    expected = torch.cat([g.flatten() for g in full]).norm() if wanted is None else wanted
    assert float(norms[0]) == pytest.approx(float(expected), rel=1e-4)
    assert all(p.grad is None for p in state.plain_model.parameters()), "nothing leaks into the next step"


def test_every_step_gets_its_own_rate_scaled_by_the_group(accelerator):
    state, config, seen = make_state(accelerator), OptimizerConfig(lr=0.4), []
    state.optimizer.param_groups[0]["lr_scale"] = 0.5
    plain = state.optimizer.optimizer
    plain.register_step_pre_hook(lambda optimizer, *_: seen.append([g["lr"] for g in optimizer.param_groups]))
    run_steps(state, [], steps=8, config=config)
    wanted = [learning_rate(step, 8, config) for step in range(8)]
    assert [second for _, second in seen] == wanted
    assert [first for first, _ in seen] == [rate / 2 for rate in wanted]
    set_learning_rate(plain, 3.0)
    assert [g["lr"] for g in plain.param_groups] == [1.5, 3.0]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_gradient_leaves_everything_as_it_was_and_is_counted(accelerator, value):
    state = make_state(accelerator, decay=0.9)
    run_steps(state, [])
    before, averaged = weights(state), torch.cat([p.flatten() for p in state.evaluated_model.parameters()])
    loss, x = float(state.running_loss.compute()), inputs()[0]
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        take_step(state, [lambda: state.model(x).sum() * value], OptimizerConfig(), 3, 8, ["a"])
    assert torch.equal(weights(state), before)
    assert torch.equal(torch.cat([p.flatten() for p in state.evaluated_model.parameters()]), averaged)
    assert state.progress.skipped_steps == MAX_SKIPPED_IN_A_ROW - 1
    assert float(state.running_loss.compute()) == loss
    with pytest.raises(InputError, match=r"5 steps in a row \(last step: i1, i2, i3, i4, i5\)"):
        take_step(
            state,
            [lambda: state.model(x).sum() * value],
            OptimizerConfig(),
            3,
            8,
            [f"i{n}" for n in range(1, 9)],
        )


def test_a_gradient_scaler_gets_time_to_find_its_scale_but_not_for_ever(accelerator):
    state, x = make_state(accelerator), inputs()[0]
    accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)

    def step():
        take_step(state, [lambda: state.model(x).sum() * float("inf")], DEFAULT, 3, 8, [])

    for _ in range(MAX_SKIPPED_WITH_SCALER - 1):
        step()
    with pytest.raises(InputError, match=rf"{MAX_SKIPPED_WITH_SCALER} steps in a row"):
        step()
    assert MAX_SKIPPED_WITH_SCALER > MAX_SKIPPED_IN_A_ROW


def test_one_good_step_between_makes_the_count_start_anew(accelerator):
    state, x = make_state(accelerator), inputs()[0]
    for step in range(3 * MAX_SKIPPED_IN_A_ROW):
        value = 1.0 if step % MAX_SKIPPED_IN_A_ROW == 0 else float("nan")
        take_step(state, [lambda v=value: state.model(x).sum() * v], OptimizerConfig(), 3, 8, [])
    assert state.progress.skipped_steps == 3 * (MAX_SKIPPED_IN_A_ROW - 1)


def test_dropout_is_a_function_of_seed_epoch_step_and_process():
    def draw(*coordinates):
        seed_step(*coordinates)
        return torch.rand(4).tolist()

    coordinates = [(1, 2, 3, 0), (1, 2, 3, 1), (1, 2, 4, 0), (1, 3, 3, 0), (2, 2, 3, 0)]
    draws = [draw(*c) for c in coordinates]
    assert draws == [draw(*c) for c in coordinates]
    assert len({tuple(d) for d in draws}) == len(coordinates)
