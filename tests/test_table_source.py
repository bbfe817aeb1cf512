"""Any CSV becomes a manifest by naming its columns."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.errors import InputError
from data.groups import group_images
from data.manifest import MANIFEST_COLUMNS, read_manifest, write_manifest
from data.sources.table import read
from data.tables import write_table


def frame(num_patients: int = 20) -> pd.DataFrame:
    """Three images per patient: the first two are one study."""
    patients = np.repeat(np.arange(num_patients), 3)
    place = np.tile([0, 1, 2], num_patients)
    rng = np.random.default_rng(0)
    study = 2 * patients + (place == 2)
    return pd.DataFrame(
        {
            "file": [f"{p}/{k}.png" for p, k in zip(patients, place, strict=True)],
            "uid": [f"{i:03d}" for i in range(3 * num_patients)],
            "person": [f"p{p}" for p in patients],
            "exam": [f"e{s}" for s in study],
            "projection": np.tile(["PA", "L", ""], num_patients),
            "Mass": rng.integers(0, 2, 2 * num_patients)[study].astype(str),
            "Edema": np.array(["", "0", "0.5", "1"])[rng.integers(0, 4, 2 * num_patients)[study]],
            "Rare": np.where(study == 0, "1", "0"),
            "age": np.array(["40", "0", "1"])[rng.integers(0, 3, 3 * num_patients)],
            "nothing": "",
            "site": "here",
        },
        dtype="str",
    )


COLUMNS = {"image_id": "uid", "study_id": "exam", "patient_id": "person", "view": "projection", "path": "file"}


@pytest.fixture
def arguments(tmp_path: Path) -> dict:
    write_table(tmp_path / "t.csv", frame())
    return {"table": tmp_path / "t.csv", "images": tmp_path, "view_map": {"L": "LATERAL"}, **COLUMNS}


def test_named_columns_become_the_manifest(arguments, tmp_path):
    manifest = read(**arguments, classes=["Edema", "Mass"], source="site")
    table = frame()
    assert manifest.images["image_id"].tolist() == table["uid"].tolist()
    assert manifest.images["view"].tolist()[:3] == ["PA", "LATERAL", "UNKNOWN"]
    assert set(manifest.images["source"]) == {"here"}
    assert manifest.classes == ("Edema", "Mass")
    expected = table["Edema"].replace("", "nan").astype(np.float32)
    np.testing.assert_array_equal(manifest.labels[:, 0], expected)
    assert manifest.image_path(4) == tmp_path / "1/1.png"


def test_auto_takes_label_columns_alone_and_says_which(arguments, caplog):
    assert read(**arguments, classes="auto").classes == ("Mass", "Edema", "Rare")
    assert "classes found: Mass, Edema, Rare" in caplog.text


def test_rare_classes_leave_and_are_named(arguments, caplog):
    assert read(**arguments, classes=["Rare", "Mass"], min_positives=3).classes == ("Mass",)
    assert "fewer than 3 positives, left out: Rare (2)" in caplog.text
    with pytest.raises(InputError, match="no class has 99 positives"):
        read(**arguments, classes=["Mass"], min_positives=99)


def test_patients_are_split_here_or_by_a_column(arguments):
    images = read(**arguments, classes=["Mass"], val_fraction=0.25, test_fraction=0.25, seed=5).images
    assert images.groupby("patient_id")["split"].nunique().max() == 1
    assert images["split"].value_counts().to_dict() == {"train": 30, "val": 15, "test": 15}
    table = frame()
    table["part"] = np.where(table["person"] == "p3", "val", "train")
    write_table(arguments["table"], table)
    given = read(**arguments, classes=["Mass"], split="part").images
    assert set(given["patient_id"][given["split"] == "val"]) == {"p3"}
    table.loc[0, "part"] = "val"
    write_table(arguments["table"], table)
    with pytest.raises(InputError, match="first p0"):
        read(**arguments, classes=["Mass"], split="part")
    with pytest.raises(InputError, match="fractions"):
        read(**arguments, classes=["Mass"], val_fraction=0.5, test_fraction=0.5)


def test_studies_must_agree_unless_images_were_labelled(arguments, caplog):
    table = frame()
    table = table.iloc[np.random.default_rng(0).permutation(len(table))].reset_index(drop=True)
    table["Mass"] = np.where(table["file"] == "1/1.png", "1", "0")
    write_table(arguments["table"], table)
    with pytest.raises(InputError, match=r"study_id e2 in 'Mass' \(0 and 1\)"):
        read(**arguments, classes=["Mass"])
    manifest = read(**arguments, classes=["Mass"], study_labels="any")
    assert sorted(manifest.images["path"][manifest.labels[:, 0] == 1]) == ["1/0.png", "1/1.png"]
    assert "1 pairs of study and class" in caplog.text
    assert group_images(manifest, "study").conflicts == 0


def test_one_column_may_serve_twice_and_views_may_be_absent(arguments):
    manifest = read(**(arguments | {"study_id": "uid", "view": None}), classes=["Mass"], source="my hospital")
    assert (manifest.images["study_id"] == manifest.images["image_id"]).all()
    assert set(manifest.images["view"]) == {"UNKNOWN"}
    assert set(manifest.images["source"]) == {"my hospital"}


def test_what_is_missing_or_unknown_is_named(arguments, tmp_path):
    with pytest.raises(InputError, match=r"t\.csv, row 1: missing column 'Maß'"):
        read(**arguments, classes=["Maß"])
    with pytest.raises(InputError, match=r"row 3, column 'projection': 'L' is not a view; .* --view_map 'L=PA'"):
        read(**(arguments | {"view_map": None}), classes=["Mass"])
    with pytest.raises(InputError, match="'L=SIDE': the view must be one of PA"):
        read(**(arguments | {"view_map": {"L": "SIDE"}}), classes=["Mass"])
    with pytest.raises(InputError, match="no such folder; --images"):
        read(**(arguments | {"images": tmp_path / "absent"}), classes=["Mass"])
    with pytest.raises(InputError, match="row 4, column 'age': label"):
        read(**arguments, classes=["age"])
    write_table(arguments["table"], frame().drop(columns=["Mass", "Edema", "Rare"]))
    with pytest.raises(InputError, match="no column holds only 0, 1"):
        read(**arguments, classes="auto")


def test_a_manifest_is_itself_such_a_table(arguments, tmp_path):
    manifest = read(**arguments, classes=["Mass", "Edema"])
    write_manifest(manifest, tmp_path / "manifest.csv")
    again = read(tmp_path / "manifest.csv", tmp_path, classes="auto", split="split")
    assert again.digest == manifest.digest == read_manifest(tmp_path / "manifest.csv").digest
    assert tuple(again.images.columns) == MANIFEST_COLUMNS


def test_the_real_sample_set_reads_with_its_own_column_names():
    folder = Path(os.environ.get("CXR_SHARED_DATA", "absent")) / "real_cxr"
    if not folder.is_dir():
        pytest.skip("CXR_SHARED_DATA does not name a folder with real_cxr/")
    manifest = read(folder / "metadata.csv", folder, classes="auto", min_positives=20)
    assert len(manifest) == 948
    assert manifest.images["patient_id"].nunique() == 551
    assert "No Finding" in manifest.classes
    assert len(manifest.classes) == 11
    assert all(manifest.image_path(row).is_file() for row in range(len(manifest)))
    assert group_images(manifest, "study").conflicts == 0
