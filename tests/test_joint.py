"""The joint phase starts where the cache leaves off, trains what it is told to, and resumes exactly."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import fusion.joint
import fusion.train
from data.cache import FeatureCache
from data.config import parse_config
from data.errors import InputError
from data.manifest import read_manifest, write_manifest
from data.predictions import read_predictions
from data.runs import Log
from extract.backbone import Backbone, BackboneConfig
from extract.engine import make_accelerator
from extract.heads import HeadConfig
from extract.resume import StopSignal
from fusion.config import FusionConfig, JointConfig
from fusion.grouping import cached_manifest, make_groups
from fusion.inference import forward as forward_cached
from fusion.joint import Phase, build_state, phase_config, predict_groups
from fusion.joint_model import JointModel, stages_of
from fusion.joint_start import load_start
from fusion.model import FusionModel, ModelConfig
from fusion.train import plan_steps, training_batches
from tests.launch import CONFIGS, drive, run
from tests.make_data import make_run

NO_DROPOUT = ["--model.dropout", "0", "--model.head.dropout", "0"]
JOINT = ["--joint", "--joint.num_workers", "0", "--joint.epochs", "2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder after both stages; not to be changed."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    make_run(run_dir)
    run("extract", run_dir, "--augmentation.rotate", "10")
    run("fusion", run_dir, *NO_DROPOUT, "--retrain_single", "false")
    return run_dir


@pytest.fixture
def copy(finished, tmp_path):
    """A copy to work on."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def joint(run_dir, *options):
    run("fusion", run_dir, *NO_DROPOUT, "--retrain_single", "false", *JOINT, *options)


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def phase_of(run_dir, *options):
    """The phase before its first step, and the cache."""
    words = [*CONFIGS["fusion"], "--run_dir", str(run_dir), *NO_DROPOUT, "--retrain_single", "false", *JOINT, *options]
    config, _ = parse_config(FusionConfig, None, words)
    cache = FeatureCache(config.cache_dir or run_dir / "cache")
    manifest = cached_manifest(read_manifest(run_dir / "manifest.csv"), cache)
    images = {split: manifest.of_split(split) for split in ("train", "val", "test")}
    sets = {split: make_groups(part, cache, config.grouping) for split, part in images.items()}
    model, stage_one, _ = load_start(config, manifest, cache)
    phase = Phase(phase_config(config), stage_one, sets, images, make_accelerator(config))
    return phase, build_state(phase, model), cache


def one_epoch(phase, state, tmp_path, stop=None):
    log = Log(tmp_path, speaks=False)
    fusion.joint.train_one_epoch(phase, state, stop or StopSignal(), tmp_path / "joint", {}, log)
    return {name: value.clone() for name, value in state.plain_model.state_dict().items()}


@pytest.mark.parametrize("pool", [1, 2])
def test_with_nothing_unfrozen_predictions_from_images_are_those_from_the_cache(finished, copy, pool):
    if pool == 2:
        for name in ("cache", "fusion"):
            shutil.rmtree(copy / name)
        run("extract", copy, "--augmentation.rotate", "10", "--cache.pool", "2")
        run("fusion", copy, *NO_DROPOUT, "--retrain_single", "false")
    phase, state, _ = phase_of(copy, "--joint.unfreeze", "0")
    for split in ("val", "test"):
        found = predict_groups(phase, split, state.plain_model)
        ids, wanted, _ = read_predictions(copy / "fusion" / f"logits_{split}.csv")
        row = {image_id: n for n, image_id in enumerate(ids["image_id"])}
        first = [row[phase.images[split].images["image_id"].iat[rows[0]]] for rows in phase.sets[split].rows]
        np.testing.assert_allclose(found, wanted[first], rtol=0, atol=2e-3 * np.abs(wanted).max())
        assert np.ptp(wanted[first], axis=0).min() > 0.01, "groups differ by much more"


