"""Published weights: every one taken over, none guessed, and the same logits as the published model's."""

import json

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import extract.train
from data.config import parse_config
from data.errors import InputError
from extract.backbone import BackboneConfig, ImageClassifier
from extract.checkpoint import check_folder, load_tensors
from extract.config import ExtractConfig
from extract.foreign import CXR_LT_2026_CLASSES, RECIPE, import_weights, load_published, main, published_name
from extract.heads import HeadConfig
from fusion.train import main as stage_two
from tests.launch import CONFIGS, ROOT
from tests.make_data import CLASSES, make_run

OPTIONS = ["--config", str(RECIPE), "--config", str(ROOT / "extract/configs/tiny.yaml")]
CSRA = HeadConfig(kind="csra", batch_norm=True)


class Published(nn.Module):
    """The published architecture at any width, with its names of weights; channels first."""

    def __init__(self, name, num_classes):
        super().__init__()
        self.backbone = timm.create_model(name, num_classes=0, global_pool="")
        dim = self.backbone.num_features
        self.bn = nn.BatchNorm2d(dim)
        self.head = nn.ModuleDict({"classifier": nn.Linear(dim, num_classes)})
        self.head["conv_att"] = nn.Conv2d(dim, num_classes, 1, bias=False)

    def forward(self, images):
        maps = self.bn(self.backbone(images))
        classifier, looked_at = self.head["classifier"], self.head["conv_att"](maps).flatten(2).softmax(dim=2)
        attended = torch.einsum("bcn,bdn->bcd", looked_at, maps.flatten(2))
        beside = (attended * classifier.weight).sum(dim=2) + classifier.bias
        return classifier(maps.mean(dim=(2, 3))) + 0.1 * beside


@pytest.fixture
def published():
    """A small one with 3 classes, every number away from where it starts."""
    torch.manual_seed(0)
    model = Published("test_convnext", len(CLASSES)).eval()
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            tensor.add_((0.3 * torch.randn_like(tensor)).abs() if "var" in name else 0.2 * torch.randn_like(tensor))
    return model


def test_an_imported_model_gives_the_published_logits_and_both_stages_follow(published, tmp_path, capsys):
    path, run_dir = tmp_path / "w.safetensors", tmp_path / "run"
    safetensors.torch.save_file(published.state_dict(), path)
    make_run(run_dir)
    options = [*OPTIONS, "--run_dir", str(run_dir)]
    config, resolved = parse_config(ExtractConfig, RECIPE, options)
    import_weights(path, config, resolved, CLASSES)
    best = run_dir / "stage_one" / "best"
    check_folder(best)
    names = {"model.safetensors", "config.yaml", "classes.json", "preprocessing.json", "metrics.json", "digests.json"}
    assert {file.name for file in best.iterdir()} == names
    ours = ImageClassifier(BackboneConfig(name="test_convnext"), CSRA, 3, len(CLASSES)).eval()
    ours.load_state_dict(load_tensors(best / "model.safetensors"))
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), published(images), rtol=1e-5, atol=1e-5)
    before = (best / "model.safetensors").read_bytes()
    extract.train.main(options)
    assert "imported weights, nothing to train" in capsys.readouterr().out
    assert not (run_dir / "stage_one" / "last").exists()
    stage_two([*CONFIGS["fusion"], "--run_dir", str(run_dir)])
    assert (best / "model.safetensors").read_bytes() == before
    assert json.loads((run_dir / "fusion" / "metrics.json").read_text())


