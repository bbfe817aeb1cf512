"""Any timm model as a map of tokens, checked against the model's own forward pass; weights from local files."""

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from data.errors import InputError
from extract.backbone import Backbone, BackboneConfig, ImageClassifier, map_shape
from extract.heads import HeadConfig

SIZE, B = 96, 3


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """No test asks the network."""

    def refuse(*_, **__):
        raise AssertionError("a download was tried")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_url", refuse)
    monkeypatch.setattr("socket.socket.connect", refuse)


def pair(name: str, channels: int = 3, **arguments):
    """Our backbone and timm's whole classifier with the same weights, away from their initial values."""
    torch.manual_seed(0)
    ours = Backbone(BackboneConfig(name=name, arguments=arguments), channels).eval()
    whole = timm.create_model(name, num_classes=11, in_chans=channels, **arguments).eval()
    for name_, tensor in ours.model.state_dict().items():
        if tensor.is_floating_point():  # norms with weight 1 and bias 0 would hide whether they are applied
            tensor.add_(0.3 * torch.randn_like(tensor).abs() if "var" in name_ else 0.05 * torch.randn_like(tensor))
    missing, unexpected = whole.load_state_dict(ours.model.state_dict(), strict=False)
    assert not unexpected
    assert all(key.startswith(("head.fc", "fc.", "head.weight", "head.bias", "classifier")) for key in missing), missing
    return ours, whole, torch.randn(B, channels, SIZE, SIZE + 0)


@pytest.mark.parametrize(("name", "side"), [("test_resnet", 3), ("test_efficientnet", 3)])
def test_a_convolutional_map_is_timms_own_channels_last(name, side):
    ours, whole, images = pair(name)
    with torch.no_grad():
        found, expected = ours(images), whole.forward_features(images)
        assert found.shape == (B, side, side, ours.dim)
        for y in range(side):
            for x in range(side):
                torch.testing.assert_close(found[:, y, x], expected[:, :, y, x])


def test_a_map_keeps_rows_and_columns_apart():
    ours, whole, _ = pair("test_resnet")
    images = torch.randn(2, 3, 64, 128)  # 2 rows, 4 columns
    with torch.no_grad():
        assert ours(images).shape == (2, 2, 4, ours.dim)
        torch.testing.assert_close(ours(images)[1, 0, 3], whole.forward_features(images)[1, :, 0, 3])


def test_convnext_maps_carry_the_final_norm_so_that_its_classifier_fits_them():
    ours, whole, images = pair("test_convnext")
    with torch.no_grad():
        found, raw = ours(images), whole.forward_features(images)
        torch.testing.assert_close(found, whole.head.norm(raw).permute(0, 2, 3, 1))
        assert not torch.allclose(found, raw.permute(0, 2, 3, 1), atol=0.1)


def test_pooled_and_classified_a_resnet_map_gives_timms_logits():
    ours, whole, images = pair("test_resnet")
    with torch.no_grad():
        torch.testing.assert_close(whole.fc(ours(images).mean(dim=(1, 2))), whole(images))


