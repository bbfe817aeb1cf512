"""Stage one alone: ROC curves and Grad-CAM against independent references, and the command that draws both."""

import json

import numpy as np
import pytest
import sklearn.metrics
import torch
from PIL import Image
from safetensors.torch import load_file

import data.plots
import extract.train
import fusion.overlay
from data.errors import InputError
from data.metrics import auroc, roc_curve
from data.plots import plot_roc
from data.predictions import read_predictions
from extract.backbone import Backbone, BackboneConfig
from extract.checkpoint import load_weights
from extract.heads import HeadConfig, build_head
from fusion.explain import image_grad_cam
from fusion.stage_one_report import choose_classes, command, load_run, rows_of
from tests.launch import ROOT
from tests.make_data import CLASSES, make_run


def test_a_roc_curve_is_scikit_learns_without_the_rows_of_unknown_labels():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, 57) / 8  # ties
    targets = (rng.random(57) < 0.3).astype(float)
    unknown = rng.random(57) < 0.2
    fpr, tpr, _ = sklearn.metrics.roc_curve(targets[~unknown], scores[~unknown], drop_intermediate=False)
    targets[unknown] = np.nan
    found = roc_curve(scores, targets)
    np.testing.assert_allclose(found[0], fpr)
    np.testing.assert_allclose(found[1], tpr)
    assert np.trapezoid(found[1], found[0]) == pytest.approx(auroc(scores, targets))
    assert [len(part) for part in roc_curve(scores, np.zeros(57))] == [0, 0], "no positive, no curve"


@pytest.fixture
def figures(monkeypatch):
    """Figures that were written, by the file's name."""
    drawn, save = {}, data.plots.save_figure

    def keep(figure, path, dpi):
        save(figure, path, dpi)
        drawn.setdefault(path.name, []).append(figure)

    monkeypatch.setattr(data.plots, "save_figure", keep)
    monkeypatch.setattr(fusion.overlay, "save_figure", keep)
    return drawn


def areas_drawn(figure):
    """Area below each curve of a ROC picture, by class; the diagonal has no name."""
    lines = [line for line in figure.axes[0].lines if not line.get_label().startswith("_")]
    return {line.get_label().split()[0]: np.trapezoid(line.get_ydata(), line.get_xdata()) for line in lines}


def test_a_roc_picture_has_the_curves_of_all_classes_that_have_one(tmp_path, figures):
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(40, 3)), (rng.random((40, 3)) < 0.4).astype(np.float32)
    targets[:, 1] = 0
    plot_roc(tmp_path / "a" / "roc.png", scores, targets, CLASSES, "made up")
    plot_roc(tmp_path / "none.png", scores, np.zeros((40, 3)), CLASSES, "no positives")
    assert all(Image.open(tmp_path / path).size[0] > 500 for path in ("a/roc.png", "none.png"))
    wanted = {CLASSES[c]: pytest.approx(sklearn.metrics.roc_auc_score(targets[:, c], scores[:, c])) for c in (0, 2)}
    assert areas_drawn(figures["roc.png"][0]) == wanted
    assert areas_drawn(figures["none.png"][0]) == {}


@pytest.mark.parametrize("kind", ["linear", "csra", "mlp"])
def test_grad_cam_of_a_head_equals_gradients_by_finite_differences(kind):
    B, H, W, D, C = 2, 3, 4, 5, 6
    torch.manual_seed(0)
    head = build_head(HeadConfig(kind=kind, width=7), D, C).double().eval()
    maps = torch.randn(B, H, W, D, dtype=torch.float64)
    heat = image_grad_cam(head, maps, [4, 1])
    assert heat.shape == (B, 2, H, W)
    step, expected = 1e-6, np.zeros((B, 2, H, W))
    for b in range(B):
        for k, c in enumerate((4, 1)):
            weights = np.zeros(D)
            for d in range(D):
                for y in range(H):
                    for x in range(W):
                        up, down = maps[b : b + 1].clone(), maps[b : b + 1].clone()
                        up[0, y, x, d] += step
                        down[0, y, x, d] -= step
                        change = head(up.flatten(1, 2)) - head(down.flatten(1, 2))
                        weights[d] += float(change[0, c].detach()) / (2 * step) / (H * W)
            expected[b, k] = np.maximum((maps[b].numpy() * weights).sum(axis=-1), 0)
    np.testing.assert_allclose(heat.detach().numpy(), expected, atol=1e-7)
    assert 0 < (heat == 0).sum() < heat.numel()


