"""An exported file says what its model says, for any number of views, or it is not left.

Exports run in a process of their own: jaxtyping's hook would look at sizes that are symbols there.
"""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.shards import CacheIdentity
from data.transforms import Preprocessing
from data.views import VIEWS
from extract.backbone import Backbone, BackboneConfig, map_shape
from extract.config import ExtractConfig
from extract.estimate import pooled
from extract.heads import HeadConfig
from fusion import export_command
from fusion.config import EvaluationConfig, FusionConfig, GroupingConfig
from fusion.export import StudyNetwork, load_exported, write_exported
from fusion.export_command import MOST, export, parity
from fusion.grouping import UNKNOWN, slots_in_order
from fusion.joint_model import live_maps
from fusion.model import FusionModel, ModelConfig
from fusion.model_parts import ModelParts
from fusion.predictor import Predictor
from tests.launch import ROOT
from tests.test_fusion_model import in_a_process_of_its_own

CLASSES = ("Edema", "Nodule", "Hernia", "Mass")
SIZE = 96
DECODER = HeadConfig(width=20, num_heads=2)
MODELS = {
    "decoder": {"token_stride": 2, "experts": 3, "head": DECODER},
    "decoder alone": {"depth": 0, "head": DECODER},
    "csra": {"num_slots": 2, "head": HeadConfig(kind="csra_multihead", num_heads=2)},
    "linear": {"token_stride": 4, "head": HeadConfig(kind="linear")},
}


def make_parts(name: str, pool: int = 1, hide_types: bool = False) -> ModelParts:
    """A model with random weights, large enough for every part to matter."""
    torch.manual_seed(5)
    image = Preprocessing(size=SIZE, channels=1)
    stage_one = ExtractConfig(image=image, backbone=BackboneConfig(name="test_convnext"))
    backbone = Backbone(stage_one.backbone, image.channels)
    shape = pooled(map_shape(backbone, image.channels, image.size), pool)
    config = FusionConfig(
        model=ModelConfig(**{"width": 24, "depth": 2, "num_heads": 3} | MODELS[name]),
        grouping=GroupingConfig(hide_types=hide_types),
    )
    fusion = FusionModel(config.model, shape, len(CLASSES))
    with torch.no_grad():
        for weight in fusion.parameters():
            weight += 0.3 * torch.randn_like(weight)
    identity = CacheIdentity(
        backbone="test_convnext",
        weights_sha256="ab" * 32,
        preprocessing=image.to_dict(),
        map_shape=shape,
        images_sha256="",
        num_images=0,
        images_per_shard=1,
        classes=CLASSES,
        pool=pool,
    )
    return ModelParts(
        config=config,
        evaluation=EvaluationConfig(),
        stage_one=stage_one,
        backbone=backbone.eval(),
        fusion=fusion.eval(),
        preprocessing=image,
        identity=identity,
        joint=False,
        classes=CLASSES,
        frequency={},
        fitted=None,
        no_view=None,
        weights_sha256="cd" * 32,
    )


def study(num_views: int):
    """Noise as images, with view types and slots."""
    noise = torch.Generator().manual_seed(num_views)
    images = torch.randn(num_views, 1, SIZE, SIZE, generator=noise)
    return images, torch.arange(num_views).flip(0) % len(VIEWS), torch.arange(num_views)


@torch.inference_mode()
def reference(parts: ModelParts, images, types, slots):
    """The model as predictions use it, packed passes and all."""
    heard = torch.full_like(types, UNKNOWN) if parts.config.grouping.hide_types else types
    maps = live_maps(parts.backbone, images, parts.identity.pool, torch.float32)
    return parts.fusion(maps[None], heard[None], slots[None])[0].numpy()


@pytest.mark.parametrize(("name", "pool", "hide"), [("decoder", 1, False), ("decoder alone", 2, True),
                                                    ("csra", 2, False), ("linear", 1, True)])  # fmt: skip
def test_one_group_through_the_same_layers_gives_the_logits_of_packed_passes(name, pool, hide):
    parts = make_parts(name, pool, hide)
    network = StudyNetwork(parts).eval()
    for num_views in (1, 2, 5):
        images, types, numbers = study(num_views)
        slots = torch.from_numpy(slots_in_order(num_views, parts.config.model.num_slots))
        wanted = reference(parts, images, types, slots)
        with torch.inference_mode():
            np.testing.assert_allclose(network(images, types, numbers).numpy(), wanted, atol=1e-5)
        other = reference(parts, images, types, (slots + 1) % parts.config.model.num_slots)
        assert np.abs(other - wanted).max() > MOST, "a view's slot matters, or this test could not fail"


