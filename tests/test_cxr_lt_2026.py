"""CXR-LT 2026 as distributed: columns without names, patient ids rounded by a spreadsheet, images to be removed."""

import csv
import logging
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.label_spaces import CXR_LT_2026_CLASSES, CXR_LT_2026_UNSEEN_CLASSES
from data.manifest import MANIFEST_COLUMNS, read_manifest
from data.prepare import main
from data.sources.cxr_lt_2026 import read

ZEROS = "0" * 37
KEYS = ["ImageID", "StudyDate_DICOM", "PatientID"]
# PadChest: image, zip, study, patient, projection. The image's name may begin with another number than its study.
PADCHEST = {
    "train_1": [f"11{ZEROS}_ab12cd.png", "0", f"11{ZEROS}", f"123{ZEROS}", "PA"],
    "train_2": [f"11{ZEROS}_ab12ce.png", "0", f"11{ZEROS}", f"123{ZEROS}", "L"],
    "train_3": [f"12{ZEROS}_2_ef34gh.png", "54", f"92{ZEROS}", f"45{ZEROS}", "AP_horizontal"],
    "train_4": [f"13{ZEROS}000000_00-001-001.png", "3", f"13{ZEROS}", f"46{ZEROS}", "UNK"],
    "removed": [f"14{ZEROS}_aa11bb.png", "3", f"14{ZEROS}", f"77{ZEROS}", "L"],
    "test_1": [f"15{ZEROS}_aa11bb.png", "0", f"15{ZEROS}", f"77{ZEROS}", "PA"],
    "test_2": [f"16{ZEROS}_aa11bb.png", "54", f"16{ZEROS}", f"7651{ZEROS}", "AP"],
}
ROUNDED = {
    "train_1": "1.23E+39", "train_2": "1.23E+39", "train_3": "4.50E+38", "train_4": "4.60E+38",
    "removed": "7.70E+38", "test_1": "7.70E+38", "test_2": "7.65E+40",
}  # fmt: skip
POSITIVE = {"train_1": ("Nodule", "sternotomy"), "train_2": ("Nodule", "sternotomy"), "train_4": ("Normal",)}
TRAIN = ("train_1", "train_2", "train_3", "train_4")


def line(name: str) -> list[str]:
    return [PADCHEST[name][0], "20150101", ROUNDED[name]]


def labelled(name: str) -> list[str]:
    return [*line(name), *("1" if c in POSITIVE.get(name, ()) else "0" for c in CXR_LT_2026_CLASSES)]


def tables() -> dict[str, list[list[str]]]:
    blank = [""] * 30
    return {
        "CXRLT_2026_training.csv": [[*KEYS, *CXR_LT_2026_CLASSES], *(labelled(name) for name in TRAIN)],
        "Removal.csv": [KEYS, line("removed"), line("test_1"), line("test_2")],
        "CXRLT_2026_TEST_ALL_TASK1.csv": [[*KEYS, *blank], [*line("test_2"), *blank], [*line("test_1"), *blank]],
        "CXRLT_2026_TEST_ALL_TASK2.csv": [
            ["ImageID", *CXR_LT_2026_UNSEEN_CLASSES],
            [PADCHEST["test_1"][0], *[""] * 6],
            ["00099901_003.png", *[""] * 6],
        ],
        "padchest.csv": [["", "ImageID", "ImageDir", "StudyID", "PatientID", "Projection", "Labels", "labelCUIS"]]
        + [["0", *row, "['goiter']", "['C1' 'C2'\n 'C3']"] for row in PADCHEST.values()],
    }


