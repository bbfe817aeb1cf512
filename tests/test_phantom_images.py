"""Radiographs of the phantom: geometry, polarity, sizes, and which view shows which finding."""

import numpy as np
import pytest

from data.phantom.ceiling import CONJUNCTIONS
from data.phantom.cohort import CLASSES
from data.phantom.constants import ANATOMICAL_FLOOR, DEVICES, VISIBLE_CNR
from data.phantom.patient import sample_patient
from data.phantom.radiograph import Taking, radiograph, sample_taking
from data.phantom.render import Pose, structure
from data.phantom.visibility import contrast, contrast_to_noise, is_visible, noise_free

NAMES = [name for name in CLASSES if name != "Support Devices"] + list(DEVICES)


def shadow(view: str, name: str = "Cardiomegaly", seed: int = 5, size: int = 160) -> np.ndarray:
    """Mean (row, column) and width in pixels of what a finding changes."""
    change = np.abs(contrast(sample_patient(3), {name: seed}, name, view, Taking(), size)[1])
    rows, columns = np.nonzero(change > 0.5 * change.max())
    return np.array([rows.mean(), columns.mean(), np.ptp(columns)])


def test_ap_magnifies_the_heart_more_than_pa():
    assert shadow("AP")[2] * 43 > 1.08 * shadow("PA")[2] * 42


def test_the_heart_is_on_the_image_s_right_of_a_frontal_and_in_front_on_a_lateral():
    for view in ("PA", "AP"):
        assert shadow(view)[1] > 85
    assert shadow("LATERAL")[1] < 75
    assert shadow("LATERAL", "Lung Lesion")[1] > 85


def test_air_is_dark_and_bone_is_bright():
    picture = radiograph(sample_patient(3), {}, "PA", Taking(), 128)
    assert picture.shape == (128, 128)
    assert picture.dtype == np.float32
    assert 0 <= picture.min() < picture.max() <= 1
    assert picture[:6, :6].mean() < 0.1  # beside the neck
    assert picture[60:66, 62:66].mean() > 0.7  # spine
    assert 0.03 < picture[50:56, 36:40].mean() < 0.5  # right lung


def test_the_same_chest_at_256_and_at_128_pixels():
    patient, findings = sample_patient(6), {"Pleural Effusion": 1, "Nodule": 2}
    large, small = (noise_free(patient, findings, "PA", Taking(), size) for size in (256, 128))
    averaged = np.log(large).reshape(128, 2, 128, 2).mean((1, 3))
    assert np.abs(averaged - np.log(small)).mean() < 0.02
    pictures = [radiograph(patient, findings, "PA", Taking(noise_seed=4), size) for size in (256, 128)]
    averaged = pictures[0].reshape(128, 2, 128, 2).mean((1, 3))
    assert np.corrcoef(averaged.ravel(), pictures[1].ravel())[0, 1] > 0.998


def test_a_marker_and_a_shutter_appear_where_they_are_put():
    patient, plain = sample_patient(6), Taking()
    marked = radiograph(patient, {}, "PA", Taking(letter=(16.0, -17.0)), 128)
    bright = np.argwhere(marked - radiograph(patient, {}, "PA", plain, 128) > 0.3)
    assert len(bright) > 5
    assert bright.max(0)[1] < 64  # R: the patient's right is the image's left
    shut = radiograph(patient, {}, "PA", Taking(margins=(2.0, 0.0, 0.0, 3.0)), 128)
    assert not shut[:, :5].any()
    assert not shut[-8:].any()
    assert shut[60, -1] >= 0
    assert shut[60, 64] > 0


def test_superposed_structure_has_the_stated_size_and_spares_air():
    integral = np.full((96, 96), 3.0, np.float32)
    integral[:, :20] = 0
    fields = [structure(integral, "PA", np.random.default_rng(seed)) for seed in range(20)]
    assert not np.any([field[:, :20] for field in fields])
    assert np.std([field[:, 20:] for field in fields]) == pytest.approx(ANATOMICAL_FLOOR, rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_finding_shows_in_the_views_that_the_table_names_and_in_no_other(name):
    for seed in range(2):
        for view in ("PA", "AP", "LATERAL"):
            ratio = contrast_to_noise(sample_patient(40 + seed), {name: seed}, name, view, sample_taking(view, seed))
            assert (ratio >= VISIBLE_CNR) == is_visible(name, view), (view, ratio)


@pytest.mark.parametrize(("hidden", "mimic"), CONJUNCTIONS)
def test_the_two_of_a_pair_cast_the_same_frontal_shadow(hidden, mimic):
    patient = sample_patient(44)
    for view in ("PA", "AP"):
        changes = [contrast(patient, {name: 9}, name, view, Taking(), 128)[1] for name in (hidden, mimic)]
        peaks, areas = [c.max() for c in changes], [(c > 0.5 * c.max()).sum() for c in changes]
        assert peaks[0] == pytest.approx(peaks[1], rel=0.12)
        assert areas[0] == pytest.approx(areas[1], rel=0.35)  # the skin is farther from an AP detector than the lung
        # portable tubes are near: skin and lung project to places a centimetre apart
        assert np.corrcoef(changes[0].ravel(), changes[1].ravel())[0, 1] > (0.85 if view == "PA" else 0.6)


def test_a_turned_patient_is_still_the_same_patient():
    patient = sample_patient(3)
    straight, turned = (radiograph(patient, {}, "PA", Taking(pose=Pose(turn=t)), 96) for t in (0.0, 3.0))
    assert 0.9 < np.corrcoef(straight.ravel(), turned.ravel())[0, 1] < 0.9999
