"""A trained model as one file that other software runs: a study's images in, its logits out.

    images (V C S S) float32, view_types (V) int64, slots (V) int64  ->  logits (classes) float32,  V from 1 to 16

In training several groups of unequal size lie in one row, which is split where one ends and the next begins; an export
would keep the sizes it has seen. `StudyNetwork` calls the same layers for a single group, whose row is never split.

In front of it stay decoding and preprocessing, behind it averages over passes, normal gate and calibration. It computes
in float32, and maps go from backbone to fusion as they are, not rounded to the form of a cache.

**V** views, **C** channels, **S** side in pixels, **P** tokens of all views, **E** and **W** features of a token in the
transformer and in the head, **Q** queries of the head.
"""

import copy
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional as F

from data.errors import InputError
from data.views import VIEWS
from extract.heads.ml_decoder import MLDecoder
from fusion.grouping import UNKNOWN
from fusion.joint_model import live_maps
from fusion.model import Block
from fusion.model_parts import ModelParts

MAX_VIEWS = 16
EXAMPLE_VIEWS = 3  # in the study that an export follows: a size of 1 would be taken for a constant
NAMES = ("images", "view_types", "slots")
Run = Callable[[Tensor, Tensor, Tensor], Float32[np.ndarray, "classes"]]
"""An exported file, loaded."""


class StudyNetwork(nn.Module):
    """Backbone and fusion model for one study. The backbone is a copy, for its layout in memory changes."""

    def __init__(self, parts: ModelParts) -> None:
        super().__init__()
        self.backbone = copy.deepcopy(parts.backbone).to(memory_format=torch.contiguous_format)
        self.fusion, self.pool = parts.fusion, parts.identity.pool
        self.hide_types = parts.config.grouping.hide_types

    def forward(
        self, images: Float[Tensor, "V C S S"], view_types: Int[Tensor, "V"], slots: Int[Tensor, "V"]
    ) -> Float[Tensor, "classes"]:
        """Logits of the study.

        Args:
            images: Preprocessed, normalised.
            view_types: Numbers into `VIEWS`.
            slots: 0 to V - 1 with the views in canonical order; they go in rounds over the model's slots.
        """
        fusion = self.fusion
        types = torch.full_like(view_types, UNKNOWN) if self.hide_types else view_types
        maps = live_maps(self.backbone, images, self.pool, fusion.slot_embedding.dtype)
        x = fusion.tokens(maps, types, slots % len(fusion.slot_embedding)).flatten(0, 1)
        for block in cast(Iterable[Block], fusion.blocks):
            x = x + attend(block, block.norm_attention(x))
            x = x + block.feed_forward(block.norm_feed_forward(x))
        x = fusion.norm_out(x)
        return decode(fusion.head, x) if isinstance(fusion.head, MLDecoder) else fusion.head(x[None])[0]


def attend(block: Block, x: Float[Tensor, "P E"]) -> Float[Tensor, "P E"]:
    """`Block.attend` for one group."""
    q, k, v = block.query_key_value(x).unflatten(-1, (3, block.num_heads, -1)).permute(1, 2, 0, 3)
    return block.out(scaled_attention(q, k, v))


def decode(head: MLDecoder, x: Float[Tensor, "P E"]) -> Float[Tensor, "classes"]:
    """`MLDecoder.forward` for one group, in the explicit form of its attention."""
    attention, queries = head.attention, head.norm_queries(2 * head.queries)
    q = attention.query(queries).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
    both = attention.key_value(head.embed_tokens(x))
    k, v = both.unflatten(-1, (2, attention.num_heads, -1)).permute(1, 2, 0, 3)
    y = head.norm_gathered(queries + attention.out(scaled_attention(q, k, v)))
    y = head.norm_out(y + head.feed_forward(y))
    return torch.einsum("qw,qwc->qc", y, head.class_weight).flatten()[: head.num_classes] + head.class_bias


def scaled_attention(
    q: Float[Tensor, "heads Q d"], k: Float[Tensor, "heads P d"], v: Float[Tensor, "heads P d"]
) -> Float[Tensor, "Q W"]:
    """What each query gathers, its heads side by side."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)


def write_exported(parts: ModelParts, path: Path) -> None:
    """Write a model as `path` says by its suffix: .onnx, or .pt2 for torch.export.

    The file says what it is of: classes, names of view types, preprocessing, SHA-256 of the weights.

    Raises:
        InputError: Another suffix, the packages behind ONNX are missing, a model too large for one ONNX file.
    """
    check_format(path)
    size, channels = parts.preprocessing.size, parts.preprocessing.channels
    number = torch.arange(EXAMPLE_VIEWS)
    images = torch.zeros(EXAMPLE_VIEWS, channels, size, size)
    example = (images, number, number.clone())  # one tensor given twice would become one input
    views = torch.export.Dim("views", min=1, max=MAX_VIEWS)
    shapes = {name: {0: views} for name in NAMES}
    network, notes = StudyNetwork(parts).eval(), {name: json.dumps(value) for name, value in about(parts).items()}
    with torch.no_grad():
        if path.suffix == ".pt2":
            program = torch.export.export(network, example, dynamic_shapes=shapes)
            torch.export.save(program, path, extra_files={f"{name}.json": note for name, note in notes.items()})
            return
        onnx = quietly_onnx(network, example, shapes)
    assert onnx is not None, "with dynamo=True and no file name it gives the program back"
    onnx.model.metadata_props.update(notes)
    onnx.save(path, external_data=False)


def quietly_onnx(network: nn.Module, example: tuple[Tensor, ...], shapes: dict) -> torch.onnx.ONNXProgram | None:
    """Export to ONNX without its remarks on the names of axes and on what it does not fold."""
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)
        return torch.onnx.export(
            network,
            example,
            dynamo=True,
            dynamic_shapes=shapes,
            input_names=NAMES,
            output_names=["logits"],
            verbose=False,
        )


def about(parts: ModelParts) -> dict[str, object]:
    """What the file says of itself."""
    return {
        "classes": list(parts.classes),
        "view_types": list(VIEWS),
        "preprocessing": parts.preprocessing.to_dict(),
        "weights_sha256": parts.weights_sha256,
    }


def check_format(path: Path) -> None:
    """Refuse a file name that says no format, and ONNX without its packages.

    Raises:
        InputError: says which suffixes there are, or what to install.
    """
    if path.suffix not in (".onnx", ".pt2"):
        raise InputError(f"--out {path}: the name must end in .onnx or, for torch.export, in .pt2")
    if path.suffix == ".onnx":
        try:
            import onnxruntime  # noqa: F401  # ty: ignore[import-not-found]
            import onnxscript  # noqa: F401  # ty: ignore[import-not-found]
        except ImportError as error:
            raise InputError(
                f"--out {path}: ONNX needs the package {error.name}; pip install -e '.[onnx]', or write a .pt2 file"
            ) from None


def load_exported(path: Path) -> Run:
    """A file that `write_exported` wrote, on the CPU."""
    if path.suffix == ".pt2":
        module = torch.export.load(os.fspath(path)).module()

        def run(*inputs: Tensor) -> Float32[np.ndarray, "classes"]:
            with torch.no_grad():
                return module(*inputs).numpy()

        return run
    import onnxruntime  # ty: ignore[import-not-found]

    session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
    return lambda *inputs: session.run(None, {n: x.numpy() for n, x in zip(NAMES, inputs, strict=True)})[0]
