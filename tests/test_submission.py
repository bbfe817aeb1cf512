"""A submission is the challenge's own sample file, filled in by id; everything doubtful is refused in one line."""

import re
import zipfile

import numpy as np
import pandas as pd
import pytest

from data.errors import InputError
from data.predictions import write_predictions
from data.submission import write_submission

CLASSES = ("Edema", "Mass", "Hernia")


@pytest.fixture
def template(tmp_path):
    """Five images, shuffled against the predictions, with the classes in another order."""
    path = tmp_path / "sample_submission.csv"
    path.write_text("dicom_id,Hernia,Edema,Mass\n" + "".join(f"i{i},0,0,0\n" for i in (3, 0, 5, 1, 4)))
    return path


def predicted(num_images=7, seed=0):
    """Images i0, i1, ... of studies of two images; values differ between images."""
    ids = pd.DataFrame(
        {
            "image_id": [f"i{i}" for i in range(num_images)],
            "study_id": [f"s{i // 2}" for i in range(num_images)],
            "patient_id": [f"p{i // 4}" for i in range(num_images)],
        },
        dtype=str,
    )
    return ids, np.random.default_rng(seed).random((num_images, 3), dtype=np.float32), CLASSES


def refused(template, predictions, message, **options):
    out = template.parent / "out" / "submission.csv"
    with pytest.raises(InputError, match=message) as caught:
        write_submission(predictions, template, out, out.with_suffix(".zip"), **options)
    assert "\n" not in str(caught.value)
    assert not out.parent.exists()


def test_rows_and_columns_are_the_templates_and_values_are_joined_by_id(template, tmp_path):
    ids, values, classes = predicted()
    report = write_submission((ids, values, classes), template, tmp_path / "submission.csv")
    written = pd.read_csv(tmp_path / "submission.csv")
    assert list(written.columns) == ["dicom_id", "Hernia", "Edema", "Mass"]
    assert written["dicom_id"].tolist() == ["i3", "i0", "i5", "i1", "i4"]
    expected = values[[3, 0, 5, 1, 4]][:, [2, 0, 1]]
    np.testing.assert_array_equal(written.iloc[:, 1:].to_numpy(np.float32), expected)  # to the bit
    assert (report.rows, report.columns) == (5, ("dicom_id", "Hernia", "Edema", "Mass"))
    assert report.extra_predictions == 2
    assert report.ranges["Mass"] == (expected[:, 2].min(), expected[:, 2].max())


def test_the_order_of_predictions_changes_no_byte_and_a_file_gives_the_same(template, tmp_path):
    ids, values, classes = predicted()
    write_submission((ids, values, classes), template, tmp_path / "a.csv", tmp_path / "a.zip")
    order = np.array([6, 2, 0, 5, 1, 3, 4])
    write_predictions(tmp_path / "predictions_test.csv", ids.iloc[order], values[order], classes)
    write_submission(tmp_path / "predictions_test.csv", template, tmp_path / "b.csv", tmp_path / "b.zip")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_the_zip_holds_the_same_csv_at_its_root_with_a_fixed_time(template, tmp_path):
    write_submission(predicted(), template, tmp_path / "cxr.csv", tmp_path / "submission.zip")
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["submission.csv"]
        assert archive.read("submission.csv") == (tmp_path / "cxr.csv").read_bytes()
        assert archive.getinfo("submission.csv").date_time == (1980, 1, 1, 0, 0, 0)


def test_tiny_probabilities_survive_pandas(template, tmp_path):
    ids, values, classes = predicted()
    values[:5, 0] = np.float32([1e-45, 1.17549435e-38, 3.3e-9, 0, 1])
    write_submission((ids, values, classes), template, tmp_path / "submission.csv")
    written = pd.read_csv(tmp_path / "submission.csv", index_col="dicom_id").loc[["i0", "i1", "i3", "i4"]]
    np.testing.assert_array_equal(written["Edema"].to_numpy(np.float32), values[[0, 1, 3, 4], 0])


def test_a_test_table_of_the_same_images_in_any_order_is_accepted(template, tmp_path):
    (tmp_path / "test.csv").write_text("subject_id,dicom_id\n" + "".join(f"p,i{i}\n" for i in (0, 1, 3, 4, 5)))
    report = write_submission(predicted(), template, tmp_path / "s.csv", test_table=tmp_path / "test.csv")
    assert report.rows == 5


def test_a_template_short_of_the_test_set_is_refused_with_both_counts(template, tmp_path):
    (tmp_path / "test.csv").write_text("dicom_id\n" + "".join(f"i{i}\n" for i in range(7)))
    message = r"sample_submission.csv: lacks 2 ids of .*test.csv, first 'i2' \(7 images in the test table, 5 in the"
    refused(template, predicted(), message, test_table=tmp_path / "test.csv")