def exported_parity(name: str, suffix: str, folder: str) -> None:
    """What the process of its own does: export, compare, and print what came of it as JSON."""
    parts, path = make_parts(name), Path(folder, f"model{suffix}")
    write_exported(parts, path)
    run = load_exported(path)
    apart = {V: float(np.abs(run(*study(V)) - reference(parts, *study(V))).max()) for V in (1, 2, 4, 7, 16)}
    rows = parity(Predictor(parts, torch.device("cpu")), run)
    print(json.dumps({"apart": apart, "rows": [[row.num_views, row.model, row.predicted] for row in rows]}))


def run_parity(name, suffix, folder):
    code = f"from tests.test_export import exported_parity; exported_parity({name!r}, {suffix!r}, {str(folder)!r})"
    return json.loads(in_a_process_of_its_own(code).splitlines()[-1])


def check_parity(found):
    assert max(found["apart"].values()) < 1e-5
    assert [row[0] for row in found["rows"]] == [1, 2, 3, 4, 5, 6, 7]
    assert max(row[1] for row in found["rows"]) < 1e-5
    assert 0 < max(row[2] for row in found["rows"]) < 0.2, "maps rounded to float16, as a cache holds them"


def test_torch_export_says_what_the_model_says_for_1_to_16_views_from_one_graph(tmp_path):
    check_parity(run_parity("decoder", ".pt2", tmp_path))


def test_onnx_says_what_the_model_says_for_1_to_16_views_and_names_classes(tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra [onnx]: onnx, onnxruntime, onnxscript")
    pytest.importorskip("onnxscript", reason="needs the extra [onnx]: onnx, onnxruntime, onnxscript")
    pytest.importorskip("onnxruntime", reason="needs the extra [onnx]: onnx, onnxruntime, onnxscript")
    check_parity(run_parity("decoder", ".onnx", tmp_path))
    assert os.listdir(tmp_path) == ["model.onnx"], "weights inside"
    model = onnx.load(tmp_path / "model.onnx")
    told = {one.key: json.loads(one.value) for one in model.metadata_props}
    assert told["classes"] == list(CLASSES)
    assert told["preprocessing"]["size"] == SIZE
    shapes = {
        one.name: [d.dim_param or d.dim_value for d in one.type.tensor_type.shape.dim] for one in model.graph.input
    }
    assert shapes == {"images": ["views", 1, SIZE, SIZE], "view_types": ["views"], "slots": ["views"]}


def pretend(monkeypatch, parts, error):
    """An export whose file says the model's logits plus `error`."""
    predictor = Predictor(parts, torch.device("cpu"))
    monkeypatch.setattr(export_command, "load_model", lambda model, device: predictor)
    monkeypatch.setattr(export_command, "write_exported", lambda parts, path: path.write_bytes(b"model"))
    monkeypatch.setattr(
        export_command, "load_exported", lambda path: lambda *x: reference(parts, *x) + error(len(x[0]))
    )


def test_a_file_that_differs_for_any_number_of_views_is_not_left(tmp_path, monkeypatch, capsys):
    parts, out = make_parts("linear"), tmp_path / "model.pt2"
    pretend(monkeypatch, parts, lambda num_views: np.float32(2 * MOST if num_views == 5 else 0))
    with pytest.raises(InputError, match=r"model\.pt2: not written: with 5 views a logit differs by 2\.0e-04"):
        export("model", out)
    assert list(tmp_path.iterdir()) == []
    pretend(monkeypatch, parts, lambda num_views: np.float32("nan"))
    with pytest.raises(InputError, match="not written"):
        export("model", out)
    capsys.readouterr()
    pretend(monkeypatch, parts, lambda num_views: np.float32(MOST / 2))
    export("model", out)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    said = capsys.readouterr().out
    assert re.findall(r"^ +(\d) +([\d.e-]+) ", said, re.MULTILINE) == [(str(V), "5.0e-05") for V in range(1, 8)]
    assert "images (V 1 96 96) float32" in said
    assert "not in the file: decoding and preprocessing\n" in said
    with pytest.raises(InputError, match="is there already"):
        export("model", out)


def test_a_name_without_a_format_and_missing_packages_are_said_before_the_model_is_read(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"must end in \.onnx or, for torch\.export, in \.pt2"):
        export("nowhere", tmp_path / "model.pt")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"ONNX needs the package onnxruntime; pip install -e '\.\[onnx\]'"):
        export("nowhere", tmp_path / "model.onnx")
    with pytest.raises(InputError, match="there is no such folder"):
        export("nowhere", tmp_path / "absent" / "model.pt2")


def test_the_script_lies_in_scripts_and_names_its_command():
    assert "fusion.export_command" in (ROOT / "scripts" / "export.py").read_text()
