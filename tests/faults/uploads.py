"""Fifty uploads that nobody means well with: by the name they arrive under, what they hold."""

import io
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import imagecodecs
import numpy as np
from PIL import Image
from pydicom import uid

from tests.bombs import BOMBS
from tests.faults.hostile import pickled, tarred, torch_legacy, torch_tar, torch_zip
from tests.make_dicom import encoded, plain, ramp

SCRIPT = b"<script>alert(1)</script>"
TEXTS = {name: f"CANARY {SCRIPT.decode()}" for name in ("StudyDescription", "ImageComments", "InstitutionName")}


def picture(form: str, **options: object) -> bytes:
    """A grey image of a form that is none of a radiograph's."""
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, form, **options)
    return buffer.getvalue()


def png(height: int = 40, width: int = 36) -> bytes:
    """A good image."""
    return imagecodecs.png_encode(np.random.default_rng(0).integers(0, 255, (height, width), dtype=np.uint8))


def zipped(name: str) -> bytes:
    """An archive whose member has that name."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, png())
    return buffer.getvalue()


def hostile_uploads(canary: Path) -> dict[str, bytes]:
    """All of them; what runs as code leaves a file at `canary`."""
    touch = f"touch {canary}"
    good, dicom = png(), plain(ramp(), **TEXTS)
    made: dict[str, bytes | Callable[[], bytes]] = {f"{name}.dcm": make for name, (make, _) in BOMBS.items()}
    made |= {
        f"{make.__name__}{end}": make(canary)
        for make, end in ((pickled, ".png"), (pickled, ".dcm"), (torch_zip, ".pt"), (torch_legacy, ".jpg"))
    }
    made |= {
        "torch_tar.pth": torch_tar(canary),
        "page.svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)">' + SCRIPT + b"</svg>",
        "gif_and_page.gif": picture("GIF") + b"<html>" + SCRIPT,
        "shell.php.jpg": b"\xff\xd8\xff\xe0<?php system('" + touch.encode() + b"'); ?>",
        "report.pdf": b"%PDF-1.7\n1 0 obj <</OpenAction <</S /JavaScript /JS (app.alert(1))>>>> endobj",
        "program.dcm": b"\x7fELF\x02\x01\x01" + bytes(200),
        "script.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n(%pipe%" + touch.encode() + b") (w) file",
        "vector.mvg": b"push graphic-context\nfill 'url(https://x/\";" + touch.encode() + b"\")'",
        "outside.zip": zipped("../../../outside.png"),
        "links.tar": tarred({"a.png": good}, tarfile.SYMTYPE),
        "scan.tif": picture("TIFF"),
        "scan.bmp": picture("BMP"),
        "scan.webp": picture("WEBP"),
        "config.yaml": f"!!python/object/apply:os.system ['{touch}']\n".encode(),
        "nothing.png": b"",
        "zeros.dcm": bytes(1 << 20),
        "cut.png": good[:-30],
        "cut.dcm": dicom[: len(dicom) // 2],
        "sum.png": good[:30] + bytes([good[30] ^ 1]) + good[31:],
        "behind.png": good + SCRIPT * 1000,
        "film.dcm": plain(ramp(), NumberOfFrames=30, **TEXTS),
        "text.dcm": dicom[:132] + SCRIPT * 10 + dicom[132:],
        "stream.dcm": encoded(b"\xff\xd8" + SCRIPT * 50, ramp(), uid.JPEGBaseline8Bit, **TEXTS),
        "../../../../etc/passwd": struct.pack("<400I", *range(400)),
        "<img src=x onerror=alert(1)>.png": good[:60],
        "$(touch canary);`touch canary`\n.png": good[:50],
        "-rf \x00\u202egnp." + "x" * 300: SCRIPT,
    }
    return {name: data if isinstance(data, bytes) else data() for name, data in made.items()}
