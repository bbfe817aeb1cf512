"""DINOv2 encoders in Hugging Face's layout: converted whole, with the same outputs; wrong files are refused."""

import json

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import extract.train
import fusion.train
from data.cache import FeatureCache
from data.errors import InputError
from extract.backbone import Backbone, BackboneConfig, ImageClassifier
from extract.checkpoint import load_tensors
from extract.dinov2 import check_config, convert, import_backbone, sources, timm_name, without_prefix
from extract.engine import build_optimizer, set_learning_rate
from extract.foreign import main
from extract.heads import HeadConfig
from extract.options import OptimizerConfig
from tests.hf_dinov2 import final_norm, hidden_states, in_memory, random_checkpoint, shapes
from tests.launch import ROOT
from tests.make_data import make_run

WIDTH, DEPTH, HEADS, SIDE = 24, 5, 3, 3
TINY = {"img_size": 14 * SIDE, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
NAMES = {4: "vit_small_patch14_reg4_dinov2", 0: "vit_small_patch14_dinov2"}


def tiny_file(folder, registers=4):
    """A converted file, and the checkpoint that it was made from."""
    checkpoint = random_checkpoint(WIDTH, DEPTH, SIDE, registers)
    weights = convert(without_prefix(checkpoint, "w")[0], timm_model(registers).state_dict(), "w")
    safetensors.torch.save_file(weights, folder / "tiny.safetensors")
    return folder / "tiny.safetensors", checkpoint


def timm_model(registers):
    with torch.device("meta"):
        return timm.create_model(NAMES[registers], num_classes=0, global_pool="", **TINY)


def golden(registers):
    """What tests/golden/make_dinov2.py wrote: weights as transformers names them, an image, transformers' outputs."""
    name = "dinov2_with_registers" if registers else "dinov2"
    tensors = safetensors.torch.load_file(ROOT / f"tests/golden/{name}.safetensors")
    images, wanted = (tensors.pop(key).float() for key in ("pixel_values", "last_hidden_state"))
    return {key: value.float() for key, value in tensors.items()}, images, wanted


def tiny_backbone(registers=4, **options):
    return BackboneConfig(name=NAMES[registers], arguments=TINY, **options)


def converted(checkpoint, registers, depth=DEPTH):
    """timm's model with the converted weights."""
    arguments = TINY | {"depth": depth}
    model = timm.create_model(NAMES[registers], num_classes=0, global_pool="", **arguments).eval()
    model.load_state_dict(convert(without_prefix(checkpoint, "w")[0], model.state_dict(), "w"))
    return model


@pytest.mark.parametrize("registers", [4, 0])
def test_a_converted_model_gives_the_outputs_of_transformers(registers):
    """Both spellings: with registers the names of memory, without them those of saved files."""
    checkpoint, images, wanted = golden(registers)
    assert wanted.shape == (1, 1 + registers + SIDE**2, WIDTH)
    assert any("q_proj" in name for name in checkpoint) == bool(registers)
    with torch.no_grad():
        found = converted(checkpoint, registers, depth=2)(images)
    assert 1 < wanted.abs().max() < 100
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("registers", [4, 0])
def test_the_slow_reference_of_these_tests_is_transformers(registers):
    """The same names, shapes and outputs."""
    theirs, images, wanted = golden(registers)
    ours = random_checkpoint(WIDTH, depth=2, side=SIDE, registers=registers)
    named = in_memory(ours) if registers else ours
    assert {f"model.{name}": value.shape for name, value in named.items()} == {n: v.shape for n, v in theirs.items()}
    checkpoint = without_prefix(theirs, "w")[0]
    torch.testing.assert_close(
        final_norm(checkpoint, hidden_states(checkpoint, images, HEADS)[-1]), wanted, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("prefix", ["", "dinov2.", "dinov2_with_registers."])
@pytest.mark.parametrize("spelling", [dict, in_memory])
@pytest.mark.parametrize("registers", [4, 0])
def test_a_converted_model_gives_the_outputs_of_the_original_layout(registers, spelling, prefix):
    checkpoint = random_checkpoint(WIDTH, DEPTH, SIDE, registers)
    named = {prefix + name: value for name, value in spelling(checkpoint).items()}
    images = torch.randn(2, 3, 14 * SIDE, 14 * SIDE)
    with torch.no_grad():
        found = converted(named, registers)(images)
        wanted = final_norm(checkpoint, hidden_states(checkpoint, images, HEADS)[-1])
    assert found.shape == (2, 1 + registers + SIDE**2, WIDTH)
    assert 1 < wanted.abs().max() < 100
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.cls_token",
        "embeddings.register_tokens",
        "embeddings.position_embeddings",
        "encoder.layer.0.attention.attention.key.weight",
        "encoder.layer.4.layer_scale1.lambda1",
        "layernorm.bias",
    ],
)
def test_every_part_of_the_original_shows_in_the_patches(name):
    checkpoint = random_checkpoint(WIDTH, DEPTH, SIDE, 4)
    images = torch.randn(1, 3, 14 * SIDE, 14 * SIDE)
    with torch.no_grad():
        before = converted(checkpoint, 4)(images)[:, 5:]
        checkpoint[name] = checkpoint[name].clone()
        checkpoint[name].view(-1)[0] += 3  # of the positions: the class token's
        after = converted(checkpoint, 4)(images)[:, 5:]
        wanted = final_norm(checkpoint, hidden_states(checkpoint, images, HEADS)[-1])[:, 5:]
    assert (after - before).abs().max() > 1e-3
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-5)


