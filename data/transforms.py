"""What happens to a decoded image before a network sees it: resize, (in training) augment, normalise.

    tensor = preprocessing(image)                                                     # evaluation
    tensor = preprocessing.normalised(augmentation(preprocessing.resized(image), seed))     # training

Axes: **H W** the file's rows and columns, **h w** those of the image inside the square, **S** the network's side in
pixels, **C** channels, **B** images.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from data.errors import InputError
from data.resize import resize

PERCENTILES = (0.5, 99.5)
MAX_RATIO = 4
"""Of the sides of an image that is to be cropped; a longer one is squeezed, so that a strip cannot fill the memory."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """The part of the input pipeline that a trained model depends on; it is saved with the model."""

    size: int = 224
    """Side of the square network input, in pixels."""

    resize: Literal["stretch", "fit", "crop"] = "stretch"
    """stretch: both sides become `size`; fit: the longer side does, proportions are kept, the rest is black; crop: the
    shorter side does, proportions are kept, the middle is cut out (as RAD-DINO and CXformer were trained)."""

    intensity: Literal["full", "percentile", "equalize"] = "full"
    """full: black and white are the file format's limits; percentile: the image's own 0.5 and 99.5 percentiles, for
    files that use a part of their range (PadChest's 16-bit PNGs); equalize: all grey levels about equally frequent
    (as CXformer was trained)."""

    channels: Literal[1, 3] = 1
    """Input channels of the network; 3 repeats the grey image."""

    mean: tuple[float, ...] = (0.5,)
    """Grey level in [0, 1] subtracted from each channel, one value per channel."""

    std: tuple[float, ...] = (0.25,)
    """Divisor of each channel, above 0, one value per channel."""

    def __post_init__(self) -> None:
        """Check at the door.

        Raises:
            InputError: a value out of range, or not one mean and std per channel.
        """
        _check_preprocessing(vars(self))
        for key in ("mean", "std"):
            object.__setattr__(self, key, tuple(map(float, getattr(self, key))))  # 0 and 0.0 share a digest

    def __call__(self, image: Float[np.ndarray, "H W"]) -> Float[Tensor, "C S S"]:
        """Grey values in [0, 1] to the network's input."""
        return self.normalised(self.resized(image))

    def resized(
        self, image: Float[np.ndarray, "H W"], extent: tuple[float, float] | None = None
    ) -> Float[Tensor, "1 S S"]:
        """Resize with an antialiasing triangle filter; grey values stay in [0, 1].

        Args:
            extent: Of the picture, where it was decoded at a smaller scale (`data.images.Scaled`).
        """
        tensor = self.scaled(image, extent)[None]
        height, width = tensor.shape[1:]
        if self.intensity == "percentile":  # before padding, which must not count
            tensor = _stretched(tensor)
        elif self.intensity == "equalize":
            tensor = _equalized(tensor)
        if height == width == self.size:
            return tensor
        left, top = (self.size - width) // 2, (self.size - height) // 2  # negative for crop: pad then cuts off
        return F.pad(tensor, [left, top, self.size - width - left, self.size - height - top])

    def scaled(
        self, image: Float[np.ndarray, "H W"], extent: tuple[float, float] | None = None
    ) -> Float[Tensor, "h w"]:
        """The first step of `resized`: the image at its `inner_size`, before intensity and padding."""
        height, width = self.inner_size(*(extent or image.shape))
        return resize(torch.from_numpy(np.require(image, np.float32, ["C", "W"])), height, width, extent)

    def normalised(self, image: Float[Tensor, "*B 1 S S"]) -> Float[Tensor, "*B C S S"]:
        """Repeat over the channels, subtract `mean`, divide by `std`; one image or a batch."""
        mean, std = (torch.tensor(values, device=image.device)[:, None, None] for values in (self.mean, self.std))
        return (image - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `from_dict` reads them back."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Preprocessing":
        """Read what `to_dict` wrote.

        Raises:
            InputError: an unknown or missing key, a value of the wrong type or out of range.
        """
        wanted = {field.name for field in fields(cls)}
        if unequal := wanted ^ set(values):
            raise InputError(f"preprocessing: wanted the keys {sorted(wanted)}, unknown or missing: {sorted(unequal)}")
        _check_preprocessing(values)
        tuples: dict[str, Any] = {key: tuple(map(float, values[key])) for key in ("mean", "std")}
        return cls(**(values | tuples))

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def inner_size(self, height: int | float, width: int | float) -> tuple[int, int]:
        """Height and width that the image itself gets; for crop, one of them reaches beyond the square."""
        if self.resize == "stretch":
            return self.size, self.size
        if self.resize == "crop":
            scale, longest = self.size / min(height, width), MAX_RATIO * self.size
            return min(longest, round(height * scale)), min(longest, round(width * scale))
        longest = max(height, width)
        return max(1, round(height * self.size / longest)), max(1, round(width * self.size / longest))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Random changes to a training image; 0 turns each off, and all are off unless asked for."""

    hflip: float = 0.0
    """Probability of mirroring left and right."""

    rotate: float = 0.0
    """Largest rotation to either side, in degrees."""

    translate: float = 0.0
    """Largest shift along each axis, as a fraction of the side."""

    scale: float = 0.0
    """Largest change of size, as a fraction: 0.1 means 0.9 to 1.1 times."""

    brightness: float = 0.0
    """Largest grey level added or subtracted, on the [0, 1] scale."""

    contrast: float = 0.0
    """Largest change of contrast about the image's mean, as a fraction."""

    def __post_init__(self) -> None:
        """Check at the door.

        Raises:
            InputError: a value out of its range.
        """
        for key, highest in {
            "hflip": 1,
            "rotate": 180,
            "translate": 1,
            "scale": 0.9,
            "brightness": 1,
            "contrast": 1,
        }.items():
            value = getattr(self, key)
            _check(_is_number(value) and 0 <= value <= highest, key, f"a number from 0 to {highest}", value)

    def __call__(self, image: Float[Tensor, "1 S S"], seed: int) -> Float[Tensor, "1 S S"]:
        """Augment a resized image in [0, 1], before it is normalised.

        Args:
            seed: Decides every draw; the caller derives it from (run seed, epoch, image), so that neither the number
                of workers nor torch's global generator matters.
        """
        draws = torch.rand(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()
        flip, (angle, right, down, scale, brightness, contrast) = draws[0], (2 * draw - 1 for draw in draws[1:])
        if flip < self.hflip:
            image = F.horizontal_flip(image)
        if self.rotate or self.translate or self.scale:  # one resampling for all three
            shift = [right * self.translate * image.shape[-1], down * self.translate * image.shape[-2]]
            image = F.affine(
                image, angle * self.rotate, shift, 1 + scale * self.scale, [0.0, 0.0], InterpolationMode.BILINEAR
            )
        if self.brightness or self.contrast:
            mean = float(image.numpy().mean(dtype=np.float64))  # torch's sum depends on the number of threads
            image = (image - mean) * (1 + contrast * self.contrast) + mean + brightness * self.brightness
            image = image.clamp(0, 1)
        return image


def _stretched(image: Float[Tensor, "1 H W"]) -> Float[Tensor, "1 H W"]:
    """Clip to `PERCENTILES` and spread over [0, 1]; an image that is one level between them is left alone."""
    low, high = np.percentile(image.numpy(), PERCENTILES)
    return ((image - low) / (high - low)).clamp(0, 1) if high > low else image


def _equalized(image: Float[Tensor, "1 H W"]) -> Float[Tensor, "1 H W"]:
    """Histogram equalization over 256 levels, the darkest of the image becoming 0; one level alone is left as it is.

    As OpenCV's equalizeHist, but not rounded to 8 bits again.
    """
    levels = (image * 255).round().long()
    counts = torch.bincount(levels.flatten(), minlength=256)
    darkest = counts[levels.min()]
    if darkest == levels.numel():
        return image
    table = (counts.cumsum(0) - darkest).clamp(min=0) / (levels.numel() - darkest)
    return table[levels]


def _check_preprocessing(values: dict[str, Any]) -> None:
    size, channels = values["size"], values["channels"]
    _check(type(size) is int and 1 <= size <= 8192, "size", "a whole number from 1 to 8192", size)
    for key, allowed in {
        "resize": ("stretch", "fit", "crop"),
        "intensity": ("full", "percentile", "equalize"),
        "channels": (1, 3),
    }.items():
        _check(values[key] in allowed, key, f"one of {allowed}", values[key])
    for key in ("mean", "std"):
        numbers = values[key]
        one_each = isinstance(numbers, (tuple, list)) and len(numbers) == channels and all(map(_is_number, numbers))
        _check(one_each, key, f"one number per channel ({channels})", numbers)
    _check(min(values["std"]) > 0, "std", "above 0", values["std"])


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _check(good: bool, key: str, wanted: str, found: object) -> None:
    if not good:
        raise InputError(f"{key} must be {wanted}, got {found!r}")
