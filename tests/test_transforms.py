"""Geometry, grey levels and reproducible draws of the input pipeline."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from data.errors import InputError
from data.images import decode_image, decode_scaled
from data.transforms import Augmentation, Preprocessing

EVERYTHING = Augmentation(hflip=0.5, rotate=20.0, translate=0.1, scale=0.2, brightness=0.2, contrast=0.3)


def picture(height: int = 37, width: int = 53) -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.uniform(0.1, 0.9, (height, width)).astype(np.float32)


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (200, 90), (9, 11)])
def test_stretch_is_antialiased_bilinear_to_a_square(shape):
    image = picture(*shape)
    expected = interpolate(torch.from_numpy(image)[None, None], (24, 24), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(Preprocessing(size=24).resized(image), expected)


@pytest.mark.parametrize(
    ("shape", "inner"), [((100, 40), (30, 12)), ((40, 100), (12, 30)), ((7, 7), (30, 30)), ((900, 3), (30, 1))]
)
def test_fit_keeps_proportions_and_centres_on_black(shape, inner):
    out = Preprocessing(size=30, resize="fit").resized(picture(*shape))[0]
    top, left = (30 - inner[0]) // 2, (30 - inner[1]) // 2
    middle = out[top : top + inner[0], left : left + inner[1]]
    assert middle.min() > 0.09
    assert torch.count_nonzero(out) == inner[0] * inner[1]


@pytest.mark.parametrize("mode", ["stretch", "fit"])
@pytest.mark.parametrize(("height", "width", "size"), [(203, 149, 25), (125, 102, 11), (129, 199, 31), (96, 160, 12)])
def test_a_jpeg_decoded_at_a_smaller_scale_becomes_what_the_whole_one_would(mode, height, width, size):
    y, x = np.mgrid[0:height, 0:width]
    pixels = (128 + 60 * np.sin(y / 17) + 60 * np.sin(x / 13 + y / 50)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=98)
    data, preprocessing = buffer.getvalue(), Preprocessing(size=size, resize=mode)
    scaled = decode_scaled(data, "a", size)
    assert max(scaled.image.shape) < max(height, width)
    assert scaled.extent[0] * width == scaled.extent[1] * height
    expected = preprocessing.resized(decode_image(data, "a"))
    assert torch.equal(preprocessing.resized(*scaled) > 0, expected > 0)  # the same border
    assert float((preprocessing.resized(*scaled) - expected).square().mean().sqrt()) < 0.012


@pytest.mark.parametrize("shape", [(100, 40), (40, 100), (61, 90), (30, 30), (33, 31)])
def test_crop_keeps_the_middle_of_the_image_whose_shorter_side_fills_the_square(shape):
    image, shorter = picture(*shape), min(shape)
    out = Preprocessing(size=30, resize="crop").resized(image)
    assert out.shape == (1, 30, 30)
    inner = [round(side * 30 / shorter) for side in shape]
    whole = interpolate(torch.from_numpy(image)[None, None], inner, mode="bilinear", antialias=True)[0]
    top, left = (-((30 - side) // 2) for side in inner)
    torch.testing.assert_close(out, whole[:, top : top + 30, left : left + 30], rtol=1e-4, atol=1e-4)


def test_a_strip_is_squeezed_before_it_is_cropped():
    pre = Preprocessing(size=30, resize="crop")
    assert pre.inner_size(3, 90_000) == (30, 120)
    assert pre.resized(picture(3, 900)).shape == (1, 30, 30)


def test_equalized_levels_follow_the_images_own_histogram():
    image = (picture(50, 70) ** 3 * 255).round() / 255  # 8 bits, mostly dark
    found = Preprocessing(size=90, resize="fit", intensity="equalize")
    found = found.resized(np.kron(image, np.ones((2, 2), np.float32))[:90, :90])[0].numpy()
    levels = np.rint(np.kron(image, np.ones((2, 2)))[:90, :90] * 255).astype(int)
    darkest = (levels == levels.min()).sum()
    for y, x in [(0, 0), (13, 71), (89, 89), *np.argwhere(levels == levels.min())[:1]]:
        wanted = ((levels <= levels[y, x]).sum() - darkest) / (levels.size - darkest)
        assert found[y, x] == pytest.approx(wanted, abs=1e-6)
    assert (found.min(), found.max()) == (0, 1)
    assert abs(np.median(found) - 0.5) < 0.05 < abs(np.median(levels / 255) - 0.5)


def test_an_image_of_one_level_survives_equalizing():
    image = np.full((20, 30), 0.25, np.float32)
    assert torch.equal(Preprocessing(size=10, intensity="equalize").resized(image), torch.full((1, 10, 10), 0.25))


def test_channels_repeat_the_grey_image_and_are_normalised_apart():
    pre = Preprocessing(size=8, channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    grey = pre.resized(picture())
    out = pre(picture())
    assert out.shape == (3, 8, 8)
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 1), (0.3, 2)]):
        torch.testing.assert_close(out[channel], (grey[0] - mean) / std)
    batch = torch.stack([grey, grey * 0.5])
    assert torch.equal(pre.normalised(batch)[0], out)
    assert torch.equal(pre.normalised(batch)[1], pre.normalised(grey * 0.5))


def test_percentiles_make_a_dark_image_use_the_whole_range_without_the_padding():
    dark = picture(100, 40) / 16  # 12 bits in a 16-bit file
    full = Preprocessing(size=50, resize="fit").resized(dark)
    stretched = Preprocessing(size=50, resize="fit", intensity="percentile").resized(dark)
    assert full.max() < 0.06
    inside = stretched[0, :, 15:35]
    assert inside.min() == 0
    assert inside.max() == 1
    low, high = np.percentile(full[0, :, 15:35].numpy(), (0.5, 99.5))
    torch.testing.assert_close(inside, ((full[0, :, 15:35] - low) / (high - low)).clamp(0, 1))
    assert not stretched[0, :, :15].any()


def test_an_image_of_one_level_survives_percentiles():
    image = np.full((20, 30), 0.25, np.float32)
    assert torch.isfinite(Preprocessing(size=10, intensity="percentile")(image)).all()


def test_preprocessing_survives_json_and_its_digest_follows_every_field():
    pre = Preprocessing(
        size=32, resize="fit", intensity="percentile", channels=3, mean=(0.0, 0.5, 0.5), std=(1.0, 1.0, 2.0)
    )
    again = Preprocessing.from_dict(json.loads(json.dumps(pre.to_dict())))
    assert again == pre
    assert again.digest == pre.digest
    assert Preprocessing.from_dict(pre.to_dict() | {"mean": [0, 0.5, 0.5]}).digest == pre.digest
    variants = [
        Preprocessing(),
        Preprocessing(size=225),
        Preprocessing(resize="fit"),
        Preprocessing(resize="crop"),
        Preprocessing(intensity="percentile"),
        Preprocessing(intensity="equalize"),
        Preprocessing(channels=3, mean=(0.5,) * 3, std=(0.25,) * 3),
        Preprocessing(mean=(0.4,)),
        Preprocessing(std=(0.2,)),
    ]
    assert len({variant.digest for variant in variants}) == len(variants)


@pytest.mark.parametrize(
    "values",
    [
        {"size": 0},
        {"size": 2.5},
        {"resize": "zoom"},
        {"intensity": "log"},
        {"channels": 2},
        {"channels": 3},
        {"mean": (0.1, 0.2)},
        {"mean": 0.5},
        {"std": (0,)},
        {"std": (float("nan"),)},
    ],
)
def test_bad_preprocessing_is_refused_naming_the_field(values):
    key = next(iter(values)).replace("channels", "channels|mean")
    with pytest.raises(InputError, match=key):
        Preprocessing.from_dict(Preprocessing().to_dict() | values)


def test_a_mean_that_does_not_fit_the_channels_is_refused_at_once():
    with pytest.raises(InputError, match=r"mean must be one number per channel \(3\)"):
        Preprocessing(channels=3)


def test_unknown_and_missing_keys_are_refused():
    values = Preprocessing().to_dict()
    with pytest.raises(InputError, match="crop"):
        Preprocessing.from_dict(values | {"crop": 1})
    with pytest.raises(InputError, match="std"):
        Preprocessing.from_dict({key: value for key, value in values.items() if key != "std"})


def test_augmentation_is_a_pure_function_of_image_and_seed():
    image = torch.from_numpy(picture(40, 40))[None]
    torch.manual_seed(1)
    first = [EVERYTHING(image, seed) for seed in range(5)]
    torch.manual_seed(2)
    state = torch.get_rng_state()
    backwards = [EVERYTHING(image, seed) for seed in reversed(range(5))][::-1]
    assert torch.equal(state, torch.get_rng_state())
    for a, b in zip(first, backwards, strict=True):
        assert torch.equal(a, b)
    assert len({tuple(out.flatten().tolist()) for out in first}) == 5
    assert all(0 <= out.min() and out.max() <= 1 for out in first)


def test_augmentation_is_off_by_default_and_leaves_its_input_alone():
    image = torch.from_numpy(picture(40, 40))[None]
    copy = image.clone()
    assert torch.equal(Augmentation()(image, 7), image)
    EVERYTHING(image, 7)
    assert torch.equal(image, copy)


def test_each_augmentation_does_what_its_name_says():
    image = torch.zeros(1, 41, 41)
    image[0, 15:26, 10:16] = 0.5  # left of the centre
    rows, columns = torch.meshgrid(torch.arange(41.0), torch.arange(41.0), indexing="ij")

    def centre(out):
        return ((out[0] * rows).sum() / out.sum()).item(), ((out[0] * columns).sum() / out.sum()).item()

    assert torch.equal(Augmentation(hflip=1.0)(image, 0), image.flip(-1))
    flips = sum(torch.equal(Augmentation(hflip=0.3)(image, seed), image.flip(-1)) for seed in range(1000))
    assert 250 < flips < 350
    shifts = [centre(Augmentation(translate=0.1)(image, seed)) for seed in range(50)]
    assert max(abs(row - 20) for row, _ in shifts) == pytest.approx(4.1, abs=0.5)
    assert max(abs(column - 12.5) for _, column in shifts) == pytest.approx(4.1, abs=0.5)
    areas = [(Augmentation(scale=0.2)(image, seed) > 0.25).sum() / 66 for seed in range(50)]
    assert 0.55 < min(areas) < 0.8
    assert 1.2 < max(areas) < 1.55
    turned = [centre(Augmentation(rotate=90.0)(image, seed)) for seed in range(50)]
    for row, column in turned:  # turning about the centre keeps the distance from it
        assert np.hypot(row - 20, column - 20) == pytest.approx(7.5, abs=0.3)
    assert max(abs(row - 20) for row, _ in turned) > 6
    bright = [Augmentation(brightness=0.2)(image, seed)[0, 20, 12] - 0.5 for seed in range(50)]
    assert -0.2 <= min(bright) < -0.15
    assert 0.15 < max(bright) <= 0.2
    mean = image.mean().item()
    for seed in range(9):
        out = Augmentation(contrast=0.5)(image * 0.5 + 0.3, seed)
        factor = (out.max() - out.min()) / 0.25
        assert 0.5 <= factor <= 1.5
        assert out.mean().item() == pytest.approx(mean * 0.5 + 0.3, abs=1e-4)


def test_turning_one_augmentation_on_does_not_change_the_draws_of_another():
    image = torch.from_numpy(picture(40, 40))[None] * 0.2 + 0.4
    both = Augmentation(hflip=0.5, brightness=0.1)
    for seed in range(8):
        shift = (Augmentation(brightness=0.1)(image, seed) - image).mean()
        torch.testing.assert_close(both(image, seed), Augmentation(hflip=0.5)(image, seed) + shift)


@pytest.mark.parametrize("values", [{"hflip": 1.5}, {"rotate": -1.0}, {"scale": 1.0}, {"contrast": float("nan")}])
def test_bad_augmentation_is_refused_naming_the_field(values):
    with pytest.raises(InputError, match=next(iter(values))):
        Augmentation(**values)
