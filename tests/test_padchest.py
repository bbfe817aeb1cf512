"""PadChest in its released form: ids of 39 digits, lists as text, line breaks in cells, what must not be trusted."""

import csv
import gzip
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from data.errors import InputError
from data.known_bad import name_known
from data.manifest import MANIFEST_COLUMNS, read_manifest, write_manifest
from data.prepare import main
from data.scan import scan_images
from data.sources.padchest import parse_list, parse_nested_list, read, read_locations
from data.sources.padchest_labels import PADCHEST_CLASSES, PADCHEST_LABELS

COLUMNS = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
).split(",")
STUDY, LONG, PATIENT = (f"{first}{'0' * (size - 2)}" for first, size in ((1, 39), (3, 45), (2, 39)))
USUAL = {
    **dict.fromkeys(COLUMNS, "None"),
    "ImageDir": "0",
    "StudyDate_DICOM": "20150101",
    "PatientBirth": "1929.0",
    "PatientSex_DICOM": "M",
    "ViewPosition_DICOM": "LATERAL",  # not to be believed
    "Projection": "PA",
    "MethodProjection": "Manual review of DICOM fields",
    "Pediatric": "No",
    "PhotometricInterpretation_DICOM": "MONOCHROME2",
    "Report": ' uno "dos" , tres .\n quatro .',
    "MethodLabel": "RNN_model",
    "Labels": "['normal']",
    "Localizations": "['loc basal', 'loc basal bilateral']",
    "LabelsLocalizationsBySentence": "[['normal']]",
    "labelCUIS": "['C0034069' 'C2115817'\n 'C0032227']",
    "LocalizationsCUIS": "['C1282378']",
}
# image_id, ImageDir, StudyID, PatientID, Projection, MethodLabel, Labels
ROWS = [
    (f"{STUDY}1_ab12cd.png", "0", f"{STUDY}1", f"{PATIENT}1", "PA", "Physician", "['nodule', ' kyphosis', '']"),
    (f"{STUDY}1_ab12ce.png", "0", f"{STUDY}1", f"{PATIENT}1", "L", "Physician", "[' nodule', 'kyphosis']"),
    (f"{LONG}2_00-001-001.png", "54", f"{STUDY}2", f"{PATIENT}1", "AP_horizontal", "RNN_model", "['normal']"),
    (f"{STUDY}3_2_ef34gh.png", "50", f"{STUDY}3", f"{PATIENT}2", "AP", "RNN_model", ""),
    (f"{STUDY}4_ab12cd.png", "0", f"{STUDY}4", f"{PATIENT}3", "COSTAL", "RNN_model", "['unchanged', ' exclude']"),
    (f"{STUDY}5_ab12cd.png", "0", f"{STUDY}5", f"{PATIENT}4", "UNK", "RNN_model", "[]"),
    (f"{STUDY}6_ab12cd.png", "0", f"{STUDY}6", f"{PATIENT}5", "EXCLUDE", "RNN_model", "['nodule']"),
    (f"{STUDY}7_ab12cd.png", "0", f"{STUDY}7", f"0{PATIENT}6", "PA", "Physician", "[\"goiter\", 'unchanged']"),
]
NAMES = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "MethodLabel", "Labels")


def rows() -> list[dict[str, str]]:
    return [{**USUAL, "": str(n), **dict(zip(NAMES, row, strict=True))} for n, row in enumerate(ROWS)]


