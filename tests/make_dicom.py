"""Small made-up DICOM radiographs, and codestreams of the same picture by every encoder."""

import io

import imagecodecs
import numpy as np
import pytest
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite

from data.images import ImageError, decode_image

H, W = 62, 46


def ramp(bits: int = 12) -> np.ndarray:
    """(H, W) values from 0 to the top of `bits`, with some noise."""
    plane = np.add.outer(np.arange(H) * 3.0, np.arange(W) * 2.0)
    plane = plane / plane.max() * (2**bits - 1) * 0.98 + np.random.default_rng(0).normal(0, 2, (H, W))
    plane[0, 0], plane[-1, -1] = 0, 2**bits - 1
    return plane.round().clip(0, 2**bits - 1).astype(np.uint16)


def header(pixels: np.ndarray, bits: int = 12, **elements) -> Dataset:
    dataset = Dataset()
    dataset.Modality, dataset.PhotometricInterpretation = "DX", "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = pixels.dtype.itemsize * 8, bits, bits - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    for key, value in elements.items():
        setattr(dataset, key, value)
    return dataset


DEFLATED_FRAME, STAND_IN = "1.2.840.10008.1.2.8.1", uid.JPEGBaseline8Bit  # pydicom 3.0 does not know the first


def written(dataset: Dataset, syntax: str = uid.ExplicitVRLittleEndian, meta: bool = True) -> bytes:
    buffer = io.BytesIO()
    if meta:
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = STAND_IN if syntax == DEFLATED_FRAME else syntax
        dataset.file_meta.MediaStorageSOPClassUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
        dcmwrite(buffer, dataset, enforce_file_format=True)
        if syntax == DEFLATED_FRAME:
            return buffer.getvalue().replace(STAND_IN.encode(), DEFLATED_FRAME.encode() + b"\0", 1)
    else:
        implicit = syntax == uid.ImplicitVRLittleEndian
        dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=syntax != uid.ExplicitVRBigEndian)
    return buffer.getvalue()


def plain(pixels: np.ndarray, bits: int = 12, syntax: str = uid.ExplicitVRLittleEndian, **elements) -> bytes:
    dataset = header(pixels, bits, **elements)
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset["PixelData"].VR = "OW"
    return written(dataset, syntax)


def encoded(stream: bytes, pixels: np.ndarray, syntax: str, bits: int = 12, **elements) -> bytes:
    dataset = header(pixels, bits, **elements)
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return written(dataset, syntax)


def codestreams() -> dict[str, tuple[bytes, str, float]]:
    """Name to (codestream of `ramp()`, transfer syntax, largest error)."""
    pixels = ramp()
    lossless_12 = imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=1, bitspersample=12)
    j2k = imagecodecs.jpeg2k_encode(pixels, level=0, codecformat="j2k", reversible=True)
    return {
        "jpeg lossless": (lossless_12, uid.JPEGLosslessSV1, 0),
        "jpeg lossless, other library": (imagecodecs.ljpeg_encode(pixels, bitspersample=12), uid.JPEGLossless, 0),
        "jpeg extended": (imagecodecs.jpeg8_encode(pixels, level=98, bitspersample=12), uid.JPEGExtended12Bit, 20),
        "jpeg ls": (imagecodecs.jpegls_encode(pixels), uid.JPEGLSLossless, 0),
        "jpeg ls near lossless": (imagecodecs.jpegls_encode(pixels, level=2), uid.JPEGLSNearLossless, 2),
        "jpeg 2000": (j2k, uid.JPEG2000Lossless, 0),
        "htj2k": (imagecodecs.htj2k_encode(pixels, reversible=True), uid.HTJ2KLossless, 0),
    }


def rle(pixels: np.ndarray) -> bytes:
    dataset = header(pixels)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.SOPInstanceUID = "1.2.3"
    dataset.compress(uid.RLELossless, generate_instance_uid=False)
    return written(dataset, uid.RLELossless)


def refusal(data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decode_image(data, "x.dcm")
    assert str(caught.value) == f"x.dcm: {caught.value.reason}"
    assert caught.value.__suppress_context__
    return caught.value.reason
