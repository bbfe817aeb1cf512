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
from tests.make_challenge import (
    NUM_TEST,
    edit,
    make_challenge,
    official,
    repeat_last,
    reverse_rows,
    set_value,
    with_column,
    write_groups,
)
from tests.submission_checker import HEADERS, problems

ROOT = Path(__file__).resolve().parents[1]
T2 = "cxr-lt-2024-task2"


def written(folder: Path) -> dict[str, dict[str, float]]:
    """Image -> class -> value, read without our code."""
    with open(folder / "submission.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    key = next(iter(rows[0]))
    return {row.pop(key): {name: float(text) for name, text in row.items()} for row in rows}


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


def test_a_sample_file_with_columns_in_another_order_is_followed_by_name(tmp_path):
    files = make_challenge(tmp_path, T2)
    in_order = submit(T2, files.predictions, **official(files), out=tmp_path / "in_order")
    pd.read_csv(files.template)[["dicom_id", *reversed(HEADERS[T2].split(",")[1:])]].to_csv(files.template, index=False)
    reversed_order = submit(T2, files.predictions, **official(files), out=tmp_path / "reversed")
    assert in_order[0] == reversed_order[0]
    assert written(tmp_path / "reversed") == written(tmp_path / "in_order")
    header = (tmp_path / "reversed" / "submission.csv").read_text().splitlines()[0]
    assert header == files.template.read_text().splitlines()[0]


def test_row_numbers_that_a_program_put_before_the_predictions_do_no_harm(tmp_path):
    files = make_challenge(tmp_path, T2)
    submit(T2, files.predictions, **official(files), out=tmp_path / "a")
    pd.read_csv(files.predictions, dtype=str).to_csv(files.predictions)
    lines = submit(T2, files.predictions, **official(files), out=tmp_path / "b")
    assert "not asked for: column 1, Extra finding, Other extra" in lines
    assert (tmp_path / "a" / "submission.zip").read_bytes() == (tmp_path / "b" / "submission.zip").read_bytes()


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


def test_a_submission_to_another_phase_is_replaced_and_not_compared_unless_named(tmp_path):
    development, test = (make_challenge(tmp_path / name, T2, seed) for seed, name in enumerate(("development", "test")))
    submit(T2, development.predictions, **official(development), out=tmp_path)
    (tmp_path / "submission.csv").rename(tmp_path / "former.csv")
    with pytest.raises(InputError, match="no images in common"):
        submit(T2, test.predictions, **official(test), out=tmp_path, former=tmp_path / "former.csv")
    (tmp_path / "former.csv").rename(tmp_path / "submission.csv")
    lines = submit(T2, test.predictions, **official(test), out=tmp_path)
    assert any("not compared with the file that is replaced" in line for line in lines)
    assert not problems(T2, tmp_path / "submission.zip", test.test_table)


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
