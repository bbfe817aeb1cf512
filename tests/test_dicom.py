"""DICOM radiographs come out whole, the right way round, and without a word of their header."""

import io
import math
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, Sequence, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

from data import dicom, dicom_pixels
from data.dicom import decode_dicom, read_dicom
from data.greyscale import Greyscale, Lut, Window, to_grey
from data.images import ImageError, decode_image, read_image

H, W = 62, 46


def ramp(bits: int = 12) -> np.ndarray:
    """(H, W) values from 0 to the top of `bits`, with some noise."""
    plane = np.add.outer(np.arange(H) * 3.0, np.arange(W) * 2.0)
    plane = plane / plane.max() * (2**bits - 1) * 0.98 + np.random.default_rng(0).normal(0, 2, (H, W))
    plane[0, 0], plane[-1, -1] = 0, 2**bits - 1
    return plane.round().clip(0, 2**bits - 1).astype(np.uint16)


def header(pixels: np.ndarray, bits: int = 12, **elements) -> Dataset:
    dataset = Dataset()
    dataset.Modality, dataset.PhotometricInterpretation = "DX", "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for key, value in elements.items():
        setattr(dataset, key, value)
    return dataset


def written(dataset: Dataset, syntax: str = uid.ExplicitVRLittleEndian, meta: bool = True) -> bytes:
    buffer = io.BytesIO()
    if meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = syntax
        dataset.file_meta.MediaStorageSOPClassUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dcmwrite(buffer, dataset, enforce_file_format=True)
    else:
        implicit = syntax == uid.ImplicitVRLittleEndian
        dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=syntax != uid.ExplicitVRBigEndian)
    return buffer.getvalue()


def plain(pixels: np.ndarray, bits: int = 12, syntax: str = uid.ExplicitVRLittleEndian, **elements) -> bytes:
    dataset = header(pixels, bits, **elements)
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    return written(dataset, syntax)


def encoded(stream: bytes, pixels: np.ndarray, syntax: str, bits: int = 12, **elements) -> bytes:
    dataset = header(pixels, bits, **elements)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return written(dataset, syntax)


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, "x.dcm")
    assert str(caught.value) == f"x.dcm: {caught.value.reason}"
    assert caught.value.__suppress_context__
    return caught.value.reason


def codestreams() -> dict[str, tuple[bytes, str, float]]:
    """Name to (codestream of `ramp()`, transfer syntax, largest error)."""
    pixels = ramp()
    lossless_12 = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=12)
    j2k = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True)
    return {
        "jpeg lossless": (lossless_12, uid.JPEGLosslessSV1, 0),
        "jpeg lossless, other library": (imagecodecs.ljpeg_encode(pixels, bitspersample=12), uid.JPEGLossless, 0),
        "jpeg extended": (imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12), uid.JPEGExtended12Bit, 20),
        "jpeg ls": (imagecodecs.jpegls_encode(pixels), uid.JPEGLSLossless, 0),
        "jpeg ls near lossless": (imagecodecs.jpegls_encode(pixels, level=2), uid.JPEGLSNearLossless, 2),
        "jpeg 2000": (j2k, uid.JPEG2000Lossless, 0),
        "htj2k": (imagecodecs.htj2k_encode(pixels, reversible=True), uid.HTJ2KLossless, 0),
    }


def rle(pixels: np.ndarray) -> bytes:
    dataset = header(pixels)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.compress(uid.RLELossless, generate_instance_uid=False)
    return written(dataset, uid.RLELossless)


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


@pytest.mark.parametrize("codec", [*codestreams(), "jpeg baseline"])
def test_cut_codestreams_are_refused(codec):
    pixels = ramp(8).astype(np.uint8) if codec == "jpeg baseline" else ramp()
    if codec == "jpeg baseline":
        stream, syntax = imagecodecs.jpeg8_encode(pixels, level=90), uid.JPEGBaseline8Bit
    else:
        stream, syntax, _ = codestreams()[codec]
    bits = pixels.dtype.itemsize * 4 + 4 if codec != "jpeg baseline" else 8
    for i in range(50):
        part = stream[: int((len(stream) - 12) * (i + 0.5) / 50)]
        for cut in (part, part + b"\xff\xd9"):
            with pytest.raises(ImageError):
                decode_dicom(encoded(cut, pixels, syntax, bits=bits), "a")


