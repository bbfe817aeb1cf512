"""Pictures for the audit page, as data URIs: JPEGs rebuilt from grey values, so no header comes along.

**P R** rows and columns of an image, **p r** those of a picture.
"""

import base64
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from jaxtyping import Float, UInt8

from data.images import ImageError, read_image
from data.resize import resize

HEIGHT = 320  # pixels; enough to tell two radiographs apart
QUALITY = 80


def picture(path: Path, height: int = HEIGHT) -> str:
    """An image as a `data:` URI with this height and proportions kept; "" if it cannot be read."""
    try:
        image = read_image(path, at_least=height)
    except ImageError:
        return ""
    return data_uri(grey_pixels(image, height))


def grey_pixels(image: Float[np.ndarray, "P R"], height: int) -> UInt8[np.ndarray, "p r"]:
    """An image of this height, its proportions kept up to 3 to 1, between black and white at its 0.5 and 99.5 %."""
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    small = resize(
        torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)), height, min(width, 3 * height)
    ).numpy()
    low, high = np.quantile(small, (0.005, 0.995))
    return np.rint(255 * np.clip((small - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)


def data_uri(pixels: UInt8[np.ndarray, "p r *rgb"]) -> str:
    """Grey or colour pixels as a JPEG `data:` URI."""
    grey = pixels.ndim == 2
    content = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels[..., None] if grey else pixels), QUALITY, "GRAY" if grey else "RGB"
    )
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
