"""Every broken official file and every broken prediction is refused in one clear line, and nothing is written."""

import pytest

from data.errors import InputError
from data.submit import submit
from tests.make_challenge import (
    edit,
    make_challenge,
    official,
    repeat_last,
    reverse_rows,
    set_value,
    with_column,
    write_groups,
)
from tests.submission_checker import HEADERS

T2 = "cxr-lt-2024-task2"


def ruin_ids(name: str, change):
    """Rewrite the ids of a file by (number of the row, id)."""
    return lambda files: with_column(getattr(files, name), 0, change)


def rewrite(name: str, change):
    return lambda files: getattr(files, name).write_text(change(getattr(files, name).read_text()))


BROKEN = {
    "template short of rows": (
        rewrite("template", lambda t: t.rsplit("\n", 3)[0]),
        r"sample_submission.csv: lacks 2 ids of .*test.csv",
    ),
    "template longer than the test table": (
        rewrite("test_table", lambda t: t.rsplit("\n", 2)[0]),
        r"test.csv: lacks 1 ids of .*sample_submission",
    ),
    "template sorted": (
        rewrite("template", reverse_rows),
        r"row 2: .* in that row of .*test.csv \(10 rows differ\): the same images in another order",
    ),
    "template of task 3": (
        lambda f: f.template.write_text("dicom_id,Bulla,Cardiomyopathy,Hilum,Osteopenia,Scoliosis\n0,0,0,0,0,0\n"),
        "this is a sample file of cxr-lt-2024-task3",
    ),
    "template of 2023": (
        lambda f: edit(f.template, ",Normal", ",No Finding"),
        "this is a sample file of cxr-lt-2023, wanted one of cxr-lt-2024-task2",
    ),
    "template with a misspelt class": (
        lambda f: edit(f.template, ",Hernia", ",Hernias"),
        "missing: Hernia; unexpected: Hernias",
    ),
    "template with study_id": (
        rewrite("template", lambda t: t.replace("\n", ",7\n").replace("Aorta,7", "Aorta,study_id")),
        "missing: none; unexpected: study_id$",
    ),
    "template with a field too many": (
        lambda f: edit(f.template, "dicom_id,", "dicom_id,study_id,"),
        "row 2: 27 fields, but the header has 28 columns",
    ),
    "template without dicom_id": (
        lambda f: edit(f.template, "dicom_id", "image_id"),
        "row 1: missing column 'dicom_id'; found",
    ),
    "template with row numbers": (
        rewrite(
            "template",
            lambda t: "\n".join(f"{n - 1}," * (n > 0) + "," * (n == 0) + line for n, line in enumerate(t.splitlines())),
        ),
        "missing: none; unexpected: column 1$",
    ),
    "template with semicolons": (
        rewrite("template", lambda t: t.replace(",", ";")),
        r"row 1: one column, 'dicom_id;Ate.*\.\.\.'; fields must be separated by commas",
    ),
    "template in UTF-16": (
        lambda f: f.template.write_bytes(f.template.read_text().encode("utf-16")),
        "sample_submission.csv: not UTF-8 text",
    ),
    "template empty": (rewrite("template", lambda t: ""), "sample_submission.csv: empty file"),
    "template with a header only": (
        rewrite("template", lambda t: t.splitlines()[0] + "\n"),
        "sample_submission.csv: no rows",
    ),
    "template with a repeated id": (
        rewrite("template", repeat_last),
        "sample_submission.csv, row 13: dicom_id .* occurs twice",
    ),
    "template with an empty id": (
        ruin_ids("template", lambda row, old: old if row else ""),
        r"sample_submission.csv, row 2: dicom_id '' is no id of this data set \(1 such",
    ),
    "template with rounded ids": (
        ruin_ids("template", lambda row, old: f"{row}.23E+15"),
        r"row 2: dicom_id '0.23E\+15' .*a number rounded by a spreadsheet",
    ),
    "template with dates": (
        ruin_ids("template", lambda row, old: f"{row + 1}-Dec"),
        "row 2: dicom_id '1-Dec' .*a date made by a spreadsheet",
    ),
    "test table with floats": (
        ruin_ids("test_table", lambda row, old: f"{row}.0"),
        "test.csv, row 2: dicom_id '0.0' .*a whole number written as a decimal",
    ),
    "test table of another data set": (
        ruin_ids("test_table", lambda row, old: f"patient{row}"),
        "test.csv, row 2: dicom_id 'patient0' is no id of this data set .*an id looks like",
    ),
    "test table as template": (
        lambda f: f.template.write_text(f.test_table.read_text()),
        "a test table is given with --test_table",
    ),
    "released test table as template": (
        rewrite("template", lambda t: t.replace("\n", ",7\n").replace("Aorta,7", "Aorta,subject_id")),
        "missing: none; unexpected: subject_id; a test table is given with --test_table",
    ),
    "template of 2026": (
        lambda f: f.template.write_text(HEADERS["cxr-lt-2026-task2"] + "\n1_a.png,0,0,0,0,0,0\n"),
        "this is a sample file of cxr-lt-2026-task2, wanted one of",
    ),
    "predictions missing": (lambda f: f.predictions.unlink(), "predictions_test.csv: no such file"),
    "predictions of another split": (
        ruin_ids("predictions", lambda row, old: old[::-1]),
        "none of the 11 wanted ids .*another split",
    ),
    "predictions without ids": (
        lambda f: edit(f.predictions, "image_id,study_id,patient_id", "a,b,c"),
        "no column of ids; wanted image_id, study_id or patient_id",
    ),
    "predictions with semicolons": (
        rewrite("predictions", lambda t: t.replace(",", ";")),
        "row 1: one column, .*; fields must be separated by commas",
    ),
    "predictions with semicolons and decimal commas": (
        rewrite("predictions", lambda t: t.replace(",", ";").replace(".", ",")),
        "row 1: one column, .*; fields must be separated by commas",
    ),
    "predictions without a class": (
        lambda f: edit(f.predictions, ",Hernia", ",hernia"),
        "no column 'Hernia'; if 'hernia' is that class: --rename",
    ),
    "predictions repeated": (
        rewrite("predictions", repeat_last),
        r"predictions_test.csv, row 19: image_id .* occurs twice \(1 such rows\)",
    ),
    "predictions with file names": (
        ruin_ids("predictions", lambda row, old: f"{old}.jpg"),
        "no image_id .*, but '.*jpg', the same id with another ending",
    ),
    "predictions in capitals": (ruin_ids("predictions", lambda row, old: old.upper()), "the same id in other letters"),
    "predictions with NaN": (set_value("predictions", "nan"), "row 4, column .*: wanted a finite number, found nan"),
    "predictions with a gap": (set_value("predictions", ""), "row 4, column .*: wanted a number, found ''"),
    "logits": (
        set_value("predictions", "-1.5"),
        r"row 4, column .*: wanted a probability in \[0, 1\], found -1.5 .*not the logits",
    ),
    "per cent": (set_value("predictions", "1.0001"), r"wanted a probability in \[0, 1\], found 1.0001"),
    "decimal commas": (set_value("predictions", '"0,5"'), "row 4, column .*: wanted a number, found '0,5'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_refused_in_one_line_and_nothing_is_written(tmp_path, kind):
    files = make_challenge(tmp_path, T2)
    breaks, message = BROKEN[kind]
    breaks(files)
    with pytest.raises(InputError, match=message) as caught:
        submit(T2, files.predictions, **official(files))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / T2).exists()


GROUP_IDS = {
    "floats": (
        lambda text: f"{text}.0",
        "no study_id 's?5000.*, but '5000.*\\.0', the same id after a program took it for a",
    ),
    "lost zeros": (
        lambda text: text.lstrip("0"),
        "no study_id '005.*, but '5.*', the same id after a program took it for a number",
    ),
    "rounded": (lambda text: "5.0E+07", r"id '5.0E\+07' looks like a number rounded by a spreadsheet \(7 such ids\)"),
    "dates": (lambda text: f"20{text[-1]}1-05-12", "row 2: study_id '2.*12' looks like a date made by a spreadsheet"),
    "blanks": (lambda text: f" {text}", "the same id with blanks or quotes around it"),
    "other studies": (lambda text: f"{text}9", r"has none of the 11 wanted ids .*another split"),
}


@pytest.mark.parametrize("kind", GROUP_IDS)
def test_group_ids_that_a_program_changed_are_recognised(tmp_path, kind):
    files = make_challenge(tmp_path, T2)
    change, message = GROUP_IDS[kind]
    if kind == "lost zeros":
        edit(files.test_table, ",s5000", ",005000")
    write_groups(files, "study")
    with_column(files.predictions, 0, lambda row, old: change(old))
    with pytest.raises(InputError, match=message):
        submit(T2, files.predictions, **official(files))


def test_groups_that_no_table_explains_are_refused_with_the_remedy(tmp_path):
    files = make_challenge(tmp_path, "cxr-lt-2026-task1")
    write_groups(files, "study")
    with pytest.raises(InputError, match=r"one row per study, and .*test.csv does not say .* --manifest"):
        submit("cxr-lt-2026-task1", files.predictions, **official(files))


def test_neither_template_nor_test_table_is_refused(tmp_path):
    files = make_challenge(tmp_path, T2)
    with pytest.raises(InputError, match=r"--template\), its test table \(--test_table\) or both"):
        submit(T2, files.predictions)


@pytest.mark.parametrize(
    ("out", "message"), [("test.csv", "wanted a folder"), ("a.zip", "wanted a folder"), ("plain/b", "cannot be made")]
)
def test_a_place_that_cannot_be_written_is_refused_without_a_traceback(tmp_path, out, message):
    files = make_challenge(tmp_path, T2)
    (tmp_path / "plain").write_text("a file")
    with pytest.raises(InputError, match=f"--out .*{message}"):
        submit(T2, files.predictions, **official(files), out=tmp_path / out)
