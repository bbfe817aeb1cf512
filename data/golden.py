"""Three small pictures that every installation must decode alike: a library that does not is noticed by their hash.

A feature cache is only as good as the pixels it was made from, and decoders change: another libjpeg may round another
way, another pydicom window differently. `golden_decode` sends a JPEG, a 16-bit PNG and a 12-bit DICOM file, none of
them a person's, through `decode_image` and `Preprocessing`, whatever the run's own settings.
"""

import base64
import hashlib
import importlib.metadata
import struct
import zlib
from functools import lru_cache

import numpy as np
from jaxtyping import UInt16

from data.images import decode_image
from data.png import SIGNATURE
from data.transforms import Preprocessing

DECODERS = ("torch", "timm", "simplejpeg", "imagecodecs", "pillow", "pydicom", "numpy")
STEPS = 52  # levels that resized pixels are rounded to; none is nearer than 2e-5 to a border, processors differ by 1e-7
RESIZED = (Preprocessing(size=16), Preprocessing(size=19, resize="fit", intensity="percentile"))
JPEG = base64.b64decode(  # 48 x 40 pixels, waves and a disc, quality 80
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYnKSopGR8tMC0o"
    "MCUoKSj/wAALCAAwACgBAREA/8QAGwAAAgIDAQAAAAAAAAAAAAAABQcEBgABAwj/xAAuEAABAgQFAgUEAwEAAAAAAAABAgMABBHwBQYhMZESYRNB"
    "UXGhIsHR4RQjgbH/2gAIAQEAAD8AMZemUtNJBNCPi/vHfHJpK2FBJB02viFRmCWLjyqA73fqIzAZZbTwJ9d/n9w1cCmUtspCqC75iorxEyp6ai74"
    "MbZxFU6sNt9SlHZI1JgmjLE7MgK8Dqr6KTr83SIsxg68PXR1tTax6j5HaIisUMr9II08r4itZjeLbygk0189oOZDH9aXVDqW4dzuADSnxzSHdl5l"
    "K2QSdab/AD+4iZ3kW14Y8SlPU2kqSabU14/MeesffKX1BNd9r4ghjckX3VEJ7X/ziLBkuVCJVCRWqFEEe+ope4MNbBp4MNDqI0875iLmvEmzhj9V"
    "D6k9AFfM6X2hH4xIqedJ6SbviLnI4d/JSDSvvvHZyTXh58VolCqbgbi9f8gbOZsmpVRADII7H83WIIxx7E3h46urcJA2Hb7cQbk8MEygKpWva7EG"
    "stpQWUhQ1u/cRIzCEhhRSR73zCdzIVB9WlNbvvGsuFZfTUk7b7w4cvBBl0lXpvfMf//Z"
)


@lru_cache
def golden_decode() -> str:
    """SHA-256 of what this installation makes of the three pictures, in hexadecimal.

    Decoded values count bit by bit; resized ones, which are sums whose order processors choose, rounded to `STEPS`.
    """
    digest = hashlib.sha256()
    for data, at_least in ((JPEG, None), (JPEG, 16), (_png(), None), (_dicom(), None)):
        image = decode_image(data, "golden picture", at_least)
        digest.update(image.tobytes())
        for preprocessing in RESIZED:
            digest.update(np.rint(preprocessing.resized(image).numpy() * STEPS).astype(np.uint8).tobytes())
    return digest.hexdigest()


def decoder_versions() -> dict[str, str]:
    """Versions of the libraries between a file and its feature map."""
    return {name: importlib.metadata.version(name) for name in DECODERS}


def _values(height: int, width: int, top: int) -> UInt16[np.ndarray, "H W"]:
    """A smooth surface and a fine texture, from 0 to `top`, in whole numbers only."""
    y, x = np.mgrid[0:height, 0:width].astype(np.int64)
    return ((y * y * 3 + x * y * 11 + x * 29 + (x * 7 + y * 13) % 17 * 40) * top // 20000 % (top + 1)).astype(np.uint16)


def _png() -> bytes:
    """16-bit grey PNG of 37 x 29 pixels."""
    lines = b"".join(b"\0" + row.tobytes() for row in _values(37, 29, 65535).astype(">u2"))
    header = struct.pack(">IIBBBBB", 29, 37, 16, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    return SIGNATURE + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def _dicom() -> bytes:
    """12-bit MONOCHROME1 DICOM of 31 x 33 pixels, with a window; explicit little endian."""

    def element(group: int, number: int, kind: bytes, value: bytes) -> bytes:
        value += b" " * (len(value) % 2)
        size = struct.pack("<H", len(value)) if kind != b"OW" else struct.pack("<HI", 0, len(value))
        return struct.pack("<HH", group, number) + kind + size + value

    numbers = ((2, 1), (0x10, 31), (0x11, 33), (0x100, 16), (0x101, 12), (0x102, 11), (0x103, 0))
    words = {number: (b"US", struct.pack("<H", value)) for number, value in numbers}
    words |= {4: (b"CS", b"MONOCHROME1"), 0x1050: (b"DS", b"1900"), 0x1051: (b"DS", b"3100")}
    body = element(8, 0x60, b"CS", b"DX") + b"".join(element(0x28, n, *words[n]) for n in sorted(words))
    body += element(0x7FE0, 0x10, b"OW", _values(31, 33, 4095).astype("<u2").tobytes())
    return bytes(128) + b"DICM" + element(2, 0x10, b"UI", b"1.2.840.10008.1.2.1\0") + body