def write(root: Path, lines: list[dict[str, str]]) -> dict[str, Path]:
    """The table, and empty folders for the zips; returns the arguments of `read`."""
    for name in ("0", "50", "54"):
        (root / "images" / name).mkdir(parents=True, exist_ok=True)
    with open(root / "t.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return {"images": root / "images", "table": root / "t.csv"}


def known(manifest, row: int) -> dict[str, float]:
    """The labels of an image that are not 0."""
    return {name: value for name, value in zip(manifest.classes, manifest.labels[row], strict=True) if value != 0}


def test_the_manifest_equals_rows_written_by_hand(tmp_path, caplog):
    manifest = read(**write(tmp_path, rows()))
    columns = [name for name in MANIFEST_COLUMNS if name != "split"]
    assert manifest.images[columns].to_numpy().tolist() == [
        [i, s, p, view, path, source]
        for i, s, p, view, path, source in (
            (ROWS[0][0], f"{STUDY}1", f"{PATIENT}1", "PA", f"0/{ROWS[0][0]}", "padchest_physician"),
            (ROWS[1][0], f"{STUDY}1", f"{PATIENT}1", "LATERAL", f"0/{ROWS[1][0]}", "padchest_physician"),
            (ROWS[2][0], f"{STUDY}2", f"{PATIENT}1", "AP", f"54/{LONG}2_00-001-001.png", "padchest_rnn"),
            (ROWS[3][0], f"{STUDY}3", f"{PATIENT}2", "AP", f"50/{STUDY}3_2_ef34gh.png", "padchest_rnn"),
            (ROWS[4][0], f"{STUDY}4", f"{PATIENT}3", "OTHER", f"0/{ROWS[4][0]}", "padchest_rnn"),
            (ROWS[5][0], f"{STUDY}5", f"{PATIENT}4", "UNKNOWN", f"0/{ROWS[5][0]}", "padchest_rnn"),
            (ROWS[7][0], f"{STUDY}7", f"0{PATIENT}6", "PA", f"0/{ROWS[7][0]}", "padchest_physician"),
        )
    ]
    assert len(manifest.images["patient_id"][0]) == 39
    assert [known(manifest, row) for row in (0, 1, 2, 6)] == [
        {"nodule": 1, "kyphosis": 1},
        {"nodule": 1, "kyphosis": 1},
        {"normal": 1},
        {"goiter": 1},
    ]
    assert np.isnan(manifest.labels[3:6]).all()  # blank, nothing but "unchanged" and "exclude", an empty list
    assert not np.isnan(manifest.labels[[0, 1, 2, 6]]).any()
    assert "3 images have reports that name neither a finding nor normal" in caplog.text
    assert manifest.rejected == (
        (f"0/{ROWS[6][0]}", "Projection is EXCLUDE: no chest image, say the authors of PadChest"),
    )
    assert manifest.images.groupby("patient_id")["split"].nunique().eq(1).all()


def test_there_are_193_labels_and_190_classes():
    assert len(PADCHEST_LABELS) == 193
    assert PADCHEST_LABELS["pneumonia"] == 8037
    assert sum(PADCHEST_LABELS.values()) == 333158 - 3041  # all items but the empty ones
    assert len(PADCHEST_CLASSES) == 190
    assert not {"unchanged", "exclude", "suboptimal study", ""} & set(PADCHEST_CLASSES)


def test_images_may_lie_in_one_folder_and_the_table_may_be_packed(tmp_path):
    arguments = write(tmp_path, rows())
    expected = read(**arguments).images
    arguments["table"].with_suffix(".csv.gz").write_bytes(gzip.compress(arguments["table"].read_bytes()))
    flat = tmp_path / "flat"
    flat.mkdir()
    for row in ROWS[1:]:
        (flat / row[0]).touch()
    images = read(flat, tmp_path / "t.csv.gz").images
    assert images["path"].tolist() == images["image_id"].tolist()  # the missing one too: the scan will name it
    columns = [name for name in MANIFEST_COLUMNS if name != "path"]
    assert images[columns].equals(expected[columns])
    (flat / "54").mkdir()  # one zip unpacked beside
    (flat / ROWS[2][0]).rename(flat / "54" / ROWS[2][0])
    assert read(flat, tmp_path / "t.csv.gz").images["path"][2] == f"54/{ROWS[2][0]}"


def test_physicians_alone(tmp_path):
    manifest = read(**write(tmp_path, rows()), labelled_by="physician", min_positives=2)
    assert manifest.images["image_id"].tolist() == [ROWS[0][0], ROWS[1][0], ROWS[7][0]]
    assert set(manifest.images["source"]) == {"padchest_physician"}
    assert manifest.classes == ("kyphosis", "nodule")
    assert manifest.rejected == ()  # nobody asked for the row that is to be excluded


def test_monochrome1_is_left_out_by_name(tmp_path):
    lines = rows()
    lines[2]["PhotometricInterpretation_DICOM"] = "MONOCHROME1"
    rejected = dict(read(**write(tmp_path, lines)).rejected)
    assert len(rejected) == 2
    assert "MONOCHROME2 is expected in all rows" in rejected[f"54/{ROWS[2][0]}"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"StudyID": "1E+38"}, r"row 5, column 'StudyID': digits alone are wanted, got '1E\+38'"),
        ({"PatientID": "2.00E+38"}, r"row 5, column 'PatientID': digits alone .* use the table as it was downloaded"),
        ({"PatientID": ""}, "row 5, column 'PatientID': digits alone"),
        ({"ImageDir": ".."}, "row 5, column 'ImageDir': digits alone"),
        ({"ImageID": "../x.png"}, "row 5: path '50/../x.png' must be relative and stay inside"),
        ({"ImageID": ROWS[0][0]}, "row 5: image_id .* occurs twice"),
        ({"Projection": "LL"}, "column 'Projection': unknown Projection 'LL'; known are PA, AP, AP_horizontal, L,"),
        ({"MethodLabel": "GPT"}, "row 5, column 'MethodLabel': Physician or RNN_model is wanted, got 'GPT'"),
        ({"Labels": "['nodul']"}, "row 5, column 'Labels': 'nodul' is none of PadChest's 193 labels"),
        ({"Labels": "['Nodule']"}, "'Nodule' is none"),
        ({"Labels": "['loc basal']"}, "'loc basal' is none"),
        ({"Labels": "['nodule' 'goiter']"}, r"row 5, column 'Labels': a list, \['a', 'b'\], is wanted, got \['nodule'"),
        ({"Labels": "['nodule'"}, "a list, .*, is wanted"),
        ({"Labels": "__import__('os').getpid()"}, "a list, .*, is wanted"),
        ({"Labels": "nan"}, "a list, .*, is wanted, got nan"),
        ({"StudyID": f"{STUDY}1"}, "study_id .* belongs to more than one patient"),
        ({"StudyID": f"{STUDY}2", "PatientID": f"{PATIENT}1"}, "1 studies hold images with different labels"),
    ],
)
def test_what_padchest_does_not_have_is_named(tmp_path, changes, message):
    lines = rows()
    lines[3].update(changes)
    with pytest.raises(InputError, match=message) as caught:
        read(**write(tmp_path, lines))
    assert "\n" not in str(caught.value)


