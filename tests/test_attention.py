"""Large-kernel attention: against a slow loop, the published sizes, any convolutional backbone; who trains on what."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

import extract.train
from data.errors import InputError
from extract.attention import LKA, add_attention, stage_names
from extract.backbone import Backbone, BackboneConfig, ImageClassifier
from extract.config import ExtractConfig
from extract.heads import HeadConfig
from extract.observe import count_parameters
from extract.phases import for_training
from extract.trial import trial_manifest
from tests.launch import ROOT
from tests.make_data import make_manifest, make_run

HEAD = HeadConfig(kind="linear", dropout=0.5)
B, D, H, W = 2, 3, 9, 11

PUBLISHED = [  # parameters, numbers in the state dict, GFLOPs as fvcore counts them
    ("densenet121", "lka_full", 9_609_870, 9_693_639, 3.64),
    ("densenet121", "lka_last_two", 9_223_054, 9_306_823, 3.14),
    ("densenet121", "lka_after", 8_095_630, 8_179_399, 2.92),
    ("densenet121", "none", 6_968_206, None, None),
    ("vgg16_bn", "lka_full", 15_453_966, 15_462_427, 16.70),
    ("vgg16_bn", "lka_last_three", 15_418_702, 15_427_163, 15.93),
    ("vgg16_bn", "lka_after", 15_031_886, 15_040_347, 15.39),
    ("vgg16_bn", "none", 14_730_318, None, None),
]

OURS = [("densenet121", "lka_last_three", 9_524_622), ("vgg16_bn", "lka_last_two", 15_333_454)]
"""Parameters of placements that were not published."""


def depthwise(x, weight, bias, dilation):
    """A depthwise convolution of one image written out; zeros outside."""
    side, out = weight.shape[-1] // 2, np.empty_like(x)
    for d in range(D):
        for y in range(H):
            for u in range(W):
                total = bias[d]
                for i in range(-side, side + 1):
                    for j in range(-side, side + 1):
                        row, column = y + i * dilation, u + j * dilation
                        if 0 <= row < H and 0 <= column < W:
                            total += weight[d, 0, i + side, j + side] * x[d, row, column]
                out[d, y, u] = total
    return out


def test_the_block_equals_a_slow_loop():
    torch.manual_seed(0)
    block = LKA(D).double()
    x = torch.randn(B, D, H, W, dtype=torch.float64)
    weights = {name: value.numpy() for name, value in block.state_dict().items()}
    for b in range(B):
        inner = depthwise(x[b].numpy(), weights["dw_conv1.weight"], weights["dw_conv1.bias"], 1)
        inner = depthwise(inner, weights["dw_conv2.weight"], weights["dw_conv2.bias"], 3)
        expected = np.empty((D, H, W))
        for d in range(D):
            gate = weights["pw_conv.bias"][d] + sum(weights["pw_conv.weight"][d, e, 0, 0] * inner[e] for e in range(D))
            expected[d] = gate * x[b, d].numpy()
        np.testing.assert_allclose(block(x)[b].detach().numpy(), expected, rtol=0, atol=1e-12)


def test_a_position_hears_23_by_23_positions():
    torch.manual_seed(0)
    x = torch.randn(1, D, 41, 43, requires_grad=True)
    LKA(D)(x)[0, 1, 20, 21].backward()
    rows, columns = torch.nonzero(x.grad[0].abs().sum(dim=0), as_tuple=True)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20 - 11, 20 + 11, 21 - 11, 21 + 11)


@pytest.mark.parametrize("dim", [64, 128, 256, 512, 1024])
def test_a_block_has_the_published_number_of_weights(dim):
    with torch.device("meta"):
        assert count_parameters(LKA(dim))[0] == dim**2 + 77 * dim


def published_model(name, placement):
    with torch.device("meta"):
        return ImageClassifier(BackboneConfig(name=name, attention=placement), HEAD, 3, 14).eval()


@torch.no_grad()
def fvcore_gflops(model):
    """Multiplication and addition of convolutions as one, batch norms as two per number; the last layer is nothing."""
    norms = []
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.register_forward_hook(lambda _, arguments, __: norms.append(2 * arguments[0].numel()))
    with FlopCounterMode(display=False) as counter:
        assert model.backbone(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 7, 7, model.backbone.dim)
    return (counter.get_total_flops() / 2 + sum(norms)) / 1e9


@pytest.mark.parametrize(("name", "placement", "parameters", "numbers", "gflops"), PUBLISHED)
def test_a_model_has_the_published_size_and_cost(name, placement, parameters, numbers, gflops):
    model = published_model(name, placement)
    assert count_parameters(model) == (parameters, parameters)
    if numbers:
        assert sum(value.numel() for value in model.state_dict().values()) == numbers
        assert round(fvcore_gflops(model), 2) == gflops


@pytest.mark.parametrize(("name", "placement", "parameters"), OURS)
def test_placements_that_were_not_published_have_the_documented_size(name, placement, parameters):
    assert count_parameters(published_model(name, placement)) == (parameters, parameters)


@pytest.mark.parametrize(
    ("name", "placement", "where"),
    [
        ("densenet121", "lka_full", [f"features.denseblock{n}.1" for n in (1, 2, 3, 4)]),
        ("densenet121", "lka_last_two", ["features.denseblock3.1", "features.denseblock4.1"]),
        ("vgg16_bn", "lka_full", [f"features.{n}.1" for n in (5, 12, 22, 32, 42)]),
        ("vgg16_bn", "lka_last_three", [f"features.{n}.1" for n in (22, 32, 42)]),
        ("resnet18", "lka_full", [f"layer{n}.1" for n in (1, 2, 3, 4)]),
        ("test_convnext", "lka_last_three", [f"stages.{n}.1" for n in (1, 2, 3)]),
    ],
)
def test_blocks_stand_where_the_placement_says(name, placement, where):
    """A stage is a Sequential of itself and its block; those of ResNets, Sequentials too, are wrapped once more."""
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig(name=name, attention=placement), 3)
    assert [path for path, module in backbone.model.named_modules() if isinstance(module, LKA)] == where
    assert isinstance(backbone.after, nn.Identity)


SMALL = {"growth_rate": 4, "block_config": [1, 2, 1, 2]}


@pytest.mark.parametrize("placement", ["lka_full", "lka_last_three", "lka_last_two", "lka_after"])
@pytest.mark.parametrize(
    ("name", "arguments"), [("densenet121", SMALL), ("test_resnet", {"zero_init_last": False}), ("test_convnext", {})]
)
def test_every_parameter_gets_a_gradient(name, arguments, placement):
    torch.manual_seed(0)
    model = ImageClassifier(BackboneConfig(name=name, arguments=arguments, attention=placement), HEAD, 1, 5)
    model(torch.randn(3, 1, 64, 64)).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without
    blocks = {"lka_full": 4, "lka_last_three": 3, "lka_last_two": 2, "lka_after": 1}
    assert sum(isinstance(module, LKA) for module in model.modules()) == blocks[placement]


@pytest.mark.parametrize(
    ("placement", "blocks"), [("none", 0), ("lka_after", 1), ("lka_last_three", 3), ("lka_full", 5)]
)
def test_every_parameter_of_vgg_gets_a_gradient_on_its_five_scales(placement, blocks):
    """In evaluation mode: in training its convolutions' biases have none, for the BatchNorms behind take them away."""
    torch.manual_seed(0)
    small = {"mlp_ratio": 0.01}  # its fully connected layers, which are taken away again, are made in less time
    config = BackboneConfig(name="vgg16_bn", arguments=small, attention=placement)
    model = ImageClassifier(config, HEAD, 1, 5).eval()
    model(torch.randn(1, 1, 32, 32)).square().sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients.values())
    assert not [name for name, grad in gradients.items() if not grad.any()]
    assert sum(isinstance(module, LKA) for module in model.modules()) == blocks


