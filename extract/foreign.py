"""Published weights of others, taken over strictly as one of our model folders.

One layout of whole models: the CXR-LT 2026 winner's ConvNeXtV2-Base with BatchNorm and CSRA over its map (30 classes of
PadChest; 87,756,318 parameters, 87,758,367 numbers with BatchNorm's statistics). Where only its backbone is wanted, for
other classes, name the folder written here in ``backbone.pretrained``. Encoders without a head, in Hugging Face's
layout, become a file instead (`extract.dinov2`).
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from data.config import default_values, parse_config
from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.label_spaces import CXR_LT_2026_CLASSES
from data.runs import keep_config, run_command
from extract.backbone import ImageClassifier
from extract.checkpoint import check_folder, load_classes, load_json, load_tensors, load_weights, save_folder
from extract.config import ExtractConfig
from extract.dinov2 import import_backbone, is_hugging_face

RECIPE = Path(__file__).parent / "configs" / "cxr_lt_2026_padchest.yaml"

PUBLISHED_NAMES = {
    "backbone.model.": "backbone.",
    "head.norm.": "bn.",
    "head.classifier.": "head.classifier.",
    "head.attention.": "head.conv_att.",
}
"""How the names of weights begin, ours and theirs."""


def main(argv: list[str] | None = None) -> None:
    """Command line: ``--weights FILE``, then ``--out FILE`` (an encoder) or extract.py's options (a whole model)."""
    parser = argparse.ArgumentParser(description="Take over published weights.", allow_abbrev=False, add_help=False)
    parser.add_argument("--weights", type=Path, required=True, help="the published .safetensors file")
    parser.add_argument("--out", type=Path, help="of an encoder without head: the .safetensors file to write for timm")
    options, rest = parser.parse_known_args(argv)
    if options.out is not None:
        if rest:
            parser.error(f"--out takes no options of extract.py, found {rest[0]}")
        run_command(lambda: import_backbone(options.weights, options.out))
        return
    config, resolved_yaml = parse_config(ExtractConfig, RECIPE, rest)
    run_command(lambda: import_weights(options.weights, config, resolved_yaml))


def import_weights(
    path: Path, config: ExtractConfig, resolved_yaml: str, classes: tuple[str, ...] = CXR_LT_2026_CLASSES
) -> None:
    """Write ``stage_one/best/`` from a published file; extract.py then trains nothing and goes on to the cache.

    Raises:
        InputError: no safetensors file; a weight is missing, unexpected, of another shape or not finite; the run has a
            model already.
    """
    stage_dir = config.run_dir / "stage_one"
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: only .safetensors files are read; a pickle (.pth, .pt, .bin) could run any code")
    if (stage_dir / "best").exists() or (stage_dir / "last").exists():
        raise InputError(f"{stage_dir}: holds a model already; choose another run_dir")
    backbone = replace(config.backbone, pretrained=False)  # every weight comes from the file
    tensors = load_tensors(path)
    if is_hugging_face(tensors.keys()):
        raise InputError(f"{path}: an encoder without head; say with --out which file to write")
    model = ImageClassifier(backbone, config.head, config.image.channels, len(classes))
    load_published(model, tensors, str(path))
    keep_config(stage_dir, resolved_yaml, default_values(ExtractConfig))
    atomic_write(stage_dir / "data.json", json.dumps({"digest": "", "trained_patients": []}))  # nobody knows them
    save_folder(
        stage_dir / "best",
        {
            "model.safetensors": model.state_dict(),
            "config.yaml": resolved_yaml,
            "classes.json": {"classes": list(classes)},
            "preprocessing.json": config.image.to_dict(),
            "metrics.json": {"imported": {"file": path.name, "sha256": sha256_file(path)}},
        },
    )
    print(f"{stage_dir / 'best'}: {len(classes)} classes; next: accelerate launch extract.py with the same options")


def load_published(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a published state dict into our model.

    Raises:
        InputError: names the first weight that is missing, unexpected, of another shape or not finite, by its
            published name.
    """
    own, converted = model.state_dict(), {}
    names = {ours: published_name(ours) for ours in own}
    for ours, theirs in names.items():
        if theirs not in tensors:
            raise InputError(f"{where}: weight {theirs!r} is missing")
        found, wanted = tensors[theirs], own[ours].shape
        if theirs == "head.conv_att.weight":  # a 1x1 convolution there, a linear layer over tokens here
            wanted = torch.Size([*wanted, 1, 1])
        if found.shape != wanted:
            raise InputError(f"{where}: weight {theirs!r} has shape {tuple(found.shape)}, wanted {tuple(wanted)}")
        if not torch.isfinite(found).all():
            raise InputError(f"{where}: weight {theirs!r} is not finite")
        converted[ours] = found.reshape(own[ours].shape)
    if unexpected := sorted(tensors.keys() - names.values()):
        raise InputError(f"{where}: unexpected weight {unexpected[0]!r} ({len(unexpected)} in all)")
    load_weights(model, converted, where)


def published_name(name: str) -> str:
    """A weight's name in the published file.

    Raises:
        InputError: the published model has no such weight.
    """
    for ours, theirs in PUBLISHED_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise InputError(f"weight {name!r} has no place in the published layout: head.kind must be csra with batch_norm")


def is_imported(stage_dir: Path, classes: tuple[str, ...]) -> bool:
    """Whether the stage's model came from `import_weights`, so that there is nothing to train.

    Raises:
        InputError: its outputs are other classes than the manifest's, or in another order.
    """
    best = stage_dir / "best"
    if not (best / "metrics.json").is_file() or "imported" not in load_json(best / "metrics.json"):
        return False
    check_folder(best)
    outputs = load_classes(best)
    if outputs != classes:
        first = next((pair for pair in zip(outputs, classes, strict=False) if pair[0] != pair[1]), None)
        differ = f"{first[0]!r} and {first[1]!r}" if first else f"{len(outputs)} and {len(classes)} classes"
        raise InputError(
            f"manifest.csv: the imported weights have other classes, first {differ}; prepare it with theirs in their"
            f" order ({best / 'classes.json'}), or train a new head in another run_dir with backbone.pretrained {best}"
        )
    return True
