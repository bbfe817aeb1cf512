"""The golden decode notices decoders that changed, and nothing else."""

import numpy as np
import pytest

import data.golden as golden
import data.images
from data.images import decode_image


@pytest.fixture
def fresh():
    """No hash from before."""
    golden.golden_decode.cache_clear()
    yield
    golden.golden_decode.cache_clear()


def test_it_is_the_same_every_time(fresh):
    first = golden.golden_decode()
    golden.golden_decode.cache_clear()
    assert golden.golden_decode() == first
    assert len(first) == 64


@pytest.mark.parametrize("kind", ["jpeg", "png", "dicom"])
def test_one_grey_level_in_one_pixel_of_any_format_is_noticed(fresh, monkeypatch, kind):
    before = golden.golden_decode()
    golden.golden_decode.cache_clear()
    wanted = {"jpeg": golden.JPEG, "png": golden._png(), "dicom": golden._dicom()}[kind]

    def decode(content, name, at_least=None):
        image = decode_image(content, name, at_least)
        if content == wanted:
            image = image.copy()
            image[3, 5] += 1 / 65535
        return image

    monkeypatch.setattr(golden, "decode_image", decode)
    assert golden.golden_decode() != before


def test_a_scaled_decode_by_another_filter_is_noticed(fresh, monkeypatch):
    before = golden.golden_decode()
    golden.golden_decode.cache_clear()
    real = data.images.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        data.images.simplejpeg,
        "decode_jpeg",
        lambda content, *_, min_height=0, **__: (
            real(content, "GRAY") if not min_height else np.ascontiguousarray(real(content, "GRAY")[::2, ::2])
        ),
    )
    assert golden.golden_decode() != before


def test_no_resized_value_lies_where_a_processors_rounding_decides():
    for content, at_least in ((golden.JPEG, None), (golden.JPEG, 16), (golden._png(), None), (golden._dicom(), None)):
        image = decode_image(content, "golden", at_least)
        assert np.ptp(image) > 0.5
        for preprocessing in golden.RESIZED:
            steps = preprocessing.resized(image).numpy().astype(float) * golden.STEPS
            assert np.abs(steps - np.floor(steps) - 0.5).min() > 1e-5 * golden.STEPS


def test_versions_name_the_decoders():
    versions = golden.decoder_versions()
    assert {"torch", "timm", "simplejpeg", "imagecodecs", "pydicom"} <= versions.keys()
    assert all(version[0].isdigit() for version in versions.values())
