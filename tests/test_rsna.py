"""RSNA Pneumonia Detection: a miniature in its exact form becomes rows written by hand, under the NIH's ids."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.archives import archive_of
from data.errors import InputError
from data.manifest import MANIFEST_COLUMNS
from data.sources.rsna import read

A, B, C, D = (f"{letter * 8}-1111-4222-8333-{letter * 12}" for letter in "abcd")
DETAILS = [
    "patientId,class",
    f"{A},No Lung Opacity / Not Normal",
    f"{B},Lung Opacity",
    f"{B},Lung Opacity",
    f"{C},Normal",
    f"{D},Lung Opacity",
]
BOXES = [
    "patientId,x,y,width,height,Target",
    f"{A},,,,,0",
    f"{B},264.0,152.0,213.0,379.0,1",
    f"{B},562.0,152.0,256.0,453.0,1",
    f"{C},,,,,0",
    f"{D},10.0,20.0,30.0,40.0,1",
]
NIH = {A: "00099901_000.png", B: "00099901_007.png", C: "00000013_002.png", D: "00030805_000.png"}
DATA_ENTRY = [  # ChestX-ray14's own table, with the trailing comma of its first version
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],",
    *(f"{name},Effusion|Mass,0,{int(name[:8])},58,M,{view},2682,2749,0.143,0.143," for name, view in
      zip(NIH.values(), ("PA", "AP", "PA", "AP"), strict=True)),
]  # fmt: skip


def write(root: Path, details=DETAILS, boxes=BOXES, nih=NIH) -> dict[str, Path]:
    """Arguments of `read`."""
    (root / "stage_2_train_images").mkdir(parents=True, exist_ok=True)
    (root / "stage_2_detailed_class_info.csv").write_text("\n".join(details) + "\n")
    (root / "stage_2_train_labels.csv").write_text("\n".join(boxes) + "\n")
    entries = [
        {
            "StudyInstanceUID": f"1.2.{n}",
            "SeriesInstanceUID": f"1.2.{n}.1",
            "SOPInstanceUID": f"1.2.{n}.1.1",
            "img_id": name,
            "subset_img_id": image_id,
            "subset_group": 0,
            "orig_labels": ["Mass"],
        }
        for n, (image_id, name) in enumerate({**nih, "unused": "00000001_000.png"}.items())
    ]
    (root / "mappings.json").write_text(json.dumps(entries))
    (root / "entries.csv").write_text("\n".join(DATA_ENTRY) + "\n")
    (root / "test_list.txt").write_text("00030805_000.png\n00020000_001.png")  # its last line has no end
    return {"images": root, "mapping": root / "mappings.json"}


def test_the_manifest_equals_rows_written_by_hand(tmp_path):
    arguments = write(tmp_path)
    manifest = read(**arguments, nih_table=tmp_path / "entries.csv", nih_test_list=tmp_path / "test_list.txt")
    names = [name for name in MANIFEST_COLUMNS if name != "split"]
    folder = "stage_2_train_images"
    assert manifest.images[names].to_numpy().tolist() == [
        ["00099901_000.png", "00099901_000.png", "00099901", "PA", f"{folder}/{A}.dcm", "rsna"],
        ["00099901_007.png", "00099901_007.png", "00099901", "AP", f"{folder}/{B}.dcm", "rsna"],
        ["00000013_002.png", "00000013_002.png", "00000013", "PA", f"{folder}/{C}.dcm", "rsna"],
        ["00030805_000.png", "00030805_000.png", "00030805", "AP", f"{folder}/{D}.dcm", "rsna"],
    ]
    assert manifest.classes == ("Lung Opacity", "Normal")
    np.testing.assert_array_equal(manifest.labels, [[0, 0], [1, 0], [0, 1], [1, 0]])
    splits = manifest.images["split"].tolist()
    assert splits[3] == "test"
    assert "test" not in splits[:3]


def test_images_of_one_person_stay_in_one_split_and_views_are_unknown_without_the_nih_table(tmp_path):
    manifest = read(**write(tmp_path))
    assert manifest.images["split"][0] == manifest.images["split"][1]
    assert set(manifest.images["view"]) == {"UNKNOWN"}
    assert archive_of("rsna") == archive_of("nih") == "ChestX-ray14"


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        (
            "details",
            f"{C},Normal",
            f"{C},normal",
            "row 5, column 'class': 'normal' is none of Lung Opacity, No Lung Opacity",
        ),
        ("details", f"{B},Lung Opacity", f"{B},Normal", f"patientId {B} has two classes"),
        ("details", f"{D},", f"{'e' * 36},", f"row 6: Target '1' with x '10.0' .*'none at all'.* gives to {D}"),
        (
            "boxes",
            f"{A},,,,,0",
            f"{A},,,,,1",
            f"row 2: Target '1' with x '' does not go with the class 'No Lung .* {A}",
        ),
        ("boxes", f"{A},,,,,0", f"{A},1,2,3,4,0", "row 2: Target '0' with x '1'"),
        ("boxes", f"{C},,,,,0", f"{A},,,,,0", f"no row for {C}, which"),
        (
            "mapping",
            "00000013_002.png",
            "00000013.png",
            f"{C} should be an image of ChestX-ray14 .* got '00000013.png'",
        ),
        ("mapping", C, "x", f"{C} should be an image of ChestX-ray14 .*, got ''"),
        ("mapping", '"img_id"', '"image"', r"a JSON list of objects .* is wanted \(KeyError: 'img_id'\)"),
        ("mapping", "[{", "{", "a JSON list of objects"),
        ("mapping", "00099901_007.png", "00099901_000.png", "image_id '00099901_000.png' occurs twice"),
    ],
)
def test_what_the_challenge_does_not_have_is_named(tmp_path, table, old, new, message):
    arguments = write(tmp_path)
    names = {
        "details": "stage_2_detailed_class_info.csv",
        "boxes": "stage_2_train_labels.csv",
        "mapping": "mappings.json",
    }
    path = tmp_path / names[table]
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InputError, match=message) as caught:
        read(**arguments)
    assert "\n" not in str(caught.value)


def test_a_test_list_that_is_none_is_named(tmp_path):
    arguments = write(tmp_path)
    (tmp_path / "test_list.txt").write_text("00030805\n")
    with pytest.raises(InputError, match=r"test_list.txt, line 1: '00030805' is not of the form"):
        read(**arguments, nih_test_list=tmp_path / "test_list.txt")
    (tmp_path / "test_list.txt").write_text("00099901_000.png\n")
    with pytest.raises(InputError, match=r"test_list.txt: 1 patient_ids are in more than one split, first 00099901"):
        read(**arguments, nih_test_list=tmp_path / "test_list.txt")


def test_missing_files_are_named(tmp_path):
    arguments = write(tmp_path)
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        read(tmp_path, tmp_path / "none.json")
    with pytest.raises(InputError, match="stage_2_train_images: no such folder"):
        read(tmp_path / "no", arguments["mapping"])
    (tmp_path / "entries.csv").write_text("\n".join(DATA_ENTRY[:-1]) + "\n")
    with pytest.raises(InputError, match=r"1 images are not in .*entries\.csv, first 00030805_000\.png"):
        read(**arguments, nih_table=tmp_path / "entries.csv")
