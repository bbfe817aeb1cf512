"""Every recipe parses, builds the model it names, trains, and feeds the other stage; it opens like a lab note."""

import json
from dataclasses import replace
from itertools import chain

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import extract.engine
import extract.train
import fusion.train
from data.cache import FeatureCache
from data.config import parse_config
from extract.backbone import ImageClassifier
from extract.config import ExtractConfig
from extract.engine import make_accelerator
from fusion.config import FusionConfig
from fusion.model import FusionModel
from tests.launch import ROOT
from tests.make_data import make_run

STAGE_TWO_OF = {
    "cxformer_chexpert": ["cxformer"],
    "cxformer_nih": ["cxformer"],
    "cxformer_rsna": ["cxformer"],
    "cxformer_vindr": ["cxformer"],
    "cxr_lt_2023": ["cxr_lt_2023", "cxr_lt_2023_cheap"],
    "cxr_lt_2026_mimic": ["cxr_lt_2026"],
    "cxr_lt_2026_padchest": ["cxr_lt_2026"],
    "cxr_lt_2026_padchest_as_coded": ["cxr_lt_2026"],
    "demo": ["demo", "demo_patient"],
    **{f"lka_{name}": ["lka"] for name in ("densenet121", "densenet121_abnormal", "vgg16", "vgg16_abnormal")},
    "mxa": ["cxr_lt_2023"],
    "mxa_teacher": ["cxr_lt_2023"],
    "phantom_256": ["phantom_256"],
    "real_cxr": ["real_cxr"],
}
"""Recipes of stage two that go on from each of stage one."""
LAYERS = {"tiny", "small"}
"""No recipes but what shrinks one."""
BEHIND = {"cxformer_nih": "rad_dino", "cxformer_rsna": "linear_probe", "cxformer_vindr": "cxformer_base"}
"""Layers that are no recipes, each with the recipe that the tests train it behind: another encoder, or a frozen one."""
WIDTH = 24
"""Of the smallest encoder."""

STAGES = {"extract": (ExtractConfig, "extract.py"), "fusion": (FusionConfig, "train_fusion.py")}
RECIPES = [(stage, path.stem) for stage in STAGES for path in sorted((ROOT / stage / "configs").glob("*.yaml"))]


def path_of(stage, name):
    return ROOT / stage / "configs" / f"{name}.yaml"


def parsed(stage, name):
    return parse_config(STAGES[stage][0], path_of(stage, name), [])[0]


def test_every_recipe_is_run_by_the_tests_below():
    assert BEHIND.keys() <= STAGE_TWO_OF.keys()
    assert {name for stage, name in RECIPES if stage == "extract"} == {*STAGE_TWO_OF, *LAYERS, *BEHIND.values()}
    assert {name for stage, name in RECIPES if stage == "fusion"} == {*chain(*STAGE_TWO_OF.values()), *LAYERS}


@pytest.mark.parametrize(
    ("stage", "name"), [recipe for recipe in RECIPES if recipe[1] not in {*LAYERS, *BEHIND.values()}]
)
def test_a_recipe_opens_with_its_purpose_its_command_and_its_hardware(stage, name):
    lines = path_of(stage, name).read_text().splitlines()
    note = "\n".join(line for line in lines[: next(n for n, line in enumerate(lines) if line[:1] != "#")])
    without_arguments = f"accelerate launch {STAGES[stage][1]}\n"
    assert f"--config {stage}/configs/{name}.yaml" in note or (name == "demo" and without_arguments in note)
    assert "# Hardware" in note
    if name.startswith(("cxr_lt", "cxformer", "lka")):
        assert "xpected cost" in note
        assert "ublished score" in note
    assert max(map(len, lines)) <= 130
    parsed(stage, name)


def with_layer(name):
    """A recipe of stage one and the layer to be trained behind it: the words of the command line, and what they say."""
    names = [name, BEHIND[name]] if name in BEHIND else [name]
    words = [f"--config={path_of('extract', each)}" for each in names]
    return words, parse_config(ExtractConfig, None, words)[0]