QUERY = "encoder.layer.3.attention.attention.query.weight"


@pytest.mark.parametrize("spelling", [dict, in_memory])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("embeddings.register_tokens"), r"weight 'embeddings\.register_tokens' is missing"),
        (lambda t: t.pop("layernorm.bias"), r"weight 'layernorm\.bias' is missing"),
        (
            lambda t: [t.pop(name) for name in list(t) if "layer.3" in name and ("q_proj" in name or "query" in name)],
            r"weight 'encoder\.layer\.3\.attention\.attention\.query\.weight'"
            r" \('encoder\.layer\.3\.attention\.q_proj\.weight'\) is missing",
        ),
        (
            lambda t: t.update({"encoder.layer.5.norm1.bias": torch.ones(WIDTH)}),
            r"unexpected weight 'encoder\.layer\.5\.norm1\.bias' \(1 in all\)",
        ),
        (lambda t: t.update({"pooler.weight": torch.ones(2)}), r"unexpected weight 'pooler\.weight'"),
        (
            lambda t: t.update({"embeddings.position_embeddings": torch.ones(1, SIDE**2, WIDTH)}),
            r"weight 'embeddings\.position_embeddings' has shape \(1, 9, 24\), wanted \(1, 10, 24\)",
        ),
        (lambda t: t["layernorm.weight"].fill_(float("inf")), r"weight 'layernorm\.weight' is not finite"),
        (
            lambda t: t.pop("embeddings.cls_token"),
            r"wanted one weight 'embeddings\.cls_token' with any prefix, found 0",
        ),
    ],
)
def test_a_weight_that_is_missing_too_many_or_wrong_is_named(change, named, spelling):
    tensors = spelling(random_checkpoint(WIDTH, DEPTH, SIDE, 4))
    change(tensors)
    with pytest.raises(InputError, match=r"w\.safetensors: " + named):
        convert(without_prefix(tensors, "w.safetensors")[0], timm_model(registers=4).state_dict(), "w.safetensors")


def test_two_encoders_or_both_spellings_in_one_file_are_refused():
    checkpoint = random_checkpoint(WIDTH, DEPTH, SIDE, 4)
    with pytest.raises(InputError, match="found 2"):
        without_prefix({p + name: value for p in ("student.", "teacher.") for name, value in checkpoint.items()}, "w")
    with pytest.raises(InputError, match=r"'encoder\.layer\.0\.attention\.attention\.query.* is there twice"):
        without_prefix(checkpoint | in_memory(checkpoint), "w")
    with pytest.raises(InputError, match=r"unexpected weight 'decoder\.weight' outside of the encoder 'dinov2\.'"):
        without_prefix({f"dinov2.{name}": v for name, v in checkpoint.items()} | {"decoder.weight": torch.ones(1)}, "w")


def test_only_a_classifier_and_the_mask_token_are_left_behind_and_named():
    checkpoint = {f"dinov2.{name}": value for name, value in random_checkpoint(WIDTH, DEPTH, SIDE, 4).items()}
    checkpoint |= {"classifier.weight": torch.ones(2, 2 * WIDTH), "classifier.bias": torch.ones(2)}
    encoder, left = without_prefix(checkpoint, "w")
    assert left == ["classifier.weight", "classifier.bias", "dinov2.embeddings.mask_token"]
    assert len(encoder) == len(checkpoint) - 3


