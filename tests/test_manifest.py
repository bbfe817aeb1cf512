"""The manifest refuses what training must not see, and reads back exactly what was written."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.errors import InputError
from data.labels import parse_labels
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest, read_manifest, write_manifest
from data.tables import read_table, write_table


def make(root: Path, **changes: list[str]) -> Manifest:
    """Five images, four studies, three patients, three classes; `changes` replace columns."""
    columns = {
        "image_id": ["i0", "i1", "i2", "i3", "i4"],
        "study_id": ["s0", "s0", "s1", "s2", "s3"],
        "patient_id": ["p0", "p0", "p0", "p1", "p2"],
        "view": ["PA", "LATERAL", "AP", "UNKNOWN", "OTHER"],
        "path": ["a/0.jpg", "a/1.jpg", "b/2.jpg", "b/3.jpg", "c/4.jpg"],
        "split": ["train", "train", "train", "val", "test"],
        "source": ["x"] * 5,
    }
    nan = np.nan
    labels = np.array([[1, 0, nan], [1, 0, nan], [0, 0.25, 1], [0, 1, 0], [nan, nan, nan]], dtype=np.float32)
    return Manifest(pd.DataFrame(columns | changes, dtype="str"), labels, ("A", "B c", "D, e"), root)


def replaced(column: str, row: int, value: str) -> dict[str, list[str]]:
    values = make(Path())  # the defaults
    texts = values.images[column].tolist()
    texts[row] = value
    return {column: texts}


BAD = {
    "repeated image": (replaced("image_id", 3, "i1"), "row 5: image_id 'i1' occurs twice"),
    "patient on two sides": (replaced("patient_id", 3, "p0"), r"1 patient_ids .* first p0 \(train and val\)"),
    "patient on three sides": ({"patient_id": ["p"] * 5}, r"first p \(train and val and test\)"),
    "study of two patients": (replaced("study_id", 3, "s1"), r"study_id s1 .*\(p0, p1\)"),
    "unknown view": (replaced("view", 2, "lateral"), "row 4: view must be one of PA, AP, .* got 'lateral'"),
    "unknown split": (replaced("split", 4, "validate"), "row 6: split must be one of .* got 'validate'"),
    "empty image_id": (replaced("image_id", 0, ""), "row 2: image_id is empty"),
    "empty study_id": (replaced("study_id", 1, ""), "row 3: study_id is empty"),
    "empty patient_id": (replaced("patient_id", 4, ""), "row 6: patient_id is empty"),
    "empty path": (replaced("path", 4, ""), "row 6: path is empty"),
    "line break in an id": (replaced("study_id", 3, "s\n2"), r"row 5: study_id 's\\n2' holds a control"),
    "NUL in a path": (replaced("path", 3, "a\0b"), "row 5: path .* holds a control"),
    "absolute path": (replaced("path", 1, "/etc/passwd"), "row 3: path '/etc/passwd' must be relative"),
    "absolute Windows path": (replaced("path", 1, "\\\\server\\x"), "row 3: path"),
    "drive": (replaced("path", 1, "C:\\x.jpg"), "row 3: path"),
    "drive without slash": (replaced("path", 1, "c:x.jpg"), "row 3: path"),
    "parent folder": (replaced("path", 1, "../x.jpg"), "row 3: path"),
    "parent folder inside": (replaced("path", 1, "a/../../x.jpg"), "row 3: path"),
    "parent folder at the end": (replaced("path", 1, "a/.."), "row 3: path"),
    "parent folder with backslashes": (replaced("path", 1, "a\\..\\x"), "row 3: path"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_manifest_is_refused_by_row(tmp_path, kind):
    changes, message = BAD[kind]
    check_manifest(make(tmp_path), "m.csv")
    with pytest.raises(InputError, match=message) as caught:
        write_manifest(make(tmp_path, **changes), tmp_path / "manifest.csv")
    assert str(caught.value).startswith(str(tmp_path / "manifest.csv"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [kind for kind in BAD if "NUL" not in kind])
def test_a_bad_manifest_is_refused_when_read(tmp_path, kind):
    changes, message = BAD[kind]
    manifest = make(tmp_path, **changes)
    (tmp_path / "manifest.csv").write_bytes(manifest.to_bytes())
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path / "manifest.csv")


def test_dots_inside_names_are_no_way_out(tmp_path):
    paths = ["a..b.jpg", "..a/x", "a.../x", "..."]
    check_manifest(make(tmp_path, path=[*paths, "xy:/a b"]), "m.csv")


@pytest.mark.parametrize(
    "text", ["2", "-1", "-0.1", "1.0001", "nan", "NaN", "inf", "1_0", "yes", " 1", "1,0", "\u0660", "0x1", "e", "."]
)
def test_a_label_outside_0_to_1_is_named(text):
    frame = pd.DataFrame({"A": ["0", "1", ""], "B": ["", text, "1"]}, dtype="str")
    with pytest.raises(InputError, match=r"t\.csv, row 3, column 'B': label must be empty or in 0\.\.1"):
        parse_labels(frame, ["A", "B"], "t.csv")


def test_labels_are_numbers_or_unknown():
    frame = pd.DataFrame({"A": ["0", "1", "", "0.0", "1.0", ".5", "1e-3", "-0"]}, dtype="str")
    expected = np.array([[0, 1, np.nan, 0, 1, 0.5, 1e-3, 0]], dtype=np.float32).T
    np.testing.assert_array_equal(parse_labels(frame, ["A"], "t.csv"), expected)


def test_bad_label_arrays_and_class_names_are_refused(tmp_path):
    good = make(tmp_path)
    for value in (1.5, -0.5, np.inf):
        labels = good.labels.copy()
        labels[2, 1] = value
        with pytest.raises(InputError, match=r"row 4, column 'B c': label"):
            check_manifest(Manifest(good.images, labels, good.classes, tmp_path), "m.csv")
    for classes in (("A", "B", "A"), ("A", "", "C"), ("A", "view", "C"), ("A", "b\nc", "C")):
        with pytest.raises(InputError, match="bad class name"):
            check_manifest(Manifest(good.images, good.labels, classes, tmp_path), "m.csv")
    with pytest.raises(InputError, match="no class columns"):
        check_manifest(Manifest(good.images, good.labels[:, :0], (), tmp_path), "m.csv")
    with pytest.raises(InputError, match="no images"):
        check_manifest(good.select(np.zeros(5, dtype=bool)), "m.csv")


def test_odd_ids_round_trip_unchanged(tmp_path):
    ids = ["007", "1" * 50, "a b,c", 'q"uote', "肺-é"]
    manifest = make(tmp_path, image_id=ids, path=["x y.jpg", "ü.jpg", "a,b.jpg", 'c"d.jpg', "n'o.jpg"])
    manifest = Manifest(
        manifest.images.assign(study_id=pd.array(["NA", "NA", "null", "1e5", "1.0"], dtype="str")),
        manifest.labels, manifest.classes, tmp_path,
    )  # fmt: skip
    write_manifest(manifest, tmp_path / "manifest.csv")
    back = read_manifest(tmp_path / "manifest.csv")
    pd.testing.assert_frame_equal(back.images, manifest.images)
    assert back.image_path(2) == tmp_path / "a,b.jpg"
    assert back.classes == ("A", "B c", "D, e")


def test_soft_labels_round_trip_bit_for_bit(tmp_path):
    soft = np.random.default_rng(0).random((5, 3), dtype=np.float32)
    soft[0, 0], soft[1, 1], soft[4] = np.nan, np.float32(1e-8), [0, 1, np.nan]
    manifest = Manifest(make(tmp_path).images, soft, ("A", "B", "C"), tmp_path)
    write_manifest(manifest, tmp_path / "manifest.csv")
    back = read_manifest(tmp_path / "manifest.csv")
    np.testing.assert_array_equal(back.labels.view(np.uint32), soft.view(np.uint32))
    assert back.digest == manifest.digest


def test_digest_follows_the_content_and_not_the_place(tmp_path):
    manifest = make(tmp_path)
    digest = manifest.digest
    assert make(tmp_path / "elsewhere").digest == digest
    labels = manifest.labels.copy()
    labels[4, 0] = 0
    assert Manifest(manifest.images, labels, manifest.classes, tmp_path).digest != digest
    for column in MANIFEST_COLUMNS:
        changed = manifest.images[column].tolist()
        changed[-1] += "x"
        assert make(tmp_path, **{column: changed}).digest != digest, column
    assert manifest.select(np.array([1, 0, 2, 3, 4])).digest != digest


def test_a_moved_run_folder_still_finds_its_images(tmp_path):
    write_manifest(make(tmp_path / "run" / "images"), tmp_path / "run" / "manifest.csv")
    (tmp_path / "run").rename(tmp_path / "other")
    back = read_manifest(tmp_path / "other" / "manifest.csv")
    assert back.image_path(0) == tmp_path / "other" / "images" / "a" / "0.jpg"
    write_manifest(make(tmp_path / "far"), tmp_path / "other" / "manifest.csv")
    (tmp_path / "other").rename(tmp_path / "third")
    assert read_manifest(tmp_path / "third" / "manifest.csv").image_path(0) == tmp_path / "far" / "a" / "0.jpg"


def test_an_edited_table_is_refused_until_accepted(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(make(tmp_path), path)
    path.write_text(path.read_text().replace(",1,0,", ",0,0,", 1))
    with pytest.raises(InputError, match=r"edited since it was written.* accept --manifest"):
        read_manifest(path)
    edited = read_manifest(path, accept_edits=True)
    assert edited.labels[0, 0] == 0
    (tmp_path / "manifest.json").unlink()
    assert read_manifest(path).digest == edited.digest
    write_manifest(edited, path)
    assert read_manifest(path).digest == edited.digest


def test_other_quotes_and_line_ends_are_no_edit(tmp_path):
    path = tmp_path / "manifest.csv"
    write_manifest(make(tmp_path), path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n").replace(b"p0", b'"p0"'))
    assert read_manifest(path).digest == make(tmp_path).digest


@pytest.mark.parametrize("root", ["a" * 5000, "a" * 300, "a\0b"])
def test_a_root_that_no_folder_can_be_called_is_refused(tmp_path, root):
    path = tmp_path / "manifest.csv"
    write_manifest(make(tmp_path), path)
    record = json.loads(path.with_suffix(".json").read_text())
    path.with_suffix(".json").write_text(json.dumps(record | {"root": root}))
    with pytest.raises(InputError, match=r"manifest.json: 'root' can be no folder's name"):
        read_manifest(path)
    path.with_suffix(".json").write_text(json.dumps(record | {"root": "not/here/today"}))
    assert len(read_manifest(path)) == len(make(tmp_path))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"digest": 1, "root": "."}', '{"digest": "x"}'])
def test_a_damaged_description_is_named(tmp_path, content):
    write_manifest(make(tmp_path), tmp_path / "manifest.csv")
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=r"manifest\.json: "):
        read_manifest(tmp_path / "manifest.csv")


def test_description_counts_equal_a_slow_count(tmp_path):
    write_manifest(make(tmp_path), tmp_path / "manifest.csv")
    description = json.loads((tmp_path / "manifest.json").read_text())
    train = description["splits"]["train"]
    assert (train["images"], train["studies"], train["patients"]) == (3, 2, 1)
    assert train["views"] == {"PA": 1, "AP": 1, "LATERAL": 1, "OTHER": 0, "UNKNOWN": 0}
    assert train["positives"] == {"A": 2, "B c": 0, "D, e": 1}
    assert train["negatives"] == {"A": 1, "B c": 2, "D, e": 0}
    assert train["soft"] == {"A": 0, "B c": 1, "D, e": 0}
    assert train["unknown"] == {"A": 0, "B c": 0, "D, e": 2}
    assert description["splits"]["test"]["unknown"] == {"A": 1, "B c": 1, "D, e": 1}
    assert description["root"] == "."
    assert description["classes"] == ["A", "B c", "D, e"]


def test_column_order_of_the_file_is_free(tmp_path):
    write_manifest(make(tmp_path), tmp_path / "manifest.csv")
    frame = read_table(tmp_path / "manifest.csv")
    (tmp_path / "manifest.json").unlink()
    write_table(
        tmp_path / "manifest.csv", frame[["A", "split", "B c", "path", *MANIFEST_COLUMNS[:4], "source", "D, e"]]
    )
    assert read_manifest(tmp_path / "manifest.csv").digest == make(tmp_path).digest


def test_select_and_split_keep_rows_and_labels_together(tmp_path):
    manifest = make(tmp_path)
    picked = manifest.select(np.array([3, 0]))
    assert picked.images["image_id"].tolist() == ["i3", "i0"]
    assert list(picked.images.index) == [0, 1]
    np.testing.assert_array_equal(picked.labels, manifest.labels[[3, 0]])
    assert manifest.of_split("train").images["image_id"].tolist() == ["i0", "i1", "i2"]
    assert manifest.of_split("val").image_path(0) == tmp_path / "b" / "3.jpg"
    assert len(manifest.of_split("val").of_split("test")) == 0