def test_a_test_table_short_of_the_template_is_refused_with_both_counts(template, tmp_path):
    (tmp_path / "test.csv").write_text("image_id\n" + "".join(f"i{i}\n" for i in (0, 1, 4)))
    message = r"test.csv: lacks 2 ids of .*sample_submission.csv, first 'i3' \(3 images in the test table, 5 in the"
    refused(template, predicted(), message, test_table=tmp_path / "test.csv")


def test_a_test_table_without_an_id_column_is_refused(template, tmp_path):
    (tmp_path / "test.csv").write_text("name\ni0\n")
    refused(template, predicted(), "neither a column dicom_id .* nor image_id", test_table=tmp_path / "test.csv")


def test_an_image_without_prediction_is_refused(template):
    ids, values, classes = predicted()
    keep = ~ids["image_id"].isin(["i5", "i4"]).to_numpy()
    message = r"predictions: no prediction for dicom_id 'i5' of .*sample_submission.csv \(2 of 5 ids lack one\)"
    refused(template, (ids[keep], values[keep], classes), message)


def test_repeated_ids_are_refused_on_either_side(template):
    ids, values, classes = predicted()
    twice = ids.assign(image_id=["i0", "i1", "i2", "i3", "i4", "i5", "i1"])
    refused(template, (twice, values, classes), "predictions, row 8: image_id 'i1' occurs twice")
    template.write_text(template.read_text() + "i5,0,0,0\n")
    refused(template, (ids, values, classes), r"sample_submission.csv, row 7: dicom_id 'i5' occurs twice")


def test_an_empty_id_in_the_template_is_refused(template):
    template.write_text(template.read_text() + ",0,0,0\n")
    refused(template, predicted(), r"sample_submission.csv, row 7: dicom_id '' is empty")


def test_a_class_that_is_not_predicted_is_refused(template):
    template.write_text(template.read_text().replace("Mass", "mass"))
    refused(
        template, predicted(), r"sample_submission.csv: wants mass, which predictions does not predict \(it has Edema"
    )


def test_a_template_that_lacks_a_predicted_class_is_refused(template):
    template.write_text("dicom_id,Hernia,Edema\ni0,0,0\n")
    refused(template, predicted(), "sample_submission.csv: lacks the predicted classes Mass of predictions")


def test_a_template_without_classes_is_refused(template):
    template.write_text("dicom_id\ni0\n")
    refused(template, predicted(), "wants no class columns at all")


@pytest.mark.parametrize("bad", [-1e-6, 1.0000001, 3.2])
def test_values_outside_zero_to_one_are_refused(template, bad):
    ids, values, classes = predicted()
    values[2, 1] = bad
    refused(template, (ids, values, classes), r"predictions, row 4, column 'Mass': wanted a probability.*'i2'.*logits")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(template, bad):
    ids, values, classes = predicted()
    values[2, 1] = bad
    refused(template, (ids, values, classes), "predictions, row 4, column 'Mass': wanted a finite number")


@pytest.mark.parametrize("ruined", ["1.23E+15", "1E+15", '"1,23E+15"'])
def test_ids_rounded_by_a_spreadsheet_are_recognised(template, ruined):
    intact = template.read_text()
    template.write_text(intact.replace("i5", ruined))
    shown = re.escape(ruined.strip('"'))
    refused(
        template, predicted(), rf"sample_submission.csv, row 4: id '{shown}' looks like a number rounded by a spread"
    )
    template.write_text(intact)
    ids, values, classes = predicted()
    ids.loc[1, "image_id"] = ruined.strip('"')
    refused(template, (ids, values, classes), rf"predictions, row 3: id '{shown}' looks like a number rounded")


@pytest.mark.parametrize("text", ["", "dicom_id,Hernia,Edema,Mass\n"])
def test_an_empty_template_is_refused(template, text):
    template.write_text(text)
    refused(template, predicted(), "sample_submission.csv: (empty file|no rows)")


def test_two_answers_for_one_study_are_refused_only_when_predictions_are_study_level(template, tmp_path):
    ids, values, classes = predicted()
    values[1::2] = values[0:6:2]
    write_submission((ids, values, classes), template, tmp_path / "same.csv", one_per_study=True)
    values[5, 2] = np.nextafter(values[5, 2], np.float32(0))
    write_submission((ids, values, classes), template, tmp_path / "image_level.csv")
    message = (
        r"row 7, column 'Hernia': image 'i5' has .* but image 'i4' of the same study 's2' has .*\(1 such studies\)"
    )
    refused(template, (ids, values, classes), message, one_per_study=True)


def test_a_refusal_leaves_an_earlier_submission_alone(template, tmp_path):
    out = tmp_path / "submission.csv"
    write_submission(predicted(), template, out)
    before = out.read_bytes()
    with pytest.raises(InputError):
        write_submission(predicted(num_images=2), template, out)
    assert out.read_bytes() == before
