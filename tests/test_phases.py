"""Training in phases: a backbone handed on without its head, a head that learns before the backbone does."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from timm.utils import ModelEmaV3

import extract.step
import extract.train
from data.errors import InputError
from data.runs import Log
from data.transforms import Preprocessing
from extract.backbone import Backbone, BackboneConfig, ImageClassifier
from extract.checkpoint import save_folder
from extract.config import ExtractConfig
from extract.engine import build_optimizer, learning_rate, set_learning_rate
from extract.heads import HeadConfig
from extract.options import OptimizerConfig
from extract.phases import former_patients
from extract.resume import StopSignal
from tests.launch import drive, run
from tests.make_data import make_run
from tests.make_state import accelerator as accelerator  # a fixture


@pytest.fixture
def phase_one(tmp_path):
    """A stage folder with a model of 5 classes."""
    torch.manual_seed(3)
    model = ImageClassifier(BackboneConfig(name="test_resnet"), HeadConfig(kind="mlp", width=7), 1, 5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.rand_like(tensor)
    save_folder(tmp_path / "one" / "best", {"model.safetensors": model.state_dict(), "config.yaml": "a: 1\n"})
    (tmp_path / "one" / "data.json").write_text(json.dumps({"digest": "", "trained_patients": ["p000", "p900"]}))
    return tmp_path / "one", model


def rewritten(folder, change):
    """The model folder, its weights changed and its digests right."""
    tensors = safetensors.torch.load_file(folder / "best" / "model.safetensors")
    change(tensors)
    save_folder(folder / "best", {"model.safetensors": tensors})
    return folder


@pytest.mark.parametrize("part", ["", "best"])
def test_a_former_phases_backbone_is_taken_to_the_bit_and_its_head_is_not(phase_one, part):
    folder, former = phase_one
    torch.manual_seed(4)
    config = BackboneConfig(name="test_resnet", pretrained=folder / part)
    model = ImageClassifier(config, HeadConfig(kind="csra", batch_norm=True), 1, 3)
    for name, value in former.backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    torch.manual_seed(4)
    alone = ImageClassifier(BackboneConfig(name="test_resnet"), HeadConfig(kind="csra", batch_norm=True), 1, 3)
    for name, value in alone.head.state_dict().items():
        assert torch.equal(model.head.state_dict()[name], value), "a new head, drawn as always"


def test_a_backbone_that_does_not_fit_is_refused_by_the_name_of_its_weight(phase_one):
    folder, _ = phase_one

    def build(name="test_resnet", channels=1):
        Backbone(BackboneConfig(name=name, pretrained=folder), channels)

    with pytest.raises(InputError, match=r"weight 'model\.stem\.0\.weight' is missing"):
        build("test_convnext")
    with pytest.raises(InputError, match=r"weight 'model\.conv1\S+' has shape .* the configured model wants"):
        build(channels=3)
    key = "backbone.model.bn1.running_mean"
    rewritten(folder, lambda tensors: tensors.update({"backbone.model.extra": torch.ones(1)}))
    with pytest.raises(InputError, match=r"unexpected weight 'model\.extra'"):
        build()
    rewritten(folder, lambda tensors: (tensors.pop("backbone.model.extra"), tensors.pop(key)))
    with pytest.raises(InputError, match=r"weight 'model\.bn1\.running_mean' is missing"):
        build()
    rewritten(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("backbone.")])
    with pytest.raises(InputError, match="holds no backbone"):
        build()


def test_a_damaged_or_unfinished_former_phase_is_refused(phase_one):
    folder, _ = phase_one
    path = folder / "best" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    config = BackboneConfig(name="test_resnet", pretrained=folder)
    with pytest.raises(InputError, match=r"model\.safetensors: damaged"):
        Backbone(config, 1)
    shutil.rmtree(folder / "best")
    with pytest.raises(InputError, match="not a complete model"):
        Backbone(config, 1)


def test_the_patients_of_all_former_phases_stay_out_of_validation_and_test(phase_one, tmp_path, capsys):
    folder, _ = phase_one
    assert former_patients(folder) == former_patients(folder / "best") == {"p000", "p900"}
    shutil.copytree(folder / "best", tmp_path / "published")
    assert former_patients(tmp_path / "published") == former_patients(True) == set()
    manifest = make_run(tmp_path / "run")
    options = ["--backbone.name", "test_resnet", "--image.channels", "1", "--image.mean", "[0.5]", "--image.std", "[1]"]
    options += ["--backbone.pretrained", str(folder)]
    run("extract", tmp_path / "run", *options)
    kept = json.loads((tmp_path / "run/stage_one/data.json").read_text())["trained_patients"]
    own = set(manifest.of_split("train").images["patient_id"])
    assert set(kept) == own | {"p000", "p900"}
    held_out = manifest.of_split("test").images["patient_id"].iloc[0]
    (folder / "data.json").write_text(json.dumps({"digest": "", "trained_patients": [held_out]}))
    make_run(tmp_path / "again")
    with pytest.raises(SystemExit):
        run("extract", tmp_path / "again", *options)
    assert (
        f"1 patients of val or test were trained on in the phase that backbone.pretrained names, first {held_out}"
        in (capsys.readouterr().err)
    )
    assert not (tmp_path / "again/stage_one/last").exists(), "before any training"


def config_of(run_dir, **options):
    backbone = BackboneConfig(name="test_resnet", arguments={"drop_path_rate": 0.5})  # has BatchNorm
    fixed = {"batch_size": 6, "num_workers": 0, "image": Preprocessing(size=64), "epochs": 4}
    return ExtractConfig(run_dir=run_dir, backbone=backbone, head=HeadConfig(kind="mlp", width=7), **fixed, **options)


def epoch_by_epoch(config, manifest, accelerator):
    """Weights and statistics, model and average, at the start and after each epoch; and the optimizer's state."""
    state = extract.train.build_state(config, 3, accelerator)
    log, seen, states = Log(config.run_dir, speaks=False), [], []

    def note():
        whole = {f"model.{name}": value.clone() for name, value in state.plain_model.state_dict().items()}
        if state.ema is not None:
            whole |= {f"ema.{name}": value.clone() for name, value in state.ema.module.state_dict().items()}
        seen.append(whole)
        names = {p: name for name, p in state.plain_model.named_parameters()}
        states.append({names[p] for p in state._plain_optimizer.state})

    note()
    for epoch in range(config.epochs):
        extract.train.train_one_epoch(
            config, manifest.of_split("train"), state, StopSignal(), config.run_dir / "stage_one", {}, log
        )
        state.progress.epoch, state.progress.step = epoch + 1, 0
        note()
    return seen, states


