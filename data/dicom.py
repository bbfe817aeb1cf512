"""DICOM radiographs to grey images.

Only the elements listed in `ELEMENTS` are ever parsed, and no text of a header reaches an error, a log or a warning;
only codes found in the short lists below are repeated. pydicom parses, imagecodecs decodes (`dicom_pixels`), and
`greyscale` turns stored values into grey. (0028,0004) Photometric Interpretation is believed: a file that is labelled
MONOCHROME1 by mistake comes out inverted, since nothing in it says otherwise.
"""

import logging
import math
import threading
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Float
from pydicom import Dataset, uid
from pydicom.encaps import get_frame
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from data.dicom_pixels import NATIVE, SUPPORTED, PixelFormat, stored_values
from data.greyscale import Greyscale, Lut, Window, to_grey
from data.images import ImageError, check_pixel_count, refuse
from data.views import DICOM_VIEW_POSITIONS

MAX_INFLATED_BYTES = 256 * 2**20

RADIOGRAPHS = ("CR", "DX", "RG", "")  # (0008,0060); anonymised public sets leave it out, VinDr-CXR for one
MODALITIES = (
    *RADIOGRAPHS,
    *"CT ES IO IVOCT KO MG MR NM OP OT PR PT PX RF RTDOSE RTPLAN RTSTRUCT SC SEG SR US XA XC".split(),
)
CHEST = ("CHEST", "THORAX", "LUNG", "RIB")  # (0018,0015), defined terms of PS3.16 annex L, as all of these
BODY_PARTS = (
    *CHEST,
    *"ABDOMEN ANKLE ARM BREAST CLAVICLE COCCYX CSPINE ELBOW EXTREMITY FINGER FOOT FOREARM HAND HEAD HEEL HIP".split(),
    *"HUMERUS JAW KNEE LEG LSPINE NECK PELVIS SHOULDER SINUS SKULL SPINE SSPINE TOE TSPINE WRIST".split(),
)
PHOTOMETRIC = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")

ELEMENTS = """Modality BodyPartExamined ViewPosition SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows
Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue PixelPaddingRangeLimit RescaleSlope
RescaleIntercept ModalityLUTSequence VOILUTSequence WindowCenter WindowWidth VOILUTFunction PixelData""".split()

_quiet_lock = threading.Lock()


@dataclass(frozen=True)
class DicomInfo:
    """What may be told about a file: sizes, and codes from our own lists ("" for anything else)."""

    rows: int
    columns: int
    photometric: str
    modality: str
    view_position: str  # (0018,5101)
    body_part: str  # (0018,0015)


def decode_dicom(data: bytes, name: str) -> Float[np.ndarray, "H W"]:
    """Decode the bytes of a DICOM file to grey values in [0, 1], air dark and bone bright.

    Modality LUT, then VOI LUT (else the first window, else the range of the values), then MONOCHROME1 inversion.

    Raises:
        ImageError: not a single grey radiograph, damaged, cut short, or too large.
    """
    return read_dicom(data, name)[0]


def read_dicom(data: bytes, name: str) -> tuple[Float[np.ndarray, "H W"], DicomInfo]:
    """As `decode_dicom`, with the part of the header that may be told."""
    info, form, scale, pixel_data = _read_header(data, name)
    return to_grey(stored_values(pixel_data, form, name), scale), info


def _read_header(data: bytes, name: str) -> tuple[DicomInfo, PixelFormat, Greyscale, bytes]:
    """Everything that pydicom is asked for, with its warnings, log lines and exceptions kept in."""
    with quiet():
        try:
            syntax, start = transfer_syntax(data)
            if syntax not in SUPPORTED:
                refuse(name, "has a transfer syntax that is not read (video, retired or private)")
            body = inflated(data[start:], name) if syntax == uid.DeflatedExplicitVRLittleEndian else data[start:]
            dataset = _parse(body, syntax)
            info = radiograph_info(dataset, name, has_pixels="PixelData" in dataset)
            return info, _pixel_format(dataset, syntax, name), _greyscale(dataset), _pixel_data(dataset, syntax)
        except (ImageError, MemoryError):
            raise
        except Exception:  # pydicom promises no set of exceptions for damaged files
            refuse(name, "is a damaged DICOM file")


@contextmanager
def quiet() -> Generator[None]:
    """Silence pydicom, which quotes header values in warnings and logs.

    One thread at a time, since the filters are the process's; parsing is Python and could not overlap anyway.
    """
    logger = logging.getLogger("pydicom")
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disabled, logger.disabled = logger.disabled, True
        try:
            yield
        finally:
            logger.disabled = disabled


