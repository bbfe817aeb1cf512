"""Two processes write the same shards and predictions as one, and train to the same weights."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

import extract.train
import fusion.train
from data.predictions import read_predictions
from tests.launch import drive, launch
from tests.make_data import make_run

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = {
    stage: ["--config", f"{stage}/configs/cxr_lt_2023.yaml", "--config", f"{stage}/configs/tiny.yaml"]
    for stage in ("extract", "fusion")
}
NO_DROPOUT = ["--model.dropout", "0", "--model.head.dropout", "0"]  # its draws differ between processes
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run folder made by one process."""
    run_dir = tmp_path_factory.mktemp("one") / "run"
    make_run(run_dir)
    os.chdir(ROOT)
    extract.train.main([*CONFIGS["extract"], "--run_dir", str(run_dir)])
    fusion.train.main([*CONFIGS["fusion"], "--run_dir", str(run_dir), *NO_DROPOUT])
    return run_dir


@pytest.fixture(scope="module")
def two(one, tmp_path_factory):
    """The same with two processes, from the same trained backbone on."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    shutil.copytree(one, run_dir)
    shutil.rmtree(run_dir / "cache")
    shutil.rmtree(run_dir / "fusion")
    assert "2 processes" in drive("stage", run_dir, "extract", num_processes=2)
    launch("train_fusion.py", *CONFIGS["fusion"], "--run_dir", str(run_dir), *NO_DROPOUT)
    return run_dir


def test_the_shards_are_byte_equal(one, two):
    names = sorted(path.name for path in (one / "cache").iterdir())
    assert names == sorted(path.name for path in (two / "cache").iterdir())
    for name in names:
        assert (one / "cache" / name).read_bytes() == (two / "cache" / name).read_bytes(), name


def test_training_ends_with_the_same_weights(one, two):
    a, b = (safetensors.torch.load_file(run / "fusion" / "last" / "model.safetensors") for run in (one, two))
    for key in a:
        np.testing.assert_allclose(a[key].numpy(), b[key].numpy(), rtol=0, atol=2e-5, err_msg=key)


def test_every_image_is_predicted_once_and_alike(one, two):
    for split in ("val", "test"):
        (ids_a, a, _), (ids_b, b, _) = (read_predictions(run / "fusion" / f"logits_{split}.csv") for run in (one, two))
        assert ids_a.equals(ids_b)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)