@pytest.mark.parametrize("options", [{}, {"irreversible": True}, {"tile_size": (64, 128)}])
def test_jpeg_2000_is_refused_wherever_it_is_cut(options):
    pixels = (np.add.outer(np.arange(300), np.arange(200)) * 5 % 4096).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000", no_jp2=True, **options)
    stream = buffer.getvalue()
    assert stream.count(b"\xff\x90\x00\x0a") == (12 if "tile_size" in options else 1)
    decode_dicom(encoded(stream, pixels, uid.JPEG2000), "a")
    part = stream.find(b"\xff\x90\x00\x0a")
    for end in range(part, len(stream) - 2):
        for cut in (stream[:end], stream[:end] + b"\xff\xd9"):
            assert "cut pixel data" in refusal(encoded(cut, pixels, uid.JPEG2000))
    last = stream.rfind(b"\xff\x90\x00\x0a")
    open_part = stream[: last + 6] + bytes(4) + stream[last + 10 :]
    assert imagecodecs.jpeg2k_decode(open_part).shape == pixels.shape
    assert "do not tell their length" in refusal(encoded(open_part, pixels, uid.JPEG2000))


@pytest.mark.parametrize("make", [lambda: plain(ramp()), lambda: rle(ramp())], ids=["plain", "rle"])
def test_cut_files_are_refused(make):
    data = make()
    for i in range(50):
        refusal(data[: int((len(data) - 2) * (i + 0.5) / 50)])
    deflated = plain(ramp(), syntax=uid.DeflatedExplicitVRLittleEndian)
    for i in range(20):
        reason = refusal(deflated[: int((len(deflated) - 9) * (i + 0.5) / 20)])
        assert i < 5 or "cut deflated" in reason


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


@pytest.mark.parametrize("codec", ["jpeg 2000", "jpeg lossless", "jpeg extended", "jpeg ls"])
def test_a_codestream_of_another_size_is_refused_before_it_is_decoded(codec, monkeypatch):
    stream, syntax, _ = codestreams()[codec]
    for decoder in ("jpeg2k_decode", "jpeg_decode", "jpegls_decode"):
        monkeypatch.setattr(imagecodecs, decoder, lambda *_: pytest.fail("decoded"))
    other = np.zeros((H + 2, W), np.uint16)
    assert "another size" in refusal(encoded(stream, other, syntax))
    forged = stream.replace(struct.pack(">II", W, H), struct.pack(">II", 30000, 30000), 1)
    forged = forged.replace(struct.pack(">HH", H, W), struct.pack(">HH", 30000, 30000), 1)
    assert forged != stream
    assert "another size" in refusal(encoded(forged, ramp(), syntax))


def test_a_deflate_bomb_is_refused_without_inflating_it(monkeypatch):
    monkeypatch.setattr(dicom, "MAX_INFLATED_BYTES", 1 << 20)
    good = plain(ramp(), syntax=uid.DeflatedExplicitVRLittleEndian)
    decode_dicom(good, "a")
    start = dicom.transfer_syntax(good)[1]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = good[:start] + deflater.compress(bytes(40 << 20)) + deflater.flush()
    assert "inflates to more than" in refusal(bomb)


def test_a_run_length_bomb_writes_no_more_than_the_image():
    segment = b"\x81\0" * 4_000_000
    stream = struct.pack("<16L", 2, 64, 64 + len(segment), *([0] * 13)) + segment * 2
    assert "damaged" in refusal(encoded(stream, ramp(), uid.RLELossless))


