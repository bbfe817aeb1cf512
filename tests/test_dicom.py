"""DICOM radiographs come out whole and the right way round, or are refused by name."""

import math
import zlib

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, Sequence, uid
from pydicom.encaps import encapsulate

from data import dicom_pixels
from data.dicom import decode_dicom, read_dicom, read_info
from data.greyscale import Greyscale, Lut, Window, to_grey
from data.images import ImageError, decode_image
from tests.bombs import data_set
from tests.make_dicom import (
    DEFLATED_FRAME,
    H,
    W,
    codestreams,
    encoded,
    header,
    plain,
    ramp,
    refusal,
    rle,
    written,
)


@pytest.mark.parametrize("syntax", dicom_pixels.NATIVE)
@pytest.mark.parametrize("signed", [False, True])
def test_uncompressed_values_are_exact(syntax, signed):
    pixels = ramp().astype(np.int16) - 2048 if signed else ramp()
    image = decode_dicom(plain(pixels, syntax=syntax), "a")
    np.testing.assert_allclose(image, (pixels - float(pixels.min())) / 4095, atol=1e-6)
    assert image.dtype == np.float32


def test_odd_sized_8_bit_images_are_exact_in_both_byte_orders():
    pixels = (ramp(8)[:61, :45]).astype(np.uint8)
    padded = pixels.tobytes() + b"\0"
    for syntax in (uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        dataset = header(pixels, 8)
        swapped = np.frombuffer(padded, "<u2").astype(">u2").tobytes()
        dataset.PixelData = swapped if syntax == uid.ExplicitVRBigEndian else padded
        dataset["PixelData"].VR = "OW"
        low, high = float(pixels.min()), float(pixels.max())
        np.testing.assert_allclose(
            decode_dicom(written(dataset, syntax), "a"), (pixels - low) / (high - low), atol=1e-6
        )


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_a_file_without_preamble_and_meta_is_read(syntax):
    pixels = ramp()
    dataset = header(pixels)
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    data = written(dataset, syntax, meta=False)
    assert data[128:132] != b"DICM"
    np.testing.assert_allclose(decode_image(data, "a"), pixels / 4095, atol=1e-6)


@pytest.mark.parametrize("codec", codestreams())
def test_every_codec_agrees_with_the_plain_values(codec):
    stream, syntax, error = codestreams()[codec]
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    image = decode_dicom(encoded(stream, ramp(), syntax, **window), "a")
    assert np.abs(image * 4095 - ramp()).max() <= error + 0.01


def test_8_bit_jpeg_and_run_length_agree_with_the_plain_values():
    pixels = (ramp(8) // 2 + 40).astype(np.uint8)
    stream = imagecodecs.jpeg8_encode(pixels, level=98)
    full = {"WindowCenter": 128, "WindowWidth": 256}
    image = decode_dicom(encoded(stream, pixels, uid.JPEGBaseline8Bit, bits=8, **full), "a")
    assert np.abs(image * 255 - pixels).max() < 6
    np.testing.assert_allclose(decode_dicom(rle(ramp()), "a"), ramp() / 4095, atol=1e-6)


def test_overshoot_is_clipped_and_never_wraps_to_black():
    pixels = np.full((H, W), 1000, np.uint16)
    pixels[::2, ::3] = 1024 + 30  # a 10-bit image after a lossy codec
    pixels[5] = 10
    stream = imagecodecs.jpegls_encode(pixels)
    full = {"WindowCenter": 512, "WindowWidth": 1024}
    image = decode_dicom(encoded(stream, pixels, uid.JPEGLSNearLossless, bits=10, **full), "a")
    np.testing.assert_allclose(image, np.minimum(pixels, 1023) / 1023, atol=1e-6)


def test_signed_values_coded_without_sign_are_restored():
    pixels = ramp().astype(np.int16) - 2048
    stream = imagecodecs.jpegls_encode(pixels.view(np.uint16) & 0xFFF)
    image = decode_dicom(encoded(stream, pixels, uid.JPEGLSLossless), "a")
    np.testing.assert_allclose(image, (pixels + 2048) / 4095, atol=1e-6)


def test_bits_outside_bits_stored_are_ignored():
    pixels = ramp(10)
    dirty = (pixels << 2) | 3 | 0xF000  # stored in bits 2 to 11
    image = decode_dicom(plain(dirty.astype(np.uint16), bits=10, HighBit=11), "a")
    np.testing.assert_allclose(image, pixels / 1023, atol=1e-6)


def scalar_window(x: float, c: float, w: float, function: str) -> float:
    """PS3.3 C.11.2.1.2.1, C.11.2.1.3.1 and C.11.2.1.3.2 for one value, output range 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(min(-4 * (x - c) / w, 700)))
    if function == "LINEAR_EXACT":
        if x <= c - w / 2:
            return 0
        return 1 if x > c + w / 2 else (x - c) / w + 0.5
    if x <= c - 0.5 - (w - 1) / 2:
        return 0
    return 1 if x > c - 0.5 + (w - 1) / 2 else (x - (c - 0.5)) / (w - 1) + 0.5


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(2048, 4096), (1000.5, 301), (40, 1), (3000, 2), (-100, 900)])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_windows_follow_the_standard_and_inversion_comes_after(function, center, width, photometric):
    pixels = ramp()
    data = plain(
        pixels,
        WindowCenter=[center, 300],
        WindowWidth=[width, 100],
        VOILUTFunction=function,
        RescaleSlope=2,
        RescaleIntercept=-1000,
        PhotometricInterpretation=photometric,
    )
    expected = np.array(
        [[scalar_window(2.0 * x - 1000, center, width, function) for x in row] for row in pixels.tolist()]
    )
    expected = 1 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_allclose(decode_dicom(data, "a"), expected, atol=1e-6)


@pytest.mark.parametrize(("center", "width"), [("", ""), (100, 0), (100, -5), ("1e999", 5)])
def test_without_a_usable_window_the_values_themselves_give_the_range(center, width):
    pixels = ramp() // 4 + 300
    image = decode_dicom(plain(pixels, WindowCenter=center, WindowWidth=width), "a")
    np.testing.assert_allclose(image, (pixels - 300) / 1023, atol=1e-6)


def lut_item(first: int, bits: int, entries: np.ndarray) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first % 65536, bits])
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    return item


def test_luts_go_modality_then_voi_and_a_voi_lut_goes_before_a_window():
    pixels = ramp()
    modality = (np.arange(4096) // 4)[::-1]  # 10 bits, falling
    voi = np.round(1023 * (np.arange(900) / 899) ** 2)  # starts at 60, ends at 959
    image = decode_dicom(
        plain(
            pixels,
            ModalityLUTSequence=Sequence([lut_item(0, 10, modality)]),
            VOILUTSequence=Sequence([lut_item(60, 10, voi), lut_item(0, 10, np.zeros(5))]),
            WindowCenter=5,
            WindowWidth=2,
            RescaleSlope=9,
            RescaleIntercept=9,
        ),
        "a",
    )
    expected = [voi[min(max(int(modality[x]) - 60, 0), 899)] / 1023 for x in pixels.ravel()]
    np.testing.assert_allclose(image.ravel(), expected, atol=1e-6)


def test_a_voi_lut_may_start_below_zero():
    pixels = ramp(11).astype(np.int16) - 1024
    entries = np.arange(2048) * 2
    image = decode_dicom(plain(pixels, bits=11, VOILUTSequence=Sequence([lut_item(-1024, 12, entries)])), "a")
    np.testing.assert_allclose(image, (pixels + 1024) * 2 / 4095, atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("value", "limit"), [(4000, None), (4000, 4095), (4095, 4000)])
def test_padding_is_black_and_counts_for_no_range(photometric, value, limit):
    pixels = ramp() // 2 + 100
    pixels[:, :9] = 4000
    pixels[:7] = 4000 if limit is None else 4050
    elements = {"PixelPaddingValue": value} | ({} if limit is None else {"PixelPaddingRangeLimit": limit})
    image = decode_dicom(plain(pixels, PhotometricInterpretation=photometric, **elements), "a")
    outside = np.ones((H, W), bool)
    outside[7:, 9:] = False
    inside = pixels[~outside].astype(float)
    expected = (inside - inside.min()) / (inside.max() - inside.min())
    expected = 1 - expected if photometric == "MONOCHROME1" else expected
    np.testing.assert_allclose(image[~outside], expected, atol=1e-6)
    assert not image[outside].any()


def test_negative_padding_is_recognised():
    pixels = ramp().astype(np.int16) // 2
    pixels[:5] = -2000
    image = decode_dicom(plain(pixels, PixelPaddingValue=-2000), "a")
    np.testing.assert_allclose(image[5:], (pixels[5:] - pixels[5:].min()) / np.ptp(pixels[5:]), atol=1e-5)
    assert not image[:5].any()


def test_greyscale_alone_applies_a_window_to_look_up_results():
    stored = np.array([[0, 1, 2], [3, 4, 5]])
    scale = Greyscale(
        inverted=True, modality_lut=Lut(1, 8, np.array([10.0, 20.0, 40.0])), window=Window(25.0, 30.0, "LINEAR_EXACT")
    )
    expected = [[1 - scalar_window(v, 25, 30, "LINEAR_EXACT") for v in row] for row in ([10, 10, 20], [40, 40, 40])]
    np.testing.assert_allclose(to_grey(stored, scale), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("elements", "words"),
    [
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": "CANARY"}, "unknown modality"),
        ({"NumberOfFrames": 3}, "several frames"),
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, "is RGB"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "is PALETTE COLOR"),
        ({"PhotometricInterpretation": "CANARY"}, "not grey"),
        ({"Rows": 30000, "Columns": 30000}, "30000 x 30000"),
        ({"Rows": H + 1}, "cut pixel data"),
        ({"Rows": H // 2 - 1}, "more than one frame"),
        ({"BitsStored": 17}, "17 of 16 bits"),
        ({"BitsAllocated": 12}, "12 of 12 bits"),
    ],
)
def test_what_is_not_one_grey_radiograph_is_refused_by_name(elements, words):
    reason = refusal(plain(ramp(), **elements))
    assert words in reason
    assert "CANARY" not in reason


@pytest.mark.parametrize("modality", ["CR", "DX", "RG", None])
def test_radiographs_and_anonymised_files_are_accepted(modality):
    dataset = header(ramp(), ViewPosition="PA", BodyPartExamined="CHEST")
    if modality is None:
        del dataset.Modality
    else:
        dataset.Modality = modality
    dataset.PixelData = ramp().tobytes()
    dataset["PixelData"].VR = "OW"
    _, info = read_dicom(written(dataset), "a")
    assert (info.modality, info.view_position, info.body_part) == (modality or "", "PA", "CHEST")
    assert (info.rows, info.columns, info.photometric) == (H, W, "MONOCHROME2")


def test_files_without_pixel_data_or_in_a_video_syntax_are_refused():
    assert "no pixel data" in refusal(written(header(ramp())))
    data = encoded(b"\0" * 50, ramp(), uid.MPEG2MPML)
    assert "transfer syntax" in refusal(data)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("lossless", [None, uid.JPEG2000Lossless, uid.JPEGLSLossless])
def test_bits_stored_is_not_believed_where_it_would_fold_the_image(signed, lossless):
    pixels = ramp(14).astype(np.int16) - 8192 if signed else ramp(14)
    elements = {"bits": 12, "RescaleSlope": 1}
    if lossless is None:
        data = plain(pixels, **elements)
    elif lossless == uid.JPEG2000Lossless:
        stream = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True)
        data = encoded(stream, pixels, lossless, **elements)
    else:
        data = encoded(imagecodecs.jpegls_encode(pixels.view(np.uint16)), pixels, lossless, **elements)
    np.testing.assert_allclose(decode_dicom(data, "a"), (pixels - float(pixels.min())) / 16383, atol=1e-6)


def test_a_lossy_image_far_beyond_its_bits_is_not_clipped():
    pixels = ramp(14)
    data = encoded(imagecodecs.jpegls_encode(pixels, level=3), pixels, uid.JPEGLSNearLossless, bits=12)
    np.testing.assert_allclose(decode_dicom(data, "a"), pixels / 16383, atol=1e-3)


def test_an_overlay_in_the_unused_bits_is_no_part_of_the_image():
    pixels = ramp()
    text = np.random.default_rng(1).integers(0, 2, (H, W)).astype(np.uint16) << 15
    np.testing.assert_allclose(decode_dicom(plain(pixels | text), "a"), pixels / 4095, atol=1e-6)


def test_a_high_bit_that_contradicts_bits_stored_is_ignored():
    image = decode_dicom(plain(ramp(), HighBit=7), "a")
    np.testing.assert_allclose(image, ramp() / 4095, atol=1e-6)


def test_the_first_usable_of_several_windows_is_taken():
    pixels = ramp()
    data = plain(pixels, WindowCenter=[2000, 1000, 7], WindowWidth=[0, 600, 3])
    expected = [[scalar_window(x, 1000, 600, "LINEAR") for x in row] for row in pixels.tolist()]
    np.testing.assert_allclose(decode_dicom(data, "a"), expected, atol=1e-6)


def test_a_big_endian_data_set_without_file_meta_is_read():
    pixels = ramp()
    data = plain(pixels, syntax=uid.ExplicitVRBigEndian)
    np.testing.assert_allclose(decode_image(data[data_set(data) :], "a"), pixels / 4095, atol=1e-6)


@pytest.mark.parametrize("syntax", [dicom_pixels.ENCAPSULATED, DEFLATED_FRAME])
def test_plain_and_deflated_frames_in_fragments_are_exact(syntax):
    pixels = ramp()
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    packed = packer.compress(pixels.tobytes()) + packer.flush()
    data = encoded(packed if syntax == DEFLATED_FRAME else pixels.tobytes(), pixels, syntax)
    np.testing.assert_allclose(decode_dicom(data, "a"), pixels / 4095, atol=1e-6)


def test_pixels_that_are_not_packed_as_the_transfer_syntax_says_are_refused():
    jpeg = encoded(codestreams()["jpeg lossless"][0], ramp(), uid.JPEGLosslessSV1)
    for data, said in ((jpeg, uid.JPEGLosslessSV1), (plain(ramp()), uid.ExplicitVRLittleEndian)):
        other = uid.ExplicitVRLittleEndian if said == uid.JPEGLosslessSV1 else uid.JPEGLosslessSV1
        forged = data.replace(said.encode().ljust(22, b"\0"), other.encode().ljust(22, b"\0"), 1)
        if forged == data:  # the file meta's length of the identifier differs
            place = data.find(said.encode())
            size = int.from_bytes(data[place - 2 : place], "little")
            value = other.encode() + b"\0" * (len(other) % 2)
            forged = data[: place - 2] + len(value).to_bytes(2, "little") + value + data[place + size :]
        assert "not packed as its transfer syntax says" in refusal(forged)


def test_two_frames_behind_one_offset_table_are_refused():
    stream = codestreams()["jpeg ls"][0]
    dataset = header(ramp())
    dataset.PixelData = encapsulate([stream, stream])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    assert "more than one frame" in refusal(written(dataset, uid.JPEGLSLossless))


def test_a_transfer_syntax_that_is_not_read_is_named_if_it_is_public():
    assert "MPEG2 Main Profile" in refusal(encoded(b"\0" * 50, ramp(), uid.MPEG2MPML))
    data = encoded(b"\0" * 50, ramp(), uid.JPEG2000).replace(b"1.2.840.10008.1.2.4.91", b"1.2.840.99999.CANARY.1")
    assert "(private or unknown)" in refusal(data)


def test_a_header_is_told_when_the_pixels_are_missing_or_the_file_is_none(tmp_path):
    for syntax in (uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian):
        data = plain(ramp(), syntax=syntax, ViewPosition="LL")
        (tmp_path / "a").write_bytes(data[: -ramp().nbytes])
        info = read_info(tmp_path / "a")
        assert (info.rows, info.columns, info.view_position, info.transfer_syntax) == (H, W, "LL", str(syntax))
    with pytest.raises(ImageError, match="does not exist"):
        read_info(tmp_path / "none")
    (tmp_path / "ct").write_bytes(plain(ramp(), Modality="CT"))
    with pytest.raises(ImageError, match="modality CT"):
        read_info(tmp_path / "ct")
