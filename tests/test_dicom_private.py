"""No word of a DICOM header comes out, whatever the file does."""

import base64
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydicom.datadict import DicomDictionary, RepeatersDictionary, tag_for_keyword

from data.dicom import decode_dicom
from data.images import ImageError
from tests.bombs import data_set
from tests.make_dicom import H, W, plain, ramp, rle

TEXT_VRS = "AE AS CS DA DS DT IS LO LT PN SH ST TM UC UI UR UT UN OB OW".split()
LONG_FORM = ("UC", "UR", "UT", "UN", "OB", "OW", "SQ")
READ = "Modality BodyPartExamined ViewPosition PhotometricInterpretation NumberOfFrames RescaleSlope RescaleIntercept"
READ = [*READ.split(), *"WindowCenter WindowWidth VOILUTFunction".split()]


def element(tag: int, vr: str, value: bytes) -> bytes:
    """In Explicit VR Little Endian."""
    value += b" " * (len(value) % 2)
    length = b"\0\0" + struct.pack("<L", len(value)) if vr in LONG_FORM else struct.pack("<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr.encode() + length + value


def canary(tag: int) -> bytes:
    return b"CANARY^%08X" % tag


def planted(instead: str = "", data: bytes | None = None) -> bytes:
    """A file with a canary in every text element of the dictionary, in private ones, in a sequence and in the preamble.

    Args:
        instead: One of `READ` that holds a canary too, in the place of its value.
    """
    data = data or plain(ramp(), WindowCenter=2000, WindowWidth=4000, RescaleSlope=1, ViewPosition="PA")
    start, pixels = data_set(data), data.rfind(b"\xe0\x7f\x10\0")
    elements, position = {}, start
    while position < pixels:  # the file's own: all of the short form
        group, number, length = struct.unpack("<HHxxH", data[position : position + 8])
        elements[group << 16 | number] = data[position : position + 8 + length]
        position += 8 + length
    kept = {tag_for_keyword(keyword) for keyword in READ if keyword != instead}
    repeated = {int(mask.replace("x", "0"), 16): entry for mask, entry in RepeatersDictionary.items()}
    for tag, (vr, *_) in {**DicomDictionary, **repeated, 0x00091010: ("LO",), 0x00091011: ("UN",)}.items():
        if vr in TEXT_VRS and 0x0008_0005 < tag < 0x7FE0_0000 and tag not in kept:
            elements[tag] = element(tag, vr, canary(tag))
    nested = (
        b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
        + element(0x00100010, "PN", b"CANARY^NESTED")
        + b"\xfe\xff\x0d\xe0"
        + bytes(4)
    )
    elements[0x00081140] = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff" + nested + b"\xfe\xff\xdd\xe0" + bytes(4)
    body = b"".join(elements[tag] for tag in sorted(elements))
    return b"CANARY-PREAMBLE!" * 8 + data[128:start] + body + data[pixels:]


def spellings() -> list[bytes]:
    """CANARY as it is, in UTF-16, hexadecimal and base64 at each of its three places, in small letters."""
    words = [b"CANARY", "CANARY".encode("utf-16-le"), b"CANARY".hex().encode()]
    for before in range(3):
        code = base64.b64encode(b"x" * before + b"CANARY^00")
        words.append(code[(8 * before + 5) // 6 : (8 * before + 48) // 6])
    return [word.lower() for word in words]


SCRIPT = """
import logging, sys, traceback
from pathlib import Path
logging.basicConfig(level=0)
import numpy as np, pandas as pd
from data import dicom_table
from data.dicom import read_info
from data.images import read_image
from data.manifest import MANIFEST_COLUMNS, Manifest
from data.scan import scan_images
folder, out = map(Path, sys.argv[1:])
paths = sorted(path.name for path in folder.iterdir())
for path in paths:
    for read in (read_image, read_info):
        try:
            print(path, getattr(read(folder / path), "shape", "told"))
        except Exception:
            traceback.print_exc()
frame = pd.DataFrame({name: paths for name in MANIFEST_COLUMNS}).assign(view="PA", split="train")
scan_images(Manifest(frame, np.zeros((len(paths), 1), np.float32), ("Edema",), folder), out, workers=2, max_rejected=1)
dicom_table.main(folder, out / "table.md")
"""


def test_identifiers_planted_in_every_text_element_never_come_out(tmp_path):
    good = planted()
    assert good.count(b"CANARY^") > 2500
    files = {
        "good": good,
        "rle": planted(data=rle(ramp())),
        "cut": good[:-500],
        "half": good[: len(good) // 2],
        "early": good[:5000],
        "swapped": good.replace(b"US\x02\x00", b"CS\x02\x00"),
        "nonsense": good.replace(b"LO", b"??").replace(b"DS", b"SQ"),
    } | {keyword: planted(keyword) for keyword in READ}
    (tmp_path / "in").mkdir()
    for name, data in files.items():
        (tmp_path / "in" / name).write_bytes(data)
    command = [sys.executable, "-W", "always", "-c", SCRIPT, str(tmp_path / "in"), str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    run = subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).parents[1])
    assert f"good ({H}, {W})".encode() in run.stdout
    assert b"WindowCenter (" in run.stdout  # an unusable window is none
    assert run.stderr.count(b"ImageError") >= 8
    written = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    assert len(written) == 3
    for output in (run.stdout, run.stderr, *written):
        assert not [word for word in spellings() if word in output.lower()]


def test_the_search_would_find_every_spelling():
    secret = b"CANARY^00100010"
    for offset in range(3):
        hidden = [
            base64.b64encode(b"x" * offset + secret),
            secret.hex().encode(),
            secret.decode().encode("utf-16-le"),
            secret,
        ]
        for text in hidden:
            assert any(word in text.lower() for word in spellings())


@pytest.mark.parametrize("place", ["header", "anywhere"])
def test_damaged_bytes_raise_our_error_only(place):
    data = planted() if place == "header" else rle(ramp())
    rng = np.random.default_rng(5)
    end = data_set(data) + 600 if place == "header" else len(data)
    for _ in range(30 if place == "header" else 150):
        broken = bytearray(data)
        for position in rng.integers(132, end, 3):
            broken[position] = rng.integers(0, 256)
        try:
            decode_dicom(bytes(broken), "a")
        except ImageError as error:
            assert "CANARY" not in str(error)  # noqa: PT017
