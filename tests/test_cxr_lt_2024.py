"""CXR-LT 2024: miniatures of all three tasks become the rows written here by hand."""

import numpy as np
import pytest

from data.errors import InputError
from data.manifest import Manifest
from data.sources import cxr_lt_2024
from tests.make_mimic import CLASSES_5, CLASSES_26, CLASSES_40, cxr_lt_2024_files, dicom, write_files

IDS = "image_id,study_id,patient_id,view,path,split,source"
PLACES = [
    f"{dicom(1)},59999991,10999991,PA,files/p10/p10999991/s59999991/{dicom(1)}.jpg,train",
    f"{dicom(2)},59999991,10999991,LATERAL,files/p10/p10999991/s59999991/{dicom(2)}.jpg,train",
    f"{dicom(3)},50000001,10999991,LATERAL,files/p10/p10999991/s50000001/{dicom(3)}.jpg,train",
    "03b2e67c-70631ff8-685825fb-6c989456-621ca64d,54979966,11285576,AP,"
    "files/p11/p11285576/s54979966/03b2e67c-70631ff8-685825fb-6c989456-621ca64d.jpg,train",
    f"{dicom(4)},59999992,10999992,AP,files/p10/p10999992/s59999992/{dicom(4)}.jpg,val",
    f"{dicom(5)},59999992,10999992,OTHER,files/p10/p10999992/s59999992/{dicom(5)}.jpg,val",
    f"{dicom(6)},59999993,19999993,LATERAL,files/p19/p19999993/s59999993/{dicom(6)}.jpg,test",
    f"{dicom(7)},59999993,19999993,UNKNOWN,files/p19/p19999993/s59999993/{dicom(7)}.jpg,test",
]
TASK_1 = [
    *["0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"] * 2,
    "0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0",
    "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0",
    *["0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1"] * 2,
    *["0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0"] * 2,
]
TASK_2 = [  # Mass, Normal, Nodule are columns 13, 14, 15
    *["0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0"] * 2,
    "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,1,0",
    "0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0",
    *["1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1"] * 2,
    "0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,0,0,0,0,0,0,0,0,0,0",
]
TASK_3 = [*[",,,,"] * 4, *["0,0,1,0,0"] * 2, *["0,0,0,1,0"] * 2]


def text(manifest: Manifest) -> list[str]:
    return manifest.to_bytes().decode().splitlines()


@pytest.mark.parametrize(
    ("task", "classes", "labels"), [(1, CLASSES_40, TASK_1), (2, CLASSES_26, TASK_2), (3, CLASSES_5, TASK_3)]
)
@pytest.mark.parametrize("below", [".", "cxr-lt-2024"])
def test_each_task_becomes_the_rows_written_by_hand(tmp_path, task, classes, labels, below):
    write_files(tmp_path / below, cxr_lt_2024_files())
    (tmp_path / "files").mkdir(exist_ok=True)
    manifest = cxr_lt_2024.read(tmp_path, tmp_path, task)
    rows = [f"{place},cxr_lt_2024_task_{task},{row}" for place, row in zip(PLACES, labels, strict=task != 2)]
    assert text(manifest) == [f"{IDS},{classes}", *rows]


def test_classes_are_taken_by_name_whatever_their_order(tmp_path):
    """Task 2's tables have Mass, Normal, Nodule, the training table Mass, Nodule, Normal."""
    folder = write_files(tmp_path, cxr_lt_2024_files())
    expected = cxr_lt_2024.read(folder, folder, 2)
    files = cxr_lt_2024_files()
    for name, content in files.items():
        lines = [line.split(",") for line in content.splitlines()]
        order = np.random.default_rng(3).permutation(len(lines[0]))
        files[name] = "\n".join(",".join(line[i] for i in order) for line in lines) + "\n"
    write_files(folder, files)
    assert cxr_lt_2024.read(folder, folder, 2).digest == expected.digest


