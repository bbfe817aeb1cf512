"""MIMIC-CXR-JPG and MIMIC-CXR: miniatures in their exact form become the rows written here by hand."""

from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from data.errors import InputError
from data.groups import group_images
from data.manifest import Manifest
from data.scan import scan_images
from data.sources import mimic_cxr, mimic_cxr_jpg
from tests.make_mimic import EMPTY, UNREADABLE, dicom, mimic_files, write_files

HEADER = (
    "image_id,study_id,patient_id,view,path,split,source,Atelectasis,Cardiomegaly,Consolidation,Edema,"
    "Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,"
    "Pneumothorax,Support Devices"
)
A = "files/p10/p10999991"
B = "files/p10/p10999992/s59999992"
C = "files/p19/p19999993/s59999993"
UNKNOWN = ",,,,,,,,,,,,,"
NORMAL = "0,0,0,0,0,0,0,0,1,0,0,0,0,0"
ROWS = [
    f"{dicom(1)},59999991,10999991,PA,{A}/s59999991/{dicom(1)}.jpg,train,mimic_cxr_jpg,{NORMAL}",
    f"{dicom(2)},59999991,10999991,LATERAL,{A}/s59999991/{dicom(2)}.jpg,train,mimic_cxr_jpg,{NORMAL}",
    f"{dicom(3)},50000001,10999991,LATERAL,{A}/s50000001/{dicom(3)}.jpg,train,mimic_cxr_jpg,{UNKNOWN}",
    f"{dicom(4)},59999992,10999992,AP,{B}/{dicom(4)}.jpg,val,mimic_cxr_jpg,,1,0,0,0,0,0,1,0,1,0,,0,1",
    f"{dicom(5)},59999992,10999992,OTHER,{B}/{dicom(5)}.jpg,val,mimic_cxr_jpg,,1,0,0,0,0,0,1,0,1,0,,0,1",
    f"{dicom(6)},59999993,19999993,LATERAL,{C}/{dicom(6)}.jpg,test,mimic_cxr_jpg,0,0,1,0,0,0,0,0,0,0,0,0,0,0",
    f"{dicom(7)},59999993,19999993,UNKNOWN,{C}/{dicom(7)}.jpg,test,mimic_cxr_jpg,0,0,1,0,0,0,0,0,0,0,0,0,0,0",
    f"{dicom(8)},59999994,19999994,OTHER,files/p19/p19999994/s59999994/{dicom(8)}.jpg,test,mimic_cxr_jpg,{UNKNOWN}",
    f"{UNREADABLE},54979966,11285576,AP,files/p11/p11285576/s54979966/{UNREADABLE}.jpg,train,mimic_cxr_jpg,"
    "0,0,0,0,0,0,0,0,0,0,0,1,0,0",
    f"{EMPTY},57194260,10291098,AP,files/p10/p10291098/s57194260/{EMPTY}.jpg,train,mimic_cxr_jpg,{NORMAL}",
]


def text(manifest: Manifest) -> list[str]:
    return manifest.to_bytes().decode().splitlines()


def labels_of(manifest: Manifest, number: int) -> str:
    row = next(line for line in text(manifest) if line.startswith(dicom(number)))
    return row.split(",", 7)[7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path / "mimic", mimic_files())


def test_the_miniature_becomes_the_rows_written_by_hand(folder, caplog):
    manifest = mimic_cxr_jpg.read(folder)
    assert text(manifest) == [HEADER, *ROWS]
    assert manifest.image_path(3) == folder / B / f"{dicom(4)}.jpg"
    assert "no row for 1 studies (8 in the release)" in caplog.text
    assert group_images(manifest, "study").conflicts == 0


