"""Both stages from images to submission, on a tiny made-up data set, in this process."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
import yaml

import extract.train
import fusion.train
from data.cache import FeatureCache
from data.cache_convert import convert
from data.cache_verify import verify
from data.errors import InputError
from data.manifest import read_manifest
from data.metrics import mean_defined, per_class
from data.predictions import read_predictions
from extract.checkpoint import load_json
from fusion.config import GroupingConfig
from fusion.grouping import cached_manifest, make_groups
from fusion.scoring import load_scores
from fusion.stage_one import stage_one_logits
from tests.make_data import CLASSES, make_run

ROOT = Path(__file__).resolve().parents[1]
STAGE_ONE = [
    "--config",
    str(ROOT / "extract/configs/cxr_lt_2023.yaml"),
    "--config",
    str(ROOT / "extract/configs/tiny.yaml"),
]
STAGE_TWO = [
    "--config",
    str(ROOT / "fusion/configs/cxr_lt_2023.yaml"),
    "--config",
    str(ROOT / "fusion/configs/tiny.yaml"),
]
pytestmark = pytest.mark.slow


def stage_one(run_dir, *options):
    extract.train.main([*STAGE_ONE, "--run_dir", str(run_dir), *options])


def stage_two(run_dir, *options):
    fusion.train.main([*STAGE_TWO, "--run_dir", str(run_dir), *options])


def weights(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def same_weights(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def file_bytes(folder):
    return {
        path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run folder after both stages."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    manifest = make_run(run_dir)
    stage_one(run_dir)
    stage_two(run_dir)
    return run_dir, manifest


@pytest.fixture
def run_dir(finished, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def test_the_run_folder_holds_what_it_should(finished):
    run_dir, _ = finished
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    for stage in ("stage_one", "fusion"):
        assert {f"{stage}/{name}" for name in ("config.yaml", "metrics.jsonl", "progress.png")} <= names
        model_folder = (
            "model.safetensors",
            "config.yaml",
            "classes.json",
            "preprocessing.json",
            "metrics.json",
            "digests.json",
        )
        assert {f"{stage}/best/{name}" for name in model_folder} <= names
        assert {f"{stage}/last/{name}" for name in ("optimizer.safetensors", "state.json", "digests.json")} <= names
    wanted = "manifest.csv manifest.json rejected.csv environment.json log.txt stage_one/batch_0.jpg cache/cache.json"
    wanted += " cache/index.npz cache/000000.tar fusion/metrics.json fusion/scores_test.npz fusion/logits_val.csv"
    wanted += " fusion/predictions_test.csv"
    wanted += " fusion/submission.csv fusion/submission.zip"
    assert set(wanted.split()) <= names
    assert not [name for name in names if "tmp" in name or name.endswith((".pkl", ".pt", ".pth", ".bin"))]


def test_every_image_of_a_split_is_predicted_once_and_alike_within_its_study(finished):
    run_dir, manifest = finished
    for split in ("val", "test"):
        ids, probabilities, classes = read_predictions(run_dir / "fusion" / f"predictions_{split}.csv")
        _, logits, _ = read_predictions(run_dir / "fusion" / f"logits_{split}.csv")
        assert classes == CLASSES
        assert ids["image_id"].tolist() == manifest.of_split(split).images["image_id"].tolist()
        np.testing.assert_allclose(1 / (1 + np.exp(-logits.astype(np.float64))), probabilities, atol=1e-6)
        for _, rows in pd.DataFrame(probabilities).groupby(ids["study_id"].to_numpy()):
            assert (rows == rows.iloc[0]).all(axis=None)


def test_kept_scores_give_the_tables_numbers_and_the_predictions(finished):
    run_dir, _ = finished
    kept, report = load_scores(run_dir / "fusion/scores_test.npz"), load_json(run_dir / "fusion/metrics.json")
    methods = report["groups"]["methods"]
    assert {name for name in kept if name.startswith("groups/")} == {f"groups/{method}" for method in methods}
    for method, row in methods.items():
        assert mean_defined(per_class(kept[f"groups/{method}"], kept["labels"]).ap) == row["mAP"]
    own_labels = np.repeat(kept["labels"], kept["num_views"], axis=0)
    single = mean_defined(per_class(kept["images/single"], own_labels).ap)
    assert abs(single - report["images"]["methods"]["single"]["mAP"]) < 1e-12
    ids, probabilities, _ = read_predictions(run_dir / "fusion/predictions_test.csv")
    group = {name: number for number, name in enumerate(kept["group_id"].tolist())}
    assert (kept["groups/fusion"][[group[study] for study in ids["study_id"]]] == probabilities).all()


def test_the_submission_has_the_templates_rows_and_columns(run_dir, tmp_path):
    template = pd.DataFrame(
        {"dicom_id": read_predictions(run_dir / "fusion/predictions_test.csv")[0]["image_id"][::-1]}
    )
    template = template.assign(Hernia=0.5, Edema=0.5, Nodule=0.5)
    template.to_csv(tmp_path / "sample.csv", index=False)
    stage_two(run_dir, "--template", str(tmp_path / "sample.csv"), "--name", "again")
    submission = pd.read_csv(run_dir / "again" / "submission.csv", dtype={"dicom_id": str})
    assert submission["dicom_id"].tolist() == template["dicom_id"].tolist()
    assert submission.columns.tolist() == ["dicom_id", "Hernia", "Edema", "Nodule"]


def test_a_finished_run_is_recognised_and_left_alone(run_dir, capsys):
    before = {name: file_bytes(run_dir / name) for name in ("stage_one/best", "cache", "fusion", "fusion/best")}
    stage_one(run_dir)
    stage_two(run_dir)
    out = capsys.readouterr().out
    assert "stage one: 1 of 1 epochs are done already" in out
    assert "maps are there already" in out
    assert {name: file_bytes(run_dir / name) for name in before} == before


def test_a_killed_extraction_goes_on_to_the_same_bytes(run_dir):
    before = file_bytes(run_dir / "cache")
    cache = FeatureCache(run_dir / "cache")
    plan = json.dumps(cache.identity.to_dict(), indent=1, sort_keys=True)
    (run_dir / "cache" / "cache.json").unlink()
    (run_dir / "cache" / "index.npz").unlink()
    (run_dir / "cache" / "plan.json").write_text(plan)
    shard = run_dir / "cache" / "000000.tar"
    (run_dir / "cache" / ".tmp-000000.tar").write_bytes(shard.read_bytes()[:9000])
    shard.unlink()
    stage_one(run_dir)
    assert file_bytes(run_dir / "cache") == before
    assert not verify(run_dir / "cache")


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_a_run_that_is_killed_and_resumed_ends_with_the_same_bits(tmp_path, monkeypatch, stop_at):
    options = ["--epochs", "2", "--save_steps", "1", "--ema_decay", "0.9"]
    for name in ("whole", "killed"):
        make_run(tmp_path / name)
    stage_one(tmp_path / "whole", *options)
    real, calls = extract.train.take_step, []

    def dying(*arguments):
        calls.append(0)
        if len(calls) > stop_at:
            raise KeyboardInterrupt
        real(*arguments)

    monkeypatch.setattr(extract.train, "take_step", dying)
    with pytest.raises(SystemExit):
        stage_one(tmp_path / "killed", *options)
    monkeypatch.setattr(extract.train, "take_step", real)
    stage_one(tmp_path / "killed", *options)
    for name in ("last", "best"):
        a, b = (tmp_path / run / "stage_one" / name for run in ("whole", "killed"))
        assert same_weights(weights(a), weights(b))
    for name in ("optimizer.safetensors", "ema.safetensors", "state.json"):
        contents = [(tmp_path / run / "stage_one" / "last" / name).read_bytes() for run in ("whole", "killed")]
        assert contents[0] == contents[1]


LAST = ["model", "optimizer", "ema"]
LAST = [f"{name}.safetensors" for name in LAST] + ["state.json", "config.yaml", "classes.json", "digests.json"]


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """Stage one with an average, after two epochs."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    make_run(run_dir)
    stage_one(run_dir, *TWO_EPOCHS)
    return run_dir