@pytest.mark.parametrize(
    ("width", "registers", "name", "theirs", "ours"),
    [
        (384, 4, "vit_small_patch14_reg4_dinov2", 22_058_112, 22_057_344),  # CXformer(S)
        (768, 4, "vit_base_patch14_reg4_dinov2", 86_583_552, 86_582_016),  # CXformer(B)
        (768, 0, "vit_base_patch14_dinov2", 86_580_480, 86_579_712),  # RAD-DINO
    ],
)
def test_in_full_size_names_shapes_and_counts_are_the_published_ones(width, registers, name, theirs, ours):
    original = {
        key: torch.empty(shape, device="meta") for key, shape in shapes(width, 12, side=37, registers=registers).items()
    }
    assert timm_name(original, "w") == name
    assert sum(value.numel() for value in original.values()) == theirs
    with torch.device("meta"):
        backbone = Backbone(BackboneConfig(name=name), 3)
    assert sum(weight.numel() for weight in backbone.parameters()) == ours
    made_of = [source for key in backbone.model.state_dict() for source in sources(key)]
    assert sorted(made_of) == sorted(original.keys() - {"embeddings.mask_token"})
    with torch.device("meta"):
        tokens = backbone.model(torch.empty(1, 3, 518, 518))
        assert tokens.shape == (1, 1 + registers + 37**2, width)
        assert backbone(torch.empty(1, 3, 518, 518)).shape == (1, 37, 37, width)


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A checkpoint of CXformer(S)'s size with its configuration."""
    folder = tmp_path_factory.mktemp("CXformer-small")
    checkpoint = {
        name: torch.full(shape, 0.01 * (1 + number % 7))
        for number, (name, shape) in enumerate(shapes(384, 12, side=37).items())
    }
    safetensors.torch.save_file(checkpoint, folder / "model.safetensors")
    config = {"num_attention_heads": 6, "layer_norm_eps": 1e-6, "hidden_act": "gelu", "use_swiglu_ffn": False}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "dinov2_with_registers"}))
    return folder