def with_canaries(**elements) -> bytes:
    """A file with invalid, telling values in many elements."""
    data = plain(ramp(), WindowCenter="11", WindowWidth="22", RescaleSlope="33", **elements)
    start = dicom.transfer_syntax(data)[1]
    texts = b""
    for tag, vr, text in [
        (0x00100010, b"PN", b"CANARY^NAME "),
        (0x00100020, b"LO", b"CANARY-ID "),
        (0x00100030, b"DA", b"CANARY-DATE "),
        (0x00180015, b"CS", b"canary part!"),
        (0x00185101, b"CS", b"canary view!"),
    ]:
        texts += struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + struct.pack("<H", len(text)) + text
    place = data.find(struct.pack("<HH", 0x0028, 0x0002), start)
    data = data[:place] + texts + data[place:]
    for number in (b"11", b"22", b"33"):
        at = data.find(b"DS" + struct.pack("<H", 2) + number)
        data = data[: at + 2] + struct.pack("<H", 8) + b"CANARY99" + data[at + 6 :]
    return data


def test_no_word_of_a_header_reaches_a_warning_a_log_or_an_error(tmp_path):
    good = with_canaries()
    files = {
        "good": good,
        "cut": good[:-500],
        "half": good[: len(good) // 8],
        "frames": with_canaries(NumberOfFrames=2),
        "number": with_canaries(NumberOfFrames=22).replace(b"IS\x02\x0022", b"IS\x0a\x00CANARY.5^9"),
        "modality": with_canaries(Modality="CANARYMOD"),
        "nonsense": good.replace(b"US\x02\x00", b"CS\x02\x00"),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    script = """
import logging, sys, traceback
from pathlib import Path
logging.basicConfig(level=0)
from data.images import read_image
from data.dicom import read_dicom
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        print(path.name, read_image(path).shape, read_dicom(path.read_bytes(), "a")[1])
    except Exception:
        traceback.print_exc()
"""
    run = subprocess.run(
        [sys.executable, "-W", "always", "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert f"good ({H}, {W})" in run.stdout
    assert run.stderr.count("ImageError") >= 4
    assert "canary" not in (run.stdout + run.stderr).lower()


def test_damaged_headers_raise_our_error_only():
    data = with_canaries()
    rng = np.random.default_rng(5)
    start = dicom.transfer_syntax(data)[1]
    for _ in range(400):
        broken = bytearray(data)
        for place in rng.integers(132, start + 600, 3):
            broken[place] = rng.integers(0, 256)
        try:
            decode_dicom(bytes(broken), "a")
        except ImageError as error:
            assert "CANARY" not in str(error)  # noqa: PT017


@pytest.fixture(scope="module")
def samples() -> Path:
    folder = Path(os.environ.get("CXR_SHARED_DATA", "")) / "dicom"
    if "CXR_SHARED_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set CXR_SHARED_DATA to the folder that holds dicom/ to test with real files")
    return folder


READABLE = {  # file: rows, columns, view position
    "chest_original/CR-MONO1-10-chest.dcm": (440, 440, "PA"),
    "chest_original/Fake_MONOHR1.dcm": (1024, 1024, "PA"),
    "chest_original/RG1_J2KI.dcm": (1955, 1841, "PA"),
    "chest_original/RG1_JLSN.dcm": (1955, 1841, "PA"),
    "chest_original/nih_dx_implicit.dcm": (1024, 1024, ""),
    "chest_original/rsna_jpeg_baseline.dcm": (1024, 1024, "PA"),
    "derived_from_RG1/d_mono1_12_exple.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono1_12_j2k_lossless.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono1_12_jpegls.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono1_12_rle.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_bigendian.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_deflated.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_exple.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_padded.dcm": (488, 540, "PA"),
    "derived_from_RG1/d_mono2_12_two_windows.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_voilut.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_8_exple.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_s12_rescale.dcm": (488, 460, "PA"),
    "other_radiograph/CR-ModalitySequenceLUT.dcm": (1576, 1976, ""),
    "other_radiograph/RG2_JPLY.dcm": (2140, 1760, ""),
    "other_radiograph/RG3_J2KR.dcm": (1760, 1760, "AP"),
    "other_radiograph/RG3_JPLY.dcm": (1760, 1760, "AP"),
    "other_radiograph/RG3_RLE.dcm": (1760, 1760, "AP"),
    "other_radiograph/highdicom_dx_image.dcm": (169, 211, ""),
}
REFUSED = {
    "negative_controls/CT_small.dcm": "modality CT",
    "negative_controls/ExplVR_BigEnd.dcm": "modality US",
    "negative_controls/JPEG2000.dcm": "modality NM",
    "negative_controls/MR_truncated.dcm": "modality MR",
    "negative_controls/OT-PAL-8-face.dcm": "modality OT",
    "negative_controls/SC_rgb.dcm": "modality OT",
    "negative_controls/image_dfl.dcm": "modality OT",
    "negative_controls/no_meta.dcm": "unknown format",
    "negative_controls/rtplan.dcm": "modality RTPLAN",
}


@pytest.mark.parametrize("name", [*READABLE, *REFUSED])
def test_real_files_come_out_as_expected(samples, name):
    if name in REFUSED:
        with pytest.raises(ImageError, match=REFUSED[name]):
            read_image(samples / name)
        return
    image, info = read_dicom((samples / name).read_bytes(), name)
    assert (*image.shape, info.view_position) == READABLE[name]
    assert 0 <= image.min() < image.max() <= 1
    if name.startswith(("chest", "derived")):
        # Between the lungs the spine is denser than the lungs beside it, except in the file labelled wrongly.
        height, width = image.shape
        rows = slice(int(height * 0.45), int(height * 0.6))
        spine = image[rows, int(width * 0.46) : int(width * 0.54)].mean()
        lungs = image[rows, int(width * 0.22) : int(width * 0.34)].mean()
        assert (spine > lungs) == ("Fake_MONOHR1" not in name)


def test_the_derived_files_hold_the_same_image(samples):
    folder = samples / "derived_from_RG1"
    reference = read_image(folder / "d_mono2_12_exple.dcm")
    for same in (
        "mono1_12_exple mono1_12_rle mono1_12_j2k_lossless mono1_12_jpegls mono2_12_deflated mono2_12_bigendian".split()
    ):
        np.testing.assert_array_equal(read_image(folder / f"d_{same}.dcm"), reference)
    np.testing.assert_allclose(read_image(folder / "d_mono2_s12_rescale.dcm"), reference, atol=1e-6)
    padded = read_image(folder / "d_mono2_12_padded.dcm")
    np.testing.assert_array_equal(padded[:, 40:500], reference)
    assert not padded[:, :40].any()
    assert not padded[:, 500:].any()
    error = np.mean((read_image(folder / "d_mono2_8_exple.dcm") - reference) ** 2)
    assert 10 * math.log10(1 / error) > 50
    stored = 803 + reference * (3964 - 803)
    window = np.clip((stored - 2719.5) / 2130 + 0.5, 0, 1)  # the first of the two
    np.testing.assert_allclose(read_image(folder / "d_mono2_12_two_windows.dcm"), window, atol=1e-4)


def test_a_lossy_file_that_overshoots_its_bits_has_no_black_specks(samples):
    lossy, lossless = (read_image(samples / "other_radiograph" / f"RG3_{kind}.dcm") for kind in ("JPLY", "RLE"))
    error = np.mean((lossy - lossless) ** 2)
    assert 10 * math.log10(1 / error) > 35
    data = (samples / "other_radiograph" / "RG3_JPLY.dcm").read_bytes()
    _, form, _, stream = dicom._read_header(data, "a")
    raw, stored = imagecodecs.jpeg_decode(stream), dicom_pixels.stored_values(stream, form, "a")
    assert raw.max() == 1024
    assert stored.max() == 1023
    np.testing.assert_array_equal(stored[raw == 1024], 1023)
