"""Stored maps: sizes, errors and corner cases of each form, against loops written from the definition."""

import math

import numpy as np
import pytest
import torch

from data.storage import decode_maps, encode_maps, is_finite, payload_bytes, payload_shape, pool_maps

SHAPES = [(7, 7, 12), (16, 16, 6), (5, 3, 7), (1, 1, 1), (1, 9, 2)]


def heavy_tailed(shape, seed=0):
    """Laplace noise (kurtosis 6), channels of very different scale and offset, as float16 holds it."""
    rng = np.random.default_rng(seed)
    D = shape[-1]
    maps = rng.laplace(rng.normal(size=D), size=shape) * np.exp(2 * rng.normal(size=D))
    return torch.from_numpy(maps.astype(np.float16).astype(np.float32))


def slow_codes(channel):
    """Offset, step and codes of one channel of one image, in Python's own numbers."""
    low, high = min(channel), max(channel)
    step = np.float16((high - low) / 255)
    if float(step) < np.float32((high - low) / 255):
        step = np.nextafter(step, np.float16(np.inf))
    codes = [min(255, round((value - low) / float(step))) if step > 0 else 0 for value in channel]
    return np.float16(low), step, codes


@pytest.mark.parametrize("shape", SHAPES)
def test_bytes_are_what_the_definition_says(shape):
    B, (H, W, D) = 3, shape
    maps = heavy_tailed((B, H, W, D))
    payload = encode_maps(maps, "uint8")
    assert payload.shape == (B, *payload_shape(shape, "uint8")) == (B, H * W + 4, D)
    for b in range(B):
        scales = payload[b, H * W :].numpy().tobytes()
        offsets, steps = np.frombuffer(scales, "<f2").reshape(2, D)
        for d in range(D):
            offset, step, codes = slow_codes(maps[b, :, :, d].ravel().tolist())
            assert (offsets[d], steps[d]) == (offset, step)
            # float32 division may fall to the other side of a half; the definition allows it
            assert np.abs(payload[b, : H * W, d].numpy().astype(int) - codes).max() <= 1
            np.testing.assert_array_equal(
                decode_maps(payload, "uint8", shape)[b, :, :, d].numpy().ravel(),
                np.float32(offset) + payload[b, : H * W, d].numpy().astype(np.float32) * np.float32(step),
            )


@pytest.mark.parametrize("shape", [(7, 7, 64), (12, 12, 64), (16, 16, 64), (14, 14, 33)])
def test_the_error_of_heavy_tailed_maps_is_below_one_percent(shape):
    maps = heavy_tailed((4, *shape))
    error = decode_maps(encode_maps(maps, "uint8"), "uint8", shape) - maps
    assert (error.square().mean() / maps.square().mean()).sqrt() <= 0.01
    worst = (error.square().mean((1, 2)).sqrt() / maps.std((1, 2))).max()
    assert worst <= 0.02
    ranges = (maps.amax((1, 2)) - maps.amin((1, 2)))[:, None, None]
    assert (error.abs() <= ranges / 255 * 0.5 * 1.002).all(), "half a step, the step rounded up to float16"


@pytest.mark.parametrize(("shape", "most"), [((7, 7, 512), 0.55), ((16, 16, 96), 0.51), ((32, 32, 768), 0.51)])
def test_bytes_take_half_the_room(shape, most):
    assert payload_bytes(shape, "uint8") / payload_bytes(shape, "float16") <= most
    assert payload_bytes(shape, "float16") == 2 * math.prod(shape)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -3.140625, 65504.0, -65504.0, 6e-8, 1 / 3])
def test_constant_channels_are_exact(value):
    maps = torch.full((2, 5, 3, 4), value)
    decoded = decode_maps(encode_maps(maps, "uint8"), "uint8", (5, 3, 4))
    assert torch.equal(decoded, maps.half().float())


@pytest.mark.parametrize(("low", "high"), [(-65504.0, 65504.0), (0.0, 6e-8), (-1e-7, 1e-6), (65472.0, 65504.0), (0, 1)])
def test_extremes_come_back_within_half_a_step(low, high):
    maps = torch.tensor([low, high, (low + high) / 2]).half().float().view(1, 3, 1, 1)
    payload = encode_maps(maps, "uint8")
    assert is_finite(payload[0].numpy(), "uint8")
    step = float(payload[0, -4:].flatten().clone().view(torch.float16)[1])
    assert ((decode_maps(payload, "uint8", (3, 1, 1)) - maps).abs() <= step * 0.5 + abs(high) * 1e-7).all()
    assert step <= (high - low) / 255 * 1.001 + 6e-8


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("value", [65520.0, -65520.0, 1e30, math.inf, -math.inf, math.nan])
def test_what_float16_cannot_hold_is_recognised(dtype, value):
    maps = torch.zeros(2, 5, 3, 4)
    assert is_finite(encode_maps(maps, dtype)[0].numpy(), dtype)
    maps[1, 2, 1, 3] = value
    payload = encode_maps(maps, dtype).numpy()
    assert (is_finite(payload[0], dtype), is_finite(payload[1], dtype)) == (True, False)


def test_float16_is_kept_bit_for_bit():
    maps = heavy_tailed((2, 5, 3, 4)).half()
    assert torch.equal(decode_maps(encode_maps(maps, "float16"), "float16", (5, 3, 4)), maps)


@pytest.mark.parametrize("shape", [(4, 6, 3), (5, 3, 2), (1, 1, 4), (7, 7, 2), (1, 8, 1)])
def test_pooling_averages_the_cells_that_are_there(shape):
    B, (H, W, D) = 2, shape
    maps = heavy_tailed((B, H, W, D))
    pooled = pool_maps(maps)
    assert pooled.shape == (B, -(-H // 2), -(-W // 2), D)
    for b in range(B):
        for y in range(pooled.shape[1]):
            for x in range(pooled.shape[2]):
                cells = maps[b, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].flatten(0, 1).double()
                np.testing.assert_allclose(pooled[b, y, x], cells.mean(0), rtol=1e-5, atol=1e-5)


def test_a_map_is_rounded_first_so_that_later_conversion_gives_the_same_bytes():
    maps = heavy_tailed((2, 5, 4, 3)) * 1.0001  # not float16's numbers any more
    assert not torch.equal(maps, maps.half().float())
    for whole, later in (
        (encode_maps(maps, "uint8"), encode_maps(encode_maps(maps, "float16"), "uint8")),
        (encode_maps(pool_maps(maps), "uint8"), encode_maps(pool_maps(encode_maps(maps, "float16")), "uint8")),
    ):
        assert torch.equal(whole, later)


def test_a_map_does_not_depend_on_its_batch():
    maps = heavy_tailed((5, 7, 7, 6))
    whole = encode_maps(maps, "uint8")
    assert torch.equal(whole, torch.cat([encode_maps(maps[b : b + 1], "uint8") for b in range(5)]))
    decoded = decode_maps(whole, "uint8", (7, 7, 6))
    assert torch.equal(decoded[2:3], decode_maps(whole[2:3], "uint8", (7, 7, 6)))
