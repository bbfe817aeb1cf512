"""One image file, read once: its view, its digest, and what the network is to see of it.

**S** side of the network's input, **K** pictures of an image (1 and the augmented ones).
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from jaxtyping import Float
from torch import Tensor

from data.images import ImageError, decode_scaled, looks_like_dicom, read_bytes, refuse
from data.order import derive_seed
from data.transforms import Augmentation
from fusion.model_parts import ModelParts
from fusion.study_prediction import View, ViewSource


@dataclass(frozen=True, eq=False)
class Opened:
    """An image, decoded."""

    view: View
    content: str
    """Digest of the file, which orders views of a type."""
    pictures: Float[Tensor, "K 1 S S"]


def open_image(parts: ModelParts, path: Path, name: str, view: str | None = None) -> Opened:
    """Decode one file.

    Args:
        name: What to call it.
        view: What the user says of it.

    Raises:
        ImageError: A file that cannot be used, named with the reason.
    """
    try:
        data = read_bytes(path)
        found = _header_view(data, name)
        resized = parts.preprocessing.resized(*decode_scaled(data, name, parts.preprocessing.size))
    except ImageError as error:
        refuse(name, error.reason)
    content = xxhash.xxh3_64_hexdigest(data)
    source: ViewSource = "user" if view else "header" if found not in (None, "UNKNOWN") else "unknown"
    return Opened(View(name, view or found or "UNKNOWN", source), content, _pictures(parts, resized, content))


def _pictures(parts: ModelParts, resized: Float[Tensor, "1 S S"], content: str) -> Float[Tensor, "K 1 S S"]:
    """The image, and its augmented versions where predictions average over them, drawn as the cache drew them."""
    numbers = [int(name.removeprefix("augmented_")) for name in parts.variants if name.startswith("augmented")]
    if not numbers:
        return resized[None]
    options = dict(parts.identity.augmentation)
    seed, augmentation = options.pop("seed"), Augmentation(**options)
    versions = [augmentation(resized, derive_seed("cache", seed, content, number)) for number in numbers]
    return torch.stack([resized, *versions])


def _header_view(data: bytes, name: str) -> str | None:
    """The view in a DICOM header; None where there is no header."""
    if not looks_like_dicom(data):
        return None
    from data.dicom_header import read_view  # pydicom takes 0.3 s to import

    return read_view(data, name)
