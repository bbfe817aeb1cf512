"""NIH ChestX-ray14 and NIH-CXR-LT: miniatures in their exact forms, and the real tables where they are at hand."""

import gzip
import os
from pathlib import Path

import imagecodecs
import numpy as np
import pytest

from data.errors import InputError
from data.manifest import Manifest, read_manifest
from data.prepare import main
from data.scan import scan_images
from data.sources import nih_chest_xray14, nih_cxr_lt
from data.sources.nih_tables import read_boxes, read_entries, read_list
from data.tables import read_table

COLUMNS = "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient {},View Position"
SIZES = "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
ENTRIES = [
    f"{COLUMNS.format('Gender')},{SIZES}",
    "00099901_000.png,Cardiomegaly|Effusion,0,99901,57,M,PA,2682,2749,0.14300000000000002,0.14300000000000002",
    "00099901_001.png,No Finding,1,99901,58,M,AP,2500,2048,0.168,0.168",
    "00000007_013.png,Pleural_Thickening,0,7,0,F,PA,2500,2048,0.168,0.168",
    "00000008_000.png,Hernia|Infiltration|Mass,2,8,95,F,AP,2048,2500,0.171,0.171",
    "00030805_000.png,No Finding,0,30805,26,M,PA,2048,2500,0.171,0.171",
]
FILES = {
    "Data_Entry_2017_v2020.csv": ENTRIES,
    "train_val_list.txt": ["00000007_013.png", "00099901_000.png", "00030805_000.png", "00099901_001.png"],
    "test_list.txt": ["00000008_000.png"],
}
CLASSES = (
    "Atelectasis,Cardiomegaly,Effusion,Infiltration,Mass,Nodule,Pneumonia,Pneumothorax,Consolidation,Edema,Emphysema,"
    "Fibrosis,Pleural_Thickening,Hernia,No Finding"
)
META = "image_id,study_id,patient_id,view,path,source"
ROWS = [  # without the split
    f"{name},{name},{name[:8]},{view},{name},nih_chest_xray14,{labels}"
    for name, view, labels in (
        ("00099901_000.png", "PA", "0,1,1,0,0,0,0,0,0,0,0,0,0,0,0"),
        ("00099901_001.png", "AP", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,1"),
        ("00000007_013.png", "PA", "0,0,0,0,0,0,0,0,0,0,0,0,1,0,0"),
        ("00000008_000.png", "AP", "0,0,0,1,1,0,0,0,0,0,0,0,0,1,0"),
        ("00030805_000.png", "PA", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,1"),
    )
]
LT_CLASSES = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Effusion,Emphysema,Fibrosis,Hernia,Infiltration,Mass,Nodule,"
    "Pleural Thickening,Pneumonia,Pneumothorax,Pneumoperitoneum,Pneumomediastinum,Subcutaneous Emphysema,"
    "Tortuous Aorta,Calcification of the Aorta,No Finding"
)
LT = "miccai2023_nih-cxr-lt_labels_{}.csv".format
LT_FILES = {
    LT("train"): [
        f"id,{LT_CLASSES},subj_id",
        "00099901_000.png,0,1,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0,00099901",
        "00099901_001.png,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,00099901",
    ],
    LT("val"): [f"id,{LT_CLASSES},subj_id", "00000007_013.png,0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0,00000007"],
    LT("test"): [f"id,{LT_CLASSES},subj_id", "00000008_000.png,0,0,0,0,0,0,0,1,1,1,0,0,0,0,1,0,0,0,1,0,00000008"],
}
NAMES = [line[:16] for line in ENTRIES[1:]]


def write(root: Path, files: dict[str, list[str]], end: str = "\n") -> Path:
    """The files, the last line of each ending in `end`, and the first image."""
    root.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (root / name).write_text("\n".join(lines) + end)
    (root / NAMES[0]).touch()
    return root


def rows_of(manifest: Manifest) -> list[str]:
    """The manifest's lines without the split."""
    lines = [line.split(",") for line in manifest.to_bytes().decode().splitlines()]
    place = lines[0].index("split")
    return [",".join(line[:place] + line[place + 1 :]) for line in lines]


@pytest.mark.parametrize("end", ["\n", "", "\r\n"])
def test_the_miniature_becomes_the_rows_written_by_hand(tmp_path, caplog, end):
    manifest = nih_chest_xray14.read(write(tmp_path, FILES, end), val_fraction=0.4)
    assert rows_of(manifest) == [f"{META},{CLASSES}", *ROWS]
    splits = manifest.images["split"].tolist()
    assert splits[3] == "test"
    assert splits[0] == splits[1]
    assert {*splits[:3], splits[4]} == {"train", "val"}
    for file, found, release in (("v2020.csv", 5, 112_120), ("train_val_list.txt", 4, 86_524)):
        assert f"{file}: {found} images; NIH ChestX-ray14 has {release}" in caplog.text
    assert "are not in" in caplog.text  # only the first image lies there
    assert manifest.rejected == ()


@pytest.mark.parametrize("name", ["Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv"])
@pytest.mark.parametrize("gender", ["Gender", "Sex"])
def test_a_comma_at_the_end_of_lines_and_the_other_name_of_the_sex_change_nothing(tmp_path, gender, name):
    expected = nih_chest_xray14.read(write(tmp_path / "a", FILES)).digest
    lines = [f"{COLUMNS.format(gender)},{SIZES},", *(line + "," for line in ENTRIES[1:])]
    folder = write(tmp_path / "b", FILES)
    (folder / "Data_Entry_2017_v2020.csv").unlink()
    (folder / f"{name}.gz").write_bytes(gzip.compress("\r\n".join(lines).encode()))
    assert nih_chest_xray14.read(folder).digest == expected
    assert nih_chest_xray14.read(tmp_path / "a", folder).digest == expected


def test_images_may_lie_in_the_folders_of_the_archives(tmp_path):
    tables = write(tmp_path / "tables", FILES)
    places = ["images_001/images/", "images_012/images/", "images/", "", "images_012/images/"]
    for place, name in zip(places, NAMES[:4], strict=False):
        (tmp_path / "x" / place).mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / place / name).touch()
    manifest = nih_chest_xray14.read(tmp_path / "x", tables)
    expected = [place + name for place, name in zip(places, NAMES, strict=True)]
    assert manifest.images["path"].tolist() == [*expected[:4], f"images_001/images/{NAMES[4]}"]  # the last is missing
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds none of the images of .*v2020\.csv, nor do images/ and"):
        nih_chest_xray14.read(tmp_path / "empty", tables)
    with pytest.raises(InputError, match="absent: no such folder"):
        nih_chest_xray14.read(tmp_path / "absent", tables)


