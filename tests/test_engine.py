"""Schedule, optimizer and checkpoints of a stage: rates as announced, and a resumed run equal to an unbroken one."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from data.plots import plot_progress
from data.runs import Log, append_metrics, read_metrics
from extract.checkpoint import check_folder, newest_checkpoint
from extract.engine import build_optimizer, finish_epoch, gather_rows, learning_rate, sigmoid
from extract.options import OptimizerConfig, TrainingConfig
from extract.resume import Progress
from tests.make_state import Net, accelerator, make_state, run_steps, weights

__all__ = ["accelerator"]  # a fixture


def scores(value):
    return {"mAP": value, "mAUROC": value}


def test_the_rate_warms_up_peaks_at_lr_and_ends_at_the_final_share():
    config = OptimizerConfig(lr=0.4, warmup_share=0.25, final_share=0.1)
    rates = [learning_rate(step, 40, config) for step in range(40)]
    assert rates[:10] == pytest.approx([0.04 * n for n in range(1, 11)])
    assert max(rates) == rates[9] == 0.4
    assert all(a >= b for a, b in pairwise(rates[9:]))
    assert rates[-1] == pytest.approx(0.04)
    assert rates[25] == pytest.approx((0.4 + 0.04) / 2, rel=0.1), "half way down in the middle"
    for total in (1, 2, 3, 7):
        assert all(0 < learning_rate(step, total, config) <= 0.4 for step in range(total))


def test_only_matrices_decay():
    model = Net()
    groups = build_optimizer(model, OptimizerConfig(weight_decay=0.3)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, p in model.named_parameters():
        assert decay[id(p)] == (0.3 if name in ("first.weight", "last.weight") else 0.0), name


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(accelerator, tmp_path, decay):
    straight = make_state(accelerator, decay=decay)
    run_steps(straight, [3], steps=6)
    first = make_state(accelerator, decay=decay)
    run_steps(first, [3], steps=4)
    first.progress.step = 4
    first.save(tmp_path, {"config.yaml": "a: 1\n"})
    second = make_state(accelerator, decay=decay)
    assert second.resume(tmp_path)
    assert second.progress == Progress(step=4)
    run_steps(second, [3], steps=2, start=4)
    assert torch.equal(weights(straight), weights(second))
    assert torch.equal(straight.running_loss.compute(), second.running_loss.compute())
    for a, b in zip(straight.evaluated_model.parameters(), second.evaluated_model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_after_a_fallback_the_damaged_folder_never_replaces_the_whole_one(accelerator, tmp_path):
    state = make_state(accelerator)
    for _ in range(2):
        run_steps(state, [], steps=1)
        state.save(tmp_path, {})
    (tmp_path / "last" / "state.json").write_text("{}")
    with pytest.warns(UserWarning, match="going on from"):
        assert state.resume(tmp_path)
    state.save(tmp_path, {})
    check_folder(tmp_path / "last")
    check_folder(tmp_path / "previous")
    assert newest_checkpoint(tmp_path) == tmp_path / "last"
    assert not make_state(accelerator).resume(tmp_path / "elsewhere")


def test_rows_come_back_in_order_each_once(accelerator):
    values = torch.arange(15.0).view(5, 3)
    rows = np.array([3, 0, 4, 1, 2])
    np.testing.assert_array_equal(gather_rows(accelerator, rows, values[rows], 5), values.numpy())
    assert gather_rows(accelerator, rows[:0], values[:0], 0).shape == (0, 3)
    for wrong in (rows[:4], np.array([3, 0, 4, 1, 1])):
        with pytest.raises(AssertionError, match="every row exactly once"):
            gather_rows(accelerator, wrong, values[: len(wrong)], 5)


def test_sigmoid_does_not_overflow():
    assert sigmoid(np.array([[-1e5, 0, 1e5]], dtype=np.float32)).tolist() == [[0, 0.5, 1]]


def test_an_epochs_end_keeps_the_best_model_and_the_resume_state(accelerator, tmp_path):
    state, log, averaged = make_state(accelerator, decay=0.9), Log(tmp_path, speaks=False), []
    for value in (0.2, 0.5, 0.4):
        run_steps(state, [], steps=2)
        averaged.append(torch.cat([p.detach().flatten() for p in state.evaluated_model.parameters()]))
        finish_epoch(
            state, TrainingConfig(epochs=3), scores(value), tmp_path, {"classes.json": {"classes": ["a"]}}, log, 1.5
        )
    assert state.progress == Progress(epoch=3, best_score=0.5, best_epoch=2)
    rows = read_metrics(tmp_path)
    assert [(row["epoch"], row["mAP"]) for row in rows] == [(1, 0.2), (2, 0.5), (3, 0.4)]
    assert all(0 < row["train_loss"] < 10 for row in rows)
    for name in ("best", "last", "previous"):
        check_folder(tmp_path / name)
    assert json.loads((tmp_path / "best" / "metrics.json").read_text()) == {"val": scores(0.5)}
    state.load_best(tmp_path)
    assert torch.equal(weights(state), averaged[1]), "the averaged weights of the best epoch"
    assert (tmp_path / "progress.png").stat().st_size > 1000


def test_a_validation_set_without_any_positive_is_survived(accelerator, tmp_path):
    state = make_state(accelerator)
    run_steps(state, [], steps=1)
    finish_epoch(state, TrainingConfig(epochs=2), scores(None), tmp_path, {}, Log(tmp_path, speaks=True), 1.0)
    assert state.progress.best_epoch == 1
    append_metrics(tmp_path, {"epoch": 2, "train_loss": 0.1} | scores(0.3))
    plot_progress(tmp_path)


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"warmup_share": 1.0}, {"final_share": 2.0}, {"clip_norm": -1.0}, {"weight_decay": -0.1}]
)
def test_impossible_optimizer_settings_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=rf"optimizer\.{next(iter(wrong))}"):
        OptimizerConfig(**wrong)


def test_a_run_stopped_after_the_last_step_of_an_epoch_ends_that_epoch_quietly(accelerator, tmp_path, recwarn):
    state = make_state(accelerator)
    run_steps(state, [], steps=2)
    state.save(tmp_path, {})
    resumed = make_state(accelerator)
    resumed.resume(tmp_path)
    assert torch.equal(resumed.running_loss.compute(), state.running_loss.compute())
    assert not [str(w.message) for w in recwarn if "compute" in str(w.message)]
