"""DICOM pixel data to stored values, whole or refused (PS3.5 section 8 and annex A).

Each codec is checked for the two ways in which it could cheat: the size inside the codestream must be the header's
before anything is decoded, and a codestream that ends early must be refused. CharLS and simplejpeg (8-bit JPEG) refuse
those themselves; for JPEG 2000 see `jpeg2000.is_whole`, for 12-bit and lossless JPEG `_decode_whole`.

Bits Stored (0028,0101) is wrong in public sets (VinDr-CXR for one). Where pixels need more bits than it says, it is
believed or not by what the image looks like, see `_significant_bits` and `_in_range`.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
import simplejpeg
from jaxtyping import Integer
from pydicom import uid

from data.images import ImageError, refuse
from data.jpeg import PROGRESSIVE, read_outline
from data.jpeg2000 import is_too_fine, is_whole, read_size

NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
ENCAPSULATED = uid.UID("1.2.840.10008.1.2.1.98")  # plain values in a fragment
DEFLATED_FRAME = uid.UID("1.2.840.10008.1.2.8.1")  # PS3.5 8.2.16: raw deflate of the frame alone
JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
LOSSLESS = (uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, *JPEG_2000[2:4])
SUPPORTED = (*NATIVE, ENCAPSULATED, DEFLATED_FRAME, uid.RLELossless, *JPEG, *JPEG_LS, *JPEG_2000)

CODEC_ERRORS = (ValueError, RuntimeError, zlib.error)  # RuntimeError: the base of imagecodecs' own exceptions


@dataclass(frozen=True)
class PixelFormat:
    """The Image Pixel module (0028,00xx) and how the data is encoded."""

    transfer_syntax: str
    rows: int
    columns: int
    bits_allocated: int  # 8 or 16
    bits_stored: int
    high_bit: int
    signed: bool
    swapped_words: bool = False  # 8-bit pixels in big-endian 16-bit words


def stored_values(data: bytes, form: PixelFormat, name: str) -> Integer[np.ndarray, "H W"]:
    """Decode one grey frame.

    Args:
        data: Pixel Data (7FE0,0010): the plain values, or the one frame's codestream.

    Raises:
        ImageError: cut, damaged, or not the size that the header says.
    """
    if form.transfer_syntax in (*NATIVE, ENCAPSULATED):
        return _significant_bits(_native_words(data, form, name), form.bits_stored, form.high_bit, form.signed)
    try:
        if form.transfer_syntax in (uid.RLELossless, DEFLATED_FRAME):
            words = (_rle_words if form.transfer_syntax == uid.RLELossless else _deflated_words)(data, form, name)
            return _significant_bits(words, form.bits_stored, form.high_bit, form.signed)
        decode = _jpeg_2000 if form.transfer_syntax in JPEG_2000 else _jpeg
        pixels = decode(data, form, name)
    except ImageError:
        raise
    except CODEC_ERRORS:
        refuse(name, "has damaged or cut pixel data")
    if pixels.shape != (form.rows, form.columns):
        refuse(name, "has pixel data of another size than its header says")
    if form.transfer_syntax in LOSSLESS:  # codecs hold samples, not the words around them: High Bit says nothing
        return _significant_bits(pixels.astype(np.uint16), form.bits_stored, form.bits_stored - 1, form.signed)
    return _in_range(pixels, form)


def _native_words(data: bytes, form: PixelFormat, name: str) -> np.ndarray:
    """Unsigned words of an uncompressed frame."""
    num_bytes = form.rows * form.columns * form.bits_allocated // 8
    if len(data) < num_bytes:
        refuse(name, "has cut pixel data: fewer bytes than rows x columns need")
    if len(data) >= 2 * num_bytes + 2:
        refuse(name, "has pixel data for more than one frame")
    if form.swapped_words:
        data = np.frombuffer(data[: len(data) // 2 * 2], ">u2").astype("<u2").tobytes()
    order = ">" if form.transfer_syntax == uid.ExplicitVRBigEndian else "<"
    words = np.frombuffer(data, f"{order}u{form.bits_allocated // 8}", count=form.rows * form.columns)
    return words.astype(words.dtype.newbyteorder("="), copy=False).reshape(form.rows, form.columns)


def _rle_words(data: bytes, form: PixelFormat, name: str) -> np.ndarray:
    """Unsigned words of an RLE frame (PS3.5 annex G); the output's size bounds what is written."""
    dtype = np.dtype(f"<u{form.bits_allocated // 8}")
    out = bytearray(form.rows * form.columns * dtype.itemsize)
    if len(imagecodecs.dicomrle_decode(data, dtype, out=out)) != len(out):
        refuse(name, "has cut pixel data: its RLE segments are too short")
    return np.frombuffer(out, dtype).reshape(form.rows, form.columns)


def _deflated_words(data: bytes, form: PixelFormat, name: str) -> np.ndarray:
    """Unsigned words of a frame deflated on its own; no more is inflated than the image takes."""
    size = form.rows * form.columns * form.bits_allocated // 8
    plain = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size)
    return _native_words(plain, form, name)


