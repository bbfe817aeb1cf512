"""Pictures for the audit page, as data URIs: JPEGs rebuilt from grey values, so no header comes along."""

import base64
from pathlib import Path

import numpy as np
import simplejpeg
import torch

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
    width = max(1, round(image.shape[1] * height / image.shape[0]))
    small = resize(
        torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)), height, min(width, 3 * height)
    ).numpy()
    low, high = np.quantile(small, (0.005, 0.995))
    pixels = np.rint(255 * np.clip((small - low) / max(high - low, 1e-6), 0, 1)).astype(np.uint8)
    return (
        "data:image/jpeg;base64,"
        + base64.b64encode(simplejpeg.encode_jpeg(pixels[..., None], QUALITY, "GRAY")).decode()
    )
