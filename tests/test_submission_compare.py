"""The comparison with a former submission says what moved, by id and name, and names swapped columns and mixed rows."""

import zipfile

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from data.errors import InputError
from data.rank_correlation import rank_correlations
from data.submission_compare import compare_submissions, comparison_lines

CLASSES = ["Mass", "Normal", "Nodule", "Hernia"]
N = 40


def submission(seed=0):
    rng = np.random.default_rng(seed)
    ids = pd.Series([f"i{number:02d}" for number in range(N)], name="dicom_id", dtype="str")
    return ids, pd.DataFrame(rng.random((N, len(CLASSES)), dtype=np.float32), columns=CLASSES)


def write(path, ids, values):
    pd.concat([ids, values], axis=1).to_csv(path, index=False, float_format="%.9g")
    return path


def test_rank_correlations_equal_scipy_with_ties_and_are_unknown_for_one_value():
    rng = np.random.default_rng(1)
    a, b = rng.integers(0, 5, (N, 3)).astype(float), rng.integers(0, 9, (N, 2)).astype(float)
    a[:, 1] = 0.5
    found = rank_correlations(a, b)
    assert found.shape == (3, 2)
    for c in (0, 2):
        assert found[c] == pytest.approx([spearmanr(a[:, c], b[:, d]).statistic for d in range(2)], abs=1e-12)
    assert np.isnan(found[1]).all()


def test_rows_and_columns_in_another_order_are_no_change(tmp_path):
    ids, values = submission()
    former = write(tmp_path / "former.csv", ids[::-1], values.iloc[::-1][["Hernia", "Nodule", "Mass", "Normal"]])
    comparison = compare_submissions(ids, values, former)
    assert (comparison.rows, comparison.rows_changed, comparison.only_new, comparison.only_former) == (N, 0, 0, 0)
    assert comparison_lines(comparison)[-1] == "every value is as before"


def test_what_moved_is_counted_per_class_and_per_image(tmp_path):
    ids, values = submission()
    former = write(tmp_path / "former.csv", ids, values)
    moved = values.copy()
    moved.loc[3, "Mass"] = 1 - values.loc[3, "Mass"]
    moved.loc[[3, 8, 9], "Hernia"] = [0.0, 1.0, 0.5]
    comparison = compare_submissions(ids, moved, former)
    change = np.abs(moved.to_numpy() - values.to_numpy())
    assert comparison.rows_changed == 3
    assert [c.rows_changed for c in comparison.classes] == [1, 0, 0, 3]
    assert comparison.classes[0].image_id == "i03"
    assert comparison.classes[0].largest == pytest.approx(change[3, 0])
    assert comparison.classes[3].image_id == ids[change[:, 3].argmax()]
    assert comparison.classes[3].rank_correlation == pytest.approx(
        spearmanr(moved["Hernia"], values["Hernia"]).statistic
    )
    expected = sorted(((ids[row], change[row].mean()) for row in (3, 8, 9)), key=lambda pair: -pair[1])
    assert comparison.moved_most == tuple((image, pytest.approx(mean)) for image, mean in expected)
    lines = comparison_lines(comparison)
    assert [line.split()[0] for line in lines[2:4]] == ["Hernia", "Mass"]
    assert not any("warning" in line for line in lines)


def test_images_and_classes_of_one_file_only_are_named_and_left_aside(tmp_path):
    ids, values = submission()
    former = write(tmp_path / "former.csv", ids[5:], values[5:].rename(columns={"Hernia": "Edema"}))
    comparison = compare_submissions(ids[:30], values[:30], former)
    assert (comparison.rows, comparison.only_new, comparison.only_former) == (25, 5, 10)
    assert comparison.classes_only_in_one == ("Edema", "Hernia")
    assert [c.name for c in comparison.classes] == ["Mass", "Normal", "Nodule"]


def test_swapped_columns_are_named_both_ways(tmp_path):
    ids, values = submission()
    former = write(tmp_path / "former.csv", ids, values)
    swapped = values.rename(columns={"Normal": "Nodule", "Nodule": "Normal"})[CLASSES]
    warnings = [line for line in comparison_lines(compare_submissions(ids, swapped, former)) if "warning" in line]
    assert len(warnings) == 2
    assert warnings[0].startswith("warning: Normal ranks like the former Nodule")
    assert warnings[1].startswith("warning: Nodule ranks like the former Normal")


def test_rows_of_other_images_are_suspected(tmp_path):
    ids, values = submission()
    former = write(tmp_path / "former.csv", ids, values)
    mixed = values.iloc[np.roll(np.arange(N), 7)].reset_index(drop=True)
    assert "are the rows those of other images?" in comparison_lines(compare_submissions(ids, mixed, former))[-1]


def test_a_class_of_one_value_has_no_rank_correlation_and_comes_first(tmp_path):
    ids, values = submission()
    former = write(tmp_path / "former.csv", ids, values)
    comparison = compare_submissions(ids, values.assign(Nodule=np.float32(0.5)), former)
    assert np.isnan(comparison.classes[2].rank_correlation)
    assert comparison_lines(comparison)[2].split()[:3] == ["Nodule", "one", "value"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("dicom_id", "ImageID"), "first column is ImageID, wanted dicom_id"),
        (lambda text: text.replace("\ni", "\nk"), "no images in common"),
        (lambda text: text.replace("a", "A").replace("o", "O").replace("dicOm", "dicom"), "no classes in common"),
        (lambda text: text.replace(",", ";"), "fields must be separated by commas"),
        (lambda text: text.replace("i07", "i08"), "row 10: dicom_id 'i08' occurs twice"),
        (lambda text: text.replace("0.", "x.", 1), "wanted a number"),
    ],
)
def test_a_file_that_is_no_former_submission_is_refused(tmp_path, change, message):
    ids, values = submission()
    former = write(tmp_path / "former.csv", ids, values)
    former.write_text(change(former.read_text()))
    with pytest.raises(InputError, match=message):
        compare_submissions(ids, values, former)


def test_a_zip_is_not_read_as_a_table(tmp_path):
    ids, values = submission()
    with zipfile.ZipFile(tmp_path / "submission.zip", "w") as archive:
        archive.writestr("submission.csv", write(tmp_path / "former.csv", ids, values).read_text())
    with pytest.raises(InputError, match=r"submission.zip: a zip; give the submission.csv that is in it"):
        compare_submissions(ids, values, tmp_path / "submission.zip")
