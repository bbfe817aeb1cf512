"""The phantom on disk: the real sets' folders, ids and columns, reproducible to the byte."""

import gzip
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from data.errors import InputError
from data.images import read_image
from data.label_spaces import CXR_LT_2023_CLASSES
from data.phantom.cohort import CLASSES
from data.sources import cxr_lt_2023, table
from data.sources.phantom import phantom_is_complete, write_phantom, write_unknowns_table

SMALL = {"num_studies": (9, 3, 5), "size": 40, "seed": 7}
METADATA_COLUMNS = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
LABEL_COLUMNS = ["dicom_id", "subject_id", "study_id", "ViewPosition", "ViewCodeSequence_CodeMeaning", "path"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("phantom") / "made"
    write_phantom(folder, **SMALL, workers=1, progress=False)
    return folder


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    labels = folder / "cxr-lt-2023"
    names = ("train", "development", "test")
    return {name: pd.read_csv(labels / f"{name}.csv", dtype=str, keep_default_na=False) for name in names}


def digest(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_with_two_workers(folder, tmp_path):
    write_phantom(tmp_path / "again", **SMALL, workers=2, progress=False)
    again, made = digest(tmp_path / "again"), digest(folder)
    made.pop("unknowns/table.csv", None)
    assert again == made


def test_another_seed_gives_other_patients(folder, tmp_path):
    write_phantom(tmp_path / "other", num_studies=(3, 1, 1), size=32, seed=8, workers=1, progress=False)
    ours, other = ({i for t in tables(f).values() for i in t["dicom_id"]} for f in (folder, tmp_path / "other"))
    assert not ours & other


def test_columns_and_ids_are_those_of_the_real_sets(folder):
    images = 0
    for frame in tables(folder).values():
        images += len(frame)
        assert list(frame) == LABEL_COLUMNS + list(CXR_LT_2023_CLASSES)
        for row in frame.itertuples():
            assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}", row.dicom_id)
            assert re.fullmatch(r"1\d{7}", row.subject_id)
            assert re.fullmatch(r"5\d{7}", row.study_id)
            assert row.path == f"files/p{row.subject_id[:2]}/p{row.subject_id}/s{row.study_id}/{row.dicom_id}.jpg"
            with Image.open(folder / "mimic-cxr-jpg" / row.path) as image:
                assert (image.mode, image.size) == ("L", (40, 40))
    root = folder / "mimic-cxr-jpg"
    metadata = gzip.open(root / "mimic-cxr-2.0.0-metadata.csv.gz", "rt").read().splitlines()
    split = gzip.open(root / "mimic-cxr-2.0.0-split.csv.gz", "rt").read().splitlines()
    assert metadata[0] == METADATA_COLUMNS
    assert split[0] == "dicom_id,study_id,subject_id,split"
    assert {line.rsplit(",", 1)[1] for line in split[1:]} == {"train", "validate", "test"}
    assert len(metadata) == len(split) == images + 1


def test_the_sample_submission_has_the_rows_of_the_test_table(folder):
    sample = pd.read_csv(folder / "cxr-lt-2023" / "sample_submission.csv")
    assert list(sample) == ["dicom_id", *CXR_LT_2023_CLASSES]
    assert sample["dicom_id"].tolist() == tables(folder)["test"]["dicom_id"].tolist()
    assert (sample[list(CXR_LT_2023_CLASSES)] == 0.5).all().all()


def test_classes_without_bodies_are_all_zero_and_a_study_has_one_set_of_labels(folder):
    frames = pd.concat(tables(folder).values())
    absent = [name for name in CXR_LT_2023_CLASSES if name not in (*CLASSES, "No Finding")]
    assert len(absent) == 10
    assert (frames[absent] == "0").all().all()
    assert (frames.groupby("study_id")[list(CXR_LT_2023_CLASSES)].nunique() == 1).all().all()


def test_the_reader_of_the_real_set_reads_it(folder):
    manifest = cxr_lt_2023.read(folder / "mimic-cxr-jpg", folder / "cxr-lt-2023")
    assert manifest.classes == CXR_LT_2023_CLASSES
    assert set(manifest.images["split"]) == {"train", "val", "test"}
    assert manifest.images.groupby("patient_id")["split"].nunique().max() == 1
    picture = read_image(manifest.image_path(0))
    assert picture.shape == (40, 40)


def test_the_truth_speaks_of_every_image_and_study(folder):
    frames = pd.concat(tables(folder).values())
    findings = pd.read_csv(folder / "truth" / "findings.csv", dtype=str)
    ceiling = pd.read_csv(folder / "truth" / "ceiling.csv", dtype={"study_id": str})
    visibility = pd.read_csv(folder / "truth" / "visibility.csv")
    assert set(findings["dicom_id"]) == set(frames["dicom_id"])
    assert set(ceiling["study_id"]) == set(frames["study_id"])
    assert list(ceiling) == ["study_id", *CXR_LT_2023_CLASSES]
    assert ceiling[list(CXR_LT_2023_CLASSES)].stack().between(0, 1).all()
    assert set(visibility["class"]) == {*CLASSES, "No Finding"}
    agreement = (findings[list(CLASSES)].to_numpy() == frames[list(CLASSES)].to_numpy()).mean()
    assert 0.95 < agreement <= 1  # label noise


def test_an_interrupted_or_changed_folder_is_not_complete(folder, tmp_path):
    assert phantom_is_complete(folder, **SMALL)
    assert not phantom_is_complete(folder, **{**SMALL, "seed": 8})
    assert not phantom_is_complete(folder, **{**SMALL, "size": 41})
    assert not phantom_is_complete(folder, **{**SMALL, "num_studies": (9, 3, 6)})
    assert not phantom_is_complete(tmp_path, **SMALL)
    record, ceiling = folder / "phantom.json", folder / "truth" / "ceiling.csv"
    saved, kept = record.read_bytes(), ceiling.read_bytes()
    assert json.loads(saved)["images"] == len(list(folder.rglob("*.jpg")))
    record.write_bytes(saved[:-40])
    assert not phantom_is_complete(folder, **SMALL)
    record.write_bytes(saved)
    ceiling.write_bytes(kept.replace(b"0.97", b"0.98"))
    assert not phantom_is_complete(folder, **SMALL)
    ceiling.write_bytes(kept)
    image = next(iter(folder.rglob("*.jpg")))
    image.rename(image.with_suffix(".gone"))
    assert not phantom_is_complete(folder, **SMALL)
    image.with_suffix(".gone").rename(image)
    assert phantom_is_complete(folder, **SMALL)


def test_a_run_that_dies_leaves_a_folder_that_is_not_complete(tmp_path, monkeypatch):
    options = {"num_studies": (2, 1, 1), "size": 32}
    write_phantom(tmp_path, **options, workers=1, progress=False)
    assert phantom_is_complete(tmp_path, **options)

    def die(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.sources.phantom.radiograph", die)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path, **options, workers=1, progress=False)
    assert not phantom_is_complete(tmp_path, **options)


def test_the_unknowns_table_hides_labels_and_changes_none(folder):
    path = write_unknowns_table(folder)
    manifest = table.read(path, folder / "mimic-cxr-jpg", (*CLASSES, "No Finding"), split="split")
    whole = cxr_lt_2023.read(folder / "mimic-cxr-jpg", folder / "cxr-lt-2023")
    order = [whole.images["image_id"].tolist().index(name) for name in manifest.images["image_id"]]
    columns = [CXR_LT_2023_CLASSES.index(name) for name in manifest.classes]
    wanted = whole.labels[order][:, columns]
    known = ~np.isnan(manifest.labels)
    assert 0.3 < known.mean() < 0.95
    assert (manifest.labels[known] == wanted[known]).all()
    assert manifest.images["view"].tolist() == whole.images["view"].iloc[order].tolist()


@pytest.mark.parametrize("image_format", ["png", "dcm"])
def test_other_formats_hold_the_same_pictures(tmp_path, image_format):
    for name in ("jpg", image_format):
        write_phantom(tmp_path / name, num_studies=(3, 1, 1), size=48, image_format=name, workers=1, progress=False)
    kinds = set()
    for path in (tmp_path / image_format).rglob(f"*.{image_format}"):
        twin = tmp_path / "jpg" / path.relative_to(tmp_path / image_format).with_suffix(".jpg")
        np.testing.assert_allclose(read_image(path), read_image(twin), atol=0.06)
        if image_format == "dcm":
            pydicom = pytest.importorskip("pydicom")
            dataset = pydicom.dcmread(path)
            kinds.add(dataset.PhotometricInterpretation)
            assert (dataset.BitsAllocated, dataset.BitsStored) == (16, 12)
        else:
            with Image.open(path) as image:
                kinds.add(image.mode)
    assert kinds == ({"MONOCHROME1", "MONOCHROME2"} if image_format == "dcm" else {"I;16"})


def test_wrong_numbers_and_a_foreign_folder_are_refused(tmp_path):
    (tmp_path / "thesis.doc").write_text("keep me")
    with pytest.raises(InputError, match=r"thesis\.doc"):
        write_phantom(tmp_path, **SMALL)
    for wrong in ({"size": 8}, {"num_studies": (0, 1, 1)}, {"workers": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            write_phantom(tmp_path / "new", **{**SMALL, **wrong})
    with pytest.raises(InputError, match="write_phantom"):
        write_unknowns_table(tmp_path)
