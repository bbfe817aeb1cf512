"""DINOv2 encoders in Hugging Face's layout (CXformer, RAD-DINO), taken over strictly as files of timm models.

    python scripts/import_weights.py --weights CXformer-small/model.safetensors --out weights/cxformer_small.safetensors

The file written is what ``backbone.pretrained`` takes. Nothing is lost but the mask token, which only pre-training
uses. Both spellings of attention are read, that of files (``attention.attention.query``) and that of transformers 5 in
memory (``attention.q_proj``), with or without a prefix such as ``dinov2.``.

timm adds no position to the class token of a model with registers, so that position is added into the token itself:
the same sum. Without registers timm keeps it, and so does the file.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import Tensor

from data.errors import InputError
from data.files import atomic_write, sha256_file
from extract.checkpoint import load_tensors

SIZES = {384: "small", 768: "base", 1024: "large"}
"""timm's names by width."""

SAVED_NAMES = {
    "attention.q_proj.": "attention.attention.query.",
    "attention.k_proj.": "attention.attention.key.",
    "attention.v_proj.": "attention.attention.value.",
    "attention.o_proj.": "attention.output.dense.",
}
"""transformers 5 in memory, and as any version writes it."""

OF_MODEL = {
    "pos_embed": "embeddings.position_embeddings",
    "cls_token": "embeddings.cls_token",
    "reg_token": "embeddings.register_tokens",
    "patch_embed.proj.": "embeddings.patch_embeddings.projection.",
    "norm.": "layernorm.",
}
OF_BLOCK = {
    "attn.proj.": "attention.output.dense.",
    "ls1.gamma": "layer_scale1.lambda1",
    "ls2.gamma": "layer_scale2.lambda1",
}
"""How names of weights begin, timm's and theirs; norm1, norm2 and mlp have one name."""

MASK_TOKEN = "embeddings.mask_token"
CLASSIFIER = ("classifier.weight", "classifier.bias")


def import_backbone(path: Path, out: Path) -> None:
    """Write a Hugging Face checkpoint as a .safetensors file of its timm model.

    A ``config.json`` beside it is compared with the timm model: the number of heads cannot be seen in weights.

    Raises:
        InputError: no safetensors file, `out` exists already, or the file or its configuration is not that of a model
            that timm has.
    """
    for file in (path, out):
        if file.suffix != ".safetensors":
            raise InputError(f"{file}: only .safetensors files are read and written; a pickle could run any code")
    if out.exists():
        raise InputError(f"{out}: exists already; delete it, or choose another --out")
    tensors, left = without_prefix(load_tensors(path), str(path))
    name = timm_name(tensors, str(path))
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, global_pool="")
    if (beside := path.with_name("config.json")).is_file():
        check_config(beside, model)
    weights = convert(tensors, model.state_dict(), str(path))
    atomic_write(out, safetensors.torch.save(weights))
    number = sum(weight.numel() for weight in weights.values())
    print(f"{out}: {name}, {number:,} parameters; SHA-256 of the original {sha256_file(path)[:12]}")
    print(f"left behind: {', '.join(left)}")
    print(f"next: accelerate launch extract.py with --backbone.name {name} --backbone.pretrained {out}")


def is_hugging_face(names: Collection[str]) -> bool:
    """Whether names of weights are those of a Hugging Face DINOv2, with any prefix."""
    return any(name.endswith(OF_MODEL["cls_token"]) for name in names)