def write(root: Path, content: dict[str, list[list[str]]]) -> dict[str, Path]:
    """The tables, and empty folders of three zips; returns the arguments of `read`."""
    for folder in ("0", "3", "54"):
        (root / "images" / folder).mkdir(parents=True, exist_ok=True)
    for name, lines in content.items():
        with open(root / name, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(lines)
    return {"images": root / "images", "labels": root, "padchest": root / "padchest.csv"}


def test_task_1_equals_rows_written_by_hand(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        manifest = read(**write(tmp_path, tables()), val_fraction=0.3)
    expected = [
        [image, study, patient, view, f"{folder}/{image}", "cxr_lt_2026"]
        for (image, folder, study, patient, _), view in zip(
            [PADCHEST[name] for name in (*TRAIN, "test_2", "test_1")],
            ["PA", "LATERAL", "AP", "UNKNOWN", "AP", "PA"],
            strict=True,
        )
    ]
    split = dict(zip(manifest.images["image_id"], manifest.images["split"], strict=True))
    ours = {row[0]: row for row in manifest.images.drop(columns="split").to_numpy().tolist()}
    assert [ours[row[0]] for row in expected] == expected
    assert [*manifest.images.columns] == list(MANIFEST_COLUMNS)
    assert manifest.classes == CXR_LT_2026_CLASSES
    for number, image in enumerate(manifest.images["image_id"]):
        name = next(key for key, row in PADCHEST.items() if row[0] == image)
        if name in TRAIN:
            present = {c for c, value in zip(manifest.classes, manifest.labels[number], strict=True) if value == 1}
            assert present == set(POSITIVE.get(name, ()))
            assert not np.isnan(manifest.labels[number]).any()
            assert split[image] in ("train", "val")
        else:
            assert np.isnan(manifest.labels[number]).all()  # goiter in PadChest's table must not get here
            assert split[image] == "test"
    assert set(split.values()) == {"train", "val", "test"}
    assert "4 training images, 142928 were published" in caplog.text


def test_the_30_classes_are_taken_by_name_and_keep_their_order(tmp_path):
    assert len(set(CXR_LT_2026_CLASSES)) == 30
    assert list(CXR_LT_2026_CLASSES) != sorted(CXR_LT_2026_CLASSES)
    expected = read(**write(tmp_path, tables()))
    content = tables()
    order = np.random.default_rng(0).permutation(33)
    content["CXRLT_2026_training.csv"] = [[row[i] for i in order] for row in content["CXRLT_2026_training.csv"]]
    manifest = read(**write(tmp_path, content))
    assert manifest.digest == expected.digest


def test_rows_of_removal_that_are_still_in_the_training_table_are_left_out(tmp_path, caplog):
    expected = read(**write(tmp_path, tables()))
    content = tables()
    for name in ("removed", "test_1"):
        content["CXRLT_2026_training.csv"].insert(2, labelled(name))
    assert read(**write(tmp_path, content)).digest == expected.digest
    assert "CXRLT_2026_training.csv: 2 images left out, they are in Removal.csv" in caplog.text
    content["Removal.csv"] += [line(name) for name in TRAIN]
    with pytest.raises(InputError, match=r"every image is in .*Removal\.csv"):
        read(**write(tmp_path, content))


def test_two_patients_whose_rounded_ids_are_equal_stay_two(tmp_path):
    content = tables()
    for row in content["padchest.csv"]:
        row[4] = f"4500001{'0' * 32}" if row[1] == PADCHEST["train_3"][0] else row[4]
        row[4] = f"4500002{'0' * 32}" if row[1] == PADCHEST["train_4"][0] else row[4]
    content["CXRLT_2026_training.csv"][4][2] = "4.50E+38"
    images = read(**write(tmp_path, content)).images.set_index("image_id")
    assert images.loc[PADCHEST["train_3"][0], "patient_id"] == f"4500001{'0' * 32}"
    assert images.loc[PADCHEST["train_4"][0], "patient_id"] == f"4500002{'0' * 32}"


def test_training_images_of_test_patients_are_refused_or_dropped(tmp_path, caplog):
    content = tables()
    content["Removal.csv"].pop(1)
    content["CXRLT_2026_training.csv"].append(labelled("removed"))
    arguments = write(tmp_path, content)
    with pytest.raises(InputError, match=r"1 training images belong to 1 test patients, first 14.*--overlap drop"):
        read(**arguments)
    manifest = read(**arguments, overlap="drop")
    assert PADCHEST["removed"][0] not in manifest.images["image_id"].tolist()
    assert "1 training images belong to 1 test patients and are left out" in caplog.text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("1.23E+39", None),
        ('"1,23E+39"', None),
        (f"123{ZEROS}", None),
        ("", None),
        ("1.24E+39", "row 3: PatientID '1.24E\\+39' is expected to be the rounded '12300"),
        ("1.23E+38", r"\(1 rows differ\)"),
        (f"123{ZEROS[:-1]}1", "is expected to be the rounded"),
        ("p7", "is expected to be the rounded"),
    ],
)
def test_the_rounded_patient_id_must_fit_the_recovered_one(tmp_path, given, message):
    content = tables()
    content["CXRLT_2026_training.csv"][2][2] = given.strip('"')
    arguments = write(tmp_path, content)
    if message is None:
        assert len(read(**arguments)) == 6
        return
    with pytest.raises(InputError, match=message):
        read(**arguments)