def test_dicom_files_have_the_same_rows_under_their_own_suffix(folder, tmp_path):
    files = mimic_files()
    images = write_files(tmp_path / "dicom", {"cxr-record-list.csv.gz": files.pop("cxr-record-list.csv.gz")})
    manifest = mimic_cxr.read(images, write_files(tmp_path / "tables", files))
    expected = [row.replace(".jpg,", ".dcm,").replace("mimic_cxr_jpg", "mimic_cxr") for row in ROWS]
    assert text(manifest) == [HEADER, *expected]
    assert manifest.root == images


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"uncertain": "ones"}, "1,1,0,0,0,0,0,1,0,1,0,1,0,1"),
        ({"uncertain": "zeros"}, "0,1,0,0,0,0,0,1,0,1,0,0,0,1"),
        ({"uncertain": "ignore"}, ",1,0,0,0,0,0,1,0,1,0,,0,1"),
        ({"uncertain": "ones", "not_mentioned": "ignore"}, "1,1,,0,,,,1,0,1,,1,0,1"),
        ({"labeler": "negbio"}, ",1,0,0,0,0,0,1,0,1,0,1,0,1"),
    ],
)
def test_uncertain_and_unmentioned_findings_become_what_was_chosen(folder, options, expected):
    assert labels_of(mimic_cxr_jpg.read(folder, **options), 4) == expected


@pytest.mark.parametrize("not_mentioned", ["zeros", "ignore"])
def test_no_finding_is_absent_where_it_is_blank_and_unknown_where_all_is_blank(folder, not_mentioned):
    manifest = mimic_cxr_jpg.read(folder, not_mentioned=not_mentioned)
    column = manifest.labels[:, manifest.classes.index("No Finding")]
    np.testing.assert_array_equal(column, [1, 1, np.nan, 0, 0, 0, 0, np.nan, 0, 1])


def test_radiologists_label_the_test_studies_that_they_read_and_the_others_leave(folder, caplog):
    manifest = mimic_cxr_jpg.read(folder, test_labels="radiologist")
    assert text(manifest)[:6] == [HEADER, *ROWS[:5]]
    assert [labels_of(manifest, number) for number in (6, 7)] == ["1,0,0,0,0,0,0,0,0,1,0,,0,1"] * 2
    assert manifest.images["image_id"].tolist() == [row[:44] for row in ROWS if dicom(8) not in row]
    assert "1 images of the test split were not read by radiologists" in caplog.text


def test_unpacked_tables_elsewhere_read_alike(folder, tmp_path):
    files = {name.removesuffix(".gz"): content for name, content in mimic_files().items()}
    tables = write_files(tmp_path / "tables", files)
    images = write_files(tmp_path / "images", {})
    assert mimic_cxr_jpg.read(images, tables).digest == mimic_cxr_jpg.read(folder).digest


def test_missing_folders_and_files_are_named(folder, tmp_path):
    with pytest.raises(InputError, match="no folder 'files' in it; --images wants"):
        mimic_cxr_jpg.read(tmp_path)
    with pytest.raises(InputError, match=r"cxr-record-list\.csv\.gz: no such file; --images wants"):
        mimic_cxr.read(write_files(tmp_path / "empty", {}), folder)
    (folder / "mimic-cxr-2.0.0-split.csv.gz").unlink()
    with pytest.raises(InputError, match=r"mimic-cxr-2\.0\.0-split\.csv\.gz: no such file; --tables wants"):
        mimic_cxr_jpg.read(folder)


def test_known_bad_files_are_named_entries_and_the_scan_goes_on(folder, tmp_path):
    """Unreadable as listed, readable but empty, missing: three entries; a test image that is listed stays."""
    files = mimic_files()
    for name in ("metadata", "split"):
        files[f"mimic-cxr-2.0.0-{name}.csv.gz"] = files[f"mimic-cxr-2.0.0-{name}.csv.gz"].replace(
            dicom(8), "151abebe-2a750a5c-09c181bb-1a9016ef-92d8910e"
        )
    manifest = mimic_cxr_jpg.read(write_files(folder, files))
    grey = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)
    for row in range(len(manifest)):
        path = manifest.image_path(row)
        path.parent.mkdir(parents=True, exist_ok=True)
        jpeg = imagecodecs.jpeg8_encode(grey, level=95)
        path.write_bytes(jpeg[: len(jpeg) // 2] if UNREADABLE in path.name else jpeg)
    manifest.image_path(0).unlink()
    found = scan_images(manifest, tmp_path, workers=1, max_rejected=0.5, progress=False)
    assert dict(found.rejected) == {
        manifest.images["path"][0]: "does not exist",
        manifest.images["path"][8]: "is a damaged or cut JPEG (known: others could not read it either)",
        manifest.images["path"][9]: "decodes, but is known to be an empty or blurred picture",
    }
    assert found.readable.tolist() == [False, *[True] * 7, False, False]
    assert (tmp_path / "rejected.csv").read_text().count("\n") == 4