def test_other_classes_or_another_order_than_the_models_are_refused(published, tmp_path, capsys):
    path, run_dir = tmp_path / "w.safetensors", tmp_path / "run"
    safetensors.torch.save_file(published.state_dict(), path)
    make_run(run_dir)
    options = [*OPTIONS, "--run_dir", str(run_dir)]
    config, resolved = parse_config(ExtractConfig, RECIPE, options)
    import_weights(path, config, resolved, ("Edema", "Hernia", "Nodule"))
    with pytest.raises(SystemExit):
        extract.train.main(options)
    assert "the imported weights have other classes, first 'Hernia' and 'Nodule'" in capsys.readouterr().err
    with pytest.raises(InputError, match="holds a model already"):
        import_weights(path, config, resolved, CLASSES)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("bn.running_var"), r"weight 'bn\.running_var' is missing"),
        (lambda t: t.pop("backbone.head.norm.bias"), r"weight 'backbone\.head\.norm\.bias' is missing"),
        (lambda t: t.update({"head.extra": torch.ones(1)}), r"unexpected weight 'head\.extra' \(1 in all\)"),
        (lambda t: t.update({"bn.weight": torch.ones(5)}), r"weight 'bn\.weight' has shape \(5,\), wanted \(64,\)"),
        (lambda t: t["bn.bias"].fill_(float("nan")), r"weight 'bn\.bias' is not finite"),
        (
            lambda t: t.update({"head.conv_att.weight": t["head.conv_att.weight"][:, :, 0, 0].contiguous()}),
            r"weight 'head\.conv_att\.weight' has shape \(3, 64\), wanted \(3, 64, 1, 1\)",
        ),
    ],
)
def test_a_weight_that_is_missing_too_many_or_wrong_is_named_as_the_file_names_it(published, change, named):
    tensors = {name: value.clone() for name, value in published.state_dict().items()}
    change(tensors)
    model = ImageClassifier(BackboneConfig(name="test_convnext"), CSRA, 3, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=r"w\.safetensors: " + named):
        load_published(model, tensors, "w.safetensors")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "nothing half loaded"


def test_a_pickle_is_refused_unread(tmp_path, capsys):
    (tmp_path / "w.pth").write_bytes(b"\x80\x04 would run")
    with pytest.raises(SystemExit):
        main(["--weights", str(tmp_path / "w.pth"), *OPTIONS, "--run_dir", str(tmp_path / "run")])
    assert "only .safetensors files are read; a pickle" in capsys.readouterr().err


def test_another_head_than_the_published_one_is_refused():
    model = ImageClassifier(BackboneConfig(name="test_convnext"), HeadConfig(kind="mlp", width=5), 3, 3)
    with pytest.raises(InputError, match=r"head\.kind must be csra"):
        load_published(model, {}, "w.safetensors")


def test_in_full_size_names_shapes_and_counts_are_the_published_ones():
    with torch.device("meta"):
        ours = ImageClassifier(BackboneConfig(name="convnextv2_base"), CSRA, 3, len(CXR_LT_2026_CLASSES))
        theirs = Published("convnextv2_base", 30)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters()) == 87_756_318
    assert sum(value.numel() for value in ours.state_dict().values()) == 87_758_367
    assert sum(p.numel() for p in ours.backbone.parameters()) == 87_692_800
    names = {published_name(name): tuple(value.shape) for name, value in ours.state_dict().items()}
    wanted = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert names.pop("head.conv_att.weight") == (30, 1024)
    assert wanted.pop("head.conv_att.weight") == (30, 1024, 1, 1)
    assert names == wanted
    heads = {name.rsplit(".", 1)[0] for name in names if not name.startswith("backbone.st")}
    assert heads == {"backbone.head.norm", "bn", "head.classifier"}


def test_the_classes_are_the_model_cards():
    assert len(CXR_LT_2026_CLASSES) == len(set(CXR_LT_2026_CLASSES)) == 30
    assert CXR_LT_2026_CLASSES[0] == "Normal"
    assert CXR_LT_2026_CLASSES[7:9] == ("aortic atheromatosis", "Support Devices")
    assert CXR_LT_2026_CLASSES[21] == "vertebral degenerative changes"
    assert CXR_LT_2026_CLASSES[29] == "calcified densities"
