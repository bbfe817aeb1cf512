"""Small files that claim, or unpack to, far more than a radiograph; each is read in a process of its own.

    python tests/bombs.py        prints a Markdown table: bytes of the file, what was said, seconds, memory taken

The memory is the process's peak beyond what it held before; a file's bytes, 24 MB at most, are held by then.
"""

import json
import os
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import imagecodecs
import numpy as np
from pydicom import uid

from data.dicom_file import ITEM
from data.errors import InputError
from data.images import ImageError, decode_image
from tests.make_dicom import encoded, plain, ramp, rle

ADDRESS_SPACE = 4 * 2**30
SQ_UNDEFINED = b"SQ\0\0\xff\xff\xff\xff"
OPEN_ITEM = ITEM + b"\xff\xff\xff\xff"


def deflated(content: bytes, times: int) -> bytes:
    """Raw deflate of the content repeated; a flushed block can be repeated as it is."""
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = deflater.compress(content) + deflater.flush(zlib.Z_FULL_FLUSH)
    return block * times + deflater.flush()


def data_set(data: bytes) -> int:
    """Where the data set starts: behind file meta, whose first element tells its length."""
    return 144 + int.from_bytes(data[140:144], "little")


def with_element(element: bytes, data: bytes | None = None) -> bytes:
    """A file with one element more, in front of group 0028."""
    data = data or plain(ramp())
    place = data.find(b"\x28\0\x02\0US", data_set(data))
    return data[:place] + element + data[place:]


def deflate_bomb(content: bytes, times: int) -> bytes:
    good = plain(ramp(), syntax=uid.DeflatedExplicitVRLittleEndian)
    return good[: data_set(good)] + deflated(content, times)


def claimed(side: int, data: bytes) -> bytes:
    """The file with other Rows and Columns."""
    for element in (b"\x10\0", b"\x11\0"):
        place = data.find(b"\x28\0" + element + b"US\x02\0")
        data = data[: place + 8] + struct.pack("<H", side) + data[place + 10 :]
    return data


