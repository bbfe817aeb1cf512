"""Copies planted on purpose, to measure whether the audit finds them: flipped, cropped, re-encoded, relit.

And thumbnails made up from real ones, as many as are wanted, to measure how long it takes.

Axes: **H W** rows and columns, **h w** of a copy; **N** thumbnails, **S** side of one, **K** made-up ones.
"""

from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import Float, UInt8
from torch.nn import functional as F

from data.audit.thumbnails import SIDE, equalised
from data.errors import InputError
from data.images import read_image
from data.manifest import Manifest, write_manifest
from data.order import derive_seed
from data.resize import resize

KINDS = ("flip", "crop", "encoding", "brightness")
SOURCE = "planted"
GRAIN = (
    25  # standard deviation of 255: two blends of one image are then no more alike than two radiographs of a patient
)


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


def blends(pixels: UInt8[np.ndarray, "N S S"], count: int, seed: int) -> UInt8[np.ndarray, "K S S"]:
    """Thumbnails that look like radiographs, no two alike: two real ones, each shifted and scaled, mixed, and grain."""
    rng = np.random.default_rng(derive_seed("blends", seed))
    made = np.empty((count, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, count, 500):
        number = min(500, count - start)
        parts = [_shifted(pixels[rng.integers(0, len(pixels), number)], rng) for _ in range(2)]
        share = rng.uniform(0.35, 0.65, (number, 1, 1)).astype(np.float32)
        mixed = share * parts[0] + (1 - share) * parts[1] + GRAIN * _grain(number, rng)
        made[start : start + number] = [equalised(image) for image in mixed]
    return made


def _shifted(pixels: UInt8[np.ndarray, "N S S"], rng: np.random.Generator) -> Float[np.ndarray, "N S S"]:
    scale, shift = rng.uniform(0.85, 1.0, (2, len(pixels))), rng.uniform(-0.1, 0.1, (2, len(pixels)))
    theta = np.zeros((len(pixels), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[0], scale[1], shift.T
    images = torch.from_numpy(pixels.astype(np.float32))[:, None]
    places = F.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="reflection", align_corners=False)[:, 0].numpy()


def _grain(number: int, rng: np.random.Generator) -> Float[np.ndarray, "N S S"]:
    """Smooth noise of two sizes, standard deviation about 1."""
    fields = [torch.from_numpy(rng.standard_normal((number, 1, side, side), dtype=np.float32)) for side in (8, 32)]
    return sum(F.interpolate(field, (SIDE, SIDE), mode="bilinear")[:, 0].numpy() for field in fields)