def test_studies_that_differ_may_take_the_labels_of_any_image(tmp_path):
    lines = rows()
    lines[1]["Labels"] = "['goiter', 'kyphosis']"
    manifest = read(**write(tmp_path, lines), study_labels="any")
    assert known(manifest, 0) == known(manifest, 1) == {"nodule": 1, "kyphosis": 1, "goiter": 1}
    assert len(manifest.rejected) == 1


def test_a_folder_without_any_of_the_images_is_named(tmp_path):
    arguments = write(tmp_path, rows())
    (tmp_path / "other" / "readme").mkdir(parents=True)
    with pytest.raises(InputError, match=r"other: holds none of the images of .*t\.csv, nor a folder of one"):
        read(tmp_path / "other", arguments["table"])
    with pytest.raises(InputError, match="absent: cannot be read"):
        read(tmp_path / "absent", arguments["table"])


def test_lists_are_read_without_evaluating_them():
    assert parse_list("['a', \" b's\",'c' ,\n ' ']") == ["a", "b's", "c", ""]
    assert parse_list(" [] ") == parse_list("") == parse_list("[ ]") == []
    for text in (
        "['a' 'b']",
        "['a'\n 'b']",
        "('a',)",
        "['a',]",
        "[a]",
        "['a\\n']",
        "['a'",
        "['a']]",
        "[1]",
        "{'a'}",
        "''",
    ):
        assert parse_list(text) is None, text
    assert parse_nested_list("[['a', ' loc b'], [], [\"c\"]]") == [["a", "loc b"], [], ["c"]]
    assert parse_nested_list("[]") == parse_nested_list("") == []
    for text in ("[['a'] ['b']]", "['a']", "[['a'], 'b']", "[[['a']]]", "[['a']"):
        assert parse_nested_list(text) is None, text