@torch.no_grad()
def test_a_block_whose_gate_is_one_leaves_the_backbones_map_as_it_was():
    torch.manual_seed(0)
    plain = Backbone(BackboneConfig(name="densenet121", arguments=SMALL), 1).eval()
    for placement in ("lka_full", "lka_after"):
        model = Backbone(BackboneConfig(name="densenet121", arguments=SMALL, attention=placement), 1).eval()
        wanted, found = list(plain.state_dict().values()), dict(model.state_dict())
        own = [name for name in found if "_conv" not in name]
        assert len(own) == len(wanted), "nothing but the blocks is new"
        model.load_state_dict(dict(zip(own, wanted, strict=True)), strict=False)
        for module in model.modules():
            if isinstance(module, LKA):
                module.pw_conv.weight.zero_()
                module.pw_conv.bias.fill_(1)
        images = torch.randn(2, 1, 64, 96)
        torch.testing.assert_close(model(images), plain(images))
        copied = copy.deepcopy(model)
        for p in copied.parameters():
            p.zero_()
        torch.testing.assert_close(model(images), plain(images), msg="a copy has blocks of its own")
        assert copied(images).abs().max() == 0


@pytest.mark.parametrize("name", ["test_vit", "swin_tiny_patch4_window7_224"])
def test_a_transformer_is_refused(name):
    with torch.device("meta"), pytest.raises(InputError, match=r"backbone\.attention: .* has no convolutional stages"):
        Backbone(BackboneConfig(name=name, attention="lka_after"), 3)