def test_while_frozen_nothing_of_the_backbone_moves_by_a_bit_and_afterwards_all_of_it_does(tmp_path, accelerator):
    manifest = make_run(tmp_path / "run")
    config = config_of(tmp_path / "run", freeze_backbone_epochs=2, ema_decay=0.9)
    seen, states = epoch_by_epoch(config, manifest, accelerator)
    body = [name for name in seen[0] if ".backbone." in name]
    head = [name for name in seen[0] if ".head." in name and not name.endswith("num_batches_tracked")]
    assert any(name.endswith("running_var") for name in body)
    for frozen in (1, 2):
        assert all(torch.equal(seen[0][name], seen[frozen][name]) for name in body)
        assert not any(torch.equal(seen[frozen - 1][name], seen[frozen][name]) for name in head)
        assert all(name.startswith("head.") for name in states[frozen]), "no moments, no step counters"
    moved = [name for name in body if not torch.equal(seen[2][name], seen[3][name])]
    assert moved == body
    assert any(name.startswith("backbone.") for name in states[3])


def test_frozen_throughout_is_a_linear_probe_of_the_maps_that_evaluation_sees(tmp_path, accelerator):
    manifest = make_run(tmp_path / "run")
    config = config_of(tmp_path / "run", freeze_backbone_epochs=9, freeze_lr=0.02)
    state = extract.train.build_state(config, 3, accelerator)
    inputs = []
    state.plain_model.head.register_forward_pre_hook(lambda _, tokens: inputs.append(tokens[0].clone()))
    images = []
    state.plain_model.register_forward_pre_hook(lambda _, pixels: images.append(pixels[0].clone()))
    extract.train.train_one_epoch(
        config, manifest.of_split("train"), state, StopSignal(), tmp_path / "s", {}, Log(tmp_path, speaks=False)
    )
    assert len(inputs) > 2
    state.plain_model.eval()
    for tokens, pixels in zip(inputs, images, strict=True):
        assert not tokens.requires_grad
        assert torch.equal(tokens, state.plain_model.backbone(pixels).flatten(1, 2))


def test_the_schedule_begins_when_the_backbone_thaws():
    config = ExtractConfig(epochs=7, freeze_backbone_epochs=2, freeze_lr=0.5, optimizer=OptimizerConfig(lr=0.01))
    steps, rates = 10, []
    for epoch in range(7):
        options, first, epochs = config.phase(epoch)
        rates += [learning_rate((epoch - first) * steps + step, epochs * steps, options) for step in range(steps)]
    np.testing.assert_allclose(rates[: 2 * steps], 0.5)
    alone = [learning_rate(step, 5 * steps, config.optimizer) for step in range(5 * steps)]
    assert rates[2 * steps :] == alone
    assert ExtractConfig(epochs=7).phase(3) == (OptimizerConfig(), 0, 7), "without freezing nothing changes"


