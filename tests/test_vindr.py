"""VinDr-CXR and VinBigData: miniatures in their exact form become rows written by hand, under each rule of votes."""

from pathlib import Path

import numpy as np
import pytest

from data.archives import archive_of
from data.errors import InputError
from data.images import read_image
from data.label_spaces import VINBIGDATA_CLASSES, VINDR_CLASSES
from data.manifest import MANIFEST_COLUMNS, Manifest
from data.sources import vinbigdata, vindr
from data.sources.votes import combine
from tests.make_dicom import plain, ramp
from tests.make_vindr import BOXES, LABELS, READINGS, A, B, C, D, E, write_vinbigdata, write_vindr


def known(manifest: Manifest, image_id: str) -> dict[str, float]:
    """The labels of an image that are not 0."""
    row = manifest.images["image_id"].tolist().index(image_id)
    values = {name: round(float(value), 3) for name, value in zip(manifest.classes, manifest.labels[row], strict=True)}
    return {name: value for name, value in values.items() if value != 0}


def test_vindr_equals_rows_written_by_hand(tmp_path):
    manifest = vindr.read(write_vindr(tmp_path), val_fraction=0.25)
    names = [name for name in MANIFEST_COLUMNS if name != "split"]
    assert manifest.images[names].to_numpy().tolist() == [
        [B, B, B, "PA", f"train/{B}.dicom", "vindr"],
        [A, A, A, "PA", f"train/{A}.dicom", "vindr"],
        [D, D, D, "PA", f"train/{D}.dicom", "vindr"],
        [C, C, C, "PA", f"train/{C}.dicom", "vindr"],
        [E, E, E, "PA", f"test/{E}.dicom", "vindr"],
    ]
    assert sorted(manifest.images["split"].tolist()[:4]) == ["train", "train", "train", "val"]
    assert manifest.images["split"].tolist()[4] == "test"
    assert manifest.classes == VINDR_CLASSES == tuple(LABELS)
    assert [known(manifest, name) for name in (A, B, C, D, E)] == [
        {"No finding": 1},
        {"Cardiomegaly": 1},
        {"Pleural effusion": 1, "Other diseases": 1},
        {"No finding": 1},
        {"Cardiomegaly": 1, "Lung Opacity": 1},
    ]
    assert not np.isnan(manifest.labels).any()


@pytest.mark.parametrize(
    ("votes", "b", "d"),
    [
        ("any", {"Cardiomegaly": 1, "Nodule/Mass": 1, "Rib fracture": 1}, {"Pleural effusion": 1}),
        ("majority", {"Cardiomegaly": 1}, {"No finding": 1}),
        (
            "mean",
            {"Cardiomegaly": 0.667, "Nodule/Mass": 0.333, "Rib fracture": 0.333},
            {"Pleural effusion": 0.333, "No finding": 0.667},
        ),
    ],
)
def test_votes_become_labels_by_the_rule_asked_for(tmp_path, votes, b, d):
    manifest = vindr.read(write_vindr(tmp_path), votes=votes)
    assert (known(manifest, B), known(manifest, D)) == (b, d)
    kaggle = vinbigdata.read(write_vinbigdata(tmp_path / "kaggle"), votes=votes)
    assert known(kaggle, B) == {
        ("Other lesion" if name == "Rib fracture" else name): value for name, value in b.items()
    }
    assert known(kaggle, D) == d


def test_votes_equal_a_slow_count():
    votes = np.random.default_rng(0).integers(0, 2, (7, 3, 5)).astype(np.float32)
    for rule in ("any", "majority", "mean"):
        labels = combine(votes, 4, rule)
        for n in range(7):
            for c in range(5):
                ones = int(votes[n, :, c].sum())
                expected = {"any": ones == 3 if c == 4 else ones > 0, "majority": ones > 1, "mean": ones / 3}[rule]
                assert labels[n, c] == np.float32(expected)


def test_vinbigdata_equals_rows_written_by_hand(tmp_path):
    manifest = vinbigdata.read(write_vinbigdata(tmp_path), val_fraction=0.25, test_fraction=0.25)
    names = [name for name in MANIFEST_COLUMNS if name != "split"]
    assert manifest.images[names].to_numpy().tolist() == [
        [name, name, name, "PA", f"train/{name}.dicom", "vinbigdata"] for name in (A, B, C, D)
    ]
    assert set(manifest.images["split"]) <= {"train", "val", "test"}
    assert manifest.classes == VINBIGDATA_CLASSES
    assert known(manifest, C) == {"Pleural effusion": 1}
    assert known(manifest, A) == known(manifest, D) == {"No finding": 1}


