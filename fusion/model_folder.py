"""The published form of a trained model: one folder, also a Hub repository, that holds all that predicting takes.

    model.safetensors config.yaml config.json classes.json preprocessing.json metrics.json    of the fusion model
    calibration.json thresholds.json                                                          where it was calibrated
    backbone/        stage one's model folder; instead of it, after a joint phase, stage_one.yaml: all weights are one
    example/         two views of a phantom, and what the model says of them (expected.json)
    digests.json     SHA-256 of all that

No patient, no manifest and no path of the machine that made it is in there. On loading (`fusion.folder_check`) every
file is compared with its digest, any other file is refused, and the example is predicted anew: what is read, resized,
normalised or ordered otherwise than where the model comes from is found before the first patient.
"""

import dataclasses
import json
import os
import shutil
import typing
from pathlib import Path
from typing import Any

import yaml

from data.config import read_yaml
from data.errors import InputError
from data.files import atomic_write, sha256_file, sync_folder, sync_tree
from data.phantom.constants import View
from data.phantom.patient import sample_patient
from data.phantom.radiograph import radiograph, sample_taking
from data.phantom.write import write_image
from extract.config import ExtractConfig
from fusion.config import FusionConfig
from fusion.device import device_of
from fusion.folder_check import EXPECTED, FITTED, FORMAT, MAPS, STAGE, check_example, read_published
from fusion.model_parts import STAGE_ONE, ModelParts, read_result
from fusion.predictor import Predictor

MODEL_TYPE = "chest-x-ray-fusion"
EXAMPLE: dict[str, View] = {"frontal.png": "PA", "lateral.png": "LATERAL"}
EXAMPLE_FINDINGS = {"Cardiomegaly": 1, "Pleural Effusion": 2, "Nodule": 3, "pacemaker": 4}  # each with its seed
EXAMPLE_SEED, EXAMPLE_SIZE = 7, 192  # of the pictures in pixels: models of any input size resize them


def assemble(result_dir: Path, out: Path) -> None:
    """Write the model of a finished result folder in its published form; it appears complete or not at all.

    README.md and LICENSE may be put beside it afterwards.

    Args:
        out: A folder that does not exist, or is empty.

    Raises:
        InputError: No finished model in `result_dir`, or something in `out`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is there already; choose another folder, or delete it")
    parts = read_result(result_dir)
    best, temporary = result_dir / "best", out.with_name(f".tmp-{out.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        _copy_model(parts, best, result_dir.parent / "stage_one" / "best", temporary)
        write_config(parts, temporary)
        _write_example(Predictor(parts, device_of("cpu")), temporary)
        _write_digests(temporary)
        check_example(Predictor(read_published(temporary), device_of("cpu")), temporary)
        sync_tree(temporary)
        if out.exists():
            out.rmdir()
        os.rename(temporary, out)
        sync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy_model(parts: ModelParts, best: Path, backbone: Path, out: Path) -> None:
    """Weights and records byte by byte, so that what vouches for them still does; configurations without paths."""
    for name in (*STAGE, *(FITTED if parts.fitted else ())):
        shutil.copyfile(best / name, out / name)
    configuration = without_paths(read_yaml(best / "config.yaml"), FusionConfig)
    configuration["evaluation"] = dataclasses.asdict(parts.evaluation)
    _write_yaml(out / "config.yaml", configuration)
    if parts.joint:
        _write_yaml(out / STAGE_ONE, without_paths(read_yaml(best / STAGE_ONE), ExtractConfig))
        return
    for name in STAGE:
        (out / "backbone").mkdir(exist_ok=True)
        shutil.copyfile(backbone / name, out / "backbone" / name)
    _write_yaml(out / "backbone" / "config.yaml", without_paths(read_yaml(backbone / "config.yaml"), ExtractConfig))
    _write_digests(out / "backbone")


def without_paths(tree: dict[str, Any], config_class: Any) -> dict[str, Any]:
    """A saved configuration without the keys that hold a path: they say where things lay on the machine that wrote it.

    All of them have defaults, which stand for no file.
    """
    kept = {}
    for field in dataclasses.fields(config_class):
        if field.name in tree and dataclasses.is_dataclass(field.type):
            kept[field.name] = without_paths(tree[field.name], field.type)
        elif field.name in tree and Path not in (field.type, *typing.get_args(field.type)):
            kept[field.name] = tree[field.name]
    return kept


def write_config(parts: ModelParts, out: Path) -> None:
    """`config.json`: what the fusion model was trained on, and its logits of no view at all."""
    maps = {name: value for name, value in parts.identity.to_dict().items() if name in MAPS}
    try:
        no_view = dict(zip(parts.classes, parts.empty_logits().tolist(), strict=True))
    except InputError:  # a result without validation logits has no Shapley shares, here or there
        no_view = {}
    record = {"format": FORMAT, "model_type": MODEL_TYPE, "maps": maps, "no_view": no_view}
    _write_json(out / "config.json", record)


def _write_example(model: Predictor, out: Path) -> None:
    """The phantom's pictures and the model's word on them."""
    patient, files = sample_patient(EXAMPLE_SEED), [out / "example" / name for name in EXAMPLE]
    for path, view in zip(files, EXAMPLE.values(), strict=True):
        picture = radiograph(patient, EXAMPLE_FINDINGS, view, sample_taking(view, EXAMPLE_SEED), EXAMPLE_SIZE)
        write_image(path, picture, view)
    said = model.predict_study(files, list(EXAMPLE.values()))
    logits, probabilities = (
        dict(zip(model.classes, map(float, values), strict=True)) for values in (said.logits, said.probabilities)
    )
    _write_json(out / EXPECTED, {"images": EXAMPLE, "logits": logits, "probabilities": probabilities})


def _write_digests(folder: Path) -> None:
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    _write_json(folder / "digests.json", {name: sha256_file(folder / name) for name in files})


def _write_json(path: Path, record: dict[str, Any]) -> None:
    atomic_write(path, json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n")


def _write_yaml(path: Path, tree: dict[str, Any]) -> None:
    atomic_write(path, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