def jpeg_2000(side: int, tile: int, precinct: int) -> bytes:
    """An image of empty packets in tiles, with precincts of 2^`precinct` pixels."""
    head = struct.pack(">HHIIIIIIIIH", 41, 0, side, side, 0, 0, tile, tile, 0, 0, 1) + bytes([15, 1, 1])
    style = struct.pack(">BBHBBBBBB", 1, 0, 1, 0, 5, 4, 4, 0, 1) + bytes([precinct * 17] * 6)
    steps = bytes([0x40, *[16 << 3] * 16])
    segments = b"".join(m + struct.pack(">H", 2 + len(c)) + c for m, c in ((b"\xff\x52", style), (b"\xff\x5c", steps)))
    parts = (struct.pack(">HHHIBBH", 0xFF90, 10, n, 24, 0, 1, 0xFF93) + bytes(10) for n in range((side // tile) ** 2))
    return b"\xff\x4f\xff\x51" + head + segments + b"".join(parts) + b"\xff\xd9"


def png(width: int, height: int, bits: int, colour: int, row_bytes: int, extra: bytes = b"", rows: int = 0) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    packer = zlib.compressobj(1)
    body = b"".join(packer.compress(bytes(row_bytes + 1)) for _ in range(rows or height)) + packer.flush()
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return start + extra + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    body = b"Comment\0\0" + zlib.compress(bytes(70 << 20))
    text = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return png(40, 30, 8, 0, 40, text)


def scans_bomb() -> bytes:
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(ramp(8).astype(np.uint8)).save(buffer, "JPEG", progressive=True)
    data = buffer.getvalue()
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * 80_000 + b"\xff\xd9"


def frame(stream: bytes, side: int, syntax: str) -> bytes:
    return claimed(side, encoded(stream, ramp(), syntax))


BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {  # name: file, words of the reason
    "DICOM deflate, 1 GiB of zeros": (lambda: deflate_bomb(bytes(1 << 20), 1024), "inflates to more than 256 MiB"),
    "DICOM deflate, 30 million empty elements": (
        lambda: deflate_bomb(b"\x09\0\x10\0CS\0\0" * 131072, 230),
        "longer DICOM header",
    ),
    "one deflated frame, 1 GiB for 62 x 46": (
        lambda: encoded(deflated(bytes(1 << 20), 1024), ramp(), "1.2.840.10008.1.2.8.1"),
        "blank",
    ),
    "65535 x 65535 pixels in 6 kB": (lambda: claimed(65535, plain(ramp())), "65535 x 65535 pixels"),
    "2,000,000,000 frames": (lambda: plain(ramp(), NumberOfFrames=2_000_000_000), "several frames"),
    "element of 4 GiB, unknown": (
        lambda: with_element(b"\x09\0\x10\0UN\0\0\xf0\xff\xff\xff"),
        "no pixel data, or is cut",
    ),
    "element of 4 GiB, VOI LUT Sequence": (
        lambda: with_element(b"\x28\0\x10\x30SQ\0\0\xf0\xff\xff\xff"),
        "longer DICOM header",
    ),
    "sequences nested 200,000 deep": (
        lambda: with_element(b"\x09\0\x10\0" + SQ_UNDEFINED + (OPEN_ITEM + b"\x09\0\x10\0" + SQ_UNDEFINED) * 200_000),
        "damaged DICOM",
    ),
    "sequence of 3,000,000 empty items": (
        lambda: with_element(b"\x09\0\x10\0" + SQ_UNDEFINED + (ITEM + bytes(4)) * 3_000_000),
        "longer DICOM header",
    ),
    "pixel data in 2,000,000 empty fragments": (
        lambda: (lambda data: data[:-8] + (ITEM + bytes(4)) * 2_000_000 + data[-8:])(rle(ramp())),
        "more than 10000 fragments",
    ),
    "RLE, 8 MB for 62 x 46": (
        lambda: encoded(
            struct.pack("<16L", 2, 64, 4_000_064, *[0] * 13) + b"\x81\0" * 4_000_000, ramp(), uid.RLELossless
        ),
        "damaged or cut",
    ),
    "JPEG 2000 of 30000 x 30000 in a header of 62 x 46": (
        lambda: encoded(
            imagecodecs.jpeg2k_encode(ramp(), level=0, codecformat="j2k").replace(
                struct.pack(">II", 46, 62), struct.pack(">II", 30000, 30000), 1
            ),
            ramp(),
            uid.JPEG2000,
        ),
        "another size",
    ),
    "JPEG 2000, 16,000,000 precincts": (lambda: frame(jpeg_2000(8000, 8000, 1), 8000, uid.JPEG2000), "more tiles or"),
    "JPEG 2000, 62,500 tiles": (lambda: frame(jpeg_2000(8000, 32, 15), 8000, uid.JPEG2000), "more tiles or"),
    "JPEG 2000 frame as large as allowed, empty": (
        lambda: frame(jpeg_2000(8000, 8000, 15), 8000, uid.JPEG2000),
        "blank",
    ),
    "PNG, 13300 x 13300 of 16 bits": (lambda: png(13300, 13300, 16, 0, 2 * 13300, rows=9), "13300 x 13300 pixels"),
    "PNG as large as allowed, 16 bits, colour and alpha": (lambda: png(8000, 8000, 16, 6, 8 * 8000), "blank"),
    "PNG, text of 70 MiB": (text_bomb, "damaged or cut PNG"),
    "JPEG of 80,000 scans": (scans_bomb, "100 scans"),
}


def decode(data: bytes) -> tuple[int, ...]:
    """The shape of the picture."""
    return decode_image(data, "x").shape


def measure(data: bytes, read: Callable[[bytes], object] = decode) -> tuple[str, float, float]:
    """Read in a child: what was said, CPU seconds, and MB beyond what the process held before."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        own = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()  # torch maps gigabytes
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE + own, ADDRESS_SPACE + own))
        before = resource.getrusage(resource.RUSAGE_SELF)
        start = time.process_time()
        try:
            said = f"read {read(data)}"
        except InputError as error:
            said = error.reason if isinstance(error, ImageError) else str(error)
        except BaseException as error:
            said = f"NOT OUR ERROR: {type(error).__name__}"
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before.ru_maxrss
        os.write(write_end, json.dumps([said, time.process_time() - start, peak / 1024]).encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return tuple(json.loads(answer)) if answer else ("THE PROCESS DIED", 0.0, 0.0)


if __name__ == "__main__":
    print("| file | bytes | said | CPU seconds | peak MB |\n|---|---|---|---|---|")
    for name, (make, _) in BOMBS.items():
        content = make()
        said, seconds, peak = measure(content)
        print(f"| {name} | {len(content):,} | {said} | {seconds:.2f} | {peak:.0f} |", flush=True)