def test_both_are_seen_to_hold_the_same_images(tmp_path):
    physionet, kaggle = vindr.read(write_vindr(tmp_path / "a")), vinbigdata.read(write_vinbigdata(tmp_path / "b"))
    train = physionet.images[physionet.images["path"].str.startswith("train/")]
    assert set(train["image_id"]) == set(kaggle.images["image_id"])
    assert set(train["patient_id"]) == set(kaggle.images["patient_id"])
    assert archive_of("vindr") == archive_of("vinbigdata") == "VinDr-CXR"


def test_a_dicom_image_of_it_is_read(tmp_path):
    manifest = vindr.read(write_vindr(tmp_path))
    manifest.image_path(0).write_bytes(plain(ramp(12)))
    assert read_image(manifest.image_path(0)).shape == ramp(12).shape


def test_the_test_table_may_name_a_label_as_the_training_table_does(tmp_path):
    expected = vindr.read(write_vindr(tmp_path))
    path = tmp_path / "annotations" / "image_labels_test.csv"
    path.write_text(path.read_text().replace("Other disease,", "Other diseases,"))
    np.testing.assert_array_equal(vindr.read(tmp_path).labels, expected.labels)


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("train", "Rib fracture", "Rib Fracture", "missing: 'Rib fracture'; unexpected: 'Rib Fracture'"),
        ("train", "rad_id,", "reader,", "rad_id"),
        ("test", "No finding", "No Finding", "missing: 'No finding'"),
        ("train", f"{A},R2", f"{A},R1", f"row 6: reader 'R1' has a row for image {A} already"),
        ("train", f"{A},R2", f"{'f' * 32},R2", f"image {A} has 2 readers, each of the release has 3"),
        ("train", A, A[:-1], "is no id of this data set"),
        ("train", "R8,0,", "R8,,", "row 2, column 'Aortic enlargement': label must be one of"),
        ("train", "R8,0,", "R8,0.5,", "row 2, column 'Aortic enlargement': label must be one of"),
        ("test", E, A, f"image_id '{A}' occurs twice"),
    ],
)
def test_what_vindr_does_not_have_is_named(tmp_path, table, old, new, message):
    change(write_vindr(tmp_path) / "annotations" / f"image_labels_{table}.csv", old, new)
    with pytest.raises(InputError, match=message) as caught:
        vindr.read(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_rows_of_an_image_need_not_be_adjacent(tmp_path):
    expected = vindr.read(write_vindr(tmp_path / "a"), votes="mean")
    order = [3, 0, 6, 9, 1, 4, 10, 7, 8, 11, 2, 5]
    turned = vindr.read(write_vindr(tmp_path / "b", [READINGS[n] for n in order]), votes="mean")
    for name in (A, B, C, D):
        assert known(turned, name) == known(expected, name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Nodule/Mass,8", "Nodule/Mass,9", "row 4: 'Nodule/Mass' with class_id '9' is no class of VinBigData"),
        ("Other lesion,9", "Other Lesion,9", "'Other Lesion' with class_id '9'"),
        (f"{A},No finding,14,R2,,,,\n", "", f"image {A} has 2 readers"),
        (f"{A},No finding,14,R2", f"{A},Cardiomegaly,3,R1", "has 2 readers"),
        (f"{D},Pleural effusion,10,R9", f"{D},Pleural effusion,10,R8", "has 2 readers"),
    ],
)
def test_what_vinbigdata_does_not_have_is_named(tmp_path, old, new, message):
    change(write_vinbigdata(tmp_path) / "train.csv", old, new)
    with pytest.raises(InputError, match=message):
        vinbigdata.read(tmp_path)


def test_a_reader_who_says_no_finding_and_a_finding_is_named(tmp_path):
    write_vinbigdata(tmp_path, [*BOXES, (D, "Cardiomegaly", "3", "R1", "1", "2", "3", "4")])
    with pytest.raises(InputError, match=f"a reader of image {D} gave both 'No finding' and a finding"):
        vinbigdata.read(tmp_path)


def test_a_folder_without_images_is_named(tmp_path):
    write_vindr(tmp_path)
    (tmp_path / "test").rmdir()
    with pytest.raises(InputError, match="test: no such folder; --images wants the one that holds test/"):
        vindr.read(tmp_path)
    with pytest.raises(InputError, match="train: no such folder"):
        vinbigdata.read(tmp_path / "test")
