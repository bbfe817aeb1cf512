"""Whose image a DICOM file is, of which study, in which view: the header alone, the picture stays on the disk.

Identifiers leave this module as pseudonyms, views as one of our five; no other text of the header leaves it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from pydicom import Dataset, uid
from pydicom.filereader import read_dataset
from pydicom.tag import Tag

from data.dicom import CHEST, inflated, quiet, radiograph_info, transfer_syntax
from data.dicom_pixels import SUPPORTED
from data.images import ImageError, check_file, looks_like_dicom, refuse
from data.pseudonyms import pseudonym
from data.views import view_of_dicom

PIXEL_DATA = 0x7FE00010
START = 1 << 16  # bytes in which the file meta (group 2) must end

ELEMENTS = """SOPInstanceUID Modality PatientID IssuerOfPatientID BodyPartExamined ViewPosition StudyInstanceUID
PatientOrientation SamplesPerPixel PhotometricInterpretation NumberOfFrames Rows Columns ViewCodeSequence""".split()


@dataclass(frozen=True)
class StudyHeader:
    """Pseudonyms and view of one image."""

    image_id: str  # from (0008,0018) SOP Instance UID
    study_id: str  # from (0020,000D) Study Instance UID
    patient_id: str  # from (0010,0020) Patient ID and (0010,0021) its issuer; "" where there is none
    view: str


def read_study_header(path: Path, name: str, key: bytes) -> StudyHeader:
    """Read the header of a chest radiograph, up to its pixels.

    Args:
        name: What to call the file in an error.
        key: Of the pseudonyms.

    Raises:
        ImageError: Not DICOM, damaged, not a grey radiograph of a chest, or without the identifiers to group it by.
    """
    check_file(path)
    try:
        with open(path, "rb") as file, quiet():
            dataset = _read(file, name)
            return _study_header(dataset, name, key)
    except (ImageError, MemoryError):
        raise
    except OSError as error:
        refuse(name, f"cannot be read ({error.strerror})")
    except Exception:  # pydicom promises no set of exceptions for damaged files
        refuse(name, "is a damaged DICOM file")


def _read(file: BinaryIO, name: str) -> Dataset:
    start = file.read(START)
    if not looks_like_dicom(start):
        refuse(name, "is not a DICOM file")
    syntax, position = transfer_syntax(start)
    if syntax not in SUPPORTED:
        refuse(name, "has a transfer syntax that is not read (video, retired or private)")
    file.seek(position)
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        return _parse(BytesIO(inflated(file.read(), name)), syntax, name)
    return _parse(file, syntax, name)


def _parse(file: BinaryIO | BytesIO, syntax: str, name: str) -> Dataset:
    met: list[bool] = []

    def at_pixels(tag: Any, vr: str | None, length: int) -> bool:
        met.append(tag == PIXEL_DATA)
        return tag >= PIXEL_DATA

    tags: list[int] = [Tag(keyword) for keyword in ELEMENTS]
    implicit, big = syntax == uid.ImplicitVRLittleEndian, syntax == uid.ExplicitVRBigEndian
    dataset = read_dataset(file, implicit, not big, stop_when=at_pixels, specific_tags=tags)
    info = radiograph_info(dataset, name, has_pixels=bool(met) and met[-1])
    if info.body_part not in ("", *CHEST):
        refuse(name, f"has body part {info.body_part}; wanted a chest radiograph")
    return dataset


def _study_header(dataset: Dataset, name: str, key: bytes) -> StudyHeader:
    image, study = _text(dataset, "SOPInstanceUID"), _text(dataset, "StudyInstanceUID")
    if not image:
        refuse(name, "has no (0008,0018) SOP Instance UID to tell it from others by")
    if not study:
        refuse(name, "has no (0020,000D) Study Instance UID to group it by")
    patient, issuer = _text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID")
    codes: Sequence[Dataset] = dataset.get("ViewCodeSequence") or [Dataset()]
    orientation = dataset.get("PatientOrientation") or ""
    return StudyHeader(
        image_id=pseudonym("image", image, key),
        study_id=pseudonym("study", study, key),
        patient_id=pseudonym("patient", f"{patient}\\{issuer}" if issuer else patient, key) if patient else "",
        view=view_of_dicom(
            position=_text(dataset, "ViewPosition"),
            code=_text(codes[0], "CodeValue"),
            meaning=_text(codes[0], "CodeMeaning"),
            orientation=orientation if isinstance(orientation, str) else "".join(orientation),
        ),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip(" \0")