def test_layer_decay_does_not_go_with_blocks_inside():
    with pytest.raises(ValueError, match="layer_decay: timm does not know"):
        ExtractConfig(layer_decay=0.8, backbone=BackboneConfig(name="resnet18", attention="lka_full"))


def test_no_placement_changes_nothing():
    assert isinstance(add_attention(nn.Linear(2, 3), "none"), nn.Identity)
    assert stage_names(nn.Linear(2, 3)) == []


def test_abnormal_images_train_and_validate_and_test_stays_whole(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=40)
    labels = manifest.labels.copy()
    labels[:, 2] = labels.max(axis=1) == 0  # the third class says that there is nothing to find
    labels[::7, 0] = np.nan
    manifest = replace(manifest, labels=labels, classes=("Edema", "Nodule", "No Finding"))
    kept = for_training(manifest, "abnormal")
    wanted = []
    for row, (split, image_id) in enumerate(zip(manifest.images["split"], manifest.images["image_id"], strict=True)):
        if split == "test" or labels[row, 0] == 1 or labels[row, 1] == 1:
            wanted.append(image_id)
    assert kept.images["image_id"].tolist() == wanted
    assert 0 < len(wanted) < len(manifest)
    assert len(kept.of_split("test")) == len(manifest.of_split("test"))
    assert for_training(manifest, "all") is manifest
    renamed = replace(manifest, classes=("Edema", "Nodule", "Normal"))
    assert for_training(renamed, "abnormal").images["image_id"].tolist() == wanted


def test_a_phase_without_a_single_abnormal_image_is_refused(tmp_path):
    manifest = make_manifest(tmp_path)
    labels = np.where((manifest.images["split"] == "val").to_numpy()[:, None], 0, manifest.labels)
    with pytest.raises(InputError, match="train_on abnormal leaves no image in split 'val'"):
        for_training(replace(manifest, labels=labels.astype(np.float32)), "abnormal")


def test_a_trial_of_the_first_phase_takes_abnormal_images(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=40)
    config = ExtractConfig(batch_size=4, train_on="abnormal")
    chosen = trial_manifest(config, for_training(manifest, "abnormal"))
    assert (chosen.of_split("train").labels.max(axis=1) == 1).all()
    assert len(chosen.of_split("train")) == 2 * 4


def layered(name, run_dir, *options):
    paths = [str(ROOT / "extract/configs" / f"{each}.yaml") for each in (name, "tiny")]
    return ["--config", paths[0], "--config", paths[1], "--run_dir", str(run_dir), *options]


@pytest.mark.slow
def test_phase_two_takes_the_blocks_of_phase_one_and_sees_no_patient_of_val_or_test(tmp_path, capsys):
    manifest = make_run(tmp_path / "one", num_studies=25)
    make_run(tmp_path / "two", num_studies=25)
    extract.train.main(layered("lka_vgg16_abnormal", tmp_path / "one"))
    former = ["--backbone.pretrained", str(tmp_path / "one/stage_one"), "--epochs", "1"]
    extract.train.main(layered("lka_vgg16", tmp_path / "two", *former, "--freeze_backbone_epochs", "1"))
    states = [load_file(tmp_path / run / "stage_one/best/model.safetensors") for run in ("one", "two")]
    blocks = [name for name in states[0] if "pw_conv" in name]
    assert len(blocks) == 2 * 3
    for name in blocks:
        torch.testing.assert_close(states[0][name], states[1][name], rtol=0, atol=0, msg="frozen: as phase one left it")
    trained = [set(json.loads((tmp_path / run / "stage_one/data.json").read_text())["trained_patients"]) for run in
               ("one", "two")]  # fmt: skip
    of_split = {split: set(manifest.of_split(split).images["patient_id"]) for split in ("train", "val", "test")}
    assert trained[0] < trained[1] == of_split["train"], "phase one knows the abnormal ones only"
    assert not trained[1] & (of_split["val"] | of_split["test"])
    moved = make_manifest(tmp_path / "one" / "images", num_studies=25)
    seen = sorted(trained[0])[0]
    moved.images.loc[moved.images["patient_id"] == seen, "split"] = "test"
    (tmp_path / "three").mkdir()
    from data.manifest import write_manifest

    write_manifest(moved, tmp_path / "three" / "manifest.csv")
    with pytest.raises(SystemExit):
        extract.train.main(layered("lka_vgg16", tmp_path / "three", *former))
    assert f"1 patients of val or test were trained on in the phase that backbone.pretrained names, first {seen}" in (
        capsys.readouterr().err
    )
