"""Files become whole grey images or are refused by name."""

import io
import os
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from data import images
from data.images import ImageError, decode_image, read_image, verify_image
from data.jpeg import read_outline
from data.png import SIGNATURE

H, W = 60, 44


def ramp(top: int, dtype: type) -> np.ndarray:
    """A (H, W) image with every row and column different, from 0 to `top`."""
    plane = np.add.outer(np.arange(H) * 3.0, np.arange(W) * 2.0)
    return (plane / plane.max() * top).round().astype(dtype)


def noisy(height: int = 150, width: int = 210) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (
        (np.add.outer(np.arange(height), np.arange(width)) * 0.6 + rng.normal(0, 9, (height, width)))
        .clip(0, 255)
        .astype(np.uint8)
    )


def saved(image: Image.Image | np.ndarray, kind: str, **options) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    rows: bytes, width: int, height: int, bits: int = 8, colour: int = 0, extra: bytes = b"", interlace: int = 0
) -> bytes:
    """A PNG from raw scan lines; the header may lie."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    return SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def scan_lines(pixels: np.ndarray) -> bytes:
    big_endian = pixels.astype(pixels.dtype.newbyteorder(">"))
    return b"".join(b"\0" + row.tobytes() for row in big_endian)


def refusal(data: bytes, at_least: int | None = None) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, "x.bin", at_least)
    assert str(caught.value) == f"x.bin: {caught.value.reason}"
    assert "\n" not in str(caught.value)
    return caught.value.reason


def cuts(data: bytes, number: int = 50):
    """The data cut at many points, plain and with a forged end marker."""
    for i in range(number):
        part = data[: int(len(data) * (i + 0.5) / number)]
        yield part
        yield part + b"\xff\xd9"


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.uint16, 4095)])
def test_png_grey_values_are_exact_fractions_of_full_scale(dtype, top):
    pixels = ramp(top, dtype)
    image = decode_image(saved(pixels, "PNG"), "a.jpg")  # the suffix does not matter
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, pixels.astype(np.float64) / np.iinfo(dtype).max, rtol=1e-6)


def test_colour_becomes_luminance_and_alpha_is_ignored():
    red, green, blue = ramp(255, np.uint8), ramp(200, np.uint8)[::-1], ramp(100, np.uint8)[:, ::-1]
    expected = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
    alpha = np.full((H, W), 7, np.uint8)
    for planes in ((red, green, blue), (red, green, blue, alpha)):
        np.testing.assert_allclose(decode_image(saved(np.dstack(planes), "PNG"), "a"), expected, atol=1e-6)
    np.testing.assert_allclose(decode_image(saved(np.dstack([red, alpha]), "PNG"), "a"), red / 255, atol=1e-6)
    jpeg = saved(np.dstack([red, green, blue]), "JPEG", quality=98, subsampling=0)
    np.testing.assert_allclose(decode_image(jpeg, "a"), expected, atol=0.02)


def test_palette_and_one_bit_pngs_are_read():
    grey = ramp(255, np.uint8)
    palette = Image.fromarray(grey)
    palette = palette.convert("P")
    np.testing.assert_allclose(decode_image(saved(palette, "PNG"), "a"), grey / 255, atol=1e-6)
    np.testing.assert_array_equal(decode_image(saved(Image.fromarray(grey > 90), "PNG"), "a"), grey > 90)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_pngs_of_few_bits_reach_full_white(bits):
    values = np.arange(16) % 2**bits
    packed = np.packbits(np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -bits:].ravel()).tobytes()
    image = decode_image(png((b"\0" + packed) * 5, 16, 5, bits), "a")
    np.testing.assert_allclose(image, np.tile(values / (2**bits - 1), (5, 1)), atol=1e-6)


@pytest.mark.parametrize("pixels", [ramp(255, np.uint8), ramp(65535, np.uint16)], ids=["8 bit", "16 bit"])
def test_a_png_whose_complete_stream_holds_half_the_rows_is_refused(pixels):
    bits = pixels.dtype.itemsize * 8
    np.testing.assert_allclose(
        decode_image(png(scan_lines(pixels), W, H, bits), "a"), pixels / np.iinfo(pixels.dtype).max, rtol=1e-6
    )
    for num_rows in (0, 1, H // 2, H - 1):
        assert "cut PNG" in refusal(png(scan_lines(pixels[:num_rows]), W, H, bits))
    missing_one_byte = scan_lines(pixels)[:-1]
    assert "cut PNG" in refusal(png(missing_one_byte, W, H, bits))


def test_a_png_with_a_genuine_black_border_is_read():
    pixels = ramp(65535, np.uint16)
    pixels[-9:] = 0
    np.testing.assert_allclose(decode_image(saved(pixels, "PNG"), "a"), pixels / 65535, rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(40, 30), (1, 9), (5, 1), (7, 3), (3, 5)])
def test_interlaced_pngs_need_all_their_passes(height, width):
    pixels = ramp(255, np.uint8)[10 : 10 + height, 7 : 7 + width]
    starts = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [pixels[top::down, left::right] for top, left, down, right in starts]
    rows = b"".join(scan_lines(part) for part in passes if part.size)
    np.testing.assert_allclose(decode_image(png(rows, width, height, interlace=1), "a"), pixels / 255, rtol=1e-6)
    for length in range(1, len(rows), max(1, len(rows) // 40)):
        refusal(png(rows[:length], width, height, interlace=1))


def test_cut_and_flipped_pngs_are_refused():
    data = saved(noisy(), "PNG")
    for part in cuts(data):
        refusal(part)
        refusal(part + data[-12:])  # with a genuine end chunk
    refusal(data[:500] + bytes([data[500] ^ 4]) + data[501:])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("at_least", [None, 40])
def test_cut_jpegs_are_refused(progressive, colour, at_least):
    pixels = np.dstack([noisy(), noisy()[::-1], noisy()]) if colour else noisy()
    data = saved(pixels, "JPEG", progressive=progressive)
    assert decode_image(data, "a").shape == (150, 210)
    for part in cuts(data):
        refusal(part, at_least)


def test_a_progressive_jpeg_without_its_last_scans_is_refused():
    data = saved(noisy(), "JPEG", progressive=True)
    starts = [i for i in range(len(data)) if data[i : i + 2] == b"\xff\xda"]
    assert len(starts) > 3
    assert read_outline(data).num_scans == len(starts)
    for start in starts[1:]:  # libjpeg decodes each of these without a warning, as a blurred image
        assert "last scans are missing" in refusal(data[:start] + b"\xff\xd9")


def test_scaled_jpeg_decoding_keeps_the_shorter_side_long_enough():
    pixels = np.kron(ramp(255, np.uint8), np.ones((10, 10), np.uint8))  # 600 x 440
    data = saved(pixels, "JPEG", quality=95)
    for at_least in (50, 56, 200, 221, 440, 5000):
        image = decode_image(data, "a", at_least)
        assert min(image.shape) >= min(at_least, 440)
        assert image.shape[0] / image.shape[1] == pytest.approx(600 / 440, rel=0.03)
        assert image.mean() == pytest.approx(pixels.mean() / 255, abs=0.01)
    assert decode_image(data, "a", 50).shape == (75, 55)
    assert verify_image(data, "a") == (600, 440)
    assert verify_image(saved(pixels, "PNG"), "a") == (600, 440)


def test_claimed_sizes_are_refused_before_decoding(monkeypatch):
    def never(*_, **__):
        raise AssertionError("decoded")

    monkeypatch.setattr(images.Image, "open", never)
    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", never)
    assert "13300 x 13300" in refusal(png(b"", 13300, 13300, bits=16))
    assert "no pixels" in refusal(png(b"", 0, 5))
    jpeg = saved(noisy(), "JPEG")
    start = jpeg.find(b"\xff\xc0")
    assert "pixels" in refusal(jpeg[: start + 5] + struct.pack(">HH", 60000, 60000) + jpeg[start + 9 :])


def test_a_jpeg_of_many_scans_is_refused(monkeypatch):
    data = saved(noisy(), "JPEG", progressive=True)
    last = data[data.rfind(b"\xff\xda") : -2]
    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    assert "scans" in refusal(data[:-2] + last * 2000 + b"\xff\xd9")


def test_text_chunk_bombs_do_not_inflate():
    bomb = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(70 << 20)))
    pixels = ramp(255, np.uint8)
    try:
        image = decode_image(png(scan_lines(pixels), W, H, extra=bomb), "a")
    except ImageError:
        return
    np.testing.assert_allclose(image, pixels / 255, rtol=1e-6)


def test_blank_images_are_refused():
    assert "blank" in refusal(saved(np.full((H, W), 9, np.uint8), "PNG"))
    assert "blank" in refusal(saved(np.zeros((H, W), np.uint8), "JPEG"))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"GIF89a....", "a GIF"),
        (b"<!DOCTYPE html><p>MARIA CANARY", "HTML"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        (bytes(4000), "unknown format"),
        (b"CANARY^PATIENT", "unknown format"),
    ],
)
def test_other_formats_are_named_without_quoting_the_file(data, words):
    reason = refusal(data)
    assert words in reason
    assert "wanted JPEG, PNG or DICOM" in reason
    assert "CANARY" not in reason


def test_unsupported_jpegs_are_named():
    assert "more than 8 bits" in refusal(imagecodecs.jpeg8_encode(ramp(4095, np.uint16), level=90, bitspersample=12))
    assert "4 components" in refusal(saved(Image.fromarray(np.dstack([noisy()] * 3)).convert("CMYK"), "JPEG"))


def test_paths_that_are_no_regular_files_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "big.png").write_bytes(b"123456789")
    monkeypatch.setattr(images, "MAX_FILE_BYTES", 8)
    (tmp_path / "loop").symlink_to("loop")
    for name, words in {
        "absent.png": "does not exist",
        ".": "folder",
        "pipe": "pipe",
        "big.png": "larger",
        "loop": "cannot be read",
    }.items():
        with pytest.raises(ImageError, match=words) as caught:
            read_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_an_image_error_survives_being_rebuilt_from_its_message():
    error = ImageError("a.png: is blank")
    assert type(error)(str(error)).reason == "a.png: is blank"


def test_a_file_is_read(tmp_path):
    pixels = ramp(255, np.uint8)
    (tmp_path / "a").write_bytes(saved(pixels, "PNG"))
    np.testing.assert_allclose(read_image(tmp_path / "a"), pixels / 255, rtol=1e-6)