TWO_EPOCHS = ["--epochs", "2", "--ema_decay", "0.9"]


@pytest.mark.parametrize("name", LAST)
def test_each_damaged_file_of_the_newest_checkpoint_is_named_and_the_former_checkpoint_used(
    two_epochs, tmp_path, capsys, name
):
    run_dir = shutil.copytree(two_epochs, tmp_path / "run")
    path = run_dir / "stage_one" / "last" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SystemExit) as stop:
        stage_one(run_dir, *TWO_EPOCHS, "--resume", str(path.parent))
    assert stop.value.code == 1
    assert re.search(rf"error: \S+{name}: damaged", capsys.readouterr().err), "what was asked for by name is refused"
    with pytest.warns(UserWarning, match=rf"{name}: damaged.*going on from .*previous"):
        stage_one(run_dir, *TWO_EPOCHS)
    for folder in ("last", "best"):
        found, wanted = (file_bytes(root / "stage_one" / folder) for root in (run_dir, two_epochs))
        assert {n: found[n] for n in found if n not in ("config.yaml", "digests.json")} == {
            n: wanted[n]
            for n in wanted
            if n not in ("config.yaml", "digests.json")  # a configuration names its folder
        }


@pytest.mark.parametrize("options", [{"dtype": "uint8"}, {"dtype": "uint8", "pool": 2}])
def test_stage_two_goes_on_from_a_converted_cache_to_nearly_the_same_predictions(run_dir, tmp_path, options):
    convert(run_dir / "cache", tmp_path / "small", **options)
    stage_two(run_dir, "--cache_dir", str(tmp_path / "small"), "--name", "small")
    assert FeatureCache(tmp_path / "small").record["trained_patients"]
    tables = [read_predictions(run_dir / name / "predictions_test.csv")[1] for name in ("fusion", "small")]
    assert tables[0].shape == tables[1].shape
    assert 0 < np.abs(tables[0] - tables[1]).max() < (0.2 if "pool" in options else 0.02)