def test_the_command_writes_a_file_that_the_recipes_backbone_takes_whole(full_size, tmp_path, capsys):
    out = tmp_path / "weights" / "cxformer_small.safetensors"
    main(["--weights", str(full_size / "model.safetensors"), "--out", str(out)])
    printed = capsys.readouterr().out
    assert f"{out}: vit_small_patch14_reg4_dinov2, 22,057,344 parameters" in printed
    assert "left behind: embeddings.mask_token" in printed
    backbone = Backbone(BackboneConfig(name="vit_small_patch14_reg4_dinov2", pretrained=out), 3)
    written = load_tensors(out)
    assert all(torch.equal(value, written[name]) for name, value in backbone.model.state_dict().items())
    with pytest.raises(InputError, match=r"cxformer_small\.safetensors: exists already"):
        import_backbone(full_size / "model.safetensors", out)
    other = BackboneConfig(name="vit_small_patch14_dinov2", pretrained=out)
    with pytest.raises(InputError, match=r"cxformer_small\.safetensors as backbone 'vit_small_patch14_dinov2'"):
        Backbone(other, 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_attention_heads", 12), ("layer_norm_eps", 1e-5), ("hidden_act", "relu"), ("use_swiglu_ffn", True)],
)
def test_a_configuration_of_another_model_is_refused(full_size, tmp_path, key, value):
    config = json.loads((full_size / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch14_reg4_dinov2", num_classes=0)
    check_config(full_size / "config.json", model)
    with pytest.raises(InputError, match=rf"config\.json: {key} is {value!r}, wanted"):
        check_config(tmp_path / "config.json", model)


def test_files_that_cannot_be_meant_are_refused_with_the_remedy(tmp_path, capsys):
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(random_checkpoint(WIDTH, DEPTH, SIDE, 4), path)
    for arguments, named in (
        (["--weights", str(path), "--out", str(tmp_path / "x.safetensors")], "width 24 with 4 registers is no model"),
        (["--weights", str(path), "--out", str(tmp_path / "x.pth")], r"x.pth: only .safetensors files"),
        (["--weights", str(path), "--run_dir", str(tmp_path / "run")], "an encoder without head; say with --out"),
        (["--weights", str(path), "--out", "x.safetensors", "--epochs", "3"], "--out takes no options of extract.py"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert named in capsys.readouterr().err
    with pytest.raises(InputError, match="Hugging Face's names of weights; convert it once"):
        Backbone(tiny_backbone(pretrained=path), 3)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.parametrize("registers", [4, 0])
def test_class_tokens_of_four_layers_and_the_mean_patch_make_dinov2s_logits(tmp_path, registers):
    path, checkpoint = tiny_file(tmp_path, registers)
    backbone = tiny_backbone(registers, pretrained=path, class_layers=4)
    model = ImageClassifier(backbone, HeadConfig(kind="linear", dropout=0.0), 3, num_classes=2).eval()
    images = torch.randn(3, 3, 14 * SIDE, 14 * SIDE)
    with torch.no_grad():
        states = [final_norm(checkpoint, tokens) for tokens in hidden_states(checkpoint, images, HEADS)[-4:]]
        maps = model.backbone(images)
        assert maps.shape == (3, SIDE, SIDE, 5 * WIDTH)
        patches = states[-1][:, 1 + registers :]
        features = [patches.mean(dim=1), *(tokens[:, 0] for tokens in states)]
        wanted = torch.cat(features, dim=1) @ model.head.classifier.weight.T + model.head.classifier.bias
        torch.testing.assert_close(model(images), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(maps[1, 2, 1, :WIDTH], patches[1, 2 * SIDE + 1], rtol=1e-5, atol=1e-5)
        without = Backbone(tiny_backbone(registers, pretrained=path), 3).eval()
        torch.testing.assert_close(maps[..., :WIDTH], without(images))


def test_class_tokens_that_a_model_does_not_have_are_refused():
    with pytest.raises(InputError, match=r"backbone\.class_layers: test_convnext has no class token"):
        Backbone(BackboneConfig(name="test_convnext", class_layers=4), 3)
    with pytest.raises(InputError, match=r"has 5 layers, found 6"):
        Backbone(tiny_backbone(class_layers=6), 3)
    with pytest.raises(ValueError, match=r"class_layers must not be negative"):
        BackboneConfig(class_layers=-1)


@pytest.mark.parametrize("class_layers", [4, 0])
@pytest.mark.parametrize("registers", [4, 0])
def test_every_weight_gets_a_gradient_or_none_of_a_frozen_backbone(registers, class_layers):
    torch.manual_seed(0)
    backbone = tiny_backbone(registers, class_layers=class_layers)
    model = ImageClassifier(backbone, HeadConfig(kind="linear", dropout=0.0), 3, num_classes=2).train()
    images = torch.randn(2, 3, 14 * SIDE, 14 * SIDE)
    model(images).square().sum().backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not still
    model.zero_grad()
    model.backbone_frozen = True
    model(images).square().sum().backward()
    assert {n for n, weight in model.named_parameters() if weight.grad is not None} == {
        "head.classifier.weight",
        "head.classifier.bias",
    }


def test_embeddings_and_registers_learn_most_slowly_and_the_head_at_full_rate():
    model = ImageClassifier(tiny_backbone(class_layers=4), HeadConfig(kind="linear"), 3, 2)
    optimizer = build_optimizer(model, OptimizerConfig(lr=0.5), layer_decay=0.8, backbone_lr=0.1)
    set_learning_rate(optimizer, 0.5)
    names = {id(weight): name for name, weight in model.named_parameters()}
    rates = {names[id(w)]: group["lr"] for group in optimizer.param_groups for w in group["params"]}
    assert rates.keys() == dict(model.named_parameters()).keys()
    for name, rate in rates.items():
        own = name.removeprefix("backbone.model.")
        if name.startswith("head."):
            wanted = 0.5
        elif own.startswith("blocks."):
            wanted = 0.05 * 0.8 ** (DEPTH - 1 - int(own.split(".")[1]))
        else:  # timm counts the final norm with the last layer
            wanted = 0.05 * (1 if own.startswith("norm.") else 0.8**DEPTH)
        assert rate == pytest.approx(wanted), name


def test_an_encoder_goes_through_training_and_the_cache_into_stage_two(tmp_path):
    path, _ = tiny_file(tmp_path)
    run_dir = tmp_path / "run"
    manifest = make_run(run_dir, num_studies=25)
    recipe = ROOT / "extract/configs/cxformer_chexpert.yaml"
    options = [f"--config={recipe}", f"--config={ROOT / 'extract/configs/tiny.yaml'}", f"--run_dir={run_dir}"]
    options += [f"--backbone.name={NAMES[4]}", f"--backbone.pretrained={path}", f"--image.size={14 * SIDE}"]
    extract.train.main([*options, f"--backbone.arguments={json.dumps(TINY)}", "--backbone.class_layers=4"])
    cache = FeatureCache(run_dir / "cache")
    assert cache.identity.map_shape == (2, 2, 5 * WIDTH), "3 x 3 patches, pooled"
    maps = cache.read(np.arange(len(manifest)))
    class_tokens = maps[..., WIDTH:]
    assert np.ptp(class_tokens, axis=(1, 2)).max() < 1e-6, "the same beside every patch, and uint8 keeps them exactly"
    assert np.ptp(maps[..., :WIDTH], axis=(1, 2)).min() > 1e-6
    trained, before = load_tensors(run_dir / "stage_one/best/model.safetensors"), load_tensors(path)
    assert all(not torch.equal(trained[f"backbone.model.{name}"], value) for name, value in before.items())
    stage_two = [f"--config={ROOT / 'fusion/configs' / name}.yaml" for name in ("cxformer", "tiny")]
    fusion.train.main([*stage_two, f"--run_dir={run_dir}", "--retrain_single=false"])
    assert json.loads((run_dir / "fusion/metrics.json").read_text())
