"""DICOM's way from stored values to grey: modality LUT, then VOI, then inversion (PS3.3 C.11.1, C.11.2, C.7.6.3.1.2).

A stored value has at most 16 bits, so the whole way is computed once for each value that can occur, in float64, and the
image is one look-up in that table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Integer

ROWS = 64  # of an image at a time


@dataclass(frozen=True)
class Lut:
    """A look-up table of a Modality or VOI LUT Sequence item, (0028,3002) and (0028,3006)."""

    first: int  # input value mapped to the first entry; smaller inputs get the first entry, larger ones the last
    bits: int  # of the entries
    entries: Float[np.ndarray, " N"]

    def __call__(self, values: Float[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
        """Look up; inputs between two whole numbers take the nearer."""
        return self.entries[np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(int)]


@dataclass(frozen=True)
class Window:
    """Window Center (0028,1050), Window Width (0028,1051) and VOI LUT Function (0028,1056)."""

    center: float
    width: float
    function: str  # LINEAR, LINEAR_EXACT or SIGMOID

    @property
    def valid(self) -> bool:
        """Whether the width is one that the standard allows for the function."""
        return self.width >= 1 if self.function == "LINEAR" else self.width > 0

    def __call__(self, values: Float[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
        """Grey in [0, 1]: C.11.2.1.2.1 (LINEAR), C.11.2.1.3.1 (SIGMOID), C.11.2.1.3.2 (LINEAR_EXACT)."""
        if self.function == "SIGMOID":
            exponent = -4 * (values - self.center) / self.width
            return 1 / (1 + np.exp(np.clip(exponent, -700, 700)))
        shift = (0.5, 1) if self.function == "LINEAR" else (0, 0)
        center, width = self.center - shift[0], self.width - shift[1]
        if width == 0:  # a threshold
            return (values > center).astype(np.float64)
        return np.clip((values - center) / width + 0.5, 0, 1)


@dataclass(frozen=True)
class Greyscale:
    """Everything that an image's header says about its grey scale."""

    inverted: bool  # MONOCHROME1: low values are bright
    padding: tuple[int, int] | None = None
    """Lowest and highest stored value that is not image, (0028,0120) and (0028,0121)."""
    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: Lut | None = None  # takes the place of slope and intercept
    voi_lut: Lut | None = None  # the first; goes before the window
    window: Window | None = None  # the first usable one


def to_grey(stored: Integer[np.ndarray, "H W"], scale: Greyscale) -> Float[np.ndarray, "H W"]:
    """Stored values to float32 in [0, 1], bright = dense.

    Without VOI LUT or a valid window, the range is that of the image's own values. Padding counts for no range and
    becomes black.
    """
    lowest, highest = int(stored.min()), int(stored.max())
    levels = np.arange(lowest, highest + 1)
    padding = np.zeros(levels.shape, bool)
    if scale.padding:
        padding = (levels >= scale.padding[0]) & (levels <= scale.padding[1])
    values = _modality(levels.astype(np.float64), scale)
    curve = _voi(scale)
    grey = curve(values) if curve else _stretched(values, _used(stored, lowest, len(levels)) & ~padding)
    grey = 1 - grey if scale.inverted else grey
    table = np.where(padding, 0, grey).astype(np.float32)
    image = np.empty(stored.shape, np.float32)
    for start in range(0, len(stored), ROWS):  # in pieces: look-ups need 8 bytes per pixel in between
        image[start : start + ROWS] = table[stored[start : start + ROWS].astype(np.intp) - lowest]
    return image


def _used(stored: Integer[np.ndarray, "H W"], lowest: int, count: int) -> Bool[np.ndarray, " V"]:
    """Which of `count` values from `lowest` upwards occur."""
    used = np.zeros(count, bool)
    for start in range(0, len(stored), ROWS):
        used[stored[start : start + ROWS].astype(np.intp) - lowest] = True
    return used


def _modality(levels: Float[np.ndarray, " V"], scale: Greyscale) -> Float[np.ndarray, " V"]:
    return scale.modality_lut(levels) if scale.modality_lut else levels * scale.slope + scale.intercept


def _voi(scale: Greyscale) -> Callable[[np.ndarray], np.ndarray] | None:
    """From modality values to grey in [0, 1]; None where the header names no way."""
    if lut := scale.voi_lut:
        return lambda values: np.clip(lut(values) / (2**lut.bits - 1), 0, 1)
    return scale.window if scale.window and scale.window.valid else None


def _stretched(values: Float[np.ndarray, " V"], used: Bool[np.ndarray, " V"]) -> Float[np.ndarray, " V"]:
    """Grey in [0, 1] over the range of the values that are used."""
    if not used.any():
        return np.zeros_like(values)
    low, high = values[used].min(), values[used].max()
    return np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