def test_stage_two_learns_from_variants_and_starts_again_to_the_same_bits(tmp_path):
    make_run(tmp_path / "run")
    stage_one(tmp_path / "run", "--cache.flip", "true", "--cache.augmented", "1")
    assert FeatureCache(tmp_path / "run/cache").identity.variants == ("plain", "flip", "augmented_1")
    stage_two(tmp_path / "run")
    stage_two(tmp_path / "run", "--name", "again", "--num_workers", "5")
    stage_two(tmp_path / "run", "--name", "plain", "--grouping.draw_variants", "false")
    found = [weights(tmp_path / "run" / name / "best") for name in ("fusion", "again", "plain")]
    assert same_weights(found[0], found[1])
    assert not same_weights(found[0], found[2])


def test_the_stage_one_head_does_not_read_maps_of_another_fold(run_dir):
    cache = FeatureCache(run_dir / "cache")
    manifest = cached_manifest(read_manifest(run_dir / "manifest.csv"), cache)
    groups = make_groups(manifest.of_split("test"), cache, GroupingConfig())
    assert stage_one_logits(run_dir, groups, cache).shape == (groups.num_views.sum(), 3)
    cache.index.fold[groups.ordinals[0][0]] = 1
    with pytest.raises(InputError, match=r"1 maps of this split come from other backbones than .*this run's first"):
        stage_one_logits(run_dir, groups, cache)


def test_patients_can_be_fused_too(run_dir):
    stage_two(run_dir, "--grouping.by", "patient", "--name", "by_patient")
    ids, probabilities, _ = read_predictions(run_dir / "by_patient/predictions_test.csv")
    for _, rows in pd.DataFrame(probabilities).groupby(ids["patient_id"].to_numpy()):
        assert (rows == rows.iloc[0]).all(axis=None)


