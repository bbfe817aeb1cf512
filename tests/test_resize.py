"""Our antialiased resize is the triangle filter, whatever the sizes and the number of threads."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from data.resize import resize

SIZES = [((37, 53), (24, 25)), ((9, 11), (24, 31)), ((300, 7), (7, 300)), ((64, 40), (64, 13)), ((5, 6), (5, 6))]


def picture(shape: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(2).uniform(0, 1, shape).astype(np.float32))


@pytest.mark.parametrize(("shape", "target"), SIZES)
def test_it_agrees_with_torchs_antialiased_bilinear(shape, target):
    image = picture(shape)
    expected = interpolate(image[None, None], target, mode="bilinear", antialias=True)[0, 0]
    torch.testing.assert_close(resize(image, *target), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("shape", "target"), [*SIZES, ((900, 3), (30, 1)), ((3, 900), (1, 30)), ((1, 1), (4, 3))])
def test_it_agrees_with_pillows_bilinear(shape, target):
    """For an image of one column torch 2.15 returns something else."""
    image = picture(shape)
    expected = Image.fromarray(image.numpy()).resize(target[::-1], Image.Resampling.BILINEAR)
    np.testing.assert_allclose(resize(image, *target), np.asarray(expected), rtol=0, atol=2e-6)


def test_rows_and_columns_beyond_the_extent_are_cut_off_by_the_filter():
    image, (height, width), extent = picture((14, 9)).double(), (5, 4), (13.25, 8.5)
    expected = np.zeros((height, width))
    for y, x in np.ndindex(height, width):
        weights = []
        for new, size, whole, old in ((y, height, extent[0], 14), (x, width, extent[1], 9)):
            step = whole / size
            distances = np.abs(np.arange(old) + 0.5 - (new + 0.5) * step) / step
            weights.append(np.maximum(0, 1 - distances) / np.maximum(0, 1 - distances).sum())
        expected[y, x] = weights[0] @ image.numpy() @ weights[1]
    np.testing.assert_allclose(resize(image.float(), height, width, extent), expected, rtol=0, atol=1e-6)


def test_a_constant_stays_what_it_is_and_the_range_is_kept():
    torch.testing.assert_close(resize(torch.full((70, 51), 0.3), 33, 64), torch.full((33, 64), 0.3))
    image = (picture((90, 70)) > 0.5).float()
    small = resize(image, 31, 29)
    assert -1e-6 < small.min()
    assert small.max() < 1 + 1e-6


def test_the_number_of_threads_changes_no_bit():
    image, number = picture((700, 600)), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = resize(image, 511, 333)
        torch.set_num_threads(2)
        assert torch.equal(resize(image, 511, 333), one)
    finally:
        torch.set_num_threads(number)
