"""Real files of many makers and encoders, and what becomes of each."""

import io
import math
import os
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from data import dicom, dicom_file, dicom_pixels, dicom_table
from data.dicom import read_dicom, read_info
from data.images import ImageError, read_image


@pytest.fixture(scope="module")
def samples() -> Path:
    folder = Path(os.environ.get("CXR_SHARED_DATA", "")) / "dicom"
    if "CXR_SHARED_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("set CXR_SHARED_DATA to the folder that holds dicom/ to test with real files")
    return folder


AIR_AND_BONE = {  # places that were looked at, as parts of height and width
    "CR-ModalitySequenceLUT.dcm": ((0.2, 0.5), (0.62, 0.5)),
    "RG2_JPLY.dcm": ((0.85, 0.35), (0.58, 0.6)),
    "RG3_J2KR.dcm": ((0.3, 0.29), (0.5, 0.45)),
    "RG3_JPLY.dcm": ((0.3, 0.29), (0.5, 0.45)),
    "RG3_RLE.dcm": ((0.3, 0.29), (0.5, 0.45)),
    "highdicom_dx_image.dcm": ((0.97, 0.05), (0.33, 0.55)),
}
READABLE = {  # file: rows, columns, view position
    "chest_original/CR-MONO1-10-chest.dcm": (440, 440, "PA"),
    "chest_original/Fake_MONOHR1.dcm": (1024, 1024, "PA"),
    "chest_original/RG1_J2KI.dcm": (1955, 1841, "PA"),
    "chest_original/RG1_JLSN.dcm": (1955, 1841, "PA"),
    "chest_original/nih_dx_implicit.dcm": (1024, 1024, ""),
    "chest_original/rsna_jpeg_baseline.dcm": (1024, 1024, "PA"),
    "derived_from_RG1/d_mono1_12_exple.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono1_12_j2k_lossless.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono1_12_jpegls.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono1_12_rle.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_bigendian.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_deflated.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_exple.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_padded.dcm": (488, 540, "PA"),
    "derived_from_RG1/d_mono2_12_two_windows.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_12_voilut.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_8_exple.dcm": (488, 460, "PA"),
    "derived_from_RG1/d_mono2_s12_rescale.dcm": (488, 460, "PA"),
    "other_radiograph/CR-ModalitySequenceLUT.dcm": (1576, 1976, ""),
    "other_radiograph/RG2_JPLY.dcm": (2140, 1760, ""),
    "other_radiograph/RG3_J2KR.dcm": (1760, 1760, "AP"),
    "other_radiograph/RG3_JPLY.dcm": (1760, 1760, "AP"),
    "other_radiograph/RG3_RLE.dcm": (1760, 1760, "AP"),
    "other_radiograph/highdicom_dx_image.dcm": (169, 211, ""),
}


REFUSED = {
    "negative_controls/CT_small.dcm": "modality CT",
    "negative_controls/ExplVR_BigEnd.dcm": "modality US",
    "negative_controls/JPEG2000.dcm": "modality NM",
    "negative_controls/MR_truncated.dcm": "modality MR",
    "negative_controls/OT-PAL-8-face.dcm": "modality OT",
    "negative_controls/SC_rgb.dcm": "modality OT",
    "negative_controls/image_dfl.dcm": "modality OT",
    "negative_controls/no_meta.dcm": "unknown format",
    "negative_controls/rtplan.dcm": "modality RTPLAN",
}


@pytest.mark.parametrize("name", [*READABLE, *REFUSED])
def test_real_files_come_out_as_expected(samples, name):
    if name in REFUSED:
        with pytest.raises(ImageError, match=REFUSED[name]):
            read_image(samples / name)
        return
    image, info = read_dicom((samples / name).read_bytes(), name)
    assert (*image.shape, info.view_position) == READABLE[name]
    assert 0 <= image.min() < image.max() <= 1
    if place := AIR_AND_BONE.get(Path(name).name):
        air, bone = (image[int(y * image.shape[0]), int(x * image.shape[1])] for y, x in place)
        assert air < 0.15
        assert bone > air + 0.2
    else:
        # Between the lungs the spine is denser than the lungs beside it, except in the file labelled wrongly.
        height, width = image.shape
        rows = slice(int(height * 0.45), int(height * 0.6))
        spine = image[rows, int(width * 0.46) : int(width * 0.54)].mean()
        lungs = image[rows, int(width * 0.22) : int(width * 0.34)].mean()
        assert (spine > lungs) == ("Fake_MONOHR1" not in name)


