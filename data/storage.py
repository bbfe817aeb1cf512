"""How a feature map is stored: as float16, or as one byte per value; whole, or pooled 2 x 2.

Every form starts from the map rounded to float16, so a cache converted later is byte-equal to one extracted in that
form. The byte form is affine for each image and channel: value = offset + step * code. Its payload of H*W + 4 rows
by D columns holds the codes, token by token, and in the last four rows D float16 offsets, then D float16 steps
(little-endian). All of it runs on whatever device the maps are on, so that only stored bytes travel.

Axes: **B** images, **H W** map size, **D** features.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn import functional as F

Storage = Literal["float16", "uint8"]
STORAGE_DTYPES = {"float16": np.dtype("<f2"), "uint8": np.dtype("u1")}
LEVELS = 255
SCALE_ROWS = 4
FLOAT16_EXPONENT, FLOAT16_MAGNITUDE = 0x7C00, 0x7FFF


def payload_shape(map_shape: tuple[int, int, int], dtype: Storage) -> tuple[int, ...]:
    """Shape of one stored map: H, W, D as float16, H*W + 4, D as uint8."""
    H, W, D = map_shape
    return map_shape if dtype == "float16" else (H * W + SCALE_ROWS, D)


def payload_bytes(map_shape: tuple[int, int, int], dtype: Storage) -> int:
    """Bytes of one stored map, headers aside."""
    return math.prod(payload_shape(map_shape, dtype)) * STORAGE_DTYPES[dtype].itemsize


def pool_maps(maps: Float[Tensor, "B H W D"]) -> Float[Tensor, "B h w D"]:
    """Average 2 x 2 neighbours; an odd last row or column is averaged over the cells it has (h = ceil(H / 2)).

    The maps are rounded to float16 before, and averaged in float32.
    """
    x = maps.half().float().permute(0, 3, 1, 2)
    return F.avg_pool2d(x, 2, ceil_mode=True).permute(0, 2, 3, 1)


def encode_maps(maps: Float[Tensor, "B H W D"], dtype: Storage) -> Shaped[Tensor, "B ..."]:
    """The stored form of maps, on their device.

    A uint8 code is off by half a step at most (step: the channel's range in this image / 255, rounded up), and a
    constant channel is exact. Values beyond float16's range, and NaN, give a payload that `is_finite` denies.
    """
    halves = maps.half()
    if dtype == "float16":
        return halves
    x = halves.float().flatten(1, 2)  # the only large float32 array: on a CPU fresh memory costs more than arithmetic
    offset, largest = x.amin(dim=1, keepdim=True), x.amax(dim=1, keepdim=True)  # aminmax takes four times as long
    step = _half_not_below((largest - offset) / LEVELS)
    # A channel without range has step 0: its codes are 0 whatever they are divided by.
    codes = x.sub_(offset).div_(step.where(step > 0, 1)).round_().clamp_(0, LEVELS).to(torch.uint8)
    scales = torch.cat([offset, step], dim=1).half()
    return torch.cat([codes, scales.view(torch.uint8).unflatten(2, (2, -1)).flatten(1, 2)], dim=1)


def _half_not_below(values: Tensor) -> Tensor:
    """The smallest float16 at or above each value >= 0, as float32: a step rounded down would cut off the maximum."""
    halves = values.half()
    above = (halves.view(torch.int16) + 1).view(torch.float16)
    return torch.where(halves.float() < values, above, halves).float()


def decode_maps(
    payload: Shaped[Tensor, "B ..."], dtype: Storage, map_shape: tuple[int, int, int]
) -> Float[Tensor, "B H W D"]:
    """Maps from their stored form, on its device: float16 as it is, uint8 as float32."""
    if dtype == "float16":
        return payload
    H, W, D = map_shape
    scales = payload[:, H * W :].flatten(1).clone().view(torch.float16).float()
    offset, step = scales[:, None, :D], scales[:, None, D:]
    return payload[:, : H * W].float().mul_(step).add_(offset).unflatten(1, (H, W))


def is_finite(payload: np.ndarray, dtype: Storage) -> bool:
    """Whether a stored map is free of infinities and NaN, which is what values that float16 cannot hold become."""
    halves = payload if dtype == "float16" else payload[-SCALE_ROWS:].reshape(-1)
    bits = np.ascontiguousarray(halves).view("<u2")  # comparing bits takes a third of the time of np.isfinite
    return bool((bits & FLOAT16_MAGNITUDE).max() < FLOAT16_EXPONENT)
