"""Copies planted on purpose, to measure whether the audit finds them: flipped, cropped, re-encoded, relit.

Axes: **H W** rows and columns, **h w** of a copy.
"""

from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import Float

from data.errors import InputError
from data.images import read_image
from data.manifest import Manifest, write_manifest
from data.order import derive_seed
from data.resize import resize

KINDS = ("flip", "crop", "encoding", "brightness")
SOURCE = "planted"


def plant(manifest: Manifest, out_dir: Path, num_per_kind: int, seed: int = 0) -> Manifest:
    """Write copies of images drawn without replacement, and a manifest of them in `out_dir`.

    A copy is called `<image_id>.<kind>`, is its own patient and study, and is on the side of its original.

    Raises:
        InputError: There are fewer than four times `num_per_kind` images.
    """
    wanted = num_per_kind * len(KINDS)
    if wanted > len(manifest):
        raise InputError(f"--per_kind {num_per_kind}: {wanted} images are wanted to copy, there are {len(manifest)}")
    rng = np.random.default_rng(derive_seed("plant", seed))
    drawn = manifest.select(rng.permutation(len(manifest))[:wanted])
    kinds = np.repeat(KINDS, num_per_kind)
    for row, kind in enumerate(kinds):
        image_id = drawn.images["image_id"].iat[row]
        draw = np.random.default_rng(derive_seed("plant", seed, kind, image_id))
        write_copy(drawn.image_path(row), out_dir / "images" / f"{row:04d}.jpg", str(kind), draw)
    names = drawn.images["image_id"] + "." + kinds
    paths = [f"images/{row:04d}.jpg" for row in range(wanted)]
    columns = {"image_id": names, "study_id": names, "patient_id": names, "path": paths, "source": SOURCE}
    images = drawn.images.assign(**columns).astype("str")
    planted = Manifest(images, drawn.labels, drawn.classes, out_dir)
    write_manifest(planted, out_dir / "manifest.csv")
    return planted


def write_copy(source: Path, target: Path, kind: str, rng: np.random.Generator) -> None:
    """Write an altered copy of an image as an 8-bit JPEG."""
    image = read_image(source)
    quality = 90
    if kind == "encoding":
        quality = int(rng.integers(15, 61))
        image = _smaller(image, rng.uniform(0.4, 1.0))
    else:
        image = {"flip": _flipped, "crop": _cropped, "brightness": _relit}[kind](image, rng)
    pixels = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels)[..., None], quality, "GRAY"))


def _flipped(image: Float[np.ndarray, "H W"], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Left and right exchanged."""
    return image[:, ::-1]


def _cropped(image: Float[np.ndarray, "H W"], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """75 to 95 % of each side, for each by itself, anywhere: 56 to 90 % of the area."""
    corner_and_size = []
    for side in image.shape:
        size = round(side * rng.uniform(0.75, 0.95))
        corner_and_size.append((int(rng.integers(0, side - size + 1)), size))
    (top, height), (left, width) = corner_and_size
    return image[top : top + height, left : left + width]


def _smaller(image: Float[np.ndarray, "H W"], scale: float) -> Float[np.ndarray, "h w"]:
    H, W = image.shape
    return resize(torch.from_numpy(np.ascontiguousarray(image)), round(scale * H), round(scale * W)).numpy()


def _relit(image: Float[np.ndarray, "H W"], rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Another gamma (0.5 to 2), contrast (0.6 to 1.2) and brightness (up to 0.15); clipped at black and white."""
    return rng.uniform(0.6, 1.2) * image ** (2 ** rng.uniform(-1, 1)) + rng.uniform(-0.15, 0.15)