def rename(name: str, column: int, text: str):
    def change(content):
        content[name][0][column] = text

    return change


def fill(name: str, row: int, column: int, text: str):
    def change(content):
        content[name][row][column] = text

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("CXRLT_2026_training.csv", 3, "normal"), "missing: 'Normal'; unexpected: 'normal'"),
        (rename("CXRLT_2026_training.csv", 3, "Normal\t"), "row 1: .* missing: 'Normal'; unexpected"),
        (rename("CXRLT_2026_training.csv", 3, ""), "row 1: column 4 has no name"),
        (fill("CXRLT_2026_training.csv", 3, 7, "2"), "row 4, column 'Nodule': label must be one of 0, 1, .*, got '2'"),
        (fill("CXRLT_2026_training.csv", 3, 0, "12.png"), "row 4: ImageID '12.png' .* is not in .*padchest.csv$"),
        (fill("CXRLT_2026_training.csv", 3, 0, "00099901_003.png"), "is not in .*padchest.csv$"),
        (fill("CXRLT_2026_training.csv", 2, 9, "1"), "1 studies hold images with different labels"),
        (fill("CXRLT_2026_TEST_ALL_TASK1.csv", 2, 9, "0.5"), "row 3, column 'column 10': .*task 1, got '0.5'"),
        (fill("CXRLT_2026_training.csv", 2, 0, PADCHEST["train_1"][0]), "image_id '11.*' occurs twice"),
        (fill("padchest.csv", 2, 1, PADCHEST["train_1"][0]), "padchest.csv: ImageID '11.*' occurs twice"),
        (fill("padchest.csv", 2, 4, "1.23E+38"), "padchest.csv, row 3, column 'PatientID': digits alone"),
        (lambda content: content.pop("Removal.csv"), "Removal.csv: no such file; --labels wants"),
        (lambda content: content.pop("CXRLT_2026_TEST_ALL_TASK1.csv"), "TASK1.csv: no such file"),
    ],
)
def test_tables_that_differ_from_what_is_known_of_them_are_named(tmp_path, change, message):
    content = tables()
    change(content)
    with pytest.raises(InputError, match=message) as caught:
        read(**write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_task_2_is_its_test_table_with_the_six_unseen_classes(tmp_path):
    manifest = read(**write(tmp_path, tables()), task=2)
    image, folder, study, patient, _ = PADCHEST["test_1"]
    assert manifest.images.to_numpy().tolist() == [
        [image, study, patient, "PA", f"{folder}/{image}", "test", "cxr_lt_2026"],
        ["00099901_003.png", "00099901_003", "00099901", "UNKNOWN", "00099901_003.png", "test", "cxr_lt_2026_nih"],
    ]
    assert manifest.classes == ("Scoliosis", "Osteopenia", "Bulla", "Infarction", "Adenopathy", "goiter")
    assert np.isnan(manifest.labels).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename("CXRLT_2026_TEST_ALL_TASK2.csv", 0, "image"), "missing column 'ImageID'"),
        (
            fill("CXRLT_2026_TEST_ALL_TASK2.csv", 2, 3, "1"),
            "row 3, column 'Bulla': .*empty columns .*task 2",
        ),
        (fill("CXRLT_2026_TEST_ALL_TASK2.csv", 2, 0, "99901_3.png"), "padchest.csv, nor a name of NIH ChestX-ray14"),
    ],
)
def test_a_test_table_of_task_2_in_another_layout_is_named(tmp_path, change, message):
    content = tables()
    change(content)
    with pytest.raises(InputError, match=message):
        read(**write(tmp_path, content), task=2)


def test_the_command_writes_the_manifest(tmp_path, capsys):
    arguments = write(tmp_path, tables())
    out = tmp_path / "run" / "manifest.csv"
    main(["cxr-lt-2026", *(f"--{name}={value}" for name, value in arguments.items()), "--task=2", f"--out={out}"])
    assert "6 classes" in capsys.readouterr().out
    assert read_manifest(out).images["split"].tolist() == ["test", "test"]
