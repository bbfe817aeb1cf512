"""DICOM pixel data to stored values, whole or refused (PS3.5 section 8 and annex A).

Each codec is checked for the two ways in which it could cheat: the size inside the codestream must be the header's
before anything is decoded, and a codestream that ends early must be refused. CharLS and simplejpeg (8-bit JPEG) refuse
those themselves; for JPEG 2000 see `jpeg2000.is_whole`, for 12-bit and lossless JPEG `_decode_whole`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np
import simplejpeg
from jaxtyping import Integer
from pydicom import uid

from data.images import ImageError, refuse
from data.jpeg import PROGRESSIVE, read_outline
from data.jpeg2000 import is_whole, read_size

NATIVE = (
    uid.ImplicitVRLittleEndian,
    uid.ExplicitVRLittleEndian,
    uid.ExplicitVRBigEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
JPEG_LS = (uid.JPEGLSLossless, uid.JPEGLSNearLossless)
JPEG_2000 = (uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)
SUPPORTED = (*NATIVE, uid.RLELossless, *JPEG, *JPEG_LS, *JPEG_2000)

CODEC_ERRORS = (ValueError, RuntimeError)  # RuntimeError: the base of imagecodecs' own exceptions


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
    if form.transfer_syntax in NATIVE:
        return _significant_bits(_native_words(data, form, name), form)
    try:
        if form.transfer_syntax == uid.RLELossless:
            return _significant_bits(_rle_words(data, form, name), form)
        decode = _jpeg_2000 if form.transfer_syntax in JPEG_2000 else _jpeg
        pixels = decode(data, form, name)
    except ImageError:
        raise
    except CODEC_ERRORS:
        refuse(name, "has damaged or cut pixel data")
    if pixels.shape != (form.rows, form.columns):
        refuse(name, "has pixel data of another size than its header says")
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


def _significant_bits(words: np.ndarray, form: PixelFormat) -> Integer[np.ndarray, "H W"]:
    """Keep Bits Stored below High Bit, with their sign; the rest of a word may hold anything (PS3.5 8.1.1)."""
    above = form.bits_allocated - 1 - form.high_bit
    shifted = np.left_shift(words, above, dtype=words.dtype)
    if form.signed:
        shifted = shifted.view(f"i{words.dtype.itemsize}")
    return np.right_shift(shifted, form.bits_allocated - form.bits_stored, dtype=shifted.dtype)


def _in_range(pixels: Integer[np.ndarray, "H W"], form: PixelFormat) -> Integer[np.ndarray, "H W"]:
    """Give a codec's output the header's sign and clip it to Bits Stored.

    Lossy codecs overshoot: 1024 in a 10-bit image. Masking, the usual treatment, turns those brightest pixels black.
    """
    values = pixels.astype(np.int32)
    if form.signed:
        low, high = -(2 ** (form.bits_stored - 1)), 2 ** (form.bits_stored - 1) - 1
        if pixels.dtype.kind == "u":  # JPEG and JPEG-LS know no sign: the bit pattern was coded
            values = (values & (2**form.bits_stored - 1)) - ((values >> (form.bits_stored - 1) & 1) << form.bits_stored)
    else:
        low, high = 0, 2**form.bits_stored - 1
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
