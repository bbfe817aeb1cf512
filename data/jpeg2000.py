"""The outline of a JPEG 2000 codestream: its size, and whether all of it is there (ISO 15444-1, annex A).

OpenJPEG decodes some cut codestreams without an error, and spends 5 GB on a size that was forged. Both show in the
markers, before anything is decoded.
"""

import math
from dataclasses import dataclass

START = b"\xff\x4f\xff\x51"  # SOC, and SIZ, which must follow
TILE_PART = b"\xff\x90"  # SOT
END = b"\xff\xd9"  # EOC


@dataclass(frozen=True)
class Size:
    """The SIZ marker segment (A.5.1)."""

    height: int
    width: int
    num_components: int
    num_tiles: int


def read_size(data: bytes) -> Size | None:
    """The size of a codestream; None when it does not start as one."""
    if data[:4] != START or len(data) < 42:
        return None
    right, bottom, left, top, tile_width, tile_height, tile_left, tile_top = (
        int.from_bytes(data[i : i + 4], "big") for i in range(8, 40, 4)
    )
    if not (tile_width and tile_height):
        return None
    num_tiles = math.ceil((right - tile_left) / tile_width) * math.ceil((bottom - tile_top) / tile_height)
    return Size(bottom - top, right - left, int.from_bytes(data[40:42], "big"), num_tiles)


def is_whole(data: bytes, size: Size) -> bool:
    """Whether every tile part (A.4.2) that was announced is there in full, with the end marker right behind the last.

    A last part without a length (Psot = 0) counts as missing: nothing then tells whether it was cut.
    """
    position = _main_header_end(data)
    found: dict[int, int] = {}  # tile to the number of its parts
    announced: dict[int, int] = {}
    while data[position : position + 2] == TILE_PART:
        tile, length = (int.from_bytes(data[position + i : position + j], "big") for i, j in ((4, 6), (6, 10)))
        if length < 14 or position + length > len(data):
            return False
        found[tile] = found.get(tile, 0) + 1
        announced[tile] = max(announced.get(tile, 0), data[position + 11])  # TNsot, 0 where not known yet
        position += length
    complete = len(found) == size.num_tiles and all(found[tile] >= announced[tile] for tile in found)
    return complete and data[position : position + 2] == END


def _main_header_end(data: bytes) -> int:
    """Where the first tile part starts; marker segments before it tell their lengths."""
    position = 2
    while data[position : position + 1] == b"\xff" and data[position : position + 2] != TILE_PART:
        position += 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
    return position