def test_an_unreadable_image_is_listed_and_the_run_goes_on(tmp_path):
    manifest = make_run(tmp_path / "run")
    manifest.image_path(0).write_bytes(b"\x89PNG\r\n\x1a\n half a file")
    stage_one(tmp_path / "run", "--max_rejected", "0.1")
    rejected = pd.read_csv(tmp_path / "run" / "rejected.csv")
    assert rejected["path"].tolist() == [manifest.images["path"].iat[0]]
    assert manifest.images["image_id"].iat[0] not in FeatureCache(tmp_path / "run/cache").ordinal


def test_an_unreadable_test_image_gets_the_prediction_of_its_study(tmp_path):
    manifest = make_run(tmp_path / "run")
    test = manifest.of_split("test").images
    study = test["study_id"].value_counts().index[0]
    image = test.loc[test["study_id"] == study].iloc[0]
    (manifest.root / image["path"]).write_bytes(b"nothing")
    stage_one(tmp_path / "run", "--max_rejected", "0.1")
    stage_two(tmp_path / "run")
    ids, probabilities, _ = read_predictions(tmp_path / "run/fusion/predictions_test.csv")
    rows = probabilities[(ids["study_id"] == study).to_numpy()]
    assert image["image_id"] in ids["image_id"].tolist()
    assert (rows == rows[0]).all()


def swap_backbone(run_dir):
    """Another model in stage_one/best, whole in itself, as after a second training."""
    other = run_dir.parent / "other"
    make_run(other)
    stage_one(other, "--seed", "5")
    shutil.rmtree(run_dir / "stage_one" / "best")
    shutil.copytree(other / "stage_one" / "best", run_dir / "stage_one" / "best")


def unpredicted_template(run_dir):
    (run_dir / "sample.csv").write_text("dicom_id,Edema,Nodule,Hernia\nnobody,0.5,0.5,0.5\n")


def edit_config(run_dir, **changes):
    path = run_dir / "bad.yaml"
    path.write_text(yaml.safe_dump(changes))
    return path


FAULTS = {
    "another backbone's cache, stage two": (swap_backbone, stage_two, [], "was made with another backbone"),
    "another backbone's cache, stage one": (
        swap_backbone,
        stage_one,
        [],
        "was made with another weights of the backbone",
    ),
    "a template id without a prediction": (
        unpredicted_template,
        stage_two,
        ["--template", "{run}/sample.csv", "--name", "x"],
        "nobody",
    ),
    "a run of another configuration": (lambda _: None, stage_one, ["--optimizer.lr", "0.5"], "optimizer.lr"),
    "no test images": (
        lambda run: make_run(run, num_studies=20),
        stage_one,
        [],
        "no image in split 'test'",
    ),
    "labels that changed since stage two": (
        lambda run: make_run(run, num_studies=25),
        stage_two,
        [],
        "begun with other images, labels or splits",
    ),
    "no cache": (lambda run: shutil.rmtree(run / "cache"), stage_two, ["--name", "x"], "run extract.py first"),
    "no manifest": (lambda run: os.remove(run / "manifest.csv"), stage_one, [], "no manifest; make one"),
    "too many unreadable images": (
        lambda run: [path.write_bytes(b"") for path in sorted((run / "images").iterdir())[:9]],
        stage_one,
        ["--max_rejected", "0.1"],
        "cannot be read",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_ends_with_one_clear_line(run_dir, capsys, fault):
    break_it, stage, options, names = FAULTS[fault]
    break_it(run_dir)
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit:
        stage(run_dir, *[option.replace("{run}", str(run_dir)) for option in options])
    assert exit.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert names in errors[0]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"optimzer": {"lr": 1.0}}, "optimzer"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr"),
        ({"epochs": 0}, "epochs"),
    ],
)
@pytest.mark.parametrize("stage", [stage_one, stage_two])
def test_a_bad_key_or_value_is_named(tmp_path, capsys, stage, changes, names):
    path = edit_config(tmp_path, **changes)
    with pytest.raises(SystemExit) as exit:
        stage(tmp_path, "--config", str(path))
    assert exit.value.code == 2
    assert names in capsys.readouterr().err
