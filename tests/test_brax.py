"""BRAX: a miniature in the form of its table becomes rows written by hand."""

from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.manifest import MANIFEST_COLUMNS, Manifest
from data.sources.brax import read
from data.views import BRAX_VIEW_POSITIONS, VIEWS

HEADER = (
    ",DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate,No Finding,"
    "Enlarged Cardiomediastinum,Cardiomegaly,Lung Lesion,Lung Opacity,Edema,Consolidation,Pneumonia,Atelectasis,"
    "Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices,ViewPosition,Rows,Columns,Manufacturer"
)
NORMAL = "1.0,,,,,,,,,,,,,"
MIXED = ",,1.0,,-1.0,0.0,,,,,,,,1.0"
# patient, study, image, labels, view
IMAGES = [
    ("p1", "77", "x1", NORMAL, "PA"),
    ("p1", "77", "x2", NORMAL, "L"),
    ("p1", "78", "x3", ",,,,,,,,,,,,,", ""),
    ("p2", "77", "x4", MIXED, "AP LLD"),
    ("p3", "79", "x5", MIXED, "RL"),
    ("p4", "80", "x6", MIXED, "AP"),
    ("p5", "81", "x7", NORMAL, "LT-DECUB"),
]


def place(patient: str, study: str, image: str) -> str:
    return f"id_{patient}/Study_1.2.{study}/Series_1.2.{study}.1/image-{image}"


def write(root: Path, images=IMAGES) -> Path:
    lines = [HEADER]
    for number, (patient, study, image, labels, view) in enumerate(images):
        own = place(patient, study, image)
        paths = f"Anonymized_DICOMs/{own}.dcm,images/{own}.png"
        lines.append(f"{number},{paths},{patient},F,85 or more,{study},20100101,{labels},{view},2000,1800,3")
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "master_spreadsheet_update.csv").write_text("\n".join(lines) + "\n")
    return root


def known(manifest: Manifest, row: int) -> dict[str, float]:
    values = zip(manifest.classes, manifest.labels[row].tolist(), strict=True)
    return {name: value for name, value in values if value != 0 and value == value}


def test_the_manifest_equals_rows_written_by_hand(tmp_path):
    manifest = read(write(tmp_path))
    names = [name for name in MANIFEST_COLUMNS if name != "split"]
    assert manifest.images[names].to_numpy().tolist() == [
        [f"image-{image}", f"{patient}_{study}", patient, view, f"images/{place(patient, study, image)}.png", "brax"]
        for (patient, study, image, _, _), view in zip(
            IMAGES, ("PA", "LATERAL", "UNKNOWN", "OTHER", "LATERAL", "AP", "OTHER"), strict=True
        )
    ]
    assert manifest.classes == tuple(HEADER.split(",")[8:22])
    assert known(manifest, 0) == known(manifest, 1) == {"No Finding": 1}
    assert np.isnan(manifest.labels[2]).all()
    assert known(manifest, 3) == {"Cardiomegaly": 1, "Support Devices": 1}
    assert np.isnan(manifest.labels[3]).tolist() == [name == "Lung Opacity" for name in manifest.classes]
    assert manifest.images.groupby("patient_id")["split"].nunique().eq(1).all()


def test_uncertain_and_not_mentioned_labels_follow_the_rule_asked_for(tmp_path):
    write(tmp_path)
    opacity = read(tmp_path, uncertain="ones").classes.index("Lung Opacity")
    assert read(tmp_path, uncertain="ones").labels[3, opacity] == 1
    assert read(tmp_path, uncertain="zeros").labels[3, opacity] == 0
    labels = read(tmp_path, not_mentioned="ignore").labels[3]
    assert np.isfinite(labels).sum() == 4  # Cardiomegaly, Edema, Support Devices, and No Finding, which a blank makes 0


def test_the_dicom_files_are_the_other_form(tmp_path):
    write(tmp_path)
    (tmp_path / "images").rename(tmp_path / "Anonymized_DICOMs")
    manifest = read(tmp_path, form="dicom")
    assert manifest.images["path"][0] == f"Anonymized_DICOMs/{place('p1', '77', 'x1')}.dcm"
    with pytest.raises(InputError, match="no folder 'images' in it"):
        read(tmp_path)


def test_every_view_is_one_of_ours():
    assert set(BRAX_VIEW_POSITIONS.values()) <= set(VIEWS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ",AP LLD,",
            ",SWIMMERS,",
            "row 5, column 'ViewPosition': unknown ViewPosition 'SWIMMERS'; known are PA, AP, L",
        ),
        (",-1.0,", ",-2.0,", "row 5, column 'Lung Opacity': label must be one of"),
        ("Lung Lesion", "Lung lesion", "'Lung Lesion'"),
        ("images/id_p2", "../id_p2", "row 5, column 'PngPath': images/.* is expected, got '../id_p2"),
        (",p2,F", ",,F", "row 5: PatientID is empty"),
        ("p3/Study_1.2.79/Series_1.2.79.1/image-x5.png", "p2/image-x4.png", "image_id 'image-x4' occurs twice"),
        ("78,20100101,,", "77,20100101,,", "1 studies hold images with different labels, first study_id p1_77"),
    ],
)
def test_what_brax_is_not_known_to_have_is_named(tmp_path, old, new, message):
    path = write(tmp_path) / "master_spreadsheet_update.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_the_table_is_named(tmp_path):
    with pytest.raises(InputError, match=r"master_spreadsheet_update\.csv: no such file"):
        read(tmp_path)