def test_images_in_neither_list_are_left_out_by_name(tmp_path, caplog):
    folder = write(tmp_path, FILES | {"train_val_list.txt": [*FILES["train_val_list.txt"][:3], "00000009_000.png"]})
    manifest = nih_chest_xray14.read(folder, val_fraction=0.4)
    assert manifest.images["image_id"].tolist() == [NAMES[0], *NAMES[2:]]
    reason = "is neither in train_val_list.txt nor in test_list.txt; together they should name all"
    assert manifest.rejected == ((NAMES[1], reason),)
    assert "1 images of the lists have no row in the table" in caplog.text


def test_a_split_of_its_own_needs_no_lists(tmp_path):
    folder = write(tmp_path, {"Data_Entry_2017_v2020.csv": ENTRIES})
    manifest = nih_chest_xray14.read(folder, split="patients", val_fraction=0.34, test_fraction=0.33)
    assert set(manifest.images["split"]) == {"train", "val", "test"}
    with pytest.raises(InputError, match=r"train_val_list\.txt: no such file; --tables wants the folder"):
        nih_chest_xray14.read(folder)


@pytest.mark.parametrize(
    ("file", "row", "old", "new", "message"),
    [
        (
            "Data_Entry_2017_v2020.csv",
            2,
            "|Effusion",
            "|Pleural Effusion",
            "row 2, column 'Finding Labels': 'Pleural Eff",
        ),
        (
            "Data_Entry_2017_v2020.csv",
            3,
            "No Finding",
            "No Finding|Mass",
            "row 3, .*: No Finding must stand alone, got",
        ),
        (
            "Data_Entry_2017_v2020.csv",
            4,
            "Pleural_",
            "Pleural ",
            "row 4, .* 'Pleural Thickening' is none of the classes",
        ),
        ("Data_Entry_2017_v2020.csv", 3, "No Finding", "", "row 3, column 'Finding Labels': '' is none of the classes"),
        ("Data_Entry_2017_v2020.csv", 2, "Cardiomegaly|", "Infiltrate|", "'Infiltrate' is none of the classes"),
        (
            "Data_Entry_2017_v2020.csv",
            3,
            ",AP,",
            ",LL,",
            "row 3, column 'View Position': unknown .* 'LL'; known are PA, AP",
        ),
        (
            "Data_Entry_2017_v2020.csv",
            3,
            ",99901,",
            ",99902,",
            "row 3, column 'Patient ID': patient '99902', but the im",
        ),
        ("Data_Entry_2017_v2020.csv", 3, "_001.png", "_000.png", "row 3: image_id '00099901_000.png' occurs twice"),
        (
            "Data_Entry_2017_v2020.csv",
            3,
            "00099901",
            "99901",
            "row 3, column 'Image Index': '99901_001.png' is not of th",
        ),
        (
            "Data_Entry_2017_v2020.csv",
            3,
            "00099901_001",
            "../9901_001",
            "row 3, column 'Image Index': .* not of the form",
        ),
        ("Data_Entry_2017_v2020.csv", 3, "0.168,0.168", "0.168,0.168,1", "row 3: 12 fields, but the header has 11"),
        ("Data_Entry_2017_v2020.csv", 3, ",0.168", "", "row 3: 9 fields, but the header has 11"),
        ("Data_Entry_2017_v2020.csv", 1, "View Position", "View", "missing column 'View Position'"),
        ("train_val_list.txt", 2, "_000", "_00", r"train_val_list\.txt, line 2: '00099901_00.png' is not of the form"),
        ("train_val_list.txt", 2, "00099901_000", "00000007_013", "line 2: '00000007_013.png' occurs twice"),
        (
            "test_list.txt",
            1,
            "00000008_000",
            "00000007_013",
            "test_list.txt: 1 names are also in train_val_list.txt, fir",
        ),
        ("test_list.txt", 1, "00000008_000", "00000009_000", None),
        ("train_val_list.txt", 4, "00099901_001", "00000009_000", None),
    ],
)
def test_what_the_data_set_does_not_have_is_named(tmp_path, file, row, old, new, message):
    lines = list(FILES[file])
    assert old in lines[row - 1]
    lines[row - 1] = lines[row - 1].replace(old, new)
    folder = write(tmp_path, FILES | {file: lines})
    if message is None:
        assert len(nih_chest_xray14.read(folder, val_fraction=0.4).rejected) == 1
        return
    with pytest.raises(InputError, match=message) as caught:
        nih_chest_xray14.read(folder)
    assert "\n" not in str(caught.value)


