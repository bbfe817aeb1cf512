"""From a file to one grey image: JPEG, PNG or DICOM, whole or refused.

The promise is that no image with labels is ever partly black: the JPEG decoder is strict (a library
warning is an error), progressive JPEGs must hold their last refinement, and PNGs all their rows, which Pillow alone
would not notice. Formats are told by their first bytes, never by the file's name.

Axes: **H W** rows and columns. Grey values are float32 in [0, 1], 0 = air (black), 1 = dense (white). Full scale is
the container's: 255 for 8 bit, 65535 for 16 bit. A 16-bit PNG that uses only its low bits is therefore dark here;
stretching it is preprocessing, not decoding (`Preprocessing.intensity = "percentile"`).
"""

import io
import os
import stat
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
import simplejpeg
from jaxtyping import Float, UInt
from PIL import Image

from data import png
from data.errors import InputError
from data.image_shards import REMAKE, find_member
from data.jpeg import PROGRESSIVE, JpegOutline, read_outline

MAX_FILE_BYTES = 512 * 2**20
MAX_PIXELS = 64 * 10**6  # the largest detectors have 4300 x 3500 = 15 million
MAX_JPEG_SCANS = 100  # usual encoders write 10; every scan, even an empty one, is a pass over all blocks

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as in JPEG's Y

