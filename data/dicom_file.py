"""The container of a DICOM file: file meta, the few header elements that we ask for, and the bytes of one frame.

pydicom parses. Around it stands what a file from elsewhere needs: it is asked for nothing but `ELEMENTS`, reading ends
where the pixels begin, what a header may cost is bounded, and every word that pydicom says is kept in, since its
warnings, log lines and errors quote values.
"""

import io
import logging
import threading
import warnings
import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from pydicom import Dataset, uid
from pydicom.datadict import tag_for_keyword
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag

from data.dicom_pixels import NATIVE, SUPPORTED
from data.images import ImageError, refuse

MAX_INFLATED_BYTES = 256 * 2**20  # twice the largest image that we read
MAX_HEADER_READS = 100_000  # two or three per element; radiographs have a few hundred elements
MAX_HEADER_BYTES = 32 * 2**20  # of what is looked at, not of what is stepped over
MAX_ELEMENT_BYTES = 2 * 2**20  # of an element that we ask for: the longest hold a dozen look-up tables
MAX_FRAGMENTS = 10_000

ELEMENTS = """SpecificCharacterSet Modality BodyPartExamined ViewPosition SamplesPerPixel PhotometricInterpretation
NumberOfFrames Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelPaddingValue
PixelPaddingRangeLimit RescaleSlope RescaleIntercept ModalityLUTSequence VOILUTSequence WindowCenter WindowWidth
VOILUTFunction""".split()
PIXEL_DATA = 0x7FE00010
UNDEFINED = 0xFFFFFFFF
ITEM, END_OF_ITEMS = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"  # (FFFE,E000) and (FFFE,E0DD)
TOO_LONG = "has a longer DICOM header than any radiograph"

_quiet_lock = threading.Lock()


class PixelElement(NamedTuple):
    """Where the value of (7FE0,0010) Pixel Data is."""

    start: int
    length: int  # bytes, or UNDEFINED for fragments
    vr: str | None  # None in Implicit VR


class DicomFile(NamedTuple):
    """A header, and where the pixels are."""

    transfer_syntax: str
    dataset: Dataset
    pixels: PixelElement | None  # None when there are none, or the file is cut before them
    file: io.BufferedIOBase  # inflated if need be