def test_a_patient_in_both_lists_is_named(tmp_path):
    folder = write(tmp_path, FILES | {"train_val_list.txt": [*FILES["train_val_list.txt"][:3], NAMES[3]],
                                      "test_list.txt": [NAMES[1]]})  # fmt: skip
    with pytest.raises(
        InputError, match=r"1 patient_ids are in more than one split, first 00099901 \(train and test\)"
    ):
        nih_chest_xray14.read(folder)


def test_a_list_that_is_no_list_is_named(tmp_path):
    for content in (b"", b"\n\n", b"00099901_000.png\n\n00099901_001.png", b"\xff\xfe0", b"0" * 100_000):
        (tmp_path / "list.txt").write_bytes(content)
        with pytest.raises(InputError, match=r"list\.txt(, line \d: '0*' is not of the form|: not UTF-8)"):
            read_list(tmp_path / "list.txt")
    with pytest.raises(InputError, match="cannot be read"):
        read_list(tmp_path)


BOXES = [
    "Image Index,Finding Label,Bbox [x,y,w,h],,,",
    "00099901_000.png,Infiltrate,225.123456789012,547.012345678901,86.7123456789012,79.1123456789012",
    "00099902_003.png,Mass,686.112345678901,131.512345678901,185.412345678901,313.412345678901,,,",
]


def test_boxes_are_read_under_a_header_that_has_more_commas_than_the_rows(tmp_path):
    folder = write(tmp_path, {"b.csv": BOXES})
    assert read_boxes(folder / "b.csv").to_dict("split")["data"] == [
        ["00099901_000.png", "Infiltration", 225.123456789012, 547.012345678901, 86.7123456789012, 79.1123456789012],
        ["00099902_003.png", "Mass", 686.112345678901, 131.512345678901, 185.412345678901, 313.412345678901],
    ]
    for old, new, message in (
        ("Mass", "Masses", "row 3: the label is none of Atelectasis, .* got '00099902_003.png,Masses,686"),
        ("Mass", "No Finding", "row 3: the label is none of"),
        ("00099902_003", "x", "row 3: the image's name is not of the form"),
        ("686.1", "886.1", "row 3: x, y, w, h must be a box within 1024 x 1024 pixels"),
        ("686.112345678901", "nan", "row 3: x, y, w, h must be"),
        ("686.112345678901", "", "row 3: x, y, w, h must be"),
        ("686.1", "-686.1", "row 3: x, y, w, h must be"),
        (",,,", ",,,1", "row 3: 9 fields, but the header has 6"),
        (",313.412345678901,,,", "", "row 3: 5 fields, but the header has 6"),
    ):
        write(tmp_path, {"b.csv": [*BOXES[:2], BOXES[2].replace(old, new)]})
        with pytest.raises(InputError, match=message):
            read_boxes(folder / "b.csv")