def smallest_of_its_kind(backbone):
    """Options behind tiny.yaml, which takes away what only some backbones have: the recipe's own again, smaller."""
    if backbone.mxa:
        return ["--backbone.name=efficientvit_m0", "--backbone.mxa=true", "--backbone.arguments={img_size: 64}"]
    if backbone.class_layers:
        shape = f"{{img_size: 42, patch_size: 14, embed_dim: {WIDTH}, depth: 4, num_heads: 3}}"
        own = [f"--backbone.name={backbone.name}", f"--backbone.class_layers={backbone.class_layers}"]
        return [*own, f"--backbone.arguments={shape}", "--image.size=42"]
    return []


def train_stages(run_dir, name):
    """A recipe of stage one and those of stage two that follow, each shrunk by tiny.yaml; the losses by stage."""
    make_run(run_dir, num_studies=25)
    tiny = {stage: ["--config", str(path_of(stage, "tiny")), "--run_dir", str(run_dir)] for stage in STAGES}
    words, recipe = with_layer(name)
    extract.train.main([*words, *tiny["extract"], *smallest_of_its_kind(recipe.backbone)])
    losses = {"stage_one": (run_dir / "stage_one" / "metrics.jsonl")}
    for other in STAGE_TWO_OF[name]:
        fusion.train.main(["--config", str(path_of("fusion", other)), *tiny["fusion"], "--retrain_single", "false"])
        folder = yaml.safe_load(path_of("fusion", other).read_text()).get("name", "fusion")
        losses[other] = run_dir / folder / "metrics.jsonl"
    return {key: json.loads(path.read_text().splitlines()[0])["train_loss"] for key, path in losses.items()}


@pytest.mark.parametrize("name", STAGE_TWO_OF)
def test_a_recipe_shrunk_by_small_yaml_keeps_what_makes_it(name):
    for stage, names in (("extract", [name]), ("fusion", STAGE_TWO_OF[name])):
        for each in names:
            recipe, layers = parsed(stage, each), [f"--config={path_of(stage, n)}" for n in (each, "small")]
            small, _ = parse_config(STAGES[stage][0], None, layers)
            assert small.loss == recipe.loss
            assert small.sampler == recipe.sampler
            if stage == "extract":
                assert (small.backbone.attention, small.train_on) == (recipe.backbone.attention, recipe.train_on)
            assert (small.head if stage == "extract" else small.model.head).kind == (
                recipe.head if stage == "extract" else recipe.model.head
            ).kind


@pytest.mark.slow
@pytest.mark.parametrize("name", STAGE_TWO_OF)
def test_a_recipe_shrunk_by_tiny_yaml_trains_its_kind_of_backbone_and_feeds_stage_two(tmp_path, monkeypatch, name):
    monkeypatch.setattr(extract.engine, "plot_progress", lambda _: None)  # a picture that no recipe changes
    losses, recipe = train_stages(tmp_path / "run", name), with_layer(name)[1]
    assert set(losses) == {"stage_one", *STAGE_TWO_OF[name]}
    assert all(0 < loss < 10 for loss in losses.values())
    trained = load_file(tmp_path / "run/stage_one/best/model.safetensors")
    has = {part: any(part in weight for weight in trained) for part in (".mxa.", ".pw_conv.", ".reg_token")}
    assert has[".mxa."] == recipe.backbone.mxa
    assert has[".pw_conv."] == (recipe.backbone.attention != "none")
    assert has[".reg_token"] == ("reg4" in recipe.backbone.name)
    config, _ = parse_config(ExtractConfig, tmp_path / "run/stage_one/config.yaml", [])
    if recipe.backbone.class_layers:
        features = FeatureCache(tmp_path / "run/cache").identity.map_shape[-1]
        assert features == (1 + recipe.backbone.class_layers) * WIDTH, "class tokens beside every patch"
    start = extract.train.build_state(config, 3, make_accelerator(config)).plain_model.state_dict()
    still = all(torch.equal(value, trained[key]) for key, value in start.items() if key.startswith("backbone."))
    assert still == (recipe.freeze_backbone_epochs >= config.epochs), "a frozen backbone stays, any other learns"


