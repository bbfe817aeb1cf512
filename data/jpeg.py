"""The outline of a JPEG file, read from its markers without decoding anything (ITU-T T.81, annex B)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # 0xFF and a code: not a stuffed byte, fill byte or restart
FRAME_HEADERS = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, and JPEG-LS
SEQUENTIAL, PROGRESSIVE = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA)  # DCT, Huffman or arithmetic; others are lossless or tiled
SCAN_HEADER, END, TEMPORARY, START = 0xDA, 0xD9, 0x01, 0xD8


@dataclass(frozen=True)
class JpegOutline:
    """What the headers promise, and whether the scans keep it."""

    process: int  # the frame header's code
    bits: int
    height: int
    width: int
    num_components: int
    num_scans: int  # 1 as soon as a scan that is not progressive holds all components
    refined: bool  # all 64 DCT coefficients of the first component reach their last bit

    @property
    def lossy(self) -> bool:
        """Whether it is made of DCT coefficients, in one pass or several."""
        return self.process in (*SEQUENTIAL, *PROGRESSIVE)

    def extent(self, rows: int, columns: int) -> tuple[float, float]:
        """Height and width at the scale, some eighths, at which libjpeg rounds them up to these rows and columns."""
        pairs = ((self.height * eighths / 8, self.width * eighths / 8) for eighths in range(8, 0, -1))
        return next(
            (pair for pair in pairs if (ceil(pair[0]), ceil(pair[1])) == (rows, columns)), (float(rows), float(columns))
        )


def read_outline(data: bytes) -> JpegOutline | None:
    """Walk the markers; None without a frame header followed by a scan."""
    frame = b""
    exact: set[int] = set()
    process = num_scans = 0
    for code, segment in _segments(data):
        if code in FRAME_HEADERS and len(segment) >= 9:
            process, frame = code, segment
        elif code == SCAN_HEADER and frame:
            num_scans += 1
            exact = _refined(exact, segment, component=frame[6])
            if process not in PROGRESSIVE and segment[:1] == frame[5:6]:
                break  # nothing can follow, and walking through the coded data costs half as much as decoding it
    if not num_scans:
        return None
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    return JpegOutline(process, frame[0], height, width, frame[5], num_scans, len(exact) == 64)


def _refined(exact: set[int], scan: bytes, component: int) -> set[int]:
    """Coefficients exact after one more scan (G.1.1.1.1: spectral band Ss to Se, low bit Al still missing)."""
    num_components = scan[0] if scan else 0
    if len(scan) < 4 + 2 * num_components or component not in scan[1 : 1 + 2 * num_components : 2]:
        return exact
    first, last, bits = scan[1 + 2 * num_components : 4 + 2 * num_components]
    band = set(range(first, min(last, 63) + 1))
    return exact - band if bits & 15 else exact | band


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (code, payload) up to the end marker, stepping over entropy-coded data."""
    position = 2
    while found := MARKER.search(data, position):
        code, position = data[found.end() - 1], found.end()
        if code == END:
            return
        if code in (TEMPORARY, START):  # no payload
            continue
        length = max(2, int.from_bytes(data[position : position + 2], "big"))
        yield code, data[position + 2 : position + length]
        position += length