def test_the_derived_files_hold_the_same_image(samples):
    folder = samples / "derived_from_RG1"
    reference = read_image(folder / "d_mono2_12_exple.dcm")
    for same in (
        "mono1_12_exple mono1_12_rle mono1_12_j2k_lossless mono1_12_jpegls mono2_12_deflated mono2_12_bigendian".split()
    ):
        np.testing.assert_array_equal(read_image(folder / f"d_{same}.dcm"), reference)
    np.testing.assert_allclose(read_image(folder / "d_mono2_s12_rescale.dcm"), reference, atol=1e-6)
    padded = read_image(folder / "d_mono2_12_padded.dcm")
    np.testing.assert_array_equal(padded[:, 40:500], reference)
    assert not padded[:, :40].any()
    assert not padded[:, 500:].any()
    error = np.mean((read_image(folder / "d_mono2_8_exple.dcm") - reference) ** 2)
    assert 10 * math.log10(1 / error) > 50
    stored = 803 + reference * (3964 - 803)
    window = np.clip((stored - 2719.5) / 2130 + 0.5, 0, 1)  # the first of the two
    np.testing.assert_allclose(read_image(folder / "d_mono2_12_two_windows.dcm"), window, atol=1e-4)


def test_a_lossy_file_that_overshoots_its_bits_has_no_black_specks(samples):
    lossy, lossless = (read_image(samples / "other_radiograph" / f"RG3_{kind}.dcm") for kind in ("JPLY", "RLE"))
    error = np.mean((lossy - lossless) ** 2)
    assert 10 * math.log10(1 / error) > 35
    opened = dicom_file.open_dicom(io.BytesIO((samples / "other_radiograph" / "RG3_JPLY.dcm").read_bytes()), "a")
    form, stream = dicom._pixel_format(opened, "a"), dicom_file.frame_bytes(opened, "a")
    raw, stored = imagecodecs.jpeg_decode(stream), dicom_pixels.stored_values(stream, form, "a")
    assert raw.max() == 1024
    assert stored.max() == 1023
    np.testing.assert_array_equal(stored[raw == 1024], 1023)


def test_two_encodings_of_one_chest_agree(samples):
    wavelet, near_lossless = (read_image(samples / "chest_original" / f"RG1_{kind}.dcm") for kind in ("J2KI", "JLSN"))
    assert 10 * math.log10(1 / np.mean((wavelet - near_lossless) ** 2)) > 45


def test_the_table_tells_what_became_of_each_file_and_is_kept(samples):
    outcomes = dicom_table.list_outcomes(samples)
    files = {entry.file: entry for entry in outcomes if entry.file.endswith(".dcm")}
    assert len(files) == len(READABLE) + len(REFUSED) == 33
    for name, words in REFUSED.items():
        assert files[name].outcome == "refused"
        assert words in files[name].reason
    for name, (height, width, view) in READABLE.items():
        assert files[name][1:3] == ("read", f"{height} x {width}")
        assert files[name].view_position == view
    assert dicom_table.markdown(outcomes) in (Path(__file__).parents[1] / "docs/dicom.md").read_text()


def test_a_header_alone_is_told_without_reading_the_pixels(samples, tmp_path):
    whole = samples / "chest_original/RG1_JLSN.dcm"
    (tmp_path / "head").write_bytes(whole.read_bytes()[:8192])  # of 2.8 MB
    assert read_info(tmp_path / "head") == read_dicom(whole.read_bytes(), "a")[1]
    with pytest.raises(ImageError, match="the file ends early"):
        read_image(tmp_path / "head")