@pytest.mark.parametrize("arguments", [{"img_size": SIZE}, {"img_size": SIZE, "reg_tokens": 2}])
def test_a_transformers_patches_become_a_map_without_class_and_register_tokens(arguments):
    ours, whole, images = pair("test_vit", channels=1, **arguments)
    with torch.no_grad():
        found, tokens = ours(images), whole.forward_features(images)
    prefix = tokens.shape[1] - (SIZE // 16) ** 2
    assert prefix == 1 + arguments.get("reg_tokens", 0)
    assert found.shape == (B, 6, 6, ours.dim)
    for y in range(6):
        for x in range(6):
            torch.testing.assert_close(found[:, y, x], tokens[:, prefix + y * 6 + x])


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit"])
def test_the_map_shape_is_told_beforehand_and_changes_nothing(name):
    arguments: dict = {"img_size": SIZE} if name == "test_vit" else {}
    backbone = Backbone(BackboneConfig(name=name, arguments=arguments), 1).train()
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    shape = map_shape(backbone, 1, SIZE)
    assert backbone(torch.zeros(2, 1, SIZE, SIZE)).shape == (2, *shape)
    backbone.load_state_dict(before)
    map_shape(backbone, 1, SIZE)
    assert backbone.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext"])
@pytest.mark.parametrize("channels", [3, 1])
def test_a_local_file_of_a_whole_timm_model_gives_its_backbones_weights(tmp_path, name, channels):
    torch.manual_seed(7)
    whole = timm.create_model(name, num_classes=1000).eval()
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(8)
    ours = Backbone(BackboneConfig(name=name, pretrained=tmp_path / "w.safetensors"), channels).eval()
    theirs, same = whole.state_dict(), 0
    for key, tensor in ours.model.state_dict().items():
        if tensor.shape == theirs[key].shape:
            assert torch.equal(tensor, theirs[key]), key
            same += 1
    assert same >= len(ours.model.state_dict()) - (channels == 1)  # the first convolution is summed over colours
    grey = torch.randn(1, 1, SIZE, SIZE)
    with torch.no_grad():
        if channels == 1:
            bare = timm.create_model(name, num_classes=0, global_pool="").eval()
            bare.load_state_dict({k: theirs[k] for k in bare.state_dict()})
            torch.testing.assert_close(
                ours(grey), bare(grey.expand(-1, 3, -1, -1)).permute(0, 2, 3, 1), rtol=1e-3, atol=1e-4
            )


def test_a_file_without_some_of_the_weights_is_refused_not_filled_with_random_ones(tmp_path):
    path = tmp_path / "w.safetensors"
    save_file(timm.create_model("test_convnext", num_classes=1000).state_dict(), path)
    with pytest.raises(InputError, match=r"w\.safetensors: no weight 'conv1.*so not a file of test_resnet"):
        Backbone(BackboneConfig(name="test_resnet", pretrained=path), 3)
    part = load_file(path)
    key = next(key for key in part if key.endswith("gamma"))
    del part[key]
    save_file(part, path)
    with pytest.raises(InputError, match=rf"no weight '{key}'"):
        Backbone(BackboneConfig(name="test_convnext", pretrained=path), 3)


def test_pickled_missing_and_damaged_files_are_refused_by_name(tmp_path):
    for name in ("w.pth", "w.pt", "nowhere.safetensors", "damaged.safetensors"):
        if name != "nowhere.safetensors":
            (tmp_path / name).write_bytes(b"\x80\x04 not what it says")
        with pytest.raises(InputError, match=name):
            Backbone(BackboneConfig(name="test_resnet", pretrained=tmp_path / name), 3)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"name": "resnet_eighteen"}, "resnet_eighteen"),
        ({"name": "test_resnet.no_such_tag"}, "no_such_tag"),
        ({"name": "hf-hub:somebody/model"}, "hf-hub.*download other weights"),
        ({"name": "local-dir:/somewhere"}, "local-dir.*backbone.pretrained"),
        ({"name": "test_resnet", "arguments": {"no_such_argument": 1}}, "no_such_argument"),
        ({"name": "test_vit", "arguments": {"num_classes": 3}}, "num_classes"),
    ],
)
def test_an_unknown_model_or_argument_is_one_line_naming_it(config, named):
    with pytest.raises(InputError, match=named) as error:
        Backbone(BackboneConfig(**config), 3)
    assert "\n" not in str(error.value)


def test_the_image_classifier_is_backbone_and_head_over_all_tokens():
    torch.manual_seed(0)
    head = HeadConfig(width=12, num_heads=2)
    model = ImageClassifier(BackboneConfig(name="test_resnet"), head, channels=1, num_classes=5).eval()
    images = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        maps = model.backbone(images)
        tokens = torch.stack([maps[:, y, x] for y in range(2) for x in range(3)], dim=1)
        torch.testing.assert_close(model(images), model.head(tokens))