def test_grad_cam_of_a_linear_head_is_its_class_map_without_the_bias():
    torch.manual_seed(0)
    head = build_head(HeadConfig(kind="linear"), 5, 3).eval()
    maps = torch.randn(2, 4, 6, 5)
    own = head.class_maps(maps.flatten(1, 2)) - head.classifier.bias[:, None]
    heat = image_grad_cam(head, maps, [2, 0]).flatten(2) * 24  # a gradient of the mean over 24 positions
    torch.testing.assert_close(heat, own[:, [2, 0]].clamp(min=0).detach())


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs of the recipe, with blocks and without."""
    folder = tmp_path_factory.mktemp("runs")
    layers = [f"--config={ROOT / 'extract/configs' / name}.yaml" for name in ("lka_densenet121", "tiny")]
    for name, placement in (("blocks", "lka_last_two"), ("plain", "none")):
        make_run(folder / name, num_studies=25)
        options = ["--run_dir", str(folder / name), "--backbone.attention", placement]
        extract.train.main([*layers, *options, "--freeze_backbone_epochs", "0"])
    return folder


def coloured(figure, path):
    """Whether each part of a picture has a pixel that is not grey."""
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    high, wide, _ = pixels.shape
    found = []
    for axis in figure.axes:
        left, low, right, top = axis.get_position().extents
        part = pixels[round((1 - top) * high) : round((1 - low) * high), round(left * wide) : round(right * wide)]
        found.append(np.ptp(part, axis=2).max() > 20)
    return np.array(found)


@pytest.mark.slow
def test_the_command_scores_and_draws_both_runs(runs, capsys, figures):
    run_dirs = [runs / "blocks", runs / "plain"]
    run = load_run(run_dirs[0], "test")
    image_ids = run.part.images["image_id"].tolist()[:3]
    command(run_dirs, "test", image_ids, ["Nodule"])
    printed = capsys.readouterr().out
    for run_dir, roc in zip(run_dirs, figures["roc_test.png"], strict=True):
        folder = run_dir / "stage_one" / "evaluation"
        ids, values, classes = read_predictions(folder / "predictions_test.csv")
        scores = json.loads((folder / "metrics_test.json").read_text())
        assert f"{run_dir}: test mAP {scores['mAP']:.3f}, mean AUROC {scores['mAUROC']:.3f}" in printed
        assert classes == CLASSES
        areas = [sklearn.metrics.roc_auc_score(run.part.labels[:, c], values[:, c]) for c in range(3)]
        assert ids["image_id"].tolist() == run.part.images["image_id"].tolist()
        assert scores["mAUROC"] == pytest.approx(np.mean(areas), abs=1e-6)
        assert (folder / "roc_test.png").exists()
        assert list(areas_drawn(roc).values()) == pytest.approx(sorted(areas, reverse=True), abs=1e-6)
    cells = coloured(figures["grad_cam.png"][0], run_dirs[0] / "stage_one/evaluation/grad_cam.png")
    assert not cells[:3].any(), "the images themselves, grey"
    words = [axis.get_xlabel() for axis in figures["grad_cam.png"][0].axes[3:]]
    assert cells[3:].any(), "some heat"
    assert cells[3:].tolist() == ["no heat" not in each for each in words], "below them that of each run"
    with pytest.raises(InputError, match=r"--images nobody: .*has no such cached image"):
        rows_of(run, ["nobody"])
    with pytest.raises(InputError, match="'Effusion' is none of the classes"):
        choose_classes(run, [0], ["Effusion"])
    with pytest.raises(InputError, match="one for each of 3, got 2"):
        choose_classes(run, [0, 1, 2], ["Edema", "Nodule"])


@pytest.mark.slow
def test_the_cached_maps_are_those_of_the_backbone_with_its_blocks(runs):
    """Logits from the cache are those of the saved model on the images, blocks included."""
    from data.images import read_image
    from data.transforms import Preprocessing

    run = load_run(runs / "blocks", "test")
    weights = load_file(runs / "blocks/stage_one/best/model.safetensors")
    backbone = Backbone(BackboneConfig(name="test_convnext", attention="lka_last_two"), 3)
    parts = {
        key: {k.removeprefix(key): v for k, v in weights.items() if k.startswith(key)} for key in ("backbone.", "head.")
    }
    load_weights(backbone, parts["backbone."], "here")
    head = build_head(HeadConfig(kind="linear"), backbone.dim, 3).eval()
    load_weights(head, parts["head."], "here")
    image = Preprocessing.from_dict(run.cache.identity.preprocessing)
    with torch.no_grad():
        pixels = torch.stack([image(read_image(run.part.image_path(row))) for row in range(4)])
        expected = head(backbone.eval()(pixels).flatten(1, 2)).numpy()
    np.testing.assert_allclose(run.logits[:4], expected, atol=5e-3)
