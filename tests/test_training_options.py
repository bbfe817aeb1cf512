"""Options of the training engine: averages, early stopping, clipping by unit, rates by layer, named checkpoints."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from data.errors import InputError
from data.runs import Log, read_metrics
from extract.backbone import BackboneConfig, ImageClassifier
from extract.engine import build_optimizer, finish_epoch, learning_rate, set_learning_rate
from extract.heads import HeadConfig
from extract.options import OptimizerConfig, TrainingConfig
from extract.resume import Progress
from tests.make_state import accelerator as accelerator  # a fixture
from tests.make_state import make_state, run_steps, weights

ROOT = Path(__file__).resolve().parents[1]


def end_epoch(state, config, value, folder):
    finish_epoch(state, config, {"mAP": value, "mAUROC": None}, folder, {}, Log(folder, speaks=True), 1.0)


def test_the_mean_of_weights_holds_one_model_per_epoch_from_the_given_one_on(accelerator, tmp_path):
    config = TrainingConfig(epochs=5, average_from=3)
    state, kept = make_state(accelerator, average_from=3), []
    for epoch in range(5):
        run_steps(state, [4], steps=2, start=2 * epoch)
        state.end_epoch(3)
        kept.append(weights(state).double())
        if epoch < 2:
            assert state.evaluated_model is state.plain_model
        end_epoch(state, config, 0.1 * epoch, tmp_path)
    mean = torch.cat([weight.detach().flatten() for weight in state.evaluated_model.parameters()]).double()
    torch.testing.assert_close(mean, torch.stack(kept[2:]).mean(0), rtol=0, atol=1e-7)


def test_the_mean_of_weights_survives_a_stop_between_the_last_step_and_the_validation(accelerator, tmp_path):
    def epoch(state, number, stopped):
        run_steps(state, [], steps=2, start=2 * number)
        state.save(tmp_path, {})
        if stopped:
            state = make_state(accelerator, average_from=1)
            assert state.resume(tmp_path)
        state.end_epoch(1)
        state.end_epoch(1)  # a second time changes nothing
        end_epoch(state, TrainingConfig(epochs=3, average_from=1), 0.5, tmp_path)
        return state

    ends = []
    for stopped in (False, True):
        state = make_state(accelerator, average_from=1)
        for number in range(3):
            state = epoch(state, number, stopped)
        ends.append(state.mean.state_dict())
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())
    assert ends[0]["n_averaged"] == 3


def test_training_ends_after_patience_epochs_without_a_better_one(accelerator, tmp_path, capsys):
    config = TrainingConfig(epochs=9, patience=2)
    state, values = make_state(accelerator), iter([0.3, 0.5, 0.4, 0.5, 0.9])
    while not state.progress.finished(config):
        run_steps(state, [], steps=1)
        end_epoch(state, config, next(values), tmp_path)
    assert (state.progress.epoch, state.progress.best_epoch) == (4, 2)
    assert "no better epoch in 2: training ends early" in capsys.readouterr().out
    assert not Progress(epoch=8, best_epoch=0).finished(TrainingConfig(epochs=9))
    assert Progress(epoch=9).finished(TrainingConfig(epochs=9))


def test_adaptive_clipping_bounds_each_units_gradient_by_its_weights_outside_the_head(accelerator):
    factor, config = 0.02, OptimizerConfig(clip_norm=0.0, clip_agc=0.02)
    seen = []
    for chosen in (OptimizerConfig(clip_norm=0.0), config):
        state = make_state(accelerator)
        state.plain_model.head = nn.Identity()  # no weights: only the names of the others matter here
        state.optimizer.step = lambda state=state: seen.append(
            {name: weight.grad.clone() for name, weight in state.plain_model.named_parameters()}
        )
        run_steps(state, [], steps=1, config=chosen)
    start = dict(make_state(accelerator).plain_model.named_parameters())
    assert any(not torch.equal(seen[0][name], seen[1][name]) for name in start)
    for name, weight in start.items():
        units = (
            zip(weight, seen[0][name], seen[1][name], strict=True)
            if weight.ndim > 1
            else [(weight, seen[0][name], seen[1][name])]
        )
        for w, raw, clipped in units:
            most = factor * max(float(w.detach().norm()), 1e-3)
            wanted = raw * min(1.0, most / max(float(raw.norm()), 1e-6))
            torch.testing.assert_close(clipped, wanted, rtol=1e-5, atol=1e-9, msg=name)


def test_earlier_layers_of_the_backbone_learn_more_slowly_and_the_head_at_full_rate():
    config = BackboneConfig(name="test_convnext")
    model = ImageClassifier(config, HeadConfig(kind="linear"), 1, 3)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.5), layer_decay=0.8)
    set_learning_rate(optimizer, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert rates.keys() == dict(model.named_parameters()).keys(), "every weight in exactly one group"
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(rates)
    assert all(rate == 0.5 for name, rate in rates.items() if name.startswith("head."))
    body = {name: rate for name, rate in rates.items() if name.startswith("backbone.")}
    assert max(body.values()) == 0.5
    powers = np.log(np.array(sorted(set(body.values()))) / 0.5) / np.log(0.8)
    np.testing.assert_allclose(powers, powers.round(), atol=1e-6)
    assert rates["backbone.model.stem.0.weight"] == min(body.values()) < 0.5 * 0.8**2
    assert all((decays[name] == 0) == (parameter.ndim <= 1) for name, parameter in model.named_parameters())


def test_without_layer_decay_all_weights_have_one_rate():
    model = ImageClassifier(BackboneConfig(name="test_convnext"), HeadConfig(kind="linear"), 1, 3)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.5))
    set_learning_rate(optimizer, learning_rate(9, 90, OptimizerConfig(lr=0.5)))
    assert len({group["lr"] for group in optimizer.param_groups}) == 1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json", "digests.json"])
def test_a_damaged_checkpoint_that_was_asked_for_is_refused_and_nothing_else_is_taken(accelerator, tmp_path, name):
    state = make_state(accelerator)
    for start in (0, 2):
        run_steps(state, [], steps=2, start=start)
        state.save(tmp_path, {})
    path = tmp_path / "last" / name
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(InputError, match=rf"{name}: damaged"):
        make_state(accelerator).resume(tmp_path, tmp_path / "last")
    assert make_state(accelerator).resume(tmp_path, tmp_path / "previous")
    assert (tmp_path / "last").exists(), "what was asked for by name is no reason to delete anything"


def test_a_model_without_resume_state_cannot_be_resumed_from(accelerator, tmp_path):
    state = make_state(accelerator)
    run_steps(state, [], steps=1)
    end_epoch(state, TrainingConfig(epochs=3), 0.5, tmp_path)
    with pytest.raises(InputError, match="best: a model without resume state"):
        make_state(accelerator).resume(tmp_path, tmp_path / "best")
    with pytest.raises(InputError, match=r"nowhere: not a complete .* folder"):
        make_state(accelerator).resume(tmp_path, tmp_path / "nowhere")


def test_a_named_checkpoint_takes_training_back_to_where_it_was(accelerator, tmp_path):
    state, former = make_state(accelerator, decay=0.9), []
    for start in (0, 2):
        run_steps(state, [], steps=2, start=start)
        state.save(tmp_path, {})
        former.append(weights(state))
    for folder, wanted in zip(("previous", "last"), former, strict=True):
        resumed = make_state(accelerator, decay=0.9)
        resumed.resume(tmp_path, tmp_path / folder)
        assert torch.equal(weights(resumed), wanted)


@pytest.mark.parametrize("where", ["weight", "average", "moment"])
def test_a_checkpoint_never_holds_a_value_that_is_not_finite(accelerator, tmp_path, where):
    state = make_state(accelerator, decay=0.9)
    run_steps(state, [], steps=2)
    state.save(tmp_path, {})
    with torch.no_grad():
        weight = state.plain_model.first.weight
        target = {
            "weight": weight,
            "average": state.ema.module.first.weight,
            "moment": state._plain_optimizer.state[weight]["exp_avg"],
        }[where]
        target[1, 2] = float("inf")
    with pytest.raises(InputError, match=r"safetensors: '.*first\.weight' is not finite"):
        state.save(tmp_path, {})
    for content in (tmp_path / "last").glob("*.safetensors"):
        assert all(torch.isfinite(value).all() for value in safetensors.torch.load_file(content).values())


def test_an_epoch_of_skipped_steps_is_recorded_as_having_no_loss(accelerator, tmp_path):
    state = make_state(accelerator)
    state.running_loss.update(0.0, 0.0)
    end_epoch(state, TrainingConfig(epochs=2), 0.4, tmp_path)
    assert read_metrics(tmp_path)[0]["train_loss"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"epochs": 0}, "epochs"),
        ({"patience": -1}, "patience"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"average_from": 11, "epochs": 10}, "average_from"),
        ({"average_from": 2, "ema_decay": 0.9}, "ema_decay and average_from"),
    ],
)
def test_impossible_training_settings_are_refused_by_name(wrong, name):
    with pytest.raises(ValueError, match=name):
        TrainingConfig(**wrong)


COMPILED = """
import torch
from accelerate import Accelerator
from extract.engine import make_state
from extract.heads import HeadConfig
from extract.options import TrainingConfig
from fusion.model import FusionModel, ModelConfig

head = HeadConfig(width=8, num_heads=2, dropout=0.0)
ends = []
for compiled in (False, True):
    torch.manual_seed(0)
    model = FusionModel(ModelConfig(width=8, num_heads=2, depth=1, dropout=0.0, head=head), (3, 2, 5), 4)
    state = make_state(model, TrainingConfig(compile=compiled), Accelerator(cpu=True))
    assert not any("_orig_mod" in name for name in state.plain_model.state_dict())
    for V in (1, 2, 3):
        maps = torch.randn(4, V, 3, 2, 5, generator=torch.Generator().manual_seed(V))
        types = torch.zeros(4, V, dtype=torch.long)
        state.model(maps, types, types).square().mean().backward()
    ends.append([parameter.grad for parameter in state.plain_model.parameters() if parameter.requires_grad])
for a, b in zip(*ends):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
print("agree")
"""


@pytest.mark.slow
def test_a_compiled_model_gives_the_gradients_of_the_plain_one_and_keeps_its_names():
    run = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.stdout == "agree\n", run.stderr[-2000:]
