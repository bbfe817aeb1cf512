"""The outline of a JPEG 2000 codestream: its size, and whether all of it is there (ISO 15444-1, annex A).

OpenJPEG decodes some cut codestreams without an error, and spends 5 GB on a size that was forged or, where the size is
none too large, on millions of blocks: 166 bytes cost it a minute and 2.2 GB. All of this shows in the markers, before
anything is decoded.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

START = b"\xff\x4f\xff\x51"  # SOC, and SIZ, which must follow
TILE_PART = b"\xff\x90"  # SOT
TILE_DATA = b"\xff\x93"  # SOD
END = b"\xff\xd9"  # EOC
CODING_STYLES = {b"\xff\x52": 0, b"\xff\x53": 1}  # COD and COC, and which byte says whether precinct sizes follow
MAX_TILES = 4096  # usual encoders make one, or tiles of 256 pixels and more a side
MAX_BLOCKS = 100_000  # 64 million pixels in the smallest blocks of usual encoders, 32 x 32, are 83,000


@dataclass(frozen=True)
class Size:
    """The SIZ marker segment (A.5.1)."""

    height: int
    width: int
    num_components: int
    tile_height: int
    tile_width: int
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
    height, width = bottom - top, right - left
    num_components = int.from_bytes(data[40:42], "big")
    return Size(height, width, num_components, min(tile_height, height), min(tile_width, width), num_tiles)


def is_too_fine(data: bytes, size: Size) -> bool:
    """Whether the image is divided into more tiles, precincts or code-blocks than an encoder of radiographs makes."""
    if size.num_tiles > MAX_TILES:
        return True
    return any(
        size.num_tiles * _num_blocks(content[5 - 3 * flag :], bool(content[flag] & 1), size) > MAX_BLOCKS
        for marker, content in _segments(data)
        if (flag := CODING_STYLES.get(marker)) is not None and len(content) >= 10 - 3 * flag
    )


def _num_blocks(style: bytes, own_precincts: bool, size: Size) -> int:
    """Precincts or code-blocks of a tile, whichever are smaller, over its resolutions from the coarsest up (B.6, B.7).

    Args:
        style: Table A.20: decomposition levels, exponents of the code-block's sides less 2, two more bytes, and where
            they are told, two exponents per resolution for the precinct's sides.
    """
    levels, total = style[0], 0
    for resolution in range(levels + 1):
        precinct = style[5 + resolution] if own_precincts and len(style) > 5 + resolution else 0xFF
        width, height = 2 ** min(style[1] + 2, precinct & 15), 2 ** min(style[2] + 2, precinct >> 4)
        scale = 2 ** (levels - resolution)
        total += math.ceil(size.tile_width / scale / width) * math.ceil(size.tile_height / scale / height)
    return total


def _segments(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Marker and content of each segment in the main header and the tile parts' headers."""
    position, next_part = 2, len(data)
    while (marker := data[position : position + 2])[:1] == b"\xff" and marker != END:
        if marker == TILE_DATA:
            position = next_part
            continue
        length = max(2, int.from_bytes(data[position + 2 : position + 4], "big"))
        content = data[position + 4 : position + 2 + length]
        if marker == TILE_PART:
            next_part = position + max(14, int.from_bytes(content[2:6], "big"))
        yield marker, content
        position += 2 + length


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