def test_nih_cxr_lt_becomes_the_rows_written_by_hand(tmp_path, caplog):
    images, labels = write(tmp_path / "images", FILES), write(tmp_path / "lt", LT_FILES)
    manifest = nih_cxr_lt.read(images, labels, images / "Data_Entry_2017_v2020.csv")
    assert manifest.to_bytes().decode().splitlines() == [
        f"image_id,study_id,patient_id,view,path,split,source,{LT_CLASSES}",
        *(
            f"{NAMES[n]},{NAMES[n]},{NAMES[n][:8]},{view},{NAMES[n]},{split},nih_cxr_lt,{found}"
            for n, view, split, found in (
                (0, "PA", "train", "0,1,0,0,1,0,0,0,0,0,0,0,0,0,0,0,0,1,0,0"),
                (1, "AP", "train", "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1"),
                (2, "PA", "val", "0,0,0,0,0,0,0,0,0,0,0,1,0,0,0,0,0,0,0,0"),
                (3, "AP", "test", "0,0,0,0,0,0,0,1,1,1,0,0,0,0,1,0,0,0,1,0"),
            )
        ),
    ]
    assert f"{LT('test')}: 1 images; NIH-CXR-LT has 21081" in caplog.text
    assert set(nih_cxr_lt.read(images, labels).images["view"]) == {"UNKNOWN"}
    short = write(tmp_path / "short", {"Data_Entry_2017.csv": ENTRIES[:4]}) / "Data_Entry_2017.csv"
    with pytest.raises(InputError, match=r"1 images are not in .*Data_Entry_2017\.csv, first 00000008_000\.png"):
        nih_cxr_lt.read(images, labels, short)


@pytest.mark.parametrize(
    ("row", "old", "new", "message"),
    [
        (1, "Hernia", "hernia", "row 1: missing column 'Hernia'"),
        (1, ",subj_id", ",Bulla,subj_id", "row 1: column 'Bulla' is none of the 20 classes"),
        (2, ",1,0,00000008", ",1,-1,00000008", "row 2, column 'No Finding': label must be one of 0, 1, .* got '-1'"),
        (2, ",1,0,00000008", ",,0,00000008", "row 2, column 'Calcification of the Aorta': .* got ''"),
        (
            2,
            ",00000008",
            ",00000007",
            "row 2, column 'subj_id': patient '00000007', but the image is called 00000008_00",
        ),
        (2, "00000008_000", "00000007_013", "row 2, column 'subj_id'"),
    ],
)
def test_what_nih_cxr_lt_does_not_have_is_named(tmp_path, row, old, new, message):
    lines = list(LT_FILES[LT("test")])
    assert old in lines[row - 1]
    lines[row - 1] = lines[row - 1].replace(old, new)
    if row == 1 and "Bulla" in new:
        lines[1] = lines[1].replace(",00000008", ",0,00000008")
    folder = write(tmp_path, LT_FILES | {LT("test"): lines})
    with pytest.raises(InputError, match=message):
        nih_cxr_lt.read(folder, folder)
    write(tmp_path, LT_FILES | {LT("val"): LT_FILES[LT("test")]})
    with pytest.raises(InputError, match=r"image_id '00000008_000\.png' occurs twice"):
        nih_cxr_lt.read(folder, write(tmp_path, {LT("test"): LT_FILES[LT("test")]}))


def test_the_commands_end_with_manifests_whose_images_are_read_whatever_their_mode(tmp_path):
    folder, rng = write(tmp_path, FILES | LT_FILES), np.random.default_rng(0)
    for number, name in enumerate(NAMES):
        grey = rng.integers(0, 256, (40, 30), dtype=np.uint8)
        colour = np.dstack([grey, grey, grey, np.full_like(grey, 255)])  # some files of the release are RGBA
        (folder / name).write_bytes(imagecodecs.png_encode(colour if number % 2 else grey))
    for number, more in enumerate((["nih-chest-xray14", "--val_fraction=0.4"], ["nih-cxr-lt", f"--labels={folder}"])):
        out = tmp_path / f"run{number}" / "manifest.csv"
        main([*more, f"--images={folder}", f"--out={out}"])
        result = scan_images(read_manifest(out), out.parent, workers=1, progress=False)
        assert result.readable.all()


@pytest.fixture(scope="module")
def shared() -> Path:
    folder = Path(os.environ.get("CXR_SHARED_DATA", "absent"))
    if not (folder / "nih_tables").is_dir():
        pytest.skip("CXR_SHARED_DATA does not name a folder with nih_tables/, the real tables of NIH ChestX-ray14")
    return folder


