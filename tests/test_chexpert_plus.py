"""CheXpert Plus: reports with line breaks, JPEG names of PNG files, labels as JSON lines, sections that are missing."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.known_bad import name_known
from data.manifest import Manifest
from data.sources import chexpert_plus
from tests.test_chexpert import FILES, FINDINGS, HEADER, change, write

COLUMNS = (
    "path_to_image,path_to_dcm,frontal_lateral,ap_pa,deid_patient_id,patient_report_date_order,report,"
    "section_narrative,section_clinical_history,section_history,section_comparison,section_technique,"
    "section_procedure_comments,section_findings,section_impression,section_end_of_impression,section_summary,"
    "section_accession_number,age,sex,race,ethnicity,interpreter_needed,insurance_type,recent_bmi,deceased,split"
)
REPORT = '"NARRATIVE: text, ""quoted""\nIMPRESSION: text"'
REST = ",,,1234567,68.0,Female,White,Non-Hispanic/Non-Latino,No,Medicare,25.7,No"
A, B, C, D = (
    *(f"train/patient42142/study5/view{view}" for view in ("1_frontal", "2_lateral")),
    *("train/patient00002/study1/view1_frontal", "valid/patient64541/study1/view1_frontal"),
)
TABLE = [
    COLUMNS,
    f"{A}.jpg,{A}.dcm,Frontal,AP,patient42142,1,{REPORT},text,,,None.,,,,text{REST},train",
    f"{B}.jpg,{B}.dcm,Lateral,,patient42142,1,{REPORT},text,,,None.,,,,text{REST},train",
    f"{C}.jpg,{C}.dcm,Frontal,PA,patient00002,1,{REPORT},text,,,None.,,,seen, {REST},train",  # a blank impression
    f"{D}.jpg,{D}.dcm,Frontal,RL,patient64541,92,{REPORT},text,,,None.,,,,text{REST},valid",
]
# path, the 13 findings, No Finding
LABELS = [
    (f"{C}.jpg", *[None] * 13, 1.0),  # CheXbert takes the missing section for No Finding
    (f"{A}.jpg", None, -1.0, 1.0, *[None] * 9, 0.0, None),
    (f"{B}.jpg", None, -1.0, 1.0, *[None] * 9, 0.0, None),
    (f"{D}.jpg", *[0.0] * 12, 1.0, None),
]
ROWS = [
    f"patient42142_study5_view1_frontal,patient42142_study5,patient42142,AP,{A}.png,train,chexpert_plus,"
    "0,0,,1,0,0,0,0,0,0,0,0,0,0",
    f"patient42142_study5_view2_lateral,patient42142_study5,patient42142,LATERAL,{B}.png,train,chexpert_plus,"
    "0,0,,1,0,0,0,0,0,0,0,0,0,0",
    f"patient00002_study1_view1_frontal,patient00002_study1,patient00002,PA,{C}.png,val,chexpert_plus,,,,,,,,,,,,,,",
    f"patient64541_study1_view1_frontal,patient64541_study1,patient64541,UNKNOWN,{D}.png,test,chexpert_plus,"
    "0,0,0,0,0,0,0,0,0,0,0,0,0,1",
]


def json_lines(rows=LABELS) -> list[str]:
    keys = ("path_to_image", *FINDINGS.split(","), "No Finding")
    return [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]


def release(root: Path, table=TABLE, labels=None, section: str = "impression") -> dict[str, Path]:
    """The table, the labels and an empty folder of PNGs; returns the arguments of `read`."""
    write(root / "PNG", {})
    (root / "chexbert_labels").mkdir(exist_ok=True)
    write(
        root, {"plus.csv": table, f"chexbert_labels/{section}_fixed.json": json_lines() if labels is None else labels}
    )
    return {"images": root / "PNG", "table": root / "plus.csv"}


def text(manifest: Manifest) -> list[str]:
    return manifest.to_bytes().decode().splitlines()


def seeded(arguments: dict) -> Manifest:
    """Read so that patient00002 is the one who validates."""
    for seed in range(20):
        manifest = chexpert_plus.read(**arguments, val_fraction=0.5, seed=seed)
        if manifest.images["split"].tolist() == ["train", "train", "val", "test"]:
            return manifest
    raise AssertionError("no seed splits the two patients so")


def test_the_miniature_becomes_the_rows_written_by_hand(tmp_path, caplog):
    manifest = seeded(release(tmp_path))
    assert text(manifest) == [HEADER, *ROWS]
    assert "1 of 4 reports have no text in impression: their labels are unknown" in caplog.text
    assert manifest.image_path(0) == tmp_path / "PNG" / f"{A}.png"
    assert "NARRATIVE" not in "".join(text(manifest))


def test_labels_of_findings_are_unknown_where_a_report_has_no_findings_section(tmp_path):
    manifest = chexpert_plus.read(**release(tmp_path, section="findings"), section="findings", val_fraction=0.5)
    assert np.isnan(manifest.labels[[0, 1, 3]]).all()
    np.testing.assert_array_equal(manifest.labels[2], [1] + [0] * 13)


def test_radiologists_labels_of_v1_replace_those_of_the_valid_reports(tmp_path):
    arguments = release(tmp_path) | {"valid": write(tmp_path / "v1", FILES) / "valid.csv"}
    manifest = seeded(arguments)
    assert text(manifest) == [HEADER, *ROWS[:3], ROWS[3][: -len("0,") * 14 + 1] + "0,1,1,1,0,0,0,0,0,0,0,0,0,1"]
    write(tmp_path / "v1", change(FILES, "valid.csv", 2, "patient64541", "patient64542"))
    with pytest.raises(
        InputError, match=r"valid\.csv: no row for valid/patient64541/study1/view1_frontal.jpg \(1 such"
    ):
        chexpert_plus.read(**arguments)


def test_an_image_without_a_line_of_labels_is_unknown(tmp_path, caplog):
    manifest = seeded(release(tmp_path, labels=json_lines(LABELS[:3])))
    assert np.isnan(manifest.labels[3]).all()
    assert "no line for 1 images; their labels are unknown" in caplog.text


@pytest.mark.parametrize(
    ("row", "old", "new", "message"),
    [
        (
            2,
            "patient42142,1",
            "patient42143,1",
            "row 2, column 'deid_patient_id': 'patient42143', but the path says 'pat",
        ),
        (2, "Frontal", "Lateral", "row 2, column 'frontal_lateral': 'Lateral', but the path says 'Frontal'"),
        (2, ",train", ",valid", "row 2, column 'split': 'valid', but the path says 'train'"),
        (
            3,
            ".jpg",
            ".png",
            r"row 3, column 'path_to_image': .* is not of the form \.\.\./train/patient12345/study1/view1",
        ),
        (3, ",,patient", ",AP,patient", "row 3: unknown pair Frontal/Lateral 'Lateral' and AP/PA 'AP'"),
        (3, "study5/view2_lateral.jpg", "study6/view2_lateral.jpg", r"1 of 4 paths are not in the table"),
    ],
)
def test_a_table_that_contradicts_itself_is_named(tmp_path, row, old, new, message):
    table = change({"t": TABLE}, "t", row, old, new)["t"]
    with pytest.raises(InputError, match=message):
        chexpert_plus.read(**release(tmp_path, table))


def test_rows_in_test_are_refused_as_there_are_none(tmp_path):
    table = [line.replace("valid", "test").replace("patient64541", "patient64741") for line in TABLE]
    labels = [line.replace("valid/patient64541", "test/patient64741") for line in json_lines()]
    with pytest.raises(InputError, match="1 rows lie in test/; CheXpert Plus has none there"):
        chexpert_plus.read(**release(tmp_path, table, labels))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "empty file|line 1: one JSON object"),
        (["["], "line 1: one JSON object with path_to_image and the 14 classes is wanted, got '\\['"),
        (["[" * 100_000], "line 1: one JSON object"),
        (['{"path_to_image": "x"}'], "line 1: one JSON object"),
        ([json_lines()[0], json_lines()[1].replace("Edema", "Oedema")], "line 2: one JSON object"),
        ([json_lines()[1].replace("-1.0", "2.0")], "line 1, 'Cardiomegaly': 1.0, 0.0, -1.0 or null is wanted, got 2.0"),
        ([json_lines()[1].replace("-1.0", "NaN")], "line 1, 'Cardiomegaly': .* got nan"),
        ([json_lines()[1].replace("-1.0", "true")], "line 1, 'Cardiomegaly': .* got True"),
        ([json_lines()[1].replace("-1.0", "[[1]]")], "line 1, 'Cardiomegaly': .*"),
        ([json_lines()[1]] * 2, f"line 2: {A}.jpg occurs twice"),
        ([json_lines()[1].replace("42142", "42143")], "1 of 1 paths are not in the table; are both of one release"),
    ],
)
def test_lines_of_another_form_are_named(tmp_path, labels, message):
    with pytest.raises(InputError, match=message) as caught:
        chexpert_plus.read(**release(tmp_path, labels=labels))
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path):
    arguments = release(tmp_path)
    with pytest.raises(InputError, match=r"report_fixed\.json: no such file; --labels wants the folder"):
        chexpert_plus.read(**arguments, section="report")
    (tmp_path / "up" / "PNG" / "train").mkdir(parents=True)
    with pytest.raises(InputError, match=r"up: no folder 'train' in it; .*is it .*/up/PNG\?"):
        chexpert_plus.read(tmp_path / "up", arguments["table"])


def test_the_known_corrupt_png_is_told_apart_and_its_jpeg_is_not():
    known = "train/patient32368/study1/view1_frontal"
    assert name_known(f"{known}.png", "is cut") == "is cut (known: others could not read it either)"
    for path in (f"{known}.jpg", "train/patient32368/study2/view1_frontal.png", "view1_frontal.png"):
        assert name_known(path, "is cut") == "is cut"