def test_training_follows_that_schedule_and_the_average_begins_with_it(tmp_path, accelerator, monkeypatch):
    manifest = make_run(tmp_path / "run", num_studies=25)  # 30 training images: 5 steps of 6
    config = config_of(tmp_path / "run", freeze_backbone_epochs=1, freeze_lr=0.2, ema_decay=0.9)
    rates, averaged = [], []
    monkeypatch.setattr(extract.step, "set_learning_rate", lambda _, lr: rates.append(lr))
    monkeypatch.setattr(ModelEmaV3, "update", lambda _, model, step: averaged.append(step))
    epoch_by_epoch(config, manifest, accelerator)
    after = [learning_rate(step, 15, config.optimizer) for step in range(15)]
    assert rates == [0.2] * 5 + after
    assert averaged == [*range(5), *range(15)]


@pytest.mark.parametrize("layer_decay", [1.0, 0.8])
def test_the_backbones_rate_is_its_factor_times_the_heads_layer_decay_included(layer_decay):
    model = ImageClassifier(BackboneConfig(name="test_convnext"), HeadConfig(kind="csra", batch_norm=True), 1, 3)
    rates = []
    for backbone_lr in (1.0, 0.1):
        optimizer = build_optimizer(model, OptimizerConfig(lr=0.5), layer_decay, backbone_lr)
        set_learning_rate(optimizer, 0.5)
        names = {id(p): name for name, p in model.named_parameters()}
        rates.append({names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]})
        assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names) == len(rates[-1])
        decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert all((decays[name] == 0) == (p.ndim <= 1) for name, p in model.named_parameters())
    body = {rate for name, rate in rates[0].items() if name.startswith("backbone.")}
    assert len(body) > 2 if layer_decay < 1 else body == {0.5}
    for name, rate in rates[1].items():
        assert rate == pytest.approx(rates[0][name] * (0.1 if name.startswith("backbone.") else 1.0)), name
    assert {rate for name, rate in rates[1].items() if name.startswith("head.")} == {0.5}
    assert max(rate for name, rate in rates[1].items() if name.startswith("backbone.")) == pytest.approx(0.05)


PHASES = ["--epochs", "4", "--freeze_backbone_epochs", "2", "--backbone_lr", "0.3", "--ema_decay", "0.9"]
PHASES += ["--batch_size", "12", "--save_steps", "1", "--backbone.name", "test_resnet", "--head.kind", "mlp"]
FILES = ["last/model", "last/optimizer", "last/ema", "best/model"]


def bits(run_dir):
    return {name: (run_dir / "stage_one" / f"{name}.safetensors").read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What two frozen and two other epochs of 3 steps leave behind."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    make_run(run_dir, num_studies=25)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extract.train, "write_cache", lambda *_: None)
        run("extract", run_dir, *PHASES)
    return bits(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [2, 6, 7])  # in the frozen epochs, at their end, after it
def test_killed_in_any_phase_a_run_goes_on_to_the_same_bits(tmp_path, monkeypatch, undisturbed, stop_at):
    make_run(tmp_path / "run", num_studies=25)
    monkeypatch.setattr(extract.train, "write_cache", lambda *_: None)
    real, calls = extract.train.take_step, []

    def dying(*arguments):
        calls.append(0)
        if len(calls) > stop_at:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(extract.train, "take_step", dying)
    with pytest.raises(SystemExit):
        run("extract", tmp_path / "run", *PHASES)
    monkeypatch.setattr(extract.train, "take_step", real)
    run("extract", tmp_path / "run", *PHASES)
    assert bits(tmp_path / "run") == undisturbed


@pytest.mark.slow
def test_freezing_on_two_processes_gives_the_weights_of_one(tmp_path):
    ends = {}
    for number in (1, 2):
        make_run(tmp_path / f"on_{number}")
        assert drive("freeze", tmp_path / f"on_{number}", num_processes=number).count(f"frozen on {number}") == number
        files = [tmp_path / f"on_{number}/end-{rank}/model.safetensors" for rank in range(number)]
        ends[number] = [safetensors.torch.load_file(path) for path in files]
    for end in ends[2]:
        assert end.keys() == ends[1][0].keys()
        assert all(torch.equal(end[name], ends[2][0][name]) for name in end), "all processes agree"
        assert max(float((end[name] - ends[1][0][name]).abs().max()) for name in end) < 1e-9


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"freeze_backbone_epochs": -1}, "freeze_backbone_epochs"),
        ({"backbone_lr": 0.0}, "backbone_lr"),
        ({"freeze_lr": 0.0}, "freeze_lr"),
    ],
)
def test_a_phase_that_cannot_be_is_refused_by_its_key(wrong, named):
    with pytest.raises(ValueError, match=named):
        ExtractConfig(**wrong)
