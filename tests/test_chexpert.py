"""CheXpert v1.0: a miniature in its exact form becomes the rows written here by hand; its traps; its odd files."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from data.errors import InputError
from data.groups import group_images
from data.manifest import Manifest, read_manifest
from data.prepare import main
from data.sources import chexpert
from data.sources.report_labels import uncertain_values

FINDINGS = (
    "Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,Consolidation,Pneumonia,Atelectasis,"
    "Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
META = "Path,Sex,Age,Frontal/Lateral,AP/PA"
SMALL = "CheXpert-v1.0-small"
FIRST = ",,-1.0,1.0,,-1.0,-1.0,,-1.0,0.0,1.0,,,1.0"
READ = "0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0"
NORMAL = "1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0"
FILES = {
    "train.csv": [
        f"{META},No Finding,{FINDINGS}",
        f"{SMALL}/train/patient00001/study2/view1_frontal.jpg,Female,68,Frontal,AP,{FIRST}",  # study 2 before study 1
        f"{SMALL}/train/patient00001/study2/view2_lateral.jpg,Female,68,Lateral,,{FIRST}",
        f"{SMALL}/train/patient00001/study1/view1_frontal.jpg,Female,67,Frontal,PA,1.0,,,,,,,,,0.0,,,,1.0",
        f"{SMALL}/train/patient00002/study1/view1_frontal.jpg,Unknown,0,Frontal,LL,,,,,,,,,,,,,,",
        f"{SMALL}/train/patient64540/study11/view3_frontal.jpg,Male,90,Frontal,RL,,,1.0,,,,,,,,,,-1.0,",
    ],
    "train_cheXbert.csv": [
        f"{META},{FINDINGS},No Finding",  # the last column, and another folder before the path
        "CheXpert-v1.0/train/patient00001/study2/view1_frontal.jpg,Female,68,Frontal,AP,,,1,,,,-1,,0,,,,,",
        "CheXpert-v1.0/train/patient00001/study2/view2_lateral.jpg,Female,68,Lateral,,,,1,,,,-1,,0,,,,,",
        "CheXpert-v1.0/train/patient00002/study1/view1_frontal.jpg,Unknown,0,Frontal,AP,,,,,,,,,,,,,,1",
    ],
    "train_visualCheXbert.csv": [
        f"{META},{FINDINGS},No Finding",
        "CheXpert-v1.0/train/patient00001/study2/view1_frontal.jpg,Female,68,Frontal,AP,"
        "0.0,1.0,1.0,0.0,1.0,1.0,0.0,1.0,0.0,1.0,0.0,0.0,1.0,0.0",
        "CheXpert-v1.0/train/patient00002/study1/view1_frontal.jpg,Unknown,0,Frontal,PA,"
        "0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,1.0",
    ],
    "valid.csv": [
        f"{META},No Finding,{FINDINGS}",
        f"{SMALL}/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,{READ}",
        f"{SMALL}/valid/patient64541/study1/view2_lateral.jpg,Male,73,Lateral,,{READ}",
    ],
    "test_labels.csv": [
        f"Path,No Finding,{FINDINGS}",
        f"test/patient64741/study1/view1_frontal.jpg,{READ}",
        f"test/patient64741/study1/view2_lateral.jpg,{READ}",
        f"test/patient64742/study1/view1_frontal.jpg,{NORMAL}",
    ],
    "groundtruth.csv": [
        f"Study,No Finding,{FINDINGS}",
        "CheXpert-v1.0/test/patient64742/study1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
        "CheXpert-v1.0/test/patient64741/study1,0,1,1,1,0,0,0,0,0,0,0,0,0,1",
    ],
}

HEADER = f"image_id,study_id,patient_id,view,path,split,source,No Finding,{FINDINGS}"
ONE, TWO, LAST = "patient00001", "patient00002", "patient64540"
ROWS = [
    f"{ONE}_study2_view1_frontal,{ONE}_study2,{ONE},AP,train/{ONE}/study2/view1_frontal.jpg,train,chexpert,"
    "0,0,,1,0,,,0,,0,1,0,0,1",
    f"{ONE}_study2_view2_lateral,{ONE}_study2,{ONE},LATERAL,train/{ONE}/study2/view2_lateral.jpg,train,chexpert,"
    "0,0,,1,0,,,0,,0,1,0,0,1",
    f"{ONE}_study1_view1_frontal,{ONE}_study1,{ONE},PA,train/{ONE}/study1/view1_frontal.jpg,train,chexpert,"
    "1,0,0,0,0,0,0,0,0,0,0,0,0,1",
    f"{TWO}_study1_view1_frontal,{TWO}_study1,{TWO},UNKNOWN,train/{TWO}/study1/view1_frontal.jpg,train,chexpert,"
    ",,,,,,,,,,,,,",
    f"{LAST}_study11_view3_frontal,{LAST}_study11,{LAST},UNKNOWN,train/{LAST}/study11/view3_frontal.jpg,train,chexpert,"
    "0,0,1,0,0,0,0,0,0,0,0,0,,0",
    "patient64541_study1_view1_frontal,patient64541_study1,patient64541,AP,"
    "valid/patient64541/study1/view1_frontal.jpg,val,chexpert,0,1,1,1,0,0,0,0,0,0,0,0,0,1",
    "patient64541_study1_view2_lateral,patient64541_study1,patient64541,LATERAL,"
    "valid/patient64541/study1/view2_lateral.jpg,val,chexpert,0,1,1,1,0,0,0,0,0,0,0,0,0,1",
    "patient64741_study1_view1_frontal,patient64741_study1,patient64741,UNKNOWN,"
    "test/patient64741/study1/view1_frontal.jpg,test,chexpert,0,1,1,1,0,0,0,0,0,0,0,0,0,1",
    "patient64741_study1_view2_lateral,patient64741_study1,patient64741,LATERAL,"
    "test/patient64741/study1/view2_lateral.jpg,test,chexpert,0,1,1,1,0,0,0,0,0,0,0,0,0,1",
    "patient64742_study1_view1_frontal,patient64742_study1,patient64742,UNKNOWN,"
    "test/patient64742/study1/view1_frontal.jpg,test,chexpert,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
]


def write(root: Path, files: dict[str, list[str]]) -> Path:
    """The tables, and an empty folder of training images."""
    (root / "train").mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def text(manifest: Manifest) -> list[str]:
    return manifest.to_bytes().decode().splitlines()


def labels_of(manifest: Manifest, row: int) -> str:
    return text(manifest)[row + 1].split(",", 7)[7]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / SMALL, FILES)


def test_the_miniature_becomes_the_rows_written_by_hand(folder, caplog):
    manifest = chexpert.read(folder, test=folder / "test_labels.csv")
    assert text(manifest) == [HEADER, *ROWS]
    assert manifest.image_path(0) == folder / f"train/{ONE}/study2/view1_frontal.jpg"
    assert group_images(manifest, "study").ids[:2] == [f"{ONE}_study2", f"{ONE}_study1"]
    for name, found, release in (("train", 5, 223_414), ("valid", 2, 234), ("test_labels", 3, 668)):
        assert f"{name}.csv: {found} images; CheXpert has {release}" in caplog.text


def test_a_test_table_by_study_takes_the_images_that_lie_there(folder, caplog):
    for row in ROWS[7:]:
        path = folder / row.split(",")[4]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (folder / "test/patient64741/study1/.DS_Store").touch()
    manifest = chexpert.read(folder, test=folder / "groundtruth.csv")
    assert text(manifest) == [HEADER, *ROWS[:7], ROWS[9], ROWS[7], ROWS[8]]  # in the order of that table
    assert "groundtruth.csv: 2 studies; CheXpert has 500" in caplog.text
    (folder / ROWS[9].split(",")[4]).unlink()
    with pytest.raises(InputError, match=r"groundtruth\.csv, row 2: .*patient64742/study1 holds no view1_frontal"):
        chexpert.read(folder, test=folder / "groundtruth.csv")


def test_without_a_test_table_the_valid_images_test_and_training_patients_validate(folder):
    manifest = chexpert.read(folder, val_fraction=0.4)
    splits = manifest.images["split"].tolist()
    assert splits[5:] == ["test", "test"]
    assert set(splits[:5]) == {"train", "val"}
    assert splits[0] == splits[1] == splits[2]  # one patient
    assert len(manifest) == 7


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"uncertain": "ones"}, "0,0,1,1,0,1,1,0,1,0,1,0,0,1"),
        ({"uncertain": "zeros"}, "0,0,0,1,0,0,0,0,0,0,1,0,0,1"),
        ({"uncertain": "ignore", "not_mentioned": "ignore"}, "0,,,1,,,,,,0,1,,,1"),
        ({"uncertain": 0.7}, "0,0,0.7,1,0,0.7,0.7,0,0.7,0,1,0,0,1"),
        (
            {"uncertain": {"Edema": 0.7, "Atelectasis": "ones", "Consolidation": "zeros", "Fracture": 0.25}},
            "0,0,,1,0,0.7,0,0,1,0,1,0,0,1",
        ),
    ],
)
def test_uncertain_and_unmentioned_findings_become_what_was_chosen_for_each_class(folder, options, expected):
    manifest = chexpert.read(folder, test=folder / "test_labels.csv", **options)
    assert labels_of(manifest, 0) == labels_of(manifest, 1) == expected
    assert labels_of(manifest, 3) == "," * 13  # blank throughout: nothing is known, whatever the rule


def test_a_soft_label_trains_but_is_unknown_where_it_would_be_scored(folder):
    manifest = chexpert.read(folder, uncertain=0.7, val_fraction=0.5)
    soft = (manifest.labels > 0) & (manifest.labels < 1)
    uncertain = np.isnan(chexpert.read(folder, val_fraction=0.5).labels)
    uncertain[3] = False  # blank throughout
    train = (manifest.images["split"] == "train").to_numpy()
    assert (uncertain & train[:, None]).any()
    assert (uncertain & ~train[:, None]).any()
    np.testing.assert_array_equal(soft, uncertain & train[:, None])
    assert np.isnan(manifest.labels[uncertain & ~train[:, None]]).all()


def test_no_finding_is_absent_where_it_is_blank(folder):
    manifest = chexpert.read(folder, test=folder / "test_labels.csv", not_mentioned="ignore")
    np.testing.assert_array_equal(manifest.labels[:, 0], [0, 0, 1, np.nan, 0, 0, 0, 0, 0, 1])


def test_labels_of_other_programs_are_taken_by_name_as_no_finding_comes_last_there(folder):
    manifest = chexpert.read(folder, labeler="chexbert", test=folder / "test_labels.csv")
    assert [labels_of(manifest, row) for row in (0, 2)] == ["0,0,0,1,0,0,0,,0,0,0,0,0,0", "1" + ",0" * 13]
    manifest = chexpert.read(folder, labeler="visualchexbert", test=folder / "test_labels.csv")
    assert [labels_of(manifest, row) for row in (0, 1)] == ["0,0,1,1,0,1,1,0,1,0,1,0,0,1", "1" + ",0" * 13]
    assert manifest.images["path"][0] == f"train/{ONE}/study2/view1_frontal.jpg"


def test_the_full_release_the_cloud_copy_and_packed_tables_read_alike(folder, tmp_path):
    expected = chexpert.read(folder, test=folder / "test_labels.csv").digest
    for number, prefix in enumerate(("CheXpert-v1.0", "chexpertchestxrays-u20210408/CheXpert-v1.0")):
        files = {name: [line.replace(SMALL, prefix) for line in lines] for name, lines in FILES.items()}
        files["val_labels.csv"] = files.pop("valid.csv")  # the same rows, as CheXlocalize calls them
        other = write(tmp_path / str(number), files)
        (other / "train.csv").rename(other / "x")
        (other / "train.csv.gz").write_bytes(gzip.compress((other / "x").read_bytes()))
        images = write(tmp_path / f"images {number}", {})
        assert chexpert.read(images, other, test=other / "test_labels.csv").digest == expected


def change(files: dict[str, list[str]], name: str, row: int, old: str, new: str) -> dict[str, list[str]]:
    lines = list(files[name])
    assert old in lines[row - 1]
    lines[row - 1] = lines[row - 1].replace(old, new)
    return files | {name: lines}


@pytest.mark.parametrize(
    ("name", "row", "old", "new", "message"),
    [
        (
            "train.csv",
            2,
            "patient00001",
            "patient1",
            r"train\.csv, row 2, column 'Path': '.*' is not of the form \.\.\.",
        ),
        (
            "train.csv",
            3,
            "/train/",
            "/valid/",
            "row 3, column 'Path': .* not of the form .*/train/patient12345/study1/",
        ),
        ("train.csv", 3, "_lateral.jpg", "_lateral.png", "row 3, column 'Path'"),
        (
            "train.csv",
            2,
            ",Frontal,",
            ",Lateral,",
            "row 2, column 'Frontal/Lateral': 'Lateral', but the path says 'Fron",
        ),
        ("train.csv", 2, ",AP,", ",LAO,", "row 2: unknown pair Frontal/Lateral 'Frontal' and AP/PA 'LAO'; known are"),
        ("train.csv", 3, "Lateral,,", "Lateral,LL,", "row 3: unknown pair Frontal/Lateral 'Lateral' and AP/PA 'LL'"),
        ("train.csv", 3, "view2_lateral", "view1_frontal", "row 3, column 'Frontal/Lateral'"),
        ("train.csv", 4, "study1", "study2", "image_id 'patient00001_study2_view1_frontal' occurs twice"),
        ("train.csv", 3, ",0.0,1.0,", ",1.0,1.0,", "1 studies hold images with different labels"),
        (
            "train.csv",
            2,
            "-1.0,1.0",
            "-2.0,1.0",
            "row 2, column 'Cardiomegaly': label must be one of 1.0, .* got '-2.0'",
        ),
        ("train.csv", 1, "Edema", "Oedema", "row 1: missing column 'Edema'"),
        ("valid.csv", 2, ",0.0,1.0", ",-1.0,1.0", "valid.csv, row 2, column 'No Finding': label must be one of 0, 1, "),
        ("valid.csv", 2, ",0.0,1.0", ",,1.0", r"row 2, column 'No Finding': label must be one of .* got ''"),
        ("valid.csv", 2, "valid/patient64541", "valid/patient64540", "1 patient_ids are in more than one split"),
        ("test_labels.csv", 2, "test/", "valid/", r"row 2, column 'Path': .* \.\.\./test/patient12345/study1/view1"),
        ("test_labels.csv", 1, "Path", "path", "missing column 'Path'"),
    ],
)
def test_what_chexpert_does_not_have_is_named(tmp_path, name, row, old, new, message):
    folder = write(tmp_path, change(FILES, name, row, old, new))
    with pytest.raises(InputError, match=message) as caught:
        chexpert.read(folder, test=folder / "test_labels.csv")
    assert "\n" not in str(caught.value)


def test_a_path_is_made_anew_from_its_parts_so_that_it_cannot_leave_the_folder(tmp_path):
    folder = write(tmp_path, change(FILES, "train.csv", 4, f"{SMALL}/train/", "x/../../tmp/train/"))
    assert chexpert.read(folder).images["path"][2] == ROWS[2].split(",")[4]


def test_missing_folders_and_tables_are_named(folder, tmp_path):
    with pytest.raises(InputError, match=rf"no folder 'train' in it; --images wants .*; is it .*{SMALL}\?"):
        chexpert.read(tmp_path)
    with pytest.raises(InputError, match="absent: no folder 'train'"):
        chexpert.read(tmp_path / "absent")
    with pytest.raises(InputError, match=r"absent\.csv: no such file"):
        chexpert.read(folder, test=folder / "absent.csv")
    (folder / "valid.csv").unlink()
    with pytest.raises(InputError, match=r"valid\.csv: no such file, nor val_labels\.csv; --tables wants"):
        chexpert.read(folder)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"Oedema": 0.7}, "uncertain: 'Oedema' is not a class; the classes are A, B"),
        ({"B": 1.5}, "uncertain: B must be ones, zeros, ignore or a number in 0..1, got 1.5"),
        (float("nan"), "uncertain: A must be"),
    ],
)
def test_a_rule_for_no_class_or_outside_0_to_1_is_named(rule, message):
    with pytest.raises(InputError, match=message):
        uncertain_values(rule, ("A", "B"))


@pytest.mark.parametrize(
    ("option", "cardiomegaly", "edema"),
    [("{Edema: 0.7, Cardiomegaly: ones}", 1, 0.7), ("0.3", 0.3, 0.3), ("ones", 1, 1)],
)
def test_the_command_takes_a_rule_for_all_classes_or_one_for_each(folder, tmp_path, option, cardiomegaly, edema):
    out = tmp_path / "run" / "manifest.csv"
    main(
        ["chexpert", f"--images={folder}", f"--test={folder}/test_labels.csv", f"--uncertain={option}", f"--out={out}"]
    )
    manifest = read_manifest(out)
    found = [manifest.labels[0, manifest.classes.index(name)] for name in ("Cardiomegaly", "Edema")]
    assert found == [np.float32(cardiomegaly), np.float32(edema)]
