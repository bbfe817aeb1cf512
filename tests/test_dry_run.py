"""A dry run shows what training would do, exactly, and leaves nothing that a later run could trip over."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import extract.train
import fusion.train
from data.views import VIEWS
from extract.dry_run import start_command, without_clipping, without_rejected
from extract.observe import FirstStep, bytes_text, count_parameters, measure_parts, observe_step, part_lines
from extract.options import OptimizerConfig
from extract.step import take_step
from fusion.config import FusionConfig
from fusion.dry_run import first_groups, plot_groups, views_line
from fusion.grouping import make_groups
from tests.launch import CONFIGS, run
from tests.make_data import CLASSES, make_cache, make_manifest, make_run
from tests.make_state import accelerator, inputs, make_state

__all__ = ["accelerator"]  # a fixture


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


class Small(nn.Module):
    """A convolution, then attention over its positions, then a linear layer; and a weight outside of these."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(2, 5, 3, padding=1), nn.Linear(5, 7)
        self.scale = nn.Parameter(torch.ones(1))
        self.conv.bias.requires_grad = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.linear(F.scaled_dot_product_attention(x, x, x) * self.scale)


def test_flops_equal_a_count_by_hand_and_shapes_are_those_of_the_largest_pass():
    batches = [(3, 2, 4, 6), (1, 2, 4, 6)]
    cost = measure_parts(Small(), [(torch.zeros(*shape),) for shape in batches], {"conv": "BCHW", "linear": "BNE"})
    positions, images = 4 * 6, 4
    conv, linear = (2 * images * positions * size for size in (5 * 2 * 9, 5 * 7))
    attention = 2 * images * positions * positions * 5 * 2  # queries by keys, then weights by values
    assert cost.flops == {"conv": conv, "linear": linear, "": conv + linear + attention}
    assert cost.items == images
    assert cost.shapes == {"conv": (3, 5, 4, 6), "linear": (3, 24, 7)}


def test_the_parts_add_up_to_all_parameters():
    model = Small()
    assert count_parameters(model) == (sum(p.numel() for p in model.parameters()), 5 * 18 + 7 * 6 + 1)
    parts = {"conv": "BCHW", "linear": "BNE"}
    lines = part_lines(model, measure_parts(model, [(torch.zeros(3, 2, 4, 6),)], parts), parts, "image")
    assert lines[1].split() == ["conv", "B=3", "C=5", "H=4", "W=6", "95", "90", "4.32", "k"]
    assert lines[3].split()[:5] == ["outside", "of", "these", "1", "1"]
    assert lines[4].split()[:3] == ["total", str(95 + 42 + 1), str(90 + 42 + 1)]


def test_a_watched_step_reports_loss_gradient_norm_and_weights_without_a_gradient(accelerator):
    state, (x, y) = make_state(accelerator), inputs()
    state.plain_model.unused = nn.Parameter(torch.zeros(2))

    def loss():
        return 50 * (state.model(x) - y).square().mean()

    wanted = [p for name, p in state.plain_model.named_parameters() if name != "unused"]
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss(), wanted)]).norm()
    config = without_clipping(OptimizerConfig(clip_norm=0.01, clip_agc=0.01))
    seen = observe_step(state, lambda: take_step(state, [loss], config, 0, 8, []))
    assert seen.norm == pytest.approx(float(norm), rel=1e-5)
    assert seen.norm > 1
    assert seen.without_gradient == ["unused"]
    assert [arguments[0].shape for arguments in seen.inputs] == [x.shape]
    with torch.no_grad():
        assert seen.loss > float(loss()) > 0, "it took the step"


def test_a_step_that_is_not_finite_is_reported_as_such(accelerator):
    state, (x, _) = make_state(accelerator), inputs()
    seen = observe_step(
        state, lambda: take_step(state, [lambda: state.model(x).sum() * float("inf")], OptimizerConfig(), 0, 8, [])
    )
    assert seen.norm is None
    assert np.isnan(seen.loss)


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """What both stages compute first in a dry run and in a real one, and what is on disk before and after."""
    seen, folders = {}, {}
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    make_run(run_dir)
    for stage, module in {"extract": extract.train, "fusion": fusion.train}.items():
        real = module.multilabel_loss
        for kind, options in (("dry", ["--dry_run"]), ("real", ["--epochs", "2"])):
            logits = seen[stage, kind] = []

            def spy(values, *rest, logits=logits, real=real):
                logits.append(values.detach().clone())
                return real(values, *rest)

            folders[stage, kind] = files(run_dir)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module, "multilabel_loss", spy)
                run(stage, run_dir, *([*options, "--epochs", "2"] if kind == "dry" else options))
    return run_dir, seen, folders


@pytest.mark.slow
@pytest.mark.parametrize("stage", CONFIGS)
def test_the_first_step_is_the_one_that_training_begins_with(dry, stage):
    _, seen, _ = dry
    shown, real = seen[stage, "dry"], seen[stage, "real"]
    assert 0 < len(shown) < len(real) / 2
    assert all(torch.equal(a, b) for a, b in zip(shown, real, strict=False))


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "picture"), [("extract", "dry_run_images.jpg"), ("fusion", "dry_run_groups.jpg")])
def test_nothing_but_a_picture_is_left(dry, stage, picture):
    _, _, folders = dry
    before, after = folders[stage, "dry"], folders[stage, "real"]
    assert after.pop(picture)[:2] == b"\xff\xd8"
    assert before == after


