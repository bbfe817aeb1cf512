"""Whose image a DICOM file is, of which study, in which view: the header alone, the picture stays on the disk.

Identifiers leave this module as pseudonyms, views as one of our five; no other text of the header leaves it.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom import Dataset

from data.dicom import CHEST, radiograph_info
from data.dicom_file import kept_in, open_dicom
from data.images import check_file, looks_like_dicom, refuse
from data.pseudonyms import pseudonym
from data.views import view_of_dicom

START = 1 << 10  # bytes that tell a DICOM file

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
        file = path.open("rb")
    except OSError as error:
        refuse(name, f"cannot be read ({error.strerror})")
    with file, kept_in(name):
        if not looks_like_dicom(file.read(START)):
            refuse(name, "is not a DICOM file")
        file.seek(0)
        return _study_header(_chest_header(file, name), name, key)


def read_view(data: bytes, name: str) -> str:
    """The view of a chest radiograph from the bytes of its file, with or without identifiers in it.

    Raises:
        ImageError: Damaged, or not a grey radiograph of a chest.
    """
    with kept_in(name):
        return _view(_chest_header(io.BytesIO(data), name))


def _chest_header(file: io.BufferedIOBase, name: str) -> Dataset:
    """The elements of a chest radiograph's header."""
    opened = open_dicom(file, name, ELEMENTS)
    info = radiograph_info(opened, name)
    if info.body_part not in ("", *CHEST):
        refuse(name, f"has body part {info.body_part}; wanted a chest radiograph")
    return opened.dataset


def _study_header(dataset: Dataset, name: str, key: bytes) -> StudyHeader:
    image, study = _text(dataset, "SOPInstanceUID"), _text(dataset, "StudyInstanceUID")
    if not image:
        refuse(name, "has no (0008,0018) SOP Instance UID to tell it from others by")
    if not study:
        refuse(name, "has no (0020,000D) Study Instance UID to group it by")
    patient, issuer = _text(dataset, "PatientID"), _text(dataset, "IssuerOfPatientID")
    return StudyHeader(
        image_id=pseudonym("image", image, key),
        study_id=pseudonym("study", study, key),
        patient_id=pseudonym("patient", f"{patient}\\{issuer}" if issuer else patient, key) if patient else "",
        view=_view(dataset),
    )


def _view(dataset: Dataset) -> str:
    codes: Sequence[Dataset] = dataset.get("ViewCodeSequence") or [Dataset()]
    orientation = dataset.get("PatientOrientation") or ""
    return view_of_dicom(
        position=_text(dataset, "ViewPosition"),
        code=_text(codes[0], "CodeValue"),
        meaning=_text(codes[0], "CodeMeaning"),
        orientation=orientation if isinstance(orientation, str) else "".join(orientation),
    )


def _text(dataset: Dataset, keyword: str) -> str:
    return str(dataset.get(keyword) or "").strip(" \0")
