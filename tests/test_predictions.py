"""Prediction tables read back to the bit, and nothing that is no prediction gets in or out."""

import re

import numpy as np
import pandas as pd
import pytest

from data.errors import InputError
from data.predictions import read_predictions, write_predictions

CLASSES = ("Edema", 'Mass, "large"')


def images(num_images=3):
    return pd.DataFrame(
        {
            "image_id": [f"00{i}.dcm" for i in range(num_images)],
            "study_id": [f"s{i // 2}" for i in range(num_images)],
            "patient_id": ["007"] * num_images,
            "view": ["PA"] * num_images,
        },
        dtype=str,
    )


def write_lines(tmp_path, *lines):
    path = tmp_path / "predictions_test.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_float32_values_read_back_to_the_bit(tmp_path):
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**32, size=4000, dtype=np.uint64).astype(np.uint32).view(np.float32)
    values = np.concatenate([bits[np.isfinite(bits)][:1996], rng.random(2000, dtype=np.float32)])
    values = np.append(values, np.float32([0, 1, np.nextafter(np.float32(1), np.float32(0)), 1e-45])).reshape(-1, 2)
    ids = images(len(values))
    write_predictions(tmp_path / "logits_test.csv", ids, values, CLASSES)
    read_ids, read_values, classes = read_predictions(tmp_path / "logits_test.csv")
    np.testing.assert_array_equal(read_values.view(np.uint32), values.view(np.uint32))
    assert classes == CLASSES
    pd.testing.assert_frame_equal(read_ids, ids[["image_id", "study_id", "patient_id"]])


def test_rows_keep_their_order_and_ids_whatever_the_index(tmp_path):
    ids = images(3).iloc[[2, 0, 1]]
    values = np.float32([[0.2, 0.3], [0, 0.1], [0.4, 1]])
    write_predictions(tmp_path / "p.csv", ids, values, CLASSES)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == 'image_id,study_id,patient_id,Edema,"Mass, ""large"""'
    assert lines[1] == "002.dcm,s1,007,0.200000003,0.300000012"
    assert lines[2] == "000.dcm,s0,007,0,0.100000001"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_written(tmp_path, bad):
    values = np.float32([[0, 1], [0, bad], [1, 1]])
    with pytest.raises(InputError, match=r"row 3, column 'Mass.*wanted a finite number.*001\.dcm"):
        write_predictions(tmp_path / "p.csv", images(), values, CLASSES)
    assert not (tmp_path / "p.csv").exists()


def test_a_repeated_image_is_neither_written_nor_read(tmp_path):
    ids = images()
    ids["image_id"] = ["a", "b", "a"]
    with pytest.raises(InputError, match="row 4: image_id 'a' occurs twice"):
        write_predictions(tmp_path / "p.csv", ids, np.zeros((3, 2), np.float32), CLASSES)
    path = write_lines(tmp_path, "image_id,study_id,patient_id,Edema", "a,s,p,0", "b,s,p,0", "a,s,p,0")
    with pytest.raises(InputError, match=re.escape(f"{path}, row 4: image_id 'a' occurs twice")):
        read_predictions(path)


@pytest.mark.parametrize("text", ["", "nan", "NaN", "inf", "1e39", "high", "1_0", " 1", "0,5", "0x1"])
def test_text_that_is_no_finite_float32_is_refused_with_its_place(tmp_path, text):
    path = write_lines(tmp_path, "image_id,study_id,patient_id,Edema", "a,s,p,0", f'b,s,p,"{text}"')
    with pytest.raises(InputError, match=re.escape(f"{path}, row 3, column 'Edema': wanted a")):
        read_predictions(path)


@pytest.mark.parametrize(
    "header",
    ["image_id,study_id,patient_id", "study_id,image_id,patient_id,Edema", "image_id,study_id,Edema,patient_id"],
)
def test_another_layout_is_refused(tmp_path, header):
    path = write_lines(tmp_path, header, ",".join("1" for _ in header.split(",")))
    with pytest.raises(InputError, match="wanted the columns image_id, study_id, patient_id and then one per class"):
        read_predictions(path)


def test_an_empty_image_id_is_refused(tmp_path):
    path = write_lines(tmp_path, "image_id,study_id,patient_id,Edema", "a,s,p,0", ",s,p,1")
    with pytest.raises(InputError, match="row 3: image_id is empty"):
        read_predictions(path)


def test_no_predictions_at_all_are_not_written(tmp_path):
    with pytest.raises(InputError, match="no predictions"):
        write_predictions(tmp_path / "p.csv", images(0), np.zeros((0, 2), np.float32), CLASSES)
