"""Heat maps of the fusion model: the weights behind its logits, sums, gradients, places; pictures, pointing game."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from data.errors import InputError
from data.manifest import write_manifest
from data.phantom.listing import cohort_pictures
from data.phantom.location import locate, visible_bodies
from data.phantom.patient import sample_patient
from data.phantom.radiograph import radiograph, sample_taking
from data.transforms import Preprocessing
from data.views import VIEWS
from extract.checkpoint import save_folder
from extract.heads import HeadConfig, MLDecoder
from fusion.explain import (
    attention_maps,
    class_maps,
    decoder_attention,
    grad_cam,
    head_tokens,
    heat_maps,
    heat_methods,
    to_pixels,
    view_shares,
)
from fusion.explanation import explain
from fusion.model import FusionModel, ModelConfig
from fusion.pointing import Finding, report, round_of, shares, table_lines
from tests.make_data import CLASSES, make_cache, make_manifest, write_images

H, W, D, C, S = 3, 2, 5, 7, 6
HEAD = {"width": 18, "num_heads": 2}
CONFIG = ModelConfig(width=24, depth=1, num_heads=3, num_slots=S, head=HeadConfig(**HEAD))


def make_model(head=CONFIG.head, token_stride=1, shape=(H, W, D), num_classes=C):
    torch.manual_seed(0)
    model = FusionModel(replace(CONFIG, head=head, token_stride=token_stride), shape, num_classes).eval()
    torch.nn.init.normal_(model.slot_embedding)
    torch.nn.init.normal_(model.view_embedding)
    return model


def make_inputs(num_groups, num_views, shape=(H, W, D), seed=1):
    rng = torch.Generator().manual_seed(seed)
    types = torch.randint(len(VIEWS), (num_groups, num_views), generator=rng)
    slots = torch.stack([torch.randperm(S, generator=rng)[:num_views] for _ in range(num_groups)])
    return torch.randn(num_groups, num_views, *shape, generator=rng), types, slots


@pytest.mark.parametrize(("num_classes", "num_queries"), [(7, 7), (11, 4)])
@torch.no_grad()
def test_attention_weights_reproduce_the_logits_of_the_fast_path(num_classes, num_queries):
    torch.manual_seed(0)
    head = MLDecoder(24, num_classes, width=18, num_heads=3, num_queries=num_queries).eval()
    tokens = 3 * torch.randn(2, 13, 24)
    weights = decoder_attention(head, tokens)
    assert weights.shape == (2, 3, num_queries, 13)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 3, num_queries))
    values = head.attention.key_value(head.embed_tokens(tokens))[..., 18:].unflatten(-1, (3, 6))
    gathered = head.attention.out(torch.einsum("ghqt,gthe->gqhe", weights, values).flatten(2))
    x = head.norm_gathered(head.norm_queries(2 * head.queries) + gathered)
    x = head.norm_out(x + head.feed_forward(x))
    logits = torch.einsum("bqw,qwc->bqc", x, head.class_weight).flatten(1)[:, :num_classes] + head.class_bias
    torch.testing.assert_close(logits, head(tokens), rtol=0, atol=1e-6 * max(1, float(logits.abs().max())))


@pytest.mark.parametrize(("token_stride", "grid"), [(1, (3, 2)), (2, (2, 1))])
def test_attention_of_each_class_sums_to_one_over_all_views_and_positions(token_stride, grid):
    attention = attention_maps(make_model(token_stride=token_stride), *make_inputs(2, 4))
    assert attention.shape == (2, C, 4, *grid)
    torch.testing.assert_close(attention.sum(dim=(2, 3, 4)), torch.ones(2, C))
    assert attention.min() >= 0
    torch.testing.assert_close(view_shares(attention), attention.sum(dim=(3, 4)))
    assert (attention[:, 0] - attention[:, 1]).abs().max() > 1e-4, "classes have attention of their own"


def test_classes_that_share_a_query_share_its_attention_in_the_order_of_the_classes():
    model = make_model()
    model.head = MLDecoder(24, C, width=18, num_heads=3, num_queries=3).eval()  # 3 classes to a query: 0 0 0 1 1 1 2
    inputs = make_inputs(1, 2)
    of_queries = decoder_attention(model.head, head_tokens(model, *inputs)).mean(dim=1)[0]
    attention = attention_maps(model, *inputs)[0].flatten(1)
    torch.testing.assert_close(attention, of_queries[[0, 0, 0, 1, 1, 1, 2]])


@pytest.mark.parametrize("kind", ["linear", "csra", "csra_multihead"])
def test_class_maps_average_to_the_logits(kind):
    model = make_model(HeadConfig(kind=kind, num_heads=2, lam=0.3))
    inputs = make_inputs(2, 3)
    assert heat_methods(model) == ("class_maps", "grad_cam")
    torch.testing.assert_close(class_maps(model, *inputs).mean(dim=(2, 3, 4)), model(*inputs), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(heat_maps("class_maps", model, *inputs, [4]), class_maps(model, *inputs)[:, [4]])


@pytest.mark.parametrize("kind", ["ml_decoder", "csra", "linear"])
def test_grad_cam_equals_finite_differences(kind):
    model = make_model(HeadConfig(kind=kind, width=18, num_heads=2)).double()
    maps, types, slots = make_inputs(2, 3)
    maps = maps.double()
    heat = grad_cam(model, maps, types, slots, [5, 2])
    assert heat.shape == (2, 2, 3, H, W)
    step = 1e-5
    for g, v, y, x in [(0, 0, 0, 0), (1, 2, 2, 1), (1, 1, 0, 1)]:
        products = torch.zeros(D, 2, dtype=torch.float64)
        for d in range(D):
            up, down = maps.clone(), maps.clone()
            up[g, v, y, x, d] += step
            down[g, v, y, x, d] -= step
            change = (model(up, types, slots) - model(down, types, slots))[g, [5, 2]] / (2 * step)
            products[d] = change.detach() * maps[g, v, y, x, d]
        torch.testing.assert_close(heat[g, :, v, y, x], products.clamp(min=0).sum(dim=0), atol=1e-7, rtol=1e-5)


class Planted(nn.Module):
    """Stands for the fusion model: class c is feature c + 1, summed over everything."""

    def forward(self, maps, view_types, slots):
        return maps[..., 1:].sum(dim=(1, 2, 3))


def test_a_planted_signal_is_hot_in_its_view_and_cell():
    maps, types, slots = make_inputs(2, 3, (4, 6, 5))
    maps = 0.01 * maps
    for c, (g, v, y, x) in enumerate([(0, 2, 1, 5), (1, 0, 3, 0), (0, 1, 0, 2)]):
        maps[g, v, y, x, c + 1] = 4.0
        heat = grad_cam(Planted().eval(), maps, types, slots, [c])[g, 0]
        assert np.unravel_index(int(heat.argmax()), (3, 4, 6)) == (v, y, x)


def test_attention_finds_the_token_that_its_query_asks_for():
    """Keys are made to answer only to one feature; the attention must lie on the token that has it."""
    model = make_model(shape=(4, 6, D))
    inputs = make_inputs(2, 3, (4, 6, D))
    tokens = torch.zeros(2, 3 * 4 * 6, 24)
    tokens[1, 1 * 24 + 2 * 6 + 5, 0] = 9.0  # group 1, view 1, row 2, column 5
    head, queries = model.head, model.head.norm_queries(2 * model.head.queries)
    with torch.no_grad():
        head.embed.weight.copy_(torch.eye(18, 24))
        head.embed.bias.zero_()
        head.attention.key_value.weight[:18].zero_()
        head.attention.key_value.weight[:18, 0] = head.attention.query(queries)[3]  # what class 3 asks for
    model.norm_out = nn.Identity()
    model.norm_out.register_forward_hook(lambda *_: tokens)
    attention = attention_maps(model, *inputs)[:, 3]
    assert np.unravel_index(int(attention[1].argmax()), (3, 4, 6)) == (1, 2, 5)
    torch.testing.assert_close(attention[0], torch.full((3, 4, 6), 1 / 72))


@pytest.mark.parametrize(
    ("resize", "height", "width"),
    [("stretch", 60, 90), ("fit", 60, 90), ("fit", 96, 40), ("crop", 60, 90), ("crop", 96, 80)],
)
def test_heat_lies_on_the_pixels_that_the_cell_was_made_of(resize, height, width):
    image = Preprocessing(size=48, resize=resize)
    for place in [(12.0, 20.0), (44.0, 30.0)]:
        pixels = np.zeros((height, width), np.float32)
        y, x = int(place[0] / 60 * height), int(place[1] / 60 * width)
        pixels[y - 2 : y + 2, x - 2 : x + 2] = 1
        cells = nn.functional.avg_pool2d(image.resized(pixels), 6)  # a map of 8 x 8 cells
        found = np.unravel_index(int(to_pixels(cells, image, height, width)[0].argmax()), (height, width))
        scale = max(height, width) / 48 if resize == "fit" else max(height / 48, width / 48)
        assert abs(found[0] - y) <= 4 * scale
        assert abs(found[1] - x) <= 4 * scale


def test_training_mode_is_refused():
    with pytest.raises(AssertionError, match="evaluation mode"):
        attention_maps(make_model().train(), *make_inputs(1, 2))


def test_a_footprint_is_where_the_picture_changes_without_its_finding():
    pictures = list(cohort_pictures((6, 2, 8), seed=3))
    name = "Pleural Effusion"
    picture = next(p for p in pictures if visible_bodies(p.study.findings, name, p.view))
    body, footprints = locate(picture, [name, "Edema"], 64)
    assert set(footprints) >= {name}
    patient, taking = sample_patient(picture.patient_seed), sample_taking(picture.view, picture.seed)
    without = {key: seed for key, seed in picture.study.findings.items() if key != name}
    pair = [radiograph(patient, bodies, picture.view, taking, 64) for bodies in (picture.study.findings, without)]
    change = np.abs(pair[0] - pair[1])
    inside = footprints[name]
    assert 0 < inside.mean() < 0.4
    assert change[inside].mean() > 5 * change[~inside].mean()
    assert 0.3 < body.mean() < 0.99
    absent = [one for one in ("Hernia", "Fracture", "Emphysema") if one not in picture.study.findings]
    assert locate(picture, absent, 32)[1] == {}


def test_a_hit_is_a_hottest_cell_that_touches_the_footprint_and_chance_the_share_of_such_cells():
    footprint, body = np.zeros((2, 24, 24), dtype=bool)
    footprint[7:10, 13:15] = True  # cells have 4 pixels: rows 1 and 2, column 3
    body[:, 8:] = True  # columns 2 to 5
    heat = {"there": np.zeros((6, 6)), "beside": np.zeros((6, 6))}
    heat["there"][2, 3] = heat["beside"][2, 2] = 1
    one = round_of("Nodule", "p1", heat, footprint, body)
    assert one.hits == {"there": True, "beside": False}
    assert one.chance == pytest.approx(2 / 24)
    np.testing.assert_allclose(shares(body, (3, 4)), np.tile([0, 2 / 3, 1, 1], (3, 1)))


def test_hit_rates_are_counted_per_class_and_resampled_by_patient():
    found = [
        Finding("Edema", "a", 0.2, {"m": True}),
        Finding("Edema", "b", 0.4, {"m": False}),
        Finding("Edema", "b", 0.3, {"m": False}),
        Finding("Hernia", "c", 0.1, {"m": True}),
    ]
    result = report(found, 500)
    edema = result["classes"]["Edema"]
    assert edema["findings"] == 3
    assert edema["m"]["hits"] == pytest.approx([1 / 3, 0, 1], abs=1e-4)
    assert edema["chance"][0] == pytest.approx(0.3)
    assert edema["m"]["gain"][0] == pytest.approx(1 / 3 - 0.3, abs=1e-4)
    assert result["mean over classes"]["m"]["hits"][0] == pytest.approx(2 / 3, abs=1e-4)
    assert "gain over chance" in table_lines(result | {"findings": 4})[-1]


def make_trained_run(run_dir):
    """A run whose fusion model is untrained, with images, manifest and cache."""
    manifest = make_manifest(run_dir / "images", 30)
    write_images(manifest)
    write_manifest(manifest, run_dir / "manifest.csv")
    make_cache(run_dir / "cache", manifest, (H, W, D))
    model = make_model(num_classes=len(CLASSES))
    text = yaml.safe_dump({"model": {"width": 24, "depth": 1, "num_heads": 3, "num_slots": S, "head": HEAD}})
    files = {"model.safetensors": model.state_dict(), "config.yaml": text, "classes.json": {"classes": list(CLASSES)}}
    files["preprocessing.json"] = Preprocessing(size=24).to_dict()
    save_folder(run_dir / "fusion" / "best", files)
    return manifest


def test_the_command_writes_pictures_and_shares_that_add_up_under_our_own_ids(tmp_path):
    manifest = make_trained_run(tmp_path)
    explain(tmp_path, ["s002", "s004"], top=2)
    out = tmp_path / "fusion" / "explained"
    names = {f"{one}_{method}.png" for one in ("s002", "s004") for method in ("attention", "grad_cam")}
    assert {path.name for path in out.iterdir()} == names | {"shapley.csv"}
    with Image.open(out / "s002_attention.png") as picture:
        assert min(picture.size) > 200
    table = pd.read_csv(out / "shapley.csv", dtype={"group_id": str})
    assert set(table["image_id"]) == set(manifest.images.query("study_id in ('s002', 's004')")["image_id"])
    for _, part in table.groupby(["group_id", "class"]):
        whole = part["logit"].iloc[0] - part["baseline_logit"].iloc[0]
        assert part["share"].sum() == pytest.approx(whole, abs=5e-6)
    before = (out / "s002_attention.png").read_bytes()
    explain(tmp_path, ["s002", "s004"], top=2)
    assert (out / "s002_attention.png").read_bytes() == before


def test_unknown_studies_and_classes_are_named(tmp_path):
    make_trained_run(tmp_path)
    with pytest.raises(InputError, match=r"--study s999: no cached image has this study_id"):
        explain(tmp_path, ["s999"])
    with pytest.raises(InputError, match=r"--classes: 'Gout' is none of the classes Edema, Nodule, Hernia"):
        explain(tmp_path, ["s002"], classes=["Gout"])


@pytest.mark.parametrize("kind", ["ml_decoder", "linear", "csra"])
def test_every_head_can_be_asked_by_the_methods_listed_for_it(kind):
    inputs, model = make_inputs(1, 2), make_model(HeadConfig(kind=kind, **HEAD))
    for method in heat_methods(model):
        heat = heat_maps(method, model, *inputs)
        assert heat.shape == (1, C, 2, H, W)
        assert torch.isfinite(heat).all()