def test_a_training_pass_sees_the_maps_of_the_cache_in_the_slots_of_stage_two(finished):
    phase, state, cache = phase_of(finished, "--joint.unfreeze", "0")
    config, groups = phase.config, phase.sets["train"]
    batches = training_batches(config, groups, 1)
    config = replace(config, max_views_per_forward=10)
    ((passes, counts), ordinals, variants), *_ = plan_steps(config, groups, batches, 1, 1, phase.accelerator)
    assert counts
    assert len(passes) > 1
    assert max(len(one.buckets) for one in passes) > 1
    dataset = fusion.joint.ImageDataset(phase.images["train"], phase.stage_one.image)
    stored = cache.read_stored(ordinals, variants).split([len(one) for one in passes])
    model = state.plain_model.eval()
    for one, maps in zip(passes, stored, strict=True):
        pixels = dataset.__getitems__(phase.requests("train", one, 1, 0))
        found = phase.forward(model, one, pixels)
        wanted = forward_cached(model.fusion, one, maps, cache.identity, phase.accelerator)
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("name", "stages", "last"),
    [
        ("resnet18", 5, "layer4.1.bn2.bias"),
        ("convnext_atto", 5, "head.norm.bias"),
        ("densenet121", 5, "features.norm5.bias"),
        ("vit_tiny_patch16_224", 13, "norm.bias"),
    ],
)
def test_a_final_norm_belongs_to_the_last_of_timms_stages(name, stages, last):
    with torch.device("meta"):
        found = stages_of(timm.create_model(name, num_classes=0, global_pool=""))
    assert len(found) == stages
    assert last in found[-1]
    assert not any(key.startswith(("stages.2", "layer3", "features.denseblock3", "blocks.10")) for key in found[-1])


def small_model(name, unfreeze, pool=1):
    """Two by two positions of a few features, over 32 pixels a side or as many as make 2 x 2."""
    torch.manual_seed(0)
    backbone = Backbone(BackboneConfig(name=name), 1)
    head = HeadConfig(width=8, num_heads=2)
    shape = (3, 2, backbone.dim)
    fused = FusionModel(ModelConfig(width=8, num_heads=2, dropout=0.0, head=replace(head, dropout=0.0)), shape, 3)
    fused.position_code = torch.zeros(1, 1, 8)  # for maps of any size
    return JointModel(backbone, fused, pool, unfreeze)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
@pytest.mark.parametrize("unfreeze", [0, 1, 2, "all"])
def test_what_learns_gets_a_gradient_and_what_is_frozen_stays_to_the_bit(name, unfreeze):
    model = small_model(name, unfreeze)
    size = 160 if name == "test_vit" else 64
    stages = stages_of(model.backbone.model)
    count = len(stages) if unfreeze == "all" else unfreeze
    learns = {f"backbone.model.{key}" for stage in stages[len(stages) - count :] for key in stage}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(2):
        images = torch.randn(2 * 3, 1, size, size)
        types, slots = torch.zeros(6, dtype=torch.int64), torch.arange(3).repeat(2)
        model(images, types, slots, [(2, 3)]).square().sum().backward()
        optimizer.step()
    for key, weight in model.named_parameters():
        trained = key in learns or (key.startswith("fusion.") and key != "fusion.head.queries")  # fixed by design
        assert (weight.grad is not None) == trained, key
    for key, value in model.state_dict().items():
        if key not in learns and not key.startswith("fusion."):
            assert torch.equal(value, before[key]), key
        elif key in learns and (key.endswith("conv.weight") or key.endswith("norm.bias")):
            assert not torch.equal(value, before[key]), key


def test_a_group_does_not_hear_its_neighbours_even_in_training_with_batchnorm():
    model = small_model("test_resnet", "all").train()
    lengths, buckets = [1, 2, 2], [(1, 1), (2, 2)]
    images, types, slots = torch.randn(5, 1, 64, 64), torch.zeros(5, dtype=torch.int64), torch.tensor([0, 0, 1, 0, 1])
    together = model(images, types, slots, buckets)
    groups = zip(*(part.split(lengths) for part in (images, types, slots)), strict=True)
    alone = torch.cat([model(*group, [(1, len(group[0]))]) for group in groups])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    assert not torch.allclose(together, model(images.roll(1, 0), types, slots, buckets), atol=1e-3), "other views"


def test_too_many_stages_are_refused_with_their_number():
    with pytest.raises(InputError, match=r"has 5 stages, its stem counted, found 6"):
        small_model("test_resnet", 6)


def test_gradients_add_up_over_forward_passes_of_one_view(finished, tmp_path):
    torch.set_default_dtype(torch.float64)
    try:
        ends = [
            one_epoch(*phase_of(finished, "--joint.max_views_per_forward", str(most))[:2], tmp_path) for most in (0, 1)
        ]
        start = {name: value.clone() for name, value in phase_of(finished)[1].plain_model.state_dict().items()}
    finally:
        torch.set_default_dtype(torch.float32)
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], rtol=0, atol=1e-9, msg=name)
    assert any(not torch.equal(start[name], ends[0][name]) for name in start if name.startswith("backbone."))


