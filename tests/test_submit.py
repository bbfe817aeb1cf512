"""A submission passes a checker written from the challenges' descriptions, and nothing doubtful becomes one."""

import csv
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data.challenges import CHALLENGES
from data.errors import InputError
from data.manifest import MANIFEST_COLUMNS, Manifest, write_manifest
from data.submit import submit
from tests.make_challenge import NUM_TEST, Files, edit, make_challenge, with_column
from tests.submission_checker import HEADERS, problems

ROOT = Path(__file__).resolve().parents[1]
T2 = "cxr-lt-2024-task2"


def official(files: Files) -> dict[str, Path]:
    return {"template": files.template, "test_table": files.test_table}


def written(folder: Path) -> dict[str, dict[str, float]]:
    """Image -> class -> value, read without our code."""
    with open(folder / "submission.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    key = next(iter(rows[0]))
    return {row.pop(key): {name: float(text) for name, text in row.items()} for row in rows}


def write_groups(files: Files, level: str, **changes) -> None:
    """Predictions with one row per study or patient, and no image: those of its first image."""
    table = pd.concat([files.images[[f"{level}_id"]], files.values], axis=1).drop_duplicates(f"{level}_id")
    table.assign(**changes).to_csv(files.predictions, index=False, float_format="%.9g")


def test_the_class_lists_are_those_of_the_checker():
    assert HEADERS.keys() == CHALLENGES.keys()
    for name, challenge in CHALLENGES.items():
        assert ",".join((challenge.data_set.id_column, *challenge.classes)) == HEADERS[name]


@pytest.mark.parametrize("challenge", HEADERS)
@pytest.mark.parametrize("given", [("template", "test_table"), ("template",), ("test_table",)], ids="-".join)
def test_every_edition_passes_the_independent_checker_with_each_value_at_its_image(tmp_path, challenge, given):
    files = make_challenge(tmp_path, challenge)
    lines = submit(
        challenge, files.predictions, **{name: path for name, path in official(files).items() if name in given}
    )
    assert not problems(challenge, tmp_path / challenge / "submission.zip", files.test_table)
    found, by_image = (
        written(tmp_path / challenge),
        files.values.assign(image=files.images["image_id"]).set_index("image"),
    )
    assert len(found) == NUM_TEST
    for image, row in found.items():
        assert row == {name: pytest.approx(float(by_image.at[image, name]), rel=1e-8) for name in row}
    assert any("not asked for: Extra finding, Other extra" in line for line in lines)
    assert ("not compared with" in " ".join(lines)) == (len(given) == 1)


@pytest.mark.parametrize("challenge", HEADERS)
@pytest.mark.parametrize("level", ["study", "patient"])
def test_predictions_of_groups_are_spread_to_the_images_of_each(tmp_path, challenge, level):
    files = make_challenge(tmp_path, challenge)
    write_groups(files, level)
    options = official(files)
    if "2026" in challenge:  # its test table has no usable groups
        frame = pd.DataFrame({name: "x" for name in MANIFEST_COLUMNS}, index=files.images.index)
        frame = frame.assign(**files.images, view="PA", split="test", path=files.images["image_id"])
        write_manifest(Manifest(frame.astype(str), np.zeros((17, 1), np.float32), ("Mass",), tmp_path), files.manifest)
        options["manifest"] = files.manifest
    submit(challenge, files.predictions, **options, out=tmp_path)
    assert not problems(challenge, tmp_path / "submission.zip", files.test_table)
    group = dict(zip(files.images["image_id"], files.images[f"{level}_id"], strict=True))
    first = {name: row for row, name in reversed(list(enumerate(files.images[f"{level}_id"])))}
    found = written(tmp_path)
    for image, row in found.items():
        assert row == {name: pytest.approx(float(files.values.at[first[group[image]], name]), rel=1e-8) for name in row}
    assert len({group[image] for image in found}) < NUM_TEST


def test_one_model_of_40_classes_serves_task_1_and_task_2(tmp_path):
    first, second = (make_challenge(tmp_path / name, f"cxr-lt-2024-{name}") for name in ("task1", "task2"))
    with_column(second.template, 0, lambda row, _: first.images["image_id"][row])
    submit(T2, first.predictions, second.template, out=tmp_path)
    found = written(tmp_path)
    assert [found[image]["Normal"] for image in found] == pytest.approx(first.values["Normal"][:NUM_TEST].tolist())
    assert list(next(iter(found.values())))[13:16] == ["Mass", "Normal", "Nodule"]


def test_a_class_of_another_name_is_taken_only_when_told_so(tmp_path):
    files = make_challenge(tmp_path, T2)
    edit(files.predictions, ",Normal", ",No Finding")
    with pytest.raises(InputError, match=r"no column 'Normal'; if .* --rename \"No Finding=Normal\""):
        submit(T2, files.predictions, **official(files))
    submit(T2, files.predictions, **official(files), rename=["No Finding=Normal"], out=tmp_path)
    assert not problems(T2, tmp_path / "submission.zip", files.test_table)


def test_equal_predictions_give_equal_bytes_in_any_order_and_with_marks_at_the_start(tmp_path):
    files = make_challenge(tmp_path, T2)
    submit(T2, files.predictions, **official(files), out=tmp_path / "a")
    header, *rows = files.predictions.read_text().splitlines()
    files.predictions.write_text("\ufeff" + "\r\n".join([header, *reversed(rows)]) + "\r\n", newline="")
    files.template.write_bytes(b"\xef\xbb\xbf" + files.template.read_bytes())
    submit(T2, files.predictions, **official(files), out=tmp_path / "b")
    for name in ("submission.csv", "submission.zip"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_images_without_a_prediction_get_medians_only_as_far_as_allowed(tmp_path):
    files = make_challenge(tmp_path, T2)
    images = pd.read_csv(files.template)["dicom_id"]
    table = pd.read_csv(files.predictions, dtype=str)
    table[~table["image_id"].isin(images[[2, 5]])].to_csv(files.predictions, index=False)
    for allowed in (0, 1, -3):
        with pytest.raises(
            InputError, match=rf"no prediction for dicom_id '{images[2]}' .*\(2 of 11 .*--max_missing 2"
        ):
            submit(T2, files.predictions, **official(files), max_missing=allowed)
    lines = submit(T2, files.predictions, **official(files), max_missing=2, out=tmp_path)
    assert "note: 2 images without a prediction got the median of each class" in lines
    medians = pd.read_csv(files.predictions)["Hernia"].median()
    assert written(tmp_path)[images[5]]["Hernia"] == pytest.approx(medians)


def ruin_ids(name: str, change):
    """Rewrite the ids of a file by (number of the row, id)."""
    return lambda files: with_column(getattr(files, name), 0, change)


def rewrite(name: str, change):
    return lambda files: getattr(files, name).write_text(change(getattr(files, name).read_text()))


def reverse_rows(text: str) -> str:
    header, *rows = text.splitlines()
    return "\n".join([header, *reversed(rows)]) + "\n"


def repeat_last(text: str) -> str:
    return text + text.splitlines()[-1] + "\n"


def set_value(name: str, value: str):
    """Put a value into the last column but one (the last is not asked for) of the third row of a file."""
    return lambda files: with_column(getattr(files, name), -2, lambda row, old: value if row == 2 else old)


BROKEN = {
    "template short of rows": (rewrite("template", lambda t: t.rsplit("\n", 3)[0]), r"sample_submission.csv: lacks 2 ids of .*test.csv"),
    "template longer than the test table": (rewrite("test_table", lambda t: t.rsplit("\n", 2)[0]), r"test.csv: lacks 1 ids of .*sample_submission"),
    "template sorted": (rewrite("template", reverse_rows), r"row 2: .* in that row of .*test.csv \(10 rows differ\): the same images in another order"),
    "template of task 3": (lambda f: f.template.write_text("dicom_id,Bulla,Cardiomyopathy,Hilum,Osteopenia,Scoliosis\n0,0,0,0,0,0\n"), "this is a sample file of cxr-lt-2024-task3"),
    "template of 2023": (lambda f: edit(f.template, ",Normal", ",No Finding"), "this is a sample file of cxr-lt-2023, wanted one of cxr-lt-2024-task2"),
    "template with a misspelt class": (lambda f: edit(f.template, ",Hernia", ",Hernias"), "missing: Hernia; unexpected: Hernias"),
    "template with study_id": (rewrite("template", lambda t: t.replace("\n", ",7\n").replace("Aorta,7", "Aorta,study_id")), "missing: none; unexpected: study_id"),
    "template with a field too many": (lambda f: edit(f.template, "dicom_id,", "dicom_id,study_id,"), "row 2: 27 fields, but the header has 28 columns"),
    "template without dicom_id": (lambda f: edit(f.template, "dicom_id", "image_id"), "row 1: missing column 'dicom_id'; found"),
    "template with row numbers": (rewrite("template", lambda t: "\n".join(f"{n - 1}," * (n > 0) + "," * (n == 0) + line for n, line in enumerate(t.splitlines()))), "row 1: column 1 has values but no name"),
    "template with semicolons": (rewrite("template", lambda t: t.replace(",", ";")), "row 1: missing column 'dicom_id'.*fields must be separated by commas"),
    "template in UTF-16": (lambda f: f.template.write_bytes(f.template.read_text().encode("utf-16")), "sample_submission.csv: not UTF-8 text"),
    "template empty": (rewrite("template", lambda t: ""), "sample_submission.csv: empty file"),
    "template with a header only": (rewrite("template", lambda t: t.splitlines()[0] + "\n"), "sample_submission.csv: no rows"),
    "template with a repeated id": (rewrite("template", repeat_last), "sample_submission.csv, row 13: dicom_id .* occurs twice"),
    "template with an empty id": (ruin_ids("template", lambda row, old: old if row else ""), r"sample_submission.csv, row 2: dicom_id '' is no id of this data set \(1 such"),
    "template with rounded ids": (ruin_ids("template", lambda row, old: f"{row}.23E+15"), r"row 2: dicom_id '0.23E\+15' .*a number rounded by a spreadsheet"),
    "template with dates": (ruin_ids("template", lambda row, old: f"{row + 1}-Dec"), "row 2: dicom_id '1-Dec' .*a date made by a spreadsheet"),
    "test table with floats": (ruin_ids("test_table", lambda row, old: f"{row}.0"), "test.csv, row 2: dicom_id '0.0' .*a whole number written as a decimal"),
    "test table of another data set": (ruin_ids("test_table", lambda row, old: f"patient{row}"), "test.csv, row 2: dicom_id 'patient0' is no id of this data set .*an id looks like"),
    "test table as template": (lambda f: f.template.write_text(f.test_table.read_text()), "a test table is given with --test_table"),
    "predictions missing": (lambda f: f.predictions.unlink(), "predictions_test.csv: no such file"),
    "predictions of another split": (ruin_ids("predictions", lambda row, old: old[::-1]), "none of the 11 wanted ids .*another split"),
    "predictions without ids": (lambda f: edit(f.predictions, "image_id,study_id,patient_id", "a,b,c"), "no column of ids; wanted image_id, study_id or patient_id"),
    "predictions without a class": (lambda f: edit(f.predictions, ",Hernia", ",hernia"), "no column 'Hernia'; if 'hernia' is that class: --rename"),
    "predictions repeated": (rewrite("predictions", repeat_last), r"predictions_test.csv, row 19: image_id .* occurs twice \(1 such rows\)"),
    "predictions with file names": (ruin_ids("predictions", lambda row, old: f"{old}.jpg"), "no image_id .*, but '.*jpg', the same id with another ending"),
    "predictions in capitals": (ruin_ids("predictions", lambda row, old: old.upper()), "the same id in other letters"),
    "predictions with NaN": (set_value("predictions", "nan"), "row 4, column .*: wanted a finite number, found nan"),
    "predictions with a gap": (set_value("predictions", ""), "row 4, column .*: wanted a number, found ''"),
    "logits": (set_value("predictions", "-1.5"), r"row 4, column .*: wanted a probability in \[0, 1\], found -1.5 .*not the logits"),
    "per cent": (set_value("predictions", "1.0001"), r"wanted a probability in \[0, 1\], found 1.0001"),
    "decimal commas": (set_value("predictions", '"0,5"'), "row 4, column .*: wanted a number, found '0,5'"),
}  # fmt: skip


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
    "floats": (lambda text: f"{text}.0", "no study_id 's?5000.*, but '5000.*\\.0', the same id after a program took it for a"),
    "lost zeros": (lambda text: text.lstrip("0"), "no study_id '005.*, but '5.*', the same id after a program took it for a number"),
    "rounded": (lambda text: "5.0E+07", r"id '5.0E\+07' looks like a number rounded by a spreadsheet \(7 such ids\)"),
    "dates": (lambda text: f"20{text[-1]}1-05-12", "row 2: study_id '2.*12' looks like a date made by a spreadsheet"),
    "blanks": (lambda text: f" {text}", "the same id with blanks or quotes around it"),
    "other studies": (lambda text: f"{text}9", r"has none of the 11 wanted ids .*another split"),
}  # fmt: skip


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


def test_an_empty_test_column_with_values_is_refused(tmp_path):
    files = make_challenge(tmp_path, "cxr-lt-2026-task1")
    with_column(files.test_table, 7, lambda row, old: "1" if row == 3 else old)
    with pytest.raises(InputError, match="test.csv, row 1: column 8 has values but no name"):
        submit("cxr-lt-2026-task1", files.predictions, **official(files))


def test_a_refusal_leaves_a_former_submission_alone_and_a_new_one_is_compared_with_it(tmp_path):
    files = make_challenge(tmp_path, T2)
    first = submit(T2, files.predictions, **official(files), out=tmp_path)
    assert not any("compared with" in line for line in first[2:])
    before = (tmp_path / "submission.zip").read_bytes()
    again = submit(T2, files.predictions, **official(files), out=tmp_path)
    assert "  every value is as before" in again
    set_value("predictions", "7")(files)
    with pytest.raises(InputError, match="probability"):
        submit(T2, files.predictions, **official(files), out=tmp_path)
    assert (tmp_path / "submission.zip").read_bytes() == before


def test_a_class_with_one_value_is_named(tmp_path):
    files = make_challenge(tmp_path, T2)
    with_column(files.predictions, -2, lambda row, old: "0.25")
    lines = submit(T2, files.predictions, **official(files), out=tmp_path)
    assert f"warning: one value for every image, which ranks nothing: {files.values.columns[-2]}" in lines


def test_the_command_works_from_another_folder_and_ends_a_fault_with_one_line(tmp_path):
    files = make_challenge(tmp_path, T2)
    command = [sys.executable, str(ROOT / "scripts" / "submit.py"), T2, "--predictions", files.predictions.name]
    good = subprocess.run(
        [*command, "--template", "sample_submission.csv"], cwd=tmp_path, capture_output=True, text=True
    )
    assert good.returncode == 0, good.stderr
    assert good.stdout.splitlines()[-1] == f"next: upload {T2}/submission.zip"
    assert not problems(T2, tmp_path / T2 / "submission.zip", files.test_table)
    bad = subprocess.run([*command, "--template", "test.csv"], cwd=tmp_path, capture_output=True, text=True)
    assert bad.returncode == 1
    assert re.fullmatch(r"error: test.csv, row 1: wanted dicom_id and the 26 classes .*\n", bad.stderr)


def zip_of(members: dict[str, str], path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(name, text)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: {"code/submission.csv": text}, "members"),
        (lambda text: {"submission.csv": text, "notes.txt": ""}, "members"),
        (lambda text: {"submission.csv": "\ufeff" + text}, "byte order mark"),
        (lambda text: {"submission.csv": text.replace("Mass,Normal,Nodule", "Mass,Nodule,Normal")}, "header"),
        (lambda text: {"submission.csv": reverse_rows(text)}, "another order"),
        (lambda text: {"submission.csv": repeat_last(text)}, "an id occurs twice"),
        (lambda text: {"submission.csv": text.rsplit("\n", 2)[0]}, "10 rows, wanted 11"),
        (lambda text: {"submission.csv": text.replace("0.", "1.", 1)}, "is no probability"),
        (lambda text: {"submission.csv": re.sub(r",0\.[0-9e-]+", ",nan", text, count=1)}, "nan is no probability"),
        (lambda text: {"submission.csv": text.replace("-", "", 1)}, "not of the data set's form"),
    ],
)  # fmt: skip
def test_the_checker_finds_what_it_looks_for(tmp_path, change, message):
    files = make_challenge(tmp_path, T2)
    submit(T2, files.predictions, **official(files), out=tmp_path)
    text = (tmp_path / "submission.csv").read_text()
    assert len(list(csv.reader(io.StringIO(text)))) == NUM_TEST + 1
    bad = zip_of(change(text), tmp_path / "bad.zip")
    assert any(message in problem for problem in problems(T2, bad, files.test_table))