def built(name, num_classes):
    """A recipe's model of stage one, on torch's meta device."""
    config = parsed("extract", name)
    with torch.device("meta"):
        return ImageClassifier(
            replace(config.backbone, pretrained=False), config.head, config.image.channels, num_classes
        )


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("name", ["cxr_lt_2026_padchest", "cxr_lt_2026_padchest_as_coded"])
def test_the_2026_recipes_build_the_published_model(name):
    model = built(name, 30)
    assert count(model) == 87_756_318
    assert sum(value.numel() for value in model.state_dict().values()) == 87_758_367
    config = parsed("extract", name)
    assert (config.ema_decay, config.image.size, config.image.resize) == (0.9999, 512, "stretch")
    assert config.image.intensity == "percentile"
    assert config.backbone.arguments == {"drop_path_rate": 0.2}
    assert (config.optimizer.lr * config.backbone_lr, config.freeze_lr) == (pytest.approx(1.5e-5), 1e-3)


@pytest.mark.parametrize("name", [name for name in STAGE_TWO_OF if name.startswith("cxformer")])
def test_a_cxformer_recipe_builds_the_published_model_and_its_layers_change_the_encoder_alone(name):
    model = built(name, 7)
    assert count(model.backbone) == 22_057_344
    assert count(model.head) == (5 * 384 + 1) * 7, "class tokens of 4 layers and the mean patch"
    recipe = parsed("extract", name)
    assert (recipe.image.size, recipe.image.resize, recipe.image.channels) == (518, "crop", 3)
    assert (recipe.optimizer.lr, recipe.optimizer.weight_decay, recipe.optimizer.final_share) == (5e-5, 0.0, 1.0)
    own = f"--config={path_of('extract', name)}"
    for layer, number in {"cxformer_base": 86_582_016, "rad_dino": 86_579_712}.items():
        config, _ = parse_config(ExtractConfig, None, [own, f"--config={path_of('extract', layer)}"])
        with torch.device("meta"):
            other = ImageClassifier(replace(config.backbone, pretrained=False), config.head, 3, 7)
        assert count(other.backbone) == number
        assert count(other.head) == (5 * 768 + 1) * 7
        assert str(config.backbone.pretrained) == f"weights/{layer}.safetensors"
        assert (config.loss, config.optimizer, config.cache) == (recipe.loss, recipe.optimizer, recipe.cache)
    probe, _ = parse_config(ExtractConfig, None, [own, f"--config={path_of('extract', 'linear_probe')}"])
    assert probe.freeze_backbone_epochs >= probe.epochs
    assert probe.backbone == recipe.backbone


def test_phase_one_of_2026_has_the_backbone_that_phase_two_takes():
    one, two = built("cxr_lt_2026_mimic", 14), built("cxr_lt_2026_padchest", 30)
    assert count(one) == 87_692_800 + 535_054
    shapes = [{name: value.shape for name, value in model.backbone.state_dict().items()} for model in (one, two)]
    assert shapes[0] == shapes[1]
    config, following = parsed("extract", "cxr_lt_2026_mimic"), parsed("extract", "cxr_lt_2026_padchest")
    assert following.backbone.pretrained == config.run_dir / "stage_one"
    assert config.backbone.name == following.backbone.name
    assert (config.freeze_backbone_epochs, config.freeze_lr) == (3, 1e-3)
    assert (config.optimizer.lr, config.optimizer.lr * config.backbone_lr) == (1e-4, pytest.approx(1e-5))


