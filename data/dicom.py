"""DICOM radiographs to grey images.

Only the elements listed in `dicom_file.ELEMENTS` are ever parsed, and no text of a header reaches an error, a log or a
warning; only codes found in the short lists below are repeated. pydicom parses (`dicom_file`), imagecodecs decodes
(`dicom_pixels`), and `greyscale` turns stored values into grey. (0028,0004) Photometric Interpretation is believed: a
file that is labelled MONOCHROME1 by mistake comes out inverted, since nothing in it says otherwise.
"""

import math
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import Float
from pydicom import Dataset, uid

from data.dicom_file import DicomFile, frame_bytes, kept_in, open_dicom
from data.dicom_pixels import PixelFormat, stored_values
from data.greyscale import Greyscale, Lut, Window, to_grey
from data.images import check_file, check_pixel_count, refuse
from data.views import DICOM_VIEW_POSITIONS

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


@dataclass(frozen=True)
class DicomInfo:
    """What may be told about a file: sizes, and codes from our own lists ("" for anything else)."""

    transfer_syntax: str  # UID
    rows: int
    columns: int
    photometric: str
    modality: str
    view_position: str  # (0018,5101)
    body_part: str  # (0018,0015)


def decode_dicom(data: bytes, name: str) -> Float[np.ndarray, "H W"]:
    """Decode the bytes of a DICOM file to grey values in [0, 1], air dark and bone bright.

    Modality LUT, then VOI LUT (else the first usable window, else the range of the values), then MONOCHROME1 inversion.

    Raises:
        ImageError: not a single grey radiograph, damaged, cut short, or too large.
    """
    return read_dicom(data, name)[0]


def read_dicom(data: bytes, name: str) -> tuple[Float[np.ndarray, "H W"], DicomInfo]:
    """As `decode_dicom`, with the part of the header that may be told."""
    with kept_in(name):
        opened = open_dicom(BytesIO(data), name)
        info, form, scale = radiograph_info(opened, name), _pixel_format(opened, name), _greyscale(opened.dataset)
        pixels = frame_bytes(opened, name)
    return to_grey(stored_values(pixels, form, name), scale), info


def read_info(path: Path) -> DicomInfo:
    """The part of a file's header that may be told; what follows the header is not read.

    Raises:
        ImageError: no file that can be read, or not the header of a single grey radiograph.
    """
    check_file(path)
    try:
        file = path.open("rb")
    except OSError as error:
        refuse(str(path), f"cannot be read ({error.strerror})")
    with file, kept_in(str(path)):
        return radiograph_info(open_dicom(file, str(path)), str(path))


def radiograph_info(opened: DicomFile, name: str) -> DicomInfo:
    """Refuse what is not one grey radiograph."""
    dataset = opened.dataset
    modality = str(dataset.get("Modality") or "").strip()
    if modality not in RADIOGRAPHS:
        code = f"modality {modality}" if modality in MODALITIES else "an unknown modality"
        refuse(name, f"has {code}; wanted a radiograph (CR, DX, RG, or no modality given)")
    if opened.pixels is None:
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
        transfer_syntax=str(opened.transfer_syntax),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        photometric=photometric,
        modality=modality,
        view_position=view if view in DICOM_VIEW_POSITIONS else "",
        body_part=part if part in BODY_PARTS else "",
    )


def _pixel_format(opened: DicomFile, name: str) -> PixelFormat:
    """Bits Stored is believed here; `stored_values` sees whether the pixels contradict it."""
    dataset, syntax = opened.dataset, opened.transfer_syntax
    allocated = int(dataset.BitsAllocated)
    stored = int(dataset.get("BitsStored") or allocated)
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        refuse(name, f"stores {stored} of {allocated} bits; wanted up to 16 bits in 8 or 16")
    high = int(dataset.get("HighBit") or stored - 1)
    if not stored <= high + 1 <= allocated:  # contradicts the others; PS3.3 C.7.6.3.1.1 leaves no choice anyway
        high = stored - 1
    word = (
        syntax == uid.ExplicitVRBigEndian and allocated == 8 and opened.pixels is not None and opened.pixels.vr == "OW"
    )
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    return PixelFormat(syntax, int(dataset.Rows), int(dataset.Columns), allocated, stored, high, signed, word)


def _greyscale(dataset: Dataset) -> Greyscale:
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    slope, intercept = (next(iter(_numbers(dataset, key)), None) for key in ("RescaleSlope", "RescaleIntercept"))
    return Greyscale(
        inverted=str(dataset.PhotometricInterpretation).strip() == "MONOCHROME1",
        padding=_padding(dataset, signed),
        slope=1.0 if slope is None else slope,
        intercept=intercept or 0.0,
        modality_lut=_lut(dataset, "ModalityLUTSequence", signed),
        voi_lut=_lut(dataset, "VOILUTSequence", signed or (intercept or 0) < 0),
        window=_window(dataset),
    )


def _window(dataset: Dataset) -> Window | None:
    """The first of the windows that the standard allows; files give several, as alternatives (PS3.3 C.11.2.1.2.1)."""
    function = str(dataset.get("VOILUTFunction") or "").strip()
    function = function if function in ("LINEAR_EXACT", "SIGMOID") else "LINEAR"
    pairs = zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth"), strict=False)
    windows = [Window(center, width, function) for center, width in pairs if center is not None and width is not None]
    return next((window for window in windows if window.valid), None)


def _numbers(dataset: Dataset, keyword: str) -> list[float | None]:
    """The values of a decimal string, None for each that is no finite number."""
    value = dataset.get(keyword)
    values = [value] if value is None or isinstance(value, (str, float, int)) else value
    return [_finite(value) for value in values]


def _finite(value: object) -> float | None:
    try:
        number = float(str(value))
    except ValueError:
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