JPEG_SIGNATURE = b"\xff\xd8\xff"
OTHER_FORMATS = (
    (b"GIF8", "a GIF"),
    (b"BM", "a BMP"),
    (b"II*\0", "a TIFF"),
    (b"MM\0*", "a TIFF"),
    (b"RIFF", "a WebP or another RIFF file"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 codestream"),
    (b"%PDF", "a PDF"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"<", "HTML or XML, perhaps the page of a failed download"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)


class ImageError(InputError):
    """An image that cannot be used; the message names the file and the reason in our own words.

    Nothing found inside the file is quoted, since headers hold patients' names. `reason` is the message without the
    file's name.
    """

    def __init__(self, message: str, reason: str | None = None):
        super().__init__(message)  # constructible from the message alone, as loader workers rebuild it
        self.reason = reason or message


class Scaled(NamedTuple):
    """A picture as a decoder gave it, and how much of it that is."""

    image: Float[np.ndarray, "H W"]
    extent: tuple[float, float]
    """Height and width of the whole picture, measured in pixels of `image`: a scaled JPEG's last row and column may
    reach beyond its edge."""


def read_image(path: Path, at_least: int | None = None) -> Float[np.ndarray, "H W"]:
    """Read a file and decode it; see `decode_image`.

    Raises:
        ImageError: missing, not a regular file, too large, or anything `decode_image` refuses.
    """
    return decode_image(read_bytes(path), str(path), at_least)


def read_scaled(path: Path, at_least: int) -> Scaled:
    """Read a file and decode it, as `read_image`; see `decode_scaled`."""
    return decode_scaled(read_bytes(path), str(path), at_least)


def read_bytes(path: Path) -> bytes:
    """The bytes of a file that `check_file` accepts, or of an image in a shard.

    Raises:
        ImageError: as `check_file`, the file cannot be read, or a shard holds other bytes than were written.
    """
    check_file(path)
    member = find_member(path)
    try:
        data = member.read() if member else path.read_bytes()
    except OSError as error:
        refuse(str(path), f"cannot be read ({error.strerror})")
    if member and not member.fits(data):
        refuse(str(path), f"is damaged in its shard (checksum differs); {REMAKE}")
    return data


def check_file(path: Path) -> os.stat_result:
    """The status of a regular file of at most `MAX_FILE_BYTES`, or of an image's shard, without opening it.

    Raises:
        ImageError: missing, a folder, a pipe or device, or too large.
    """
    member = find_member(path)
    try:
        status = (member.shard if member else path).stat()
    except FileNotFoundError:
        refuse(str(path), "does not exist")
    except OSError as error:
        refuse(str(path), f"cannot be read ({error.strerror})")
    if stat.S_ISDIR(status.st_mode):
        refuse(str(path), "is a folder")
    if not stat.S_ISREG(status.st_mode):
        refuse(str(path), "is a pipe, socket or device")
    if member and member.offset + member.nbytes > status.st_size:
        refuse(str(path), f"lies beyond the end of its shard, which was cut; {REMAKE}")
    if (member.nbytes if member else status.st_size) > MAX_FILE_BYTES:
        refuse(str(path), f"is larger than {MAX_FILE_BYTES >> 20} MiB")
    return status


def decode_image(data: bytes, name: str, at_least: int | None = None) -> Float[np.ndarray, "H W"]:
    """Decode the bytes of a JPEG, PNG or DICOM file to grey values in [0, 1].

    Args:
        name: What to call the file in an error.
        at_least: If given, a JPEG may be decoded at a smaller scale (libjpeg's 1/8 to 8/8, antialiased) whose shorter
            side is still at least this many pixels. Other formats come at full size.

    Raises:
        ImageError: not one of the three formats, damaged or cut short, too large to be an X-ray, or blank.
    """
    return decode_scaled(data, name, at_least).image


def decode_scaled(data: bytes, name: str, at_least: int | None) -> Scaled:
    """As `decode_image`, with the picture's extent for `Preprocessing.resized`."""
    extent = None
    if data.startswith(png.SIGNATURE):
        image = _decode_png(data, name)
    elif data.startswith(JPEG_SIGNATURE):
        image, extent = _decode_jpeg(data, name, at_least)
    elif looks_like_dicom(data):
        from data.dicom import decode_dicom  # pydicom takes 0.3 s to import, and most data sets hold none

        image = decode_dicom(data, name)
    else:
        refuse(name, f"is {_other_format(data)}; wanted JPEG, PNG or DICOM")
    if not np.ptp(image[::64]) and not np.ptp(image):  # nearly always a few rows are enough to tell
        refuse(name, "is blank: all pixels are equal")
    return Scaled(image, extent or (float(image.shape[0]), float(image.shape[1])))


def verify_image(data: bytes, name: str) -> tuple[int, int]:
    """Prove that an image decodes; its full height and width.

    JPEGs are decoded at a small scale: all of the coded data is read and checked, a half to three quarters of the
    time is saved.

    Raises:
        ImageError: as `decode_image`.
    """
    height, width = decode_image(data, name, at_least=256).shape
    if data.startswith(JPEG_SIGNATURE) and (outline := read_outline(data)):
        return outline.height, outline.width
    return height, width


def looks_like_dicom(data: bytes) -> bool:
    """Whether bytes start like DICOM: the Part 10 prefix, or a bare data set opening with group 0002 or 0008."""
    bare = data[1:4:2] == b"\0\0" and data[:1] in (b"\x02", b"\x08")
    return data[128:132] == b"DICM" or bare or data[:3] == b"\0\x08\0"  # the last is big endian


def check_pixel_count(height: int, width: int, name: str) -> None:
    """Refuse a size written in a header before anything is allocated for it."""
    if height < 1 or width < 1:
        refuse(name, "says that it has no pixels")
    if height * width > MAX_PIXELS:
        refuse(name, f"says that it has {height} x {width} pixels, more than {MAX_PIXELS // 10**6} million")


def to_unit_range(pixels: UInt[np.ndarray, "H W *channels"]) -> Float[np.ndarray, "H W"]:
    """Full-scale integers to grey in [0, 1]; 2 or 4 channels end with alpha, which is ignored."""
    scale = np.float32(np.iinfo(pixels.dtype).max)
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        image = np.empty(pixels.shape[:2], np.float32)
        for start in range(0, len(image), 64):  # in pieces: in between, 12 bytes per pixel are needed
            rows = slice(start, start + 64)
            np.minimum(pixels[rows, :, :3] @ LUMINANCE / scale, np.float32(1), out=image[rows])
        return image
    return (pixels if pixels.ndim == 2 else pixels[..., 0]) / scale  # one pass: a fifth of the time of three


def _decode_png(data: bytes, name: str) -> Float[np.ndarray, "H W"]:
    """PNG of 1, 2, 4, 8 or 16 bits, grey, colour or palette.

    Pillow leaves rows black where the compressed stream ends early, so a black last row is looked into. (libpng through
    imagecodecs would refuse by itself, but its error path loses a reference to None, which ends Python 3.11 in time.)
    """
    outline = png.read_outline(data)
    if outline is None:
        refuse(name, "is a damaged or cut PNG: no valid header")
    check_pixel_count(outline.height, outline.width, name)
    if not png.reaches_its_end(data):
        refuse(name, "is a cut PNG: its end is missing")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = _plain_pixels(image)
    except MemoryError:
        raise
    except Exception:  # Pillow promises no set of exceptions for damaged files
        refuse(name, "is a damaged or cut PNG")
    if (outline.interlaced or not pixels[-1].any()) and not png.holds_all_rows(data, outline):
        refuse(name, "is a cut PNG: its last rows are missing")
    return to_unit_range(pixels)


def _plain_pixels(image: Image.Image) -> UInt[np.ndarray, "H W *channels"]:
    """8 or 16 bits per channel, whatever Pillow's mode."""
    if image.mode in ("P", "PA"):
        image = image.convert("RGB")
    elif image.mode == "1":
        image = image.convert("L")
    return np.asarray(image)


def _decode_jpeg(data: bytes, name: str, at_least: int | None) -> Scaled:
    """8-bit JPEG, baseline or progressive, grey or colour (of which Y is taken)."""
    outline = _check_jpeg(data, name)
    side = at_least or 0
    try:
        pixels = simplejpeg.decode_jpeg(data, "GRAY", min_height=side, min_width=side, strict=True)[..., 0]
        return Scaled(to_unit_range(pixels), outline.extent(*pixels.shape))
    except ValueError:  # libjpeg-turbo's errors, and with strict its warnings
        refuse(name, "is a damaged or cut JPEG")


def _check_jpeg(data: bytes, name: str) -> JpegOutline:
    """Refuse what libjpeg would spend minutes on, decode by half without a word, or cannot decode."""
    outline = read_outline(data)
    if outline is None:
        refuse(name, "is a cut JPEG: no image data")
    check_pixel_count(outline.height, outline.width, name)
    if outline.num_scans > MAX_JPEG_SCANS:
        refuse(name, f"is a JPEG of more than {MAX_JPEG_SCANS} scans")
    if outline.bits != 8 or not outline.lossy:
        refuse(name, "is a JPEG of more than 8 bits, or a lossless one; these are read inside DICOM files only")
    if outline.num_components not in (1, 3):
        refuse(name, f"is a JPEG of {outline.num_components} components; wanted grey (1) or colour (3)")
    if outline.process in PROGRESSIVE and not outline.refined:
        refuse(name, "is a cut progressive JPEG: its last scans are missing")
    return outline


def _other_format(data: bytes) -> str:
    """What a file that we do not read looks like, from our own list of words."""
    if not data:
        return "empty"
    return next((words for start, words in OTHER_FORMATS if data.startswith(start)), "of an unknown format")


def refuse(name: str, reason: str) -> NoReturn:
    """Raise an `ImageError` without the exception that led to it, whose text may quote the file."""
    raise ImageError(f"{name}: {reason}", reason) from None