@pytest.mark.slow
def test_it_prints_the_tables_and_ends_with_the_command(dry, capsys, monkeypatch):
    run_dir, _, _ = dry
    monkeypatch.setattr(sys, "argv", ["/some/where/extract.py", "--dry_run", "--run_dir", str(run_dir)])
    run("extract", run_dir, "--dry_run")
    out = capsys.readouterr().out
    assert out.rstrip().endswith(f"start it: accelerate launch extract.py --run_dir {run_dir}")
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["train"][1:4] == ["41", "20", "16"]
    assert lines["backbone"][1:5] == ["B=7", "H=2", "W=2", "D=64"]
    assert np.isfinite(float(lines["loss"][1]))
    # npy header and map 128 + 512 bytes in two tar blocks, a tar header each for it and for the ids, one block of ids
    assert f"cache: 60 maps of 2 x 2 x 64 float16, {bytes_text(60 * 2560)}" in out


def test_rejected_images_are_left_out_where_they_are_known(tmp_path):
    manifest = make_manifest(tmp_path)
    assert without_rejected(manifest, tmp_path) is manifest
    (tmp_path / "rejected.csv").write_text("path,reason\n")
    assert len(without_rejected(manifest, tmp_path)) == len(manifest)
    paths = manifest.images["path"].tolist()
    pd.DataFrame({"path": paths[3:5], "reason": "NA"}).to_csv(tmp_path / "rejected.csv", index=False)
    assert without_rejected(manifest, tmp_path).images["path"].tolist() == paths[:3] + paths[5:]


def test_the_forward_passes_of_the_first_step_are_listed_with_their_buckets():
    inputs = [(None, None, None, buckets) for buckets in (((4, 1), (3, 2)), ((1, 5),))]
    assert "(groups x views): 4 x 1 + 3 x 2, 1 x 5;" in views_line(FirstStep(inputs=inputs))


def test_the_groups_shown_are_those_of_the_first_batch_by_slot(tmp_path, accelerator):
    manifest = make_manifest(tmp_path, max_views=15)
    cache = make_cache(tmp_path / "cache", manifest)
    config = FusionConfig(batch_size=8)
    groups = make_groups(manifest.of_split("train"), cache, config.grouping)
    shown = first_groups(config, groups, cache, accelerator)
    order = np.random.default_rng(fusion.train.derive_seed("order", 0, 0)).permutation(len(groups))
    assert list(shown) == order[:6].tolist()
    for number, views in shown.items():
        slots = [slot for slot, _, _ in views]
        assert slots == sorted(set(slots)), "no slot twice with fewer views than slots"
        own = np.abs(cache.read(groups.ordinals[number]).astype(np.float32)).mean(-1)
        types = {VIEWS[t] for t in groups.view_types[number]}
        for _, view, picture in views:
            assert view in types | {"UNKNOWN"}
            assert any(np.allclose(picture, other, atol=1e-6) for other in own)
    assert max(len(views) for views in shown.values()) > 8, "more than there are columns"
    plot_groups(shown, groups, CLASSES, tmp_path / "groups.jpg")
    assert (tmp_path / "groups.jpg").stat().st_size > 5000


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["--dry_run", "--epochs", "3"], ["--epochs", "3"]),
        (["--config", "a b.yaml", "--trial", "true", "--epochs", "3"], ["--config", "'a b.yaml'", "--epochs", "3"]),
        (["--dry_run=true", "true"], ["true"]),
        (["--compile", "true", "--trial"], ["--compile", "true"]),
    ],
)
def test_the_command_that_starts_it_is_the_one_given(monkeypatch, given, kept):
    monkeypatch.setattr(sys, "argv", ["train_fusion.py", *given])
    assert start_command("train_fusion.py", Path("r")) == " ".join(["accelerate launch train_fusion.py", *kept])
    assert start_command("extract.py", Path("r")) == "accelerate launch extract.py --run_dir r"


def no_manifest(run_dir):
    (run_dir / "manifest.csv").unlink()


def unreadable(run_dir):
    for path in (run_dir / "images").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\n half a file")


@pytest.mark.parametrize(
    ("stage", "break_it", "names"),
    [
        ("extract", no_manifest, "no manifest; make one"),
        ("extract", unreadable, ".png"),
        ("extract", lambda run_dir: make_run(run_dir, num_studies=20), "no image in split 'test'"),
        ("fusion", lambda run_dir: None, "run extract.py first"),
    ],
)
def test_an_error_of_training_is_the_same_line_here(tmp_path, capsys, stage, break_it, names):
    make_run(tmp_path / "run")
    break_it(tmp_path / "run")
    before = files(tmp_path / "run")
    with pytest.raises(SystemExit) as exit:
        run(stage, tmp_path / "run", "--dry_run")
    assert exit.value.code == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert names in errors[0]
    assert files(tmp_path / "run") == before


def test_the_demo_is_told_how_to_make_its_data(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        extract.train.main(["--dry_run"])
    assert "prepare.py phantom --out runs/demo/manifest.csv" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