class BoundedReader(io.BufferedReader):
    """Ends a parse that would take minutes or gigabytes: a small file can hold millions of empty or nested elements."""

    def __init__(self, file: io.BufferedIOBase, image: str) -> None:
        super().__init__(file)
        self.image, self.num_reads, self.num_bytes = image, 0, 0

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file's, asked for a stated number of bytes.

        Raises:
            ImageError: more than a radiograph's header can hold.
        """
        self.num_reads += 1
        self.num_bytes += size or 0
        if self.num_reads > MAX_HEADER_READS or self.num_bytes > MAX_HEADER_BYTES:
            refuse(self.image, TOO_LONG)
        return super().read(size)


@contextmanager
def kept_in(name: str) -> Generator[None]:
    """Let nothing that pydicom says out: no warning, no log line, and of its exceptions the fact alone.

    One thread at a time, since the filters are the process's; parsing is Python and could not overlap anyway.
    """
    logger = logging.getLogger("pydicom")
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        disabled, logger.disabled = logger.disabled, True
        try:
            yield
        except (ImageError, MemoryError):
            raise
        except Exception:  # pydicom promises no set of exceptions for damaged files
            refuse(name, "is a damaged DICOM file")
        finally:
            logger.disabled = disabled


def open_dicom(file: io.BufferedIOBase, name: str, elements: Sequence[str] = ELEMENTS) -> DicomFile:
    """Read some elements, up to the pixel data and no further; to be called within `kept_in`.

    Args:
        elements: Keywords.

    Raises:
        ImageError: a transfer syntax that is not read, or a header that costs more than any radiograph's.
    """
    syntax = _transfer_syntax(file)
    if syntax not in SUPPORTED:
        known = uid.UID_dictionary.get(syntax)
        refuse(name, f"has the transfer syntax {known[0] if known else '(private or unknown)'}, which is not read")
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        file = io.BytesIO(_inflated(file.read(), name))
    tags: list[BaseTag | int] = [tag for keyword in elements if (tag := tag_for_keyword(keyword)) is not None]
    reader = BoundedReader(file, name)
    found: PixelElement | None = None

    def at_pixel_data(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal found
        if MAX_ELEMENT_BYTES < length < UNDEFINED and tag in tags:
            refuse(name, TOO_LONG)
        if tag == PIXEL_DATA:
            found = PixelElement(reader.tell(), length, vr)
        return tag >= PIXEL_DATA

    implicit, big = syntax == uid.ImplicitVRLittleEndian, syntax == uid.ExplicitVRBigEndian
    try:
        dataset = read_dataset(reader, implicit, not big, stop_when=at_pixel_data, specific_tags=tags)
    finally:
        reader.detach()  # or it would close the file
    return DicomFile(syntax, dataset, found, file)


def _transfer_syntax(file: io.BufferedIOBase) -> str:
    """(0002,0010), leaving the file where the data set starts; guessed from the first element without file meta.

    We look ourselves because pydicom inflates deflated files without bound as it opens them.
    """
    head = file.read(132)
    position = 132 if head[128:] == b"DICM" else 0
    syntax = ""
    file.seek(position)
    while (tag := file.read(8))[:2] == b"\x02\0":  # group 2 is always Explicit VR Little Endian (PS3.10 7.1)
        long_form = tag[4:6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        length = int.from_bytes(file.read(4) if long_form else tag[6:8], "little")
        if tag[2:4] == b"\x10\0":
            syntax = file.read(min(length, 64)).rstrip(b"\0 ").decode("ascii")
        position += (12 if long_form else 8) + length
        file.seek(position)
    file.seek(position)
    if syntax:
        return syntax
    if tag[:1] == b"\0":  # group 0008 the other way round
        return uid.ExplicitVRBigEndian
    return uid.ExplicitVRLittleEndian if tag[4:6].isalpha() and tag[4:6].isupper() else uid.ImplicitVRLittleEndian


def _inflated(body: bytes, name: str) -> bytes:
    """Undo the raw deflate of PS3.5 A.5, up to a bound: 1 MB can hold 1 GB of zeros."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = inflater.decompress(body, MAX_INFLATED_BYTES)
    if inflater.unconsumed_tail:
        refuse(name, f"inflates to more than {MAX_INFLATED_BYTES >> 20} MiB")
    if not inflater.eof:
        refuse(name, "is a cut deflated DICOM file")
    return plain


def frame_bytes(opened: DicomFile, name: str) -> bytes:
    """Pixel Data: the plain values, or the codestream of the one frame, its fragments joined (PS3.5 A.4).

    Raises:
        ImageError: cut, of several frames, or not packed as the transfer syntax says.
    """
    if opened.pixels is None:
        refuse(name, "has no pixel data, or is cut before its end")
    start, length, _ = opened.pixels
    if (opened.transfer_syntax in NATIVE) == (length == UNDEFINED):
        refuse(name, "has pixel data that is not packed as its transfer syntax says (plain or compressed)")
    opened.file.seek(start)
    if length == UNDEFINED:
        table, *fragments = _items(opened.file, name)
        if len(table) > 4:
            refuse(name, "has pixel data for more than one frame")
        return b"".join(fragments)
    content = opened.file.read(length)
    if len(content) < length:
        refuse(name, "has cut pixel data: the file ends early")
    return content


def _items(file: io.BufferedIOBase, name: str) -> Iterator[bytes]:
    """The offset table and the fragments; pydicom's reader of them takes the end of a cut file for the last one's."""
    for _ in range(MAX_FRAGMENTS):
        tag, length = file.read(4), int.from_bytes(file.read(4), "little")
        if tag == END_OF_ITEMS:
            return
        content = file.read(length)
        if tag != ITEM or len(content) < length:
            refuse(name, "has cut pixel data: the file ends early")
        yield content
    refuse(name, f"has pixel data in more than {MAX_FRAGMENTS} fragments")