def test_augmentation_differs_by_epoch_step_and_image_and_is_off_in_prediction(finished, monkeypatch, tmp_path):
    phase, state, _ = phase_of(finished, "--joint.augment", "true")
    used = []
    made = fusion.joint.ImageDataset

    def noting(manifest, image, augmentation=None):
        used.append(augmentation)
        return made(manifest, image, augmentation)

    monkeypatch.setattr(fusion.joint, "ImageDataset", noting)
    predict_groups(phase, "val", state.plain_model)
    one_epoch(phase, state, tmp_path)
    assert used == [None, phase.stage_one.augmentation]
    assert phase.stage_one.augmentation.rotate == 10
    plans = plan_steps(
        phase.config,
        phase.sets["train"],
        training_batches(phase.config, phase.sets["train"], 0),
        0,
        1,
        phase.accelerator,
    )
    passes = [one for (passes, _), *_ in plans for one in passes]
    seeds = [seed for e in (0, 1) for s in (0, 1) for p in passes for _, seed in phase.requests("train", p, e, s)]
    assert len(set(seeds)) == len(seeds)


def test_the_command_leaves_a_result_beside_the_frozen_fusion_and_is_recognised_when_finished(copy, capsys):
    frozen = {path: path.read_bytes() for path in (copy / "fusion").rglob("*") if path.is_file()}
    joint(copy, "--joint.unfreeze", "1")
    assert all(path.read_bytes() == content for path, content in frozen.items()), "stage two stays as it was"
    folder = copy / "fusion" / "joint"
    for name in ("best/model.safetensors", "last/state.json", "metrics.jsonl", "submission.zip", "best/stage_one.yaml"):
        assert (folder / name).is_file(), name
    report = json.loads((folder / "metrics.json").read_text())
    former = json.loads((copy / "fusion" / "metrics.json").read_text())
    for unit in ("images", "groups"):
        assert "fusion - frozen" in report[unit]["differences"]
        assert report[unit]["methods"]["frozen"]["mAP"] == former[unit]["methods"]["fusion"]["mAP"]
        assert report[unit]["methods"]["mean"]["mAP"] == former[unit]["methods"]["mean"]["mAP"]
    assert "frozen" in (folder / "table.txt").read_text()
    for split in ("val", "test"):
        ids, values, _ = read_predictions(folder / f"predictions_{split}.csv")
        assert (
            ids["image_id"].tolist() == read_manifest(copy / "manifest.csv").of_split(split).images["image_id"].tolist()
        )
        assert np.isfinite(values).all()
    kept = (folder / "last" / "digests.json").read_bytes()
    capsys.readouterr()
    joint(copy, "--joint.unfreeze", "1", "--joint.num_workers", "1")
    assert "fusion/joint: 2 of 2 epochs are done already" in capsys.readouterr().out
    assert (folder / "last" / "digests.json").read_bytes() == kept
    with pytest.raises(SystemExit):
        joint(copy, "--joint.unfreeze", "2")
    assert "joint.unfreeze=1, now it is 2" in capsys.readouterr().err
    run("fusion", copy, *NO_DROPOUT, "--retrain_single", "false", "--joint.unfreeze", "2")  # without --joint


def test_one_command_runs_stage_two_and_then_the_joint_phase(finished, copy):
    shutil.rmtree(copy / "fusion")
    joint(copy, "--joint.epochs", "1", "--retrain_single", "true")
    a, b = weights(copy / "fusion" / "best"), weights(finished / "fusion" / "best")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (copy / "fusion" / "metrics.json").is_file()
    assert (copy / "fusion" / "joint" / "metrics.json").is_file()


def test_a_phase_stopped_within_an_epoch_goes_on_to_the_same_bits(finished, copy, tmp_path, monkeypatch):
    options = ["--batch_size", "4", "--joint.augment", "true", "--ema_decay", "0.9"]
    whole = Path(shutil.copytree(finished, tmp_path / "whole"))
    for run_dir in (whole, copy):
        shutil.rmtree(run_dir / "fusion")
        run("fusion", run_dir, *NO_DROPOUT, "--retrain_single", "false", *options[:2], *options[4:])
    joint(whole, *options)
    with monkeypatch.context() as patched:
        asked = iter(range(99))
        patched.setattr(StopSignal, "agreed", lambda *_: next(asked) >= 3)
        with pytest.raises(SystemExit):
            joint(copy, *options)
    folder = copy / "fusion" / "joint"
    progress = json.loads((folder / "last" / "state.json").read_text())["progress"]
    assert progress["step"] == 4
    assert progress["epoch"] == 0
    joint(copy, *options)
    for name in ("best", "last"):
        a, b = weights(folder / name), weights(whole / "fusion" / "joint" / name)
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert (folder / "predictions_test.csv").read_bytes() == (
        whole / "fusion" / "joint" / "predictions_test.csv"
    ).read_bytes()