def test_locations_come_by_sentence(tmp_path):
    lines = rows()[:4]
    for line, text in zip(
        lines, ("[['nodule', ' goiter', 'loc hilar', 'loc left'], ['kyphosis']]", "", "[[]]"), strict=False
    ):
        line["LabelsLocalizationsBySentence"] = text
    lines[3]["LabelsLocalizationsBySentence"] = "[['', 'loc right'], ['normal', ' loc apical']]"
    locations = read_locations(write(tmp_path, lines)["table"])
    assert locations.to_numpy().tolist() == [
        [ROWS[0][0], 0, "nodule", "hilar"],
        [ROWS[0][0], 0, "nodule", "left"],
        [ROWS[0][0], 0, "goiter", "hilar"],
        [ROWS[0][0], 0, "goiter", "left"],
        [ROWS[0][0], 1, "kyphosis", ""],
        [ROWS[3][0], 1, "normal", "apical"],
    ]
    lines[2]["LabelsLocalizationsBySentence"] = "['normal']"
    with pytest.raises(InputError, match="row 4, column 'LabelsLocalizationsBySentence': a list of lists"):
        read_locations(write(tmp_path, lines)["table"])


def test_the_command_names_bad_images_and_so_does_the_scan(tmp_path, capsys):
    arguments = write(tmp_path, rows())
    out = tmp_path / "run" / "manifest.csv"
    main(["padchest", *(f"--{name}={value}" for name, value in arguments.items()), f"--out={out}"])
    printed = capsys.readouterr().out
    assert f"1 files left out, with reasons: {out.parent / 'rejected.csv'}" in printed
    assert (out.parent / "rejected.csv").read_text().count("\n") == 2
    manifest = read_manifest(out)
    assert len(manifest.rejected) == 1
    rng = np.random.default_rng(0)
    for row in range(len(manifest)):
        picture = imagecodecs.png_encode(rng.integers(0, 4096, (40, 30)).astype(np.uint16))
        manifest.image_path(row).write_bytes(picture[:-600] if row == 4 else picture)
    result = scan_images(manifest, out.parent, workers=1, max_rejected=0.5, progress=False)
    assert result.readable.tolist() == [row != 4 for row in range(7)]
    lines = (out.parent / "rejected.csv").read_text().splitlines()
    assert lines[1].startswith(f'0/{ROWS[6][0]},"Projection is EXCLUDE')
    assert lines[2].startswith(f"0/{ROWS[4][0]},")
    assert len(lines) == 3


def test_files_that_others_could_not_read_are_told_apart():
    name = "0/216840111366964012819207061112010281134410801_00-129-131.png"
    assert name_known(name, "is cut") == "is cut (known: others could not read it either)"
    assert name_known(name.replace("131", "132"), "is cut") == "is cut"


def test_a_manifest_keeps_what_its_source_left_out(tmp_path):
    manifest = read(**write(tmp_path, rows()))
    write_manifest(manifest, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv").rejected == manifest.rejected
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"rejected": [', '"rejected": [3,'))
    with pytest.raises(InputError, match="'rejected' must be a list of"):
        read_manifest(tmp_path / "manifest.csv")