def test_the_real_table_holds_what_is_published(shared, tmp_path, caplog):
    (tmp_path / "00000001_000.png").touch()
    manifest = nih_chest_xray14.read(tmp_path, shared / "nih_tables", split="patients")
    assert "published" not in caplog.text
    assert "112120 images;" not in caplog.text
    assert len(manifest) == 112_120
    assert manifest.images["patient_id"].nunique() == 30_805
    assert manifest.images["view"].value_counts().to_dict() == {"PA": 67_310, "AP": 44_810}
    found = dict(zip(manifest.classes, (manifest.labels == 1).sum(axis=0).tolist(), strict=True))
    assert found == {
        **{"Infiltration": 19_894, "Effusion": 13_317, "Atelectasis": 11_559, "Nodule": 6_331, "Mass": 5_782},
        **{"Pneumothorax": 5_302, "Consolidation": 4_667, "Pleural_Thickening": 3_385, "Cardiomegaly": 2_776},
        **{"Emphysema": 2_516, "Edema": 2_303, "Fibrosis": 1_686, "Pneumonia": 1_431, "Hernia": 227},
        "No Finding": 60_361,
    }
    assert (manifest.labels.sum(axis=1) >= 2).sum() == 20_796
    assert not np.isnan(manifest.labels).any()
    boxes = read_boxes(shared / "nih_tables" / "BBox_List_2017.csv.gz")
    assert (len(boxes), boxes["image_id"].nunique()) == (984, 880)
    assert boxes["label"].value_counts().to_dict() == {
        **{"Atelectasis": 180, "Effusion": 153, "Cardiomegaly": 146, "Infiltration": 123, "Pneumonia": 120},
        **{"Pneumothorax": 98, "Mass": 85, "Nodule": 79},
    }
    labels = dict(zip(manifest.images["image_id"], manifest.labels, strict=True))
    pairs = zip(boxes["image_id"], boxes["label"], strict=True)
    assert all(labels[name][manifest.classes.index(label)] == 1 for name, label in pairs)


def test_real_images_and_their_long_tailed_labels_go_through(shared, tmp_path):
    """A part of NIH-CXR-LT, written in its form from a sample whose 20 labels and splits are known."""
    table = read_table(shared / "real_cxr" / "metadata.csv")
    table = table[table["label_set"] == "nih20"].reset_index(drop=True)
    names = table["image_id"].str.removeprefix("nih_") + ".png"
    ours = [{"Effusion": "Pleural Effusion"}.get(name, name) for name in LT_CLASSES.split(",")]
    lines = {split: [f"id,{LT_CLASSES},subj_id"] for split in ("train", "val", "test")}
    for row, name in enumerate(names):
        labels = ",".join(table[column].iat[row] for column in ours)
        lines[table["official_lt_split"].iat[row]].append(f"{name},{labels},{name[:8]}")
    folder = tmp_path / "nih"
    folder.mkdir()
    for split, content in lines.items():
        (folder / LT(split)).write_text("\n".join(content))
    for row in range(0, len(table), 60):
        source = (shared / "real_cxr" / table["path"].iat[row]).read_bytes()
        (folder / names[row]).write_bytes(imagecodecs.png_encode(imagecodecs.jpeg_decode(source)))
    with gzip.open(shared / "nih_tables" / "Data_Entry_2017_v2020.csv.gz", "rt") as file:
        header, *entries = file.read().splitlines()
    known = set(names)
    write(folder, {"entries.csv": [header, *(line for line in entries if line[:16] in known)]})
    manifest = nih_cxr_lt.read(folder, folder, folder / "entries.csv")
    assert len(manifest) == len(table) == 619
    views = dict(zip(names, table["view"], strict=True))
    assert manifest.images["view"].tolist() == [views[name] for name in manifest.images["image_id"]]
    there = np.array([manifest.image_path(row).is_file() for row in range(len(manifest))])
    assert there.sum() == 11
    assert scan_images(manifest.select(there), tmp_path, workers=1, progress=False).readable.all()
    rows, texts = read_entries(folder / "entries.csv")
    findings = dict(zip(rows["image_id"], texts, strict=True))
    for row, name in enumerate(manifest.images["image_id"]):
        listed = {text.replace("_", " ") for text in findings[name].split("|")} - {"No Finding"}
        found = {label for label, value in zip(manifest.classes, manifest.labels[row], strict=True) if value == 1}
        assert listed <= found, name  # the long-tailed set adds five classes to the fourteen and takes none away