def test_a_patient_that_moved_from_train_to_test_is_refused(copy, capsys):
    manifest = read_manifest(copy / "manifest.csv")
    images = manifest.images.copy()
    patient = images.loc[images["split"] == "train", "patient_id"].iat[0]
    images.loc[images["patient_id"] == patient, "split"] = "test"
    write_manifest(replace(manifest, images=images), copy / "manifest.csv")
    with pytest.raises(SystemExit):
        joint(copy)
    assert patient in capsys.readouterr().err
    assert not (copy / "fusion" / "joint").exists()


def test_an_image_that_is_not_the_cached_one_is_refused_by_name(copy, capsys):
    first, second = read_manifest(copy / "manifest.csv").images["path"].iloc[:2]
    shutil.copy(copy / "images" / second, copy / "images" / first)
    with pytest.raises(SystemExit):
        joint(copy)
    assert f"1 image files are not the cached ones, first image {first[:-4]}" in capsys.readouterr().err


def test_a_cache_of_another_backbone_and_weights_trained_anew_are_refused(copy, capsys):
    joint(copy, "--joint.epochs", "1")
    start = copy / "fusion" / "joint" / "start.json"
    start.write_text(json.dumps(json.loads(start.read_text()) | {"fusion": "0" * 64}))
    with pytest.raises(SystemExit):
        joint(copy, "--joint.epochs", "1")
    assert "this phase began with other weights" in capsys.readouterr().err
    phase, _, cache = phase_of(copy)
    cache.index.fold[-1] = 1
    with pytest.raises(InputError, match="come from several; name its cache"):
        load_start(replace(phase.config, joint=JointConfig(run=True)), phase.images["val"], cache)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--joint", "--trial"], "rehearse stage two"),
        (["--joint", "--evaluation.augment", "true"], "averages over cached maps"),
        (["--joint.lr", "0"], "joint.lr must be positive"),
        (["--joint.unfreeze", "-1"], "number of stages or all"),
        (["--joint.unfreeze", "some"], "joint.unfreeze"),
        (["--joint.epochs", "0"], "joint.epochs must be at least 1"),
        (["--joint", "other.yaml"], "other.yaml"),
    ],
)
def test_a_wrong_option_ends_with_its_name(words, message, capsys):
    with pytest.raises(SystemExit):
        parse_config(FusionConfig, None, [*CONFIGS["fusion"], *words])
    assert message in capsys.readouterr().err


def test_joint_alone_starts_the_phase():
    config, _ = parse_config(FusionConfig, None, [*CONFIGS["fusion"], "--joint", "--joint.unfreeze", "2"])
    assert (config.joint.run, config.joint.unfreeze) == (True, 2)
    assert config.result_dir == config.run_dir / "fusion" / "joint"
    assert not parse_config(FusionConfig, None, CONFIGS["fusion"])[0].joint.run


@pytest.mark.slow
def test_two_processes_train_to_the_weights_of_one(finished, tmp_path):
    ends = {}
    for number in (1, 2):
        run_dir = Path(shutil.copytree(finished, tmp_path / f"on_{number}"))
        words = [*NO_DROPOUT, "--retrain_single", "false", *JOINT]
        out = drive("stage", run_dir, "fusion", *words, num_processes=number)
        assert f"on {number} process" in out
        ends[number] = run_dir / "fusion" / "joint"
    one, two = (weights(ends[number] / "last") for number in (1, 2))
    start = weights(finished / "stage_one" / "best")
    for key in one:
        np.testing.assert_allclose(one[key].numpy(), two[key].numpy(), rtol=0, atol=2e-5, err_msg=key)
    assert any(not torch.equal(start[key], one[key]) for key in one if key.startswith("backbone."))
    (ids, a, _), (same, b, _) = (read_predictions(ends[number] / "logits_test.csv") for number in (1, 2))
    assert ids.equals(same)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)
