"""Pictures inside the page itself, as data URIs: nothing that shows a patient is written to a file or served by a link.

Axes: **V** views, **S** side of the network's square input, **H W** any size.
"""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib import colormaps
from PIL import Image

from data.images import read_image
from fusion.overlay import HOT

THUMBNAIL = 128  # pixels of the shorter side, about
QUALITY = 92  # JPEG: at 384 pixels no difference can be seen, and a study of four views stays below 200 kB


def grey_picture(image: Float[np.ndarray, "H W"]) -> str:
    """Grey values in [0, 1] as the data URI of a JPEG."""
    pixels = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return _data_uri(pixels, "JPEG", quality=QUALITY)


def thumbnail(path: Path) -> str:
    """A small picture of an image file, as a data URI.

    Raises:
        ImageError: It cannot be read.
    """
    image = read_image(path, THUMBNAIL)
    step = max(1, min(image.shape) // THUMBNAIL)
    return grey_picture(image[::step, ::step])


def heat_pictures(heat: Sequence[Float[np.ndarray, "_H _W"]]) -> list[str]:
    """One transparent PNG per view, to lie over its image.

    Colours run from 0 to the largest heat in any view, so a view that has less of it is fainter, as in
    `fusion.overlay`; where there is no heat at all the picture is clear.
    """
    most = max(float(values.max()) for values in heat)
    return [_data_uri(_hot_pixels(values / most if most > 0 else np.zeros_like(values)), "PNG") for values in heat]


def _hot_pixels(strength: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 4"]:
    strength = np.clip(strength, 0, 1)
    colours = colormaps[HOT](strength)
    colours[..., 3] = 0.85 * np.sqrt(strength)
    return np.round(colours * 255).astype(np.uint8)


def _data_uri(pixels: UInt8[np.ndarray, "H W *channels"], kind: str, **options: int) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
