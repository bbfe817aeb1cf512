"""The outline of a PNG file, and whether its compressed stream holds every row (W3C PNG, third edition)."""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type: grey, RGB, palette, grey and alpha, RGB and alpha
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
BLOCK = 1 << 20


@dataclass(frozen=True)
class PngOutline:
    """The image header chunk."""

    height: int
    width: int
    bits: int
    colour_type: int
    interlaced: bool

    @property
    def num_bytes(self) -> int:
        """Length of the inflated data: a filter byte and the packed pixels of each row (of each pass if interlaced)."""
        passes = ADAM7 if self.interlaced else ((0, 0, 1, 1),)
        total = 0
        for top, left, row_step, column_step in passes:
            rows = max(0, -(-(self.height - top) // row_step))
            columns = max(0, -(-(self.width - left) // column_step))
            if columns:
                total += rows * (1 + -(-columns * self.bits * CHANNELS[self.colour_type] // 8))
        return total


def read_outline(data: bytes) -> PngOutline | None:
    """The header; None when it is cut or says what PNG does not know."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        return None
    width, height, bits, colour_type, _, _, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if bits not in (1, 2, 4, 8, 16) or colour_type not in CHANNELS or interlace > 1:
        return None
    return PngOutline(height, width, bits, colour_type, interlace == 1)


def reaches_its_end(data: bytes) -> bool:
    """Whether the chunk lengths lead to the end chunk."""
    return any(name == b"IEND" and end <= len(data) for name, _, end in _chunks(data))


def holds_all_rows(data: bytes, outline: PngOutline) -> bool:
    """Inflate the image data without keeping it, to count its bytes; a damaged stream does not hold them."""
    inflater = zlib.decompressobj()
    num_bytes = 0
    try:
        for name, start, end in _chunks(data):
            piece = data[start : end - 4] if name == b"IDAT" else b""
            while piece and num_bytes < outline.num_bytes:
                num_bytes += len(inflater.decompress(piece, BLOCK))
                piece = inflater.unconsumed_tail
    except zlib.error:
        return False
    return num_bytes >= outline.num_bytes


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start of the content and end of each chunk; the end includes 4 bytes of checksum."""
    position = len(SIGNATURE)
    while position + 8 <= len(data):
        start = position + 8
        position = start + int.from_bytes(data[position : position + 4], "big") + 4
        yield data[start - 4 : start], start, position
