"""Cut, forged and swollen files are refused by name, at a bounded cost."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pydicom import uid

from data import dicom_pixels
from data.dicom import decode_dicom
from data.images import ImageError
from data.manifest import MANIFEST_COLUMNS, Manifest
from data.scan import scan_images
from tests.bombs import BOMBS, data_set
from tests.make_dicom import DEFLATED_FRAME, H, W, codestreams, encoded, plain, ramp, refusal, rle

ROOT = Path(__file__).parents[1]
CUTS = 50


def formats() -> dict[str, bytes]:
    """A whole file of each format and each family of transfer syntaxes."""
    pixels, few = ramp(), ramp(8).astype(np.uint8)
    files = {}
    for name, image, kind, options in [
        ("JPEG", few, "JPEG", {"quality": 90}),
        ("JPEG, progressive", few, "JPEG", {"quality": 90, "progressive": True}),
        ("PNG, 8 bit", few, "PNG", {}),
        ("PNG, 16 bit", pixels, "PNG", {}),
    ]:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, **options)
        files[name] = buffer.getvalue()
    for syntax in dicom_pixels.NATIVE:
        files[f"DICOM, {syntax.name}"] = plain(pixels, syntax=syntax)
    files["DICOM, encapsulated"] = encoded(pixels.tobytes(), pixels, dicom_pixels.ENCAPSULATED)
    for name, (stream, syntax, _) in codestreams().items():
        files[f"DICOM, {name}"] = encoded(stream, pixels, syntax)
    files["DICOM, jpeg baseline"] = encoded(imagecodecs.jpeg8_encode(few, level=90), few, uid.JPEGBaseline8Bit, 8)
    packer = zlib.compressobj(6, zlib.DEFLATED, -15)
    files["DICOM, deflated frame"] = encoded(packer.compress(pixels.tobytes()) + packer.flush(), pixels, DEFLATED_FRAME)
    files["DICOM, rle"] = rle(pixels)
    files["DICOM, no file meta"] = plain(pixels)[data_set(plain(pixels)) :]
    return files


def test_cut_files_of_every_format_get_a_line_each_and_the_scan_goes_on(tmp_path):
    whole = formats()
    paths = []
    for number, data in enumerate(whole.values()):
        for cut in range(CUTS + 1):  # the last one is whole
            paths.append(f"{number:02}_{cut:02}")
            (tmp_path / paths[-1]).write_bytes(
                data[: int((len(data) - 8) * (cut + 0.5) / CUTS)] if cut < CUTS else data
            )
    columns = {"image_id": paths, "study_id": paths, "patient_id": paths, "path": paths}
    frame = pd.DataFrame(columns | {"view": "PA", "split": "train", "source": "made up"})[list(MANIFEST_COLUMNS)]
    listed = Manifest(frame, np.zeros((len(paths), 1), np.float32), ("Edema",), tmp_path)
    scan_images(listed, tmp_path / "out", workers=2, max_rejected=1.0, progress=False)
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv", dtype=str)
    assert sorted(rejected["path"]) == [path for path in paths if not path.endswith(f"_{CUTS}")]
    assert rejected["reason"].str.len().between(5, 120).all()
    assert not rejected["reason"].str.contains("\n").any()
    images = pd.read_csv(tmp_path / "out" / "images.csv", dtype=str)
    assert list(images["path"]) == [f"{number:02}_{CUTS}" for number in range(len(whole))]
    assert set(zip(images["height"], images["width"], strict=True)) == {(str(H), str(W))}


def test_run_length_segments_that_end_early_are_refused():
    stream = rle(ramp())
    stream = stream[stream.find(struct.pack("<2L", 2, 64)) : -8]
    first, second = 64, struct.unpack("<L", stream[8:12])[0]
    for cut in (1, 2, 40, (second - first) // 2):
        shorter = struct.pack("<16L", 2, 64, second - cut, *[0] * 13) + stream[first : second - cut] + stream[second:]
        assert "cut" in refusal(encoded(shorter, ramp(), uid.RLELossless))


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
    for end in range(part, len(stream) - 2, max(1, (len(stream) - part) // 50)):
        for cut in (stream[:end], stream[:end] + b"\xff\xd9"):
            assert "cut pixel data" in refusal(encoded(cut, pixels, uid.JPEG2000))
    last = stream.rfind(b"\xff\x90\x00\x0a")
    open_part = stream[: last + 6] + bytes(4) + stream[last + 10 :]
    assert imagecodecs.jpeg2k_decode(open_part).shape == pixels.shape
    assert "do not tell their length" in refusal(encoded(open_part, pixels, uid.JPEG2000))


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


def test_bombs_are_refused_by_name_in_bounded_memory():
    run = subprocess.run([sys.executable, "tests/bombs.py"], capture_output=True, text=True, cwd=ROOT, check=True)
    rows = [line.strip("| ").split(" | ") for line in run.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == list(BOMBS)
    for (name, _, said, seconds, peak), (_, words) in zip(rows, BOMBS.values(), strict=True):
        assert words in said, name
        assert float(peak) < 1500, name
        assert float(seconds) < 60, name  # of CPU time; they take 1.5 s at most, without the bounds minutes
    assert run.stderr == ""
