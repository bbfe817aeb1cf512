"""The doctor's checks of the image formats: a small radiograph of each kind is written and read, its pixels compared.

H, W: rows and columns of the picture.
"""

import io
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt

from fusion.doctor.finding import Finding

H, W = 62, 46
LOSSY = 0.02  # largest mean difference of a JPEG of quality 95, in units of full scale


def picture(bits: int) -> UInt[np.ndarray, "H W"]:
    """Values from 0 to the top of `bits`: a slope, and a little texture."""
    y, x = np.mgrid[:H, :W]
    values = (3 * y + 2 * x) / (3 * (H - 1) + 2 * (W - 1)) * (2**bits - 1)
    values[1:-1, 1:-1] += (y * x % 5)[1:-1, 1:-1] - 2
    return values.clip(0, 2**bits - 1).round().astype(np.uint8 if bits == 8 else np.uint16)


def jpeg() -> bytes:
    """Baseline JPEG, through libjpeg-turbo."""
    import simplejpeg

    return simplejpeg.encode_jpeg(np.ascontiguousarray(picture(8)[..., None]), quality=95, colorspace="GRAY")


def png(bits: int) -> bytes:
    """Grey PNG."""
    import imagecodecs

    return bytes(imagecodecs.png_encode(picture(bits)))


def dicom(syntax: str, stream: bytes | None = None) -> bytes:
    """A radiograph of 12 bits: plain values, or one compressed frame."""
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.filewriter import dcmwrite

    dataset = Dataset()
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "DX", "MONOCHROME2", 1
    dataset.Rows, dataset.Columns, dataset.PixelRepresentation = H, W, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = encapsulate([stream]) if stream else picture(12).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OB" if stream else "OW"
    dataset["PixelData"].is_undefined_length = stream is not None
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    dataset.file_meta.MediaStorageSOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def dicom_plain() -> bytes:
    """Explicit VR Little Endian."""
    return dicom("1.2.840.10008.1.2.1")


def dicom_jpeg_lossless() -> bytes:
    """JPEG Lossless, first-order prediction."""
    import imagecodecs

    stream = imagecodecs.jpeg8_encode(picture(12), lossless=True, predictor=1, bitspersample=12)
    return dicom("1.2.840.10008.1.2.4.70", bytes(stream))


def dicom_jpeg_ls() -> bytes:
    """JPEG-LS Lossless."""
    import imagecodecs

    return dicom("1.2.840.10008.1.2.4.80", bytes(imagecodecs.jpegls_encode(picture(12))))


def dicom_jpeg_2000() -> bytes:
    """JPEG 2000, lossless only."""
    import imagecodecs

    stream = imagecodecs.jpeg2k_encode(picture(12), level=0, codecformat="j2k", reversible=True)
    return dicom("1.2.840.10008.1.2.4.90", bytes(stream))


def dicom_rle() -> bytes:
    """RLE Lossless (PS3.5 annex G): the high bytes of all pixels, then the low ones, each row packed on its own."""
    import imagecodecs

    planes = picture(12).astype(">u2").view("u1").reshape(H, W, 2)
    segments = [b"".join(imagecodecs.packbits_encode(row.tobytes()) for row in planes[..., n]) for n in (0, 1)]
    segments = [segment + b"\0" * (len(segment) % 2) for segment in segments]
    numbers = [2, 64, 64 + len(segments[0])] + [0] * 13
    header = b"".join(number.to_bytes(4, "little") for number in numbers)
    return dicom("1.2.840.10008.1.2.5", header + b"".join(segments))


CODECS: dict[str, tuple[Callable[[], bytes], int, float, str]] = {  # writer, bits, largest mean error, packages
    "JPEG": (jpeg, 8, LOSSY, "simplejpeg"),
    "PNG, 8 bit": (lambda: png(8), 8, 0, "pillow imagecodecs"),
    "PNG, 16 bit": (lambda: png(16), 16, 0, "pillow imagecodecs"),
    "DICOM, plain": (dicom_plain, 12, 0, "pydicom"),
    "DICOM, JPEG lossless": (dicom_jpeg_lossless, 12, 0, "imagecodecs pydicom"),
    "DICOM, JPEG-LS": (dicom_jpeg_ls, 12, 0, "imagecodecs pydicom"),
    "DICOM, JPEG 2000": (dicom_jpeg_2000, 12, 0, "imagecodecs pydicom"),
    "DICOM, RLE": (dicom_rle, 12, 0, "imagecodecs pydicom"),
}


def check_codec(name: str) -> Finding:
    """Write the picture in one format, read it with the project's reader, and compare the grey values."""
    from data.images import ImageError, decode_image

    write, bits, largest, packages = CODECS[name]
    remedy = f"pip install -U --force-reinstall {packages}"
    try:
        grey = decode_image(write(), "sample")
    except ImageError as error:
        return Finding("fail", name, f"a sample {error.reason}", remedy)
    except Exception as error:  # codecs raise what they like; the type alone is told
        return Finding("fail", name, f"cannot be written or read ({type(error).__name__})", remedy)
    wanted = picture(bits).astype(np.float64) / (2**bits - 1)
    error = float(np.abs(grey - wanted).mean()) if grey.shape == wanted.shape else 1.0
    if error > largest + 1e-6:
        return Finding("fail", name, f"the pixels that are read are not those written (mean error {error:.3f})", remedy)
    return Finding("ok", name, "written and read, pixels " + ("equal" if not largest else f"within {error:.4f}"))
