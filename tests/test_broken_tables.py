"""Broken copies of each source's tables: every one is refused in one line that names file, row and column."""

from collections.abc import Callable
from pathlib import Path

import pytest

from data.errors import InputError
from data.manifest import Manifest
from data.sources import cxr_lt_2024, mimic_cxr, mimic_cxr_jpg
from tests.make_mimic import IMAGES, UNREADABLE, cxr_lt_2024_files, dicom, mimic_files, place, write_files

TRAIN, TEST = "train_labeled.csv", "test_labeled_task1.csv"
METADATA, SPLIT = "mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-split.csv.gz"
CHEXPERT, RADIOLOGISTS = "mimic-cxr-2.0.0-chexpert.csv.gz", "mimic-cxr-2.1.0-test-set-labeled.csv"
RECORDS = "cxr-record-list.csv.gz"

A, B = dicom(1), dicom(2)
HERE = place("10999991", "59999991", A)
ROW_A = f"{A},10999991,s59999991,PA,postero-anterior,{HERE}"


def lines(edit: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    return lambda text: "\n".join(edit(text.splitlines())) + "\n"


def swap(old: str, new: str) -> Callable[[str], str]:
    def edit(text: str) -> str:
        assert old in text, old
        return text.replace(old, new, 1)

    return edit


def cells(row: int, change: Callable[[list[str]], list[str]]) -> Callable[[str], str]:
    """Change the cells of one line; the header is line 1."""

    def edit(all_lines: list[str]) -> list[str]:
        all_lines[row - 1] = ",".join(change(all_lines[row - 1].split(",")))
        return all_lines

    return lines(edit)


def label(row: int, text: str) -> Callable[[str], str]:
    """Another text in the second class column (Atelectasis) of a CXR-LT table."""
    return cells(row, lambda line: [*line[:7], text, *line[8:]])


# what is broken: the table, the fault, and where the error says it is
BROKEN = {
    "one field too many": (TRAIN, cells(3, lambda line: [*line, "0"]), "row 3: 47 fields, but the header has 46"),
    "one field too few": (TRAIN, cells(4, lambda line: line[:-1]), "row 4: 45 fields, but the header has 46"),
    "cut in the last row": (TRAIN, lambda text: text[:-30], "row 5: .* fields"),
    "trailing comma in the header": (TRAIN, cells(1, lambda line: [*line, ""]), "row 1: column 47 has no name"),
    "trailing comma in a row": (TRAIN, cells(2, lambda line: [*line, ""]), "row 2: 47 fields"),
    "class twice": (TRAIN, swap(",Edema,", ",Mass,"), "row 1: column 'Mass' occurs twice"),
    "column renamed as pandas renames repeats": (TRAIN, swap(",Edema,", ",Mass.1,"), "row 1: .*missing: Edema"),
    "unnamed index column": (TRAIN, lines(lambda all_: ["," + line for line in all_]), "row 1: column 1 has no name"),
    "no image ids": (TRAIN, swap("dicom_id,", "image,"), "row 1: missing column 'dicom_id'; found 'image'"),
    "no path": (TRAIN, swap(",fpath,", ",file,"), "row 1: missing column 'path' .or 'fpath'."),
    "class in another spelling": (TRAIN, swap("Round(ed) Atel", "Rounded Atel"), r"row 1: .*missing: Round\(ed\) Atel"),
    "class in another case": (TRAIN, swap(",Mass,", ",mass,"), "row 1: .*missing: Mass; unexpected: mass"),
    "2023's name for Normal": (TRAIN, swap(",Normal,", ",No Finding,"), "missing: Normal; unexpected: No Finding"),
    "training without labels": (
        TRAIN,
        lines(lambda all_: [",".join(line.split(",")[:6]) for line in all_]),
        "row 1: the 40 classes",
    ),
    "semicolons": (TRAIN, lambda text: text.replace(",", ";"), "row 1: missing column .* separated by commas"),
    "tabs": (TRAIN, lambda text: text.replace(",", "\t"), "row 1: missing column .* separated by commas"),
    "NUL in an id": (TRAIN, swap(B, B[:-1] + "\0"), "row 3: NUL character"),
    "quote left open": (TRAIN, swap(B, '"' + B), "row 3: .*quote"),
    "text after a quote": (TRAIN, swap(",lateral,", ',"lateral"x,'), "row 3: .*quote"),
    "line break in an id": (TRAIN, swap(f"{B},", f'"{B}\n",'), "row 3: image_id .* control character"),
    "no rows": (TRAIN, lambda text: text.splitlines()[0] + "\n", "no rows below the header"),
    "empty file": (TRAIN, lambda text: "", "empty file"),
    "page of a failed download": (TRAIN, lambda text: "<html>\n<p>Sign in</p>\n</html>\n", "row 1: missing column"),
    "Git LFS pointer": (TRAIN, lambda text: "version https://git-lfs\noid sha256:00\n", "row 1: missing column"),
    "label -1": (TRAIN, label(3, "-1"), "row 3, column 'Atelectasis': label must be one of .*, got '-1'"),
    "label 2": (TRAIN, label(2, "2"), "row 2, column 'Atelectasis': .*got '2'"),
    "soft label": (TRAIN, label(5, "0.5"), "row 5, column 'Atelectasis': .*got '0.5'"),
    "label in words": (TRAIN, label(2, "True"), "row 2, column 'Atelectasis': .*got 'True'"),
    "label NaN": (TRAIN, label(2, "NaN"), "row 2, column 'Atelectasis': .*got 'NaN'"),
    "label with a space": (TRAIN, label(2, " 1"), "row 2, column 'Atelectasis': .*got ' 1'"),
    "decimal comma": (TRAIN, label(2, '"1,0"'), "row 2, column 'Atelectasis': .*got '1,0'"),
    "label of Arabic digits": (TRAIN, label(2, "\u0661"), "row 2, column 'Atelectasis': .*got '\u0661'"),
    "images of a study disagree": (TRAIN, label(2, "1"), r"study_id 59999991 in 'Atelectasis' \(0 and 1\)"),
    "unknown view": (TRAIN, swap(",PA,", ",FRONT,"), "row 2, column 'ViewPosition': unknown ViewPosition 'FRONT'"),
    "path of another image": (TRAIN, swap(HERE, HERE.replace(A, B)), "row 2, column 'fpath': .* expected 'files/p10"),
    "path of another study": (TRAIN, swap("/s59999991/", "/s59999990/"), "row 2, column 'fpath': .*expected"),
    "path that leaves the folder": (TRAIN, swap(HERE, "../x.jpg"), r"row 2: path '\.\./x\.jpg' must be relative"),
    "absolute path": (TRAIN, swap(HERE, "/" + HERE), "row 2: path .* must be relative"),
    "Windows path": (TRAIN, swap(HERE, "C:\\x.jpg"), "row 2, column 'fpath': .*expected"),
    "path of another format": (TRAIN, swap(HERE, HERE.replace("jpg", "txt")), "row 2, column 'fpath': .*expected"),
    "patient as a decimal number": (
        TRAIN,
        lambda text: text.replace(",10999991,", ",10999991.0,"),
        "row 2, column 'fpath': .*expected 'files/p10/p10999991.0/",
    ),
    "study as a spreadsheet writes it": (TRAIN, swap("s59999991,", "5.99E+07,"), "row 2, column 'fpath': .*expected"),
    "image twice": (TRAIN, lambda text: text + text.splitlines()[1] + "\n", "row 6: image_id .* occurs twice"),
    "image without id": (TRAIN, swap(ROW_A, ROW_A[44:]), "row 2: image_id is empty"),
    "study of two patients": (
        TRAIN,
        swap(f"{B},10999991", f"{B},10999999"),
        "study_id 59999991 belongs to more than one patient",
    ),
    "patient in two tables": (
        TEST,
        lambda text: text.replace("p19/", "p11/").replace("19999993", "11285576"),
        r"train_labeled\.csv: 1 patients are also in .*test_labeled_task1\.csv, first 11285576",
    ),
    "image id in capitals": (METADATA, swap(A, A.replace("c", "C").replace("0", "A")), "row 2, column 'dicom_id': 'A"),
    "image id cut": (METADATA, swap(A, A[:-1]), "row 2, column 'dicom_id': .*5 groups of 8 hexadecimal digits"),
    "patient as a float": (METADATA, swap("10999991,", "10999991.0,"), "row 2, column 'subject_id': '10999991.0'"),
    "study in scientific form": (METADATA, swap("59999991,", "5.999E+07,"), "row 2, column 'study_id': .*8 digits"),
    "patient and study exchanged": (
        METADATA,
        swap("10999991,59999991", "59999991,10999991"),
        "row 2, column 'subject_id': '59999991' is not of MIMIC's form",
    ),
    "metadata without views": (METADATA, swap("ViewPosition", "View"), "row 1: missing column 'ViewPosition'"),
    "image twice in the metadata": (METADATA, swap(B, A), "row 3, column 'dicom_id': .* occurs twice"),
    "other word for validate": (
        SPLIT,
        swap("validate", "valid"),
        "column 'split': valid is not one of train, validate",
    ),
    "split lacks an image": (
        SPLIT,
        lines(lambda all_: all_[:-1]),
        rf"metadata\.csv\.gz, row 7, column 'dicom_id': {dicom(6)} is not in mimic-cxr-2\.0\.0-split",
    ),
    "metadata lack an image": (
        METADATA,
        lines(lambda all_: all_[:-1]),
        r"split\.csv\.gz, row 5, column 'dicom_id': .* is not in mimic-cxr-2\.0\.0-metadata",
    ),
    "split has another study": (
        SPLIT,
        swap(f"{A},59999991", f"{A},59999990"),
        "row 2, column 'study_id': 59999991 is 59999990 for the same image",
    ),
    "split has another patient": (
        SPLIT,
        swap(f"{A},59999991,10999991", f"{A},59999991,10999990"),
        "row 2, column 'subject_id': 10999991 is 10999990 for the same image",
    ),
    "patient on two sides": (
        SPLIT,
        swap(f"{A},59999991,10999991,train", f"{A},59999991,10999991,test"),
        "1 patient_ids are in more than one split, first 10999991",
    ),
    "report label 2.0": (CHEXPERT, swap(",-1.0,1.0,", ",2.0,1.0,"), "row 3, column 'Atelectasis': .*got '2.0'"),
    "report label in words": (CHEXPERT, swap("-1.0,0.0,1.0", "u,0.0,1.0"), "row 3, column 'Pneumonia': .*got 'u'"),
    "study twice": (CHEXPERT, swap("10999991,50000001", "10999991,59999991"), "row 4, column 'study_id': .* twice"),
    "labels of a study without image": (
        CHEXPERT,
        swap("50000001", "50000009"),
        "row 4, column 'study_id': 50000009 has",
    ),
    "labels of another patient": (
        CHEXPERT,
        swap("10999991,50000001", "10999992,50000001"),
        "row 4, column 'study_id': 50000001 is another patient's",
    ),
    "report labels lack a class": (CHEXPERT, swap("Lung Opacity", "Airspace Opacity"), "missing column 'Lung Opacity'"),
    "radiologists' class in the others' name": (
        RADIOLOGISTS,
        swap("Airspace Opacity", "Lung Opacity"),
        "row 1: missing column 'Airspace Opacity'",
    ),
    "radiologists read another split": (
        RADIOLOGISTS,
        swap("59999993", "59999991"),
        "row 2, column 'study_id': 59999991 is not in the official test split",
    ),
    "records of packed files": (RECORDS, swap(".dcm", ".dcm.gz"), r"row 2, column 'path': .* expected '.*\.dcm'"),
    "records of another layout": (RECORDS, swap("files/p10/", "p10/"), "row 2, column 'path': .* expected 'files/p10/"),
    "records lack an image": (
        RECORDS,
        lines(lambda all_: [line for line in all_ if UNREADABLE not in line]),
        rf"metadata\.csv\.gz, row {[image[0] for image in IMAGES].index(UNREADABLE) + 2}, column 'dicom_id'",
    ),
}
ENCODED = {
    "UTF-16": (lambda text: text.encode("utf-16"), "not UTF-8"),
    "Latin-1": (lambda text: text.replace(",lateral,", ",latéral,").encode("latin-1"), "not UTF-8"),
    "not packed, but named so": (lambda text: text.encode(), "gzip"),
}


def read(folder: Path, table: str) -> Manifest:
    if table in (TRAIN, TEST):
        return cxr_lt_2024.read(folder, folder, 1)
    if table == RECORDS:
        return mimic_cxr.read(folder, folder)
    return mimic_cxr_jpg.read(folder, test_labels="radiologist")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_table_is_one_line_naming_file_row_and_column(tmp_path, kind):
    table, edit, message = BROKEN[kind]
    files = cxr_lt_2024_files() | mimic_files()
    broken = edit(files[table])
    assert broken != files[table]
    folder = write_files(tmp_path, files | {table: broken})
    with pytest.raises(InputError, match=message) as caught:
        read(folder, table)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


@pytest.mark.parametrize("kind", ENCODED)
def test_a_table_in_another_encoding_is_named(tmp_path, kind):
    encode, message = ENCODED[kind]
    files = cxr_lt_2024_files()
    folder = write_files(tmp_path, files)
    content = encode(files[TRAIN])
    (folder / TRAIN).write_bytes(content)
    if kind == "not packed, but named so":
        (folder / TRAIN).rename(folder / f"{TRAIN}.gz")
    with pytest.raises(InputError, match=message) as caught:
        read(folder, TRAIN)
    assert str(caught.value).startswith(str(folder / TRAIN))


def test_whole_tables_are_read(tmp_path):
    folder = write_files(tmp_path, cxr_lt_2024_files() | mimic_files())
    assert [len(read(folder, table)) for table in (TRAIN, RECORDS, METADATA)] == [8, 10, 9]