@pytest.mark.parametrize(
    ("name", "parameters", "minutes"), [("lka_vgg16", 15_418_702, 11), ("lka_densenet121", 9_223_054, 2)]
)
def test_the_lka_recipes_build_the_published_model_in_two_phases_of_one_split(name, parameters, minutes):
    one, two = parsed("extract", f"{name}_abnormal"), parsed("extract", name)
    for config, each in ((one, f"{name}_abnormal"), (two, name)):
        assert count(built(each, 14)) == parameters
        assert (config.image.size, config.batch_size, config.head.dropout) == (224, 64, 0.5)
    assert (one.train_on, one.loss.kind, one.epochs) == ("abnormal", "bce", 23)
    assert (two.train_on, two.loss.kind, two.loss.focal_gamma, two.loss.focal_alpha) == ("all", "focal", 2, None)
    assert two.backbone.pretrained == one.run_dir / "stage_one"
    assert (two.backbone.name, two.backbone.attention) == (one.backbone.name, one.backbone.attention)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(name, 14).backbone(torch.empty(1, 3, 224, 224, device="meta"))
    for config, images in ((one, 36_506), (two, 78_544)):  # forward and backward; 40 % of 312 TFLOP/s
        found = 3 * counter.get_total_flops() * images * config.epochs / (0.4 * 312e12) / 60
        assert round(found) == minutes


def test_the_2023_recipes_differ_from_the_published_model_where_they_say_so():
    one = built("cxr_lt_2023", 26)
    published = {"backbone": 49_453_152, "conv2d": 5_309_184, "encoder": 11_027_968, "ml_decoder": 6_146_074}
    assert count(one.backbone) == published["backbone"] + 1_536, "the final norm, which the release drops"
    assert count(one.head) == published["ml_decoder"]
    assert count(one) == 55_599_226 + 1_536
    with torch.device("meta"):
        two = FusionModel(parsed("fusion", "cxr_lt_2023").model, (32, 32, 768), 26)
    assert count(two.project) == published["conv2d"]
    assert count(two.head) == published["ml_decoder"]
    assert count(two.blocks) == published["encoder"]
    assert two.slot_embedding.numel() == 3_072 + 12 * 768, "16 slots for 4"
    rest = published["backbone"] + 768 + 3_072  # padding token and 4 segments
    assert sum(published.values()) - published["backbone"] + rest == 71_940_218


def test_the_mxa_recipe_builds_the_published_model_and_keeps_the_published_settings():
    model, config = built("mxa", 14), parsed("extract", "mxa")
    assert count(model) == 16_149_442
    assert (config.optimizer.lr, config.optimizer.lr * config.optimizer.final_share) == (1e-3, pytest.approx(1e-5))
    assert (config.epochs, config.batch_size, config.ema_decay) == (50, 512, 0.99996)
    assert config.optimizer.warmup_share * config.epochs == pytest.approx(5)
    assert (config.optimizer.weight_decay, config.optimizer.clip_agc, config.optimizer.clip_norm) == (0.025, 0.02, 0)
    assert (config.distillation.alpha, config.distillation.targets) == (0.5, "soft")
    assert config.backbone.arguments == {"img_size": config.image.size}
    assert config.image == parsed("extract", "mxa_teacher").image


@pytest.mark.slow
def test_phase_two_goes_on_from_phase_one(tmp_path, capsys):
    make_run(tmp_path / "one", num_studies=25)
    make_run(tmp_path / "two", num_studies=25)
    tiny = ["--config", str(path_of("extract", "tiny"))]
    first = ["--config", str(path_of("extract", "cxr_lt_2026_mimic")), *tiny, "--run_dir", str(tmp_path / "one")]
    extract.train.main(first)
    second = ["--config", str(path_of("extract", "cxr_lt_2026_padchest")), *tiny, "--run_dir", str(tmp_path / "two")]
    second += ["--backbone.pretrained", str(tmp_path / "one/stage_one"), "--epochs", "2", "--image.size", "64"]
    extract.train.main([*second, "--freeze_backbone_epochs", "1"])
    patients = [json.loads((tmp_path / run / "stage_one/data.json").read_text()) for run in ("one", "two")]
    assert patients[0] == patients[1], "the same table in both phases"
    fusion_options = ["--config", str(path_of("fusion", "cxr_lt_2026")), "--config", str(path_of("fusion", "tiny"))]
    fusion.train.main([*fusion_options, "--run_dir", str(tmp_path / "two"), "--retrain_single", "false"])
    assert (tmp_path / "two/fusion/metrics.json").exists()