def without_prefix(tensors: Mapping[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The encoder's weights under the names that files have, and the names of what is no part of an encoder.

    Raises:
        InputError: no DINOv2, or a weight outside the encoder that is not a classifier's.
    """
    classes = [name for name in tensors if name.endswith(OF_MODEL["cls_token"])]
    if len(classes) != 1:
        raise InputError(f"{where}: wanted one weight '{OF_MODEL['cls_token']}' with any prefix, found {len(classes)}")
    prefix, encoder, left = classes[0].removesuffix(OF_MODEL["cls_token"]), {}, []
    for name, tensor in tensors.items():
        own = name.removeprefix(prefix)
        if name.startswith(prefix) and own not in CLASSIFIER:
            for ours, saved in SAVED_NAMES.items():
                own = own.replace(f".{ours}", f".{saved}")
            if own in encoder:
                raise InputError(f"{where}: weight {saved_as(own)} is there twice, in both spellings")
            encoder[own] = tensor
        elif name in CLASSIFIER:
            left.append(name)
        else:
            raise InputError(f"{where}: unexpected weight {name!r} outside of the encoder {prefix!r}")
    left += [prefix + MASK_TOKEN] * (MASK_TOKEN in encoder)
    return {name: tensor for name, tensor in encoder.items() if name != MASK_TOKEN}, left or ["nothing"]


def timm_name(tensors: Mapping[str, Tensor], where: str) -> str:
    """The timm model of these weights, told by width, registers and grid of positions.

    Raises:
        InputError: timm has no such model.
    """
    width = tensors[OF_MODEL["cls_token"]].shape[-1]
    registers = tensors[OF_MODEL["reg_token"]].shape[1] if OF_MODEL["reg_token"] in tensors else 0
    if width not in SIZES or registers not in (0, 4):
        raise InputError(
            f"{where}: width {width} with {registers} registers is no model known here; wanted width"
            f" {', '.join(map(str, SIZES))} and 0 or 4 registers"
        )
    return f"vit_{SIZES[width]}_patch14{'_reg4' * (registers > 0)}_dinov2"


def check_config(path: Path, model: Any) -> None:
    """Compare a ``config.json`` with a timm model, in what weights do not show.

    Raises:
        InputError: names the first key that differs.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        raise InputError(f"{path}: not readable as JSON; download it again, or remove it") from None
    wanted = {
        "num_attention_heads": model.blocks[0].attn.num_heads,
        "layer_norm_eps": model.norm.eps,
        "hidden_act": "gelu",
        "use_swiglu_ffn": False,
    }
    for key, value in wanted.items():
        if isinstance(config, dict) and config.get(key, value) != value:
            raise InputError(f"{path}: {key} is {config[key]!r}, wanted {value!r}; this is another model")


def sources(name: str) -> tuple[str, ...]:
    """Names of the Hugging Face weights that a timm weight is made of."""
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", name):
        layer, own = f"encoder.layer.{block[1]}.", block[2]
        if own.startswith("attn.qkv."):
            kind = own.removeprefix("attn.qkv.")
            return tuple(f"{layer}attention.attention.{part}.{kind}" for part in ("query", "key", "value"))
        return (layer + _renamed(own, OF_BLOCK),)
    return (_renamed(name, OF_MODEL),)


def _renamed(name: str, beginnings: dict[str, str]) -> str:
    ours = next((ours for ours in beginnings if name.startswith(ours)), "")
    return beginnings.get(ours, "") + name.removeprefix(ours)


def saved_as(name: str) -> str:
    """A weight's name in a message, both spellings where there are two."""
    for memory, saved in SAVED_NAMES.items():
        if f".{saved}" in name:
            return f"{name!r} ({name.replace(f'.{saved}', f'.{memory}')!r})"
    return repr(name)


def convert(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """An encoder's weights as a state dict of its timm model.

    Args:
        tensors: As `without_prefix` gives them.
        own: State dict of the timm model, of which only names and shapes count (torch's meta device will do).

    Raises:
        InputError: names the first weight that is missing, unexpected, of another shape or not finite, by its Hugging
            Face name.
    """
    made_of = {name: sources(name) for name in own}
    for name, theirs in made_of.items():
        rows, *rest = own[name].shape
        wanted = (rows // len(theirs), *rest)
        if name == "pos_embed" and "reg_token" in own:
            wanted = (rows, rest[0] + 1, *rest[1:])  # the class token's position, added into the token below
        for source in theirs:
            if source not in tensors:
                raise InputError(f"{where}: weight {saved_as(source)} is missing")
            if (found := tuple(tensors[source].shape)) != wanted:
                raise InputError(f"{where}: weight {saved_as(source)} has shape {found}, wanted {wanted}")
            if not torch.isfinite(tensors[source]).all():
                raise InputError(f"{where}: weight {saved_as(source)} is not finite")
    if unexpected := sorted(tensors.keys() - {source for theirs in made_of.values() for source in theirs}):
        raise InputError(f"{where}: unexpected weight {saved_as(unexpected[0])} ({len(unexpected)} in all)")
    weights = {name: torch.cat([tensors[source].float() for source in theirs]) for name, theirs in made_of.items()}
    if "reg_token" in own:
        weights["cls_token"] = weights["cls_token"] + weights["pos_embed"][:, :1]
        weights["pos_embed"] = weights["pos_embed"][:, 1:].contiguous()
    return weights
