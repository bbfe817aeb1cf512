"""CXR-LT 2023 in every form it was seen in: ids, columns, folders, with and without labels."""

import gzip
import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.errors import InputError
from data.groups import group_images
from data.label_spaces import CXR_LT_2023_CLASSES
from data.sources.cxr_lt_2023 import read
from data.tables import write_table
from tests.make_mimic import CLASSES_2023

METADATA = ["dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "path"]


def rows(patients: range, studies_per_patient: int = 2) -> pd.DataFrame:
    """Two images (PA, LL) per study; class number (patient + study) % 3 is present."""
    lines = []
    for patient in patients:
        for study in range(studies_per_patient):
            subject, number = str(10000000 + patient), str(50000000 + 10 * patient + study)
            labels = ["1" if c == (patient + study) % 3 else "0" for c in range(26)]
            for view in ("PA", "LL"):
                dicom = f"{patient:08x}-{study:08x}-{view}"
                path = f"files/p{subject[:2]}/p{subject}/s{number}/{dicom}.jpg"
                lines.append([dicom, subject, number, view, "", path, *labels])
    return pd.DataFrame(lines, columns=[*METADATA, *CXR_LT_2023_CLASSES], dtype="str")


@pytest.fixture
def parts() -> dict[str, pd.DataFrame]:
    return {"train": rows(range(30)), "development": rows(range(30, 35)), "test": rows(range(35, 42))}


def write(root: Path, parts: dict[str, pd.DataFrame], folder: str = "labels") -> dict[str, Path]:
    """The tables and an empty image tree; returns the arguments of `read`."""
    (root / "images" / "files").mkdir(parents=True, exist_ok=True)
    for name, frame in parts.items():
        write_table(root / folder / f"{name}.csv", frame)
    return {"images": root / "images", "labels": root / "labels"}


def test_the_three_files_are_the_three_splits(tmp_path, parts):
    manifest = read(**write(tmp_path, parts))
    assert manifest.images["split"].value_counts().to_dict() == {"train": 120, "val": 20, "test": 28}
    assert manifest.classes == CXR_LT_2023_CLASSES
    first = manifest.images.iloc[1]
    assert first.to_dict() == {
        "image_id": "00000000-00000000-LL", "study_id": "50000000", "patient_id": "10000000", "view": "LATERAL",
        "path": "files/p10/p10000000/s50000000/00000000-00000000-LL.jpg", "split": "train", "source": "cxr_lt_2023",
    }  # fmt: skip
    assert manifest.image_path(1) == tmp_path / "images" / first["path"]
    everything = pd.concat(parts.values())
    np.testing.assert_array_equal(manifest.labels, everything[list(CXR_LT_2023_CLASSES)].astype(np.float32))


def test_column_order_prefixes_file_names_and_folder_forms_do_not_matter(tmp_path, parts):
    expected = read(**write(tmp_path / "a", parts))
    order = np.random.default_rng(0).permutation(parts["train"].columns).tolist()
    others = {name: frame[order].rename(columns={"path": "fpath"}) for name, frame in parts.items()}
    for frame in others.values():
        frame["study_id"] = "s" + frame["study_id"]
        frame["fpath"] = frame["fpath"].str.removeprefix("files/")
    arguments = write(tmp_path / "b", others, "labels/cxr-lt-2023")
    test = tmp_path / "b" / "labels" / "cxr-lt-2023" / "test.csv"
    test.with_name("test.csv.gz").write_bytes(gzip.compress(test.read_bytes()))
    test.unlink()
    assert read(**arguments).digest == expected.digest


def test_leading_zeros_and_odd_ids_stay(tmp_path, parts):
    train = parts["train"]
    train["dicom_id"] = "00" + train["dicom_id"]
    train["subject_id"] = "0" + train["subject_id"]
    train["study_id"] = train["study_id"].str.replace("50000000", "study-s7")
    folders = "files/p" + train["subject_id"].str[:2] + "/p" + train["subject_id"] + "/s" + train["study_id"]
    train["path"] = folders + "/" + train["dicom_id"] + ".jpg"
    images = read(**write(tmp_path, parts)).images
    assert images["image_id"][0] == "0000000000-00000000-PA"
    assert images["patient_id"][0] == "010000000"
    assert images["study_id"][0] == "study-s7"


def test_a_blank_view_position_falls_back_to_the_code_meaning(tmp_path, parts):
    views = [("", "postero-anterior"), ("", "left lateral"), ("", ""), ("AP", "lateral"), ("SWIMMERS", ""), ("", "odd")]
    for row, texts in enumerate(views):
        parts["test"].loc[row, ["ViewPosition", "ViewCodeSequence_CodeMeaning"]] = texts
    arguments = write(tmp_path, parts)
    views = read(**arguments).of_split("test").images["view"].tolist()
    assert views[:6] == ["PA", "LATERAL", "UNKNOWN", "AP", "OTHER", "OTHER"]
    write(tmp_path, {"test": parts["test"].drop(columns="ViewCodeSequence_CodeMeaning")})
    assert read(**arguments).of_split("test").images["view"].tolist()[:4] == ["UNKNOWN", "UNKNOWN", "UNKNOWN", "AP"]


def test_an_unknown_view_position_is_named(tmp_path, parts):
    parts["test"].loc[3, "ViewPosition"] = "FRONT"
    with pytest.raises(InputError, match=r"test\.csv, row 5, column 'ViewPosition': unknown ViewPosition 'FRONT'"):
        read(**write(tmp_path, parts))


@pytest.mark.parametrize("how", ["absent", "unlabelled", "split"])
def test_training_patients_validate_where_development_cannot(tmp_path, parts, how, caplog):
    if how == "absent":
        del parts["development"]
    if how == "unlabelled":
        parts["development"] = parts["development"][METADATA]
    with caplog.at_level(logging.WARNING):
        manifest = read(
            **write(tmp_path, parts), development="split" if how == "split" else "val", val_fraction=0.2, seed=1
        )
    assert "training images validate" in caplog.text
    assert ("development.csv" in caplog.text) == (how != "split")
    train = set(manifest.of_split("train").images["patient_id"])
    val = set(manifest.of_split("val").images["patient_id"])
    assert not train & val
    assert len(val) == 6
    assert train | val == set(parts["train"]["subject_id"])
    assert len(manifest.of_split("test")) == 28


def test_a_test_table_without_labels_is_unknown(tmp_path, parts):
    parts["test"] = parts["test"][METADATA]
    manifest = read(**write(tmp_path, parts))
    assert np.isnan(manifest.of_split("test").labels).all()
    assert not np.isnan(manifest.of_split("train").labels).any()


def test_blank_labels_are_unknown_and_told(tmp_path, parts, caplog):
    parts["train"].loc[[0, 1], "Hernia"] = ""
    manifest = read(**write(tmp_path, parts))
    assert np.argwhere(np.isnan(manifest.labels)).tolist() == [[0, 9], [1, 9]]
    assert "train.csv: 2 labels are blank, in the release none" in caplog.text


def test_patients_on_two_sides_are_refused_or_dropped_from_train_then_val(tmp_path, parts, caplog):
    parts["train"] = rows(range(32))  # patients 30, 31 are in development too
    parts["development"] = rows(range(30, 36))  # and 35 in test
    arguments = write(tmp_path, parts)
    with pytest.raises(InputError, match=r"train\.csv: 2 patients are also in .* first 10000030; --overlap drop"):
        read(**arguments)
    manifest = read(**arguments, overlap="drop")
    assert manifest.images["split"].value_counts().to_dict() == {"train": 120, "val": 20, "test": 28}
    assert "train.csv: 8 rows of 2 patients left out" in caplog.text
    assert "development.csv: 4 rows of 1 patients left out" in caplog.text
    parts["train"] = rows(range(36, 38))
    with pytest.raises(InputError, match="nothing is left"):
        read(**write(tmp_path, parts), overlap="drop")


@pytest.mark.parametrize("name", ["train.csv", "test.csv"])
def test_a_missing_table_is_named(tmp_path, parts, name):
    arguments = write(tmp_path, parts)
    (tmp_path / "labels" / name).unlink()
    with pytest.raises(InputError, match=f"{name}: no such file"):
        read(**arguments)


def test_a_wrong_image_folder_is_named(tmp_path, parts):
    arguments = write(tmp_path, parts) | {"images": tmp_path / "labels"}
    with pytest.raises(InputError, match="labels: no folder 'files' in it"):
        read(**arguments)


@pytest.mark.parametrize("name", ["train", "test"])
def test_other_classes_are_refused_by_name(tmp_path, parts, name):
    parts[name] = parts[name].rename(columns={"No Finding": "Normal"})
    with pytest.raises(InputError, match=rf"{name}\.csv, row 1: .* missing: No Finding; unexpected: Normal"):
        read(**write(tmp_path, parts))


def test_training_labels_and_paths_are_required(tmp_path, parts):
    arguments = write(tmp_path, parts | {"train": parts["train"][METADATA]})
    with pytest.raises(InputError, match=r"train\.csv, row 1: the 26 classes .* missing: Atelectasis"):
        read(**arguments)
    write(tmp_path, {"train": parts["train"].drop(columns="path")})
    with pytest.raises(InputError, match="missing column 'path'"):
        read(**arguments)
    write(tmp_path, {"train": parts["train"].drop(columns="study_id")})
    with pytest.raises(InputError, match="missing column 'study_id'"):
        read(**arguments)


def test_faults_of_rows_are_named(tmp_path, parts):
    good = parts["train"]
    for column, value, message in (
        ("Hernia", "-1", r"train\.csv, row 4, column 'Hernia': label .* got '-1'"),
        ("Hernia", "1", r"1 studies .* study_id 50000001 in 'Hernia' \(0 and 1\)"),
        ("path", "../x.jpg", r"train\.csv, row 4: path '\.\./x\.jpg'"),
        ("path", "/x.jpg", r"train\.csv, row 4: path"),
        ("path", good["path"][0], r"train\.csv, row 4, column 'path': .* expected 'files/p10/p10000000/s50000001/0000"),
        ("dicom_id", good["dicom_id"][0], r"train\.csv, row 4: image_id .* occurs twice"),
        ("study_id", "50000010", "study_id 50000010 belongs to more than one patient"),
    ):
        frame = good.copy()
        frame.loc[2, column] = value
        with pytest.raises(InputError, match=message):
            read(**write(tmp_path, parts | {"train": frame}))


def test_studies_are_groups(tmp_path, parts):
    groups = group_images(read(**write(tmp_path, parts)), "study")
    assert len(groups.ids) == 84
    assert {len(found) for found in groups.rows} == {2}
    assert groups.conflicts == 0


def test_the_documented_rows_become_the_rows_written_by_hand(tmp_path):
    """With and without `files/`, with and without `s`, blank and odd views, a byte order mark, CRLF."""
    head = "dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning,path"
    ids = [f"{n:08x}-11112222-33334444-55556666-77778888" for n in range(5)]
    normal, fused = (
        "0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,0",
        "1,0,1,0,0,0,0,0,0,0,0,0,1,0,0,0,1" + ",0" * 9,
    )
    tables = {
        "train": [
            f"{ids[0]},10999991,59999991,PA,postero-anterior,files/p10/p10999991/s59999991/{ids[0]}.jpg,{normal}",
            f"{ids[1]},10999991,59999991,LATERAL,lateral,p10/p10999991/s59999991/{ids[1]}.jpg,{normal}",
        ],
        "development": [f"{ids[2]},10999992,59999992,,,files/p10/p10999992/s59999992/{ids[2]}.jpg,{fused}"],
        "test": [
            f"{ids[3]},19999993,s59999993,AP AXIAL,,files/p19/p19999993/s59999993/{ids[3]}.jpg,{fused}",
            f"{ids[4]},19999993,s59999993,,left lateral,files/p19/p19999993/s59999993/{ids[4]}.jpg,{fused}",
        ],
    }
    (tmp_path / "files").mkdir()
    (tmp_path / "cxr-lt-2023").mkdir()
    for name, lines in tables.items():
        text = "\r\n".join([f"{head},{CLASSES_2023}", *lines]) + "\r\n"
        (tmp_path / "cxr-lt-2023" / f"{name}.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read(tmp_path, tmp_path).to_bytes().decode().splitlines() == [
        f"image_id,study_id,patient_id,view,path,split,source,{CLASSES_2023}",
        f"{ids[0]},59999991,10999991,PA,files/p10/p10999991/s59999991/{ids[0]}.jpg,train,cxr_lt_2023,{normal}",
        f"{ids[1]},59999991,10999991,LATERAL,files/p10/p10999991/s59999991/{ids[1]}.jpg,train,cxr_lt_2023,{normal}",
        f"{ids[2]},59999992,10999992,UNKNOWN,files/p10/p10999992/s59999992/{ids[2]}.jpg,val,cxr_lt_2023,{fused}",
        f"{ids[3]},59999993,19999993,OTHER,files/p19/p19999993/s59999993/{ids[3]}.jpg,test,cxr_lt_2023,{fused}",
        f"{ids[4]},59999993,19999993,LATERAL,files/p19/p19999993/s59999993/{ids[4]}.jpg,test,cxr_lt_2023,{fused}",
    ]