def test_tables_of_the_challenge_without_labels_are_found_under_their_names(tmp_path, caplog):
    files = cxr_lt_2024_files()
    for task in (1, 3):
        renamed = {
            f"development_labeled_task{task}.csv": "development_task3.csv" if task == 3 else "development.csv",
            f"test_labeled_task{task}.csv": f"test_task{task}.csv",
        }
        tables = {"train_labeled.csv": files["train_labeled.csv"]}
        for old, new in renamed.items():
            rows = [",".join(line.split(",")[:6]) for line in files[old].splitlines()]
            tables[new] = "\n".join(rows) + "\n"
        folder = write_files(tmp_path / str(task), tables)
        caplog.clear()
        manifest = cxr_lt_2024.read(folder, folder, task, val_fraction=0.5)
        assert manifest.images["split"].value_counts()["test"] == 2
        assert np.isnan(manifest.of_split("test").labels).all()
        assert sorted(set(manifest.of_split("val").images["patient_id"])) in (["10999991"], ["11285576"])
        assert "has no labels; its 2 images are left out" in caplog.text


def test_numbers_that_differ_from_the_release_are_told(tmp_path, monkeypatch, caplog):
    folder = write_files(tmp_path, cxr_lt_2024_files())
    cxr_lt_2024.read(folder, folder, 2)
    for name, found, published in (
        ("train_labeled.csv", 4, 258_871),
        ("development_labeled_task2.csv", 2, 39_293),
        ("test_labeled_task2.csv", 1, 409),
    ):
        assert f"{folder / name}: {found} images; CXR-LT 2024 task 2 has {published}" in caplog.text
    caplog.clear()
    monkeypatch.setattr(cxr_lt_2024, "CXR_LT_2024_TRAIN_IMAGES", 4)
    monkeypatch.setattr(cxr_lt_2024, "CXR_LT_2024_POSITIVES", {"Nodule": 1, "Normal": 3, "Mass": 1, "Adenopathy": 9})
    cxr_lt_2024.read(folder, folder, 2)
    told = [record.message for record in caplog.records if "published" in record.message]
    assert told == [
        f"{folder / 'train_labeled.csv'}: 1 classes have other numbers of images than published for CXR-LT 2024 task 2,"
        " first Normal: 2, published 3"
    ]


def test_a_table_of_another_task_or_year_is_refused(tmp_path):
    files = cxr_lt_2024_files()
    other = files | {"test_labeled_task1.csv": files["test_labeled_task2.csv"]}
    folder = write_files(tmp_path, other)
    with pytest.raises(InputError, match=r"task1\.csv, row 1: the 40 classes of CXR-LT 2024 task 1 .* missing: Aden"):
        cxr_lt_2024.read(folder, folder, 1)
    write_files(folder, {"train_labeled.csv": files["train_labeled.csv"].replace(",Normal,", ",No Finding,")})
    with pytest.raises(InputError, match="missing: Normal; unexpected: No Finding"):
        cxr_lt_2024.read(folder, folder, 2)
    (folder / "train_labeled.csv").unlink()
    with pytest.raises(InputError, match=r"train_labeled\.csv: no such file, nor in .*cxr-lt-2024"):
        cxr_lt_2024.read(folder, folder, 2)


def test_gold_patients_in_training_are_refused_or_leave_it(tmp_path):
    files = cxr_lt_2024_files()
    row = files["test_labeled_task1.csv"].splitlines()[1]
    files["train_labeled.csv"] += row.replace(dicom(6), dicom(9)) + "\n"
    folder = write_files(tmp_path, files)
    with pytest.raises(InputError, match=r"train_labeled\.csv: 1 patients are also in .*test_labeled_task2\.csv"):
        cxr_lt_2024.read(folder, folder, 2)
    manifest = cxr_lt_2024.read(folder, folder, 2, overlap="drop")
    assert manifest.images["split"].value_counts().to_dict() == {"train": 4, "val": 2, "test": 1}