def _significant_bits(words: np.ndarray, stored: int, high: int, signed: bool) -> Integer[np.ndarray, "H W"]:
    """Keep Bits Stored below High Bit, with their sign.

    The rest of a word may hold anything (PS3.5 8.1.1): old files keep overlays there. Or Bits Stored is too small, and
    cutting the values down folds bright regions to black. Folds and overlays both are steps of thousands between
    neighbours, so of the two readings the smoother one is right; where they are equally smooth, the header is.
    """
    allocated = words.dtype.itemsize * 8
    shifted = np.left_shift(words, allocated - 1 - high, dtype=words.dtype)
    whole = words.view(f"i{words.dtype.itemsize}") if signed else words
    if signed:
        shifted = shifted.view(f"i{words.dtype.itemsize}")
    kept = np.right_shift(shifted, allocated - stored, dtype=shifted.dtype)
    if stored <= high or np.array_equal(kept, whole):  # words with bits below are no wider values
        return kept
    return whole if _roughness(whole) < _roughness(kept) else kept


def _roughness(values: Integer[np.ndarray, "H W"]) -> int:
    """Sum of the steps between horizontal neighbours."""
    return sum(int(np.abs(np.diff(row.astype(np.int32))).sum()) for row in values)


def _in_range(pixels: Integer[np.ndarray, "H W"], form: PixelFormat) -> Integer[np.ndarray, "H W"]:
    """Give a lossy codec's output the header's sign and clip it to Bits Stored.

    Lossy codecs overshoot: 1024 in a 10-bit image. Masking, the usual treatment, turns those brightest pixels black.
    Values further out than a quarter of the range are no overshoot; then Bits Stored is wrong and nothing is clipped.
    """
    values = pixels.astype(np.int32)
    signed, span = form.signed or pixels.dtype.kind == "i", 2**form.bits_stored
    if signed and pixels.dtype.kind == "u":  # JPEG and JPEG-LS know no sign: the bit pattern was coded
        values = (values & (span - 1)) - ((values >> (form.bits_stored - 1) & 1) << form.bits_stored)
    low, high = (-(span // 2), span // 2 - 1) if signed else (0, span - 1)
    if values.max() > high + span // 4 or values.min() < low - span // 4:
        return values
    return np.clip(values, low, high)


def _jpeg(data: bytes, form: PixelFormat, name: str) -> np.ndarray:
    """JPEG baseline, extended, lossless and JPEG-LS."""
    outline = read_outline(data)
    if outline is None:
        refuse(name, "has damaged or cut pixel data: no JPEG codestream")
    _check_size((outline.height, outline.width, outline.num_components), form, name)
    if form.transfer_syntax in JPEG_LS:
        if b"\xff\xd9" not in data:  # CharLS counts zeros behind such a stream for 5 seconds before it gives up
            refuse(name, "has cut pixel data")
        return imagecodecs.jpegls_decode(data)
    if outline.process in PROGRESSIVE:
        refuse(name, "has progressive JPEG pixel data, which DICOM retired")
    if outline.bits == 8 and outline.lossy:
        return simplejpeg.decode_jpeg(data, "GRAY", strict=True)[..., 0]
    return _decode_whole(imagecodecs.jpeg_decode, data, name)


def _jpeg_2000(data: bytes, form: PixelFormat, name: str) -> np.ndarray:
    """JPEG 2000 and HTJ2K, which OpenJPEG reads too."""
    size = read_size(data)
    if size is None:
        refuse(name, "has damaged or cut pixel data: no JPEG 2000 codestream")
    _check_size((size.height, size.width, size.num_components), form, name)
    if not is_whole(data, size):
        refuse(name, "has cut pixel data, or JPEG 2000 parts that do not tell their length")
    if is_too_fine(data, size):
        refuse(name, "has JPEG 2000 pixel data in more tiles or blocks than any radiograph")
    return imagecodecs.jpeg2k_decode(data)


def _check_size(found: tuple[int, int, int], form: PixelFormat, name: str) -> None:
    """Refuse a forged codestream before it is decoded: 400 kB can claim and take 5 GB."""
    if found != (form.rows, form.columns, 1):
        refuse(name, "has pixel data of another size than its header says")


def _decode_whole(decode: Callable[[bytes], np.ndarray], data: bytes, name: str) -> np.ndarray:
    """Decode, and prove that the codestream was whole, for decoders that fill what is missing without a word.

    A decoder needs nothing after the last coded bit. So the image must not change when arbitrary bytes are put in
    front of the end marker; where data is missing, the decoder takes those bytes for it.
    """
    pixels = decode(data)
    end = data.rfind(b"\xff\xd9")
    probe = data[: end if end >= 0 else len(data)] + bytes(range(255)) * 16 + b"\xff\xd9"  # 0 first: 0xFF 0 is data
    if not np.array_equal(pixels, decode(probe)):
        refuse(name, "has cut pixel data")
    return pixels