def transfer_syntax(data: bytes) -> tuple[str, int]:
    """(0002,0010) and where the data set starts; guessed from the first element where there is no file meta.

    We look ourselves because pydicom inflates deflated files without bound as it opens them.
    """
    position = 132 if data[128:132] == b"DICM" else 0
    syntax = ""
    while data[position : position + 2] == b"\x02\0":  # group 2 is always Explicit VR Little Endian (PS3.10 7.1)
        element = int.from_bytes(data[position + 2 : position + 4], "little")
        long_form = data[position + 4 : position + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        header, width = (12, 4) if long_form else (8, 2)
        length = int.from_bytes(data[position + header - width : position + header], "little")
        if element == 0x10:
            syntax = data[position + header : position + header + length].rstrip(b"\0 ").decode("ascii")
        position += header + length
    if not syntax:
        explicit = data[position + 4 : position + 6].isalpha() and data[position + 4 : position + 6].isupper()
        syntax = uid.ExplicitVRLittleEndian if explicit else uid.ImplicitVRLittleEndian
    return syntax, position


def inflated(body: bytes, name: str) -> bytes:
    """Undo the raw deflate of PS3.5 A.5, up to a bound: 1 MB can hold 1 GB of zeros."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(body, MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        refuse(name, f"inflates to more than {MAX_INFLATED_BYTES >> 20} MiB")
    if not inflater.eof:
        refuse(name, "is a cut deflated DICOM file")
    return plain


def _parse(body: bytes, syntax: str) -> Dataset:
    tags: list[int] = [Tag(keyword) for keyword in ELEMENTS]
    implicit, big = syntax == uid.ImplicitVRLittleEndian, syntax == uid.ExplicitVRBigEndian
    return read_dataset(BytesIO(body), implicit, not big, specific_tags=tags)


def radiograph_info(dataset: Dataset, name: str, has_pixels: bool) -> DicomInfo:
    """Refuse what is not one grey radiograph.

    Args:
        has_pixels: Pixel Data was met, whether or not it was read.
    """
    modality = str(dataset.get("Modality") or "").strip()
    if modality not in RADIOGRAPHS:
        code = f"modality {modality}" if modality in MODALITIES else "an unknown modality"
        refuse(name, f"has {code}; wanted a radiograph (CR, DX, RG, or no modality given)")
    if not has_pixels:
        refuse(name, "has no pixel data, or is cut before its end")
    photometric = str(dataset.get("PhotometricInterpretation") or "").strip()
    if photometric not in PHOTOMETRIC or int(dataset.get("SamplesPerPixel") or 1) != 1:
        code = photometric if photometric in COLOUR else "not grey"
        refuse(name, f"is {code}; wanted MONOCHROME1 or MONOCHROME2")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        refuse(name, "has several frames; wanted one image per file")
    check_pixel_count(int(dataset.Rows), int(dataset.Columns), name)
    view, part = (str(dataset.get(key) or "").strip() for key in ("ViewPosition", "BodyPartExamined"))
    return DicomInfo(
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        photometric=photometric,
        modality=modality,
        view_position=view if view in DICOM_VIEW_POSITIONS else "",
        body_part=part if part in BODY_PARTS else "",
    )


def _pixel_format(dataset: Dataset, syntax: str, name: str) -> PixelFormat:
    allocated, stored = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = int(dataset.get("HighBit", stored - 1))
    if allocated not in (8, 16) or not 1 <= stored <= high + 1 <= allocated:
        refuse(name, f"stores {stored} of {allocated} bits; wanted up to 16 bits in 8 or 16")
    word = syntax == uid.ExplicitVRBigEndian and allocated == 8 and dataset["PixelData"].VR == "OW"
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    return PixelFormat(syntax, int(dataset.Rows), int(dataset.Columns), allocated, stored, high, signed, word)


def _pixel_data(dataset: Dataset, syntax: str) -> bytes:
    """The plain values, or the fragments of the one frame joined (PS3.5 A.4)."""
    return dataset.PixelData if syntax in NATIVE else get_frame(dataset.PixelData, 0, number_of_frames=1)


def _greyscale(dataset: Dataset) -> Greyscale:
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    center, width = _number(dataset, "WindowCenter"), _number(dataset, "WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "").strip()
    function = function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
    return Greyscale(
        inverted=str(dataset.PhotometricInterpretation).strip() == "MONOCHROME1",
        padding=_padding(dataset, signed),
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
        modality_lut=_lut(dataset, "ModalityLUTSequence", signed),
        voi_lut=_lut(dataset, "VOILUTSequence", signed or (intercept or 0) < 0),
        window=None if center is None or width is None else Window(center, width, function),
    )


def _number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of a decimal string; None when absent or not a finite number."""
    value = dataset.get(keyword)
    try:
        number = float(value if isinstance(value, (str, float, int)) else value[0])
    except (TypeError, ValueError, IndexError):
        return None
    return number if math.isfinite(number) else None


def _padding(dataset: Dataset, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest padding value; its VR, US or SS, follows Pixel Representation (PS3.5 annex A)."""
    if (value := dataset.get("PixelPaddingValue")) is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = [_with_sign(int(end), signed) for end in (value, value if limit is None else limit)]
    return min(ends), max(ends)


def _with_sign(value: int, signed: bool) -> int:
    """A 16-bit number read as US or SS, whichever it was, as the one it should be."""
    value &= 0xFFFF
    return value - 0x10000 if signed and value >= 0x8000 else value


def _lut(dataset: Dataset, keyword: str, signed: bool) -> Lut | None:
    """The first item of a LUT sequence (PS3.3 C.11.1.1): number of entries (0 is 65536), first input, bits."""
    if not dataset.get(keyword):
        return None
    item = dataset[keyword].value[0]
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = (count & 0xFFFF) or 0x10000
    entries = item.LUTData
    if isinstance(entries, (bytes, bytearray)):
        packed = bits <= 8 and len(entries) in (count, count + 1)
        order = "<" if dataset.original_encoding[1] else ">"
        entries = np.frombuffer(entries, "u1" if packed else f"{order}u2")
    entries = np.atleast_1d(np.array(entries, np.float64))
    if len(entries) < count or not 1 <= bits <= 16:
        raise ValueError("damaged look-up table")
    return Lut(_with_sign(first, signed), bits, entries[:count])
