"""Phantom pictures as files: 8-bit JPEG, 16-bit PNG, 12-bit DICOM.

H W are image rows and columns.
"""

import hashlib
import io
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image


def write_image(
    path: Path, picture: Float[np.ndarray, "H W"], view: str, patient_id: str = "0", study_id: str = "0"
) -> None:
    """Write `picture` (in [0, 1]) in the format of the path's suffix: .jpg, .png or .dcm.

    The ids only go into a DICOM header.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        path.write_bytes(_jpeg(picture))
    elif path.suffix == ".png":
        Image.fromarray(np.rint(picture * 65535).astype(np.uint16)).save(path)
    else:
        path.write_bytes(_dicom(picture, view, path.stem, patient_id, study_id))


def _jpeg(picture: Float[np.ndarray, "H W"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.rint(picture * 255).astype(np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def _uid(*parts: str) -> str:
    """A UID below the root for hashed identifiers (2.25 and a 128-bit number), the same for the same parts."""
    return f"2.25.{int.from_bytes(hashlib.sha256('/'.join(parts).encode()).digest()[:16])}"


def _dicom(picture: Float[np.ndarray, "H W"], view: str, image_id: str, patient_id: str, study_id: str) -> bytes:
    """A digital X-ray image for presentation; half of the images are MONOCHROME1, decided by the id."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

    inverted = hashlib.sha256(image_id.encode()).digest()[0] % 2 == 1
    values = np.rint((1 - picture if inverted else picture) * 4095).astype("<u2")
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = _uid(study_id, image_id)
    dataset.StudyInstanceUID = _uid(study_id)
    dataset.SeriesInstanceUID = _uid(study_id, "series")
    dataset.PatientID = patient_id
    dataset.PatientName = f"Phantom^{patient_id}"
    dataset.AccessionNumber = study_id
    dataset.Modality, dataset.BodyPartExamined = "DX", "CHEST"
    dataset.ViewPosition = {"LATERAL": "LL"}.get(view, view)
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096  # the whole range: the picture is finished already
    dataset.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    dataset.PixelData = values.tobytes()
    dataset["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
