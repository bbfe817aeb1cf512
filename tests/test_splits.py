"""Splits keep patients whole and classes in proportion."""

import numpy as np
import pytest

from data.errors import InputError
from data.splits import split_patients

THREE = {"train": 0.7, "val": 0.1, "test": 0.2}


def long_tail(seed: int = 0, num_patients: int = 6000, num_classes: int = 12):
    """Patients with 1 to many images; class frequencies fall from about 30 % to under 1 % of the images."""
    rng = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), 1 + rng.geometric(0.4, num_patients))
    rates = np.geomspace(0.3, 0.008, num_classes)
    by_patient = rng.random((num_patients, num_classes)) < rates
    labels = (by_patient[patients] & (rng.random((len(patients), num_classes)) < 0.8)).astype(np.float32)
    order = rng.permutation(len(patients))
    return [f"p{patient}" for patient in patients[order]], labels[order]


def shares(splits, labels, names):
    columns = np.column_stack([np.nan_to_num(labels), np.ones(len(labels))])
    return np.array([columns[splits == name].sum(axis=0) / columns.sum(axis=0) for name in names])


@pytest.mark.parametrize("fractions", [THREE, dict.fromkeys("abcde", 1.0)])
def test_every_class_and_the_images_get_their_share(fractions):
    patients, labels = long_tail()
    wanted = np.array(list(fractions.values()))[:, None] / sum(fractions.values())
    assert labels.sum(axis=0).min() < 150  # a tail to be unlucky with
    found = shares(split_patients(patients, labels, fractions), labels, fractions)
    assert np.abs(found - wanted).max() < 0.02
    ids = np.unique(patients)
    random = dict(zip(ids, np.random.default_rng(0).choice(list(fractions), len(ids), p=wanted[:, 0]), strict=True))
    by_chance = shares(np.array([random[patient] for patient in patients]), labels, fractions)
    assert np.abs(by_chance - wanted).max() > 0.02  # else the claim above would say nothing


def test_patients_with_many_images_are_in_every_split():
    patients, labels = long_tail()
    splits = split_patients(patients, labels, THREE)
    num_patients = [len({p for p, s in zip(patients, splits, strict=True) if s == name}) for name in THREE]
    np.testing.assert_allclose(np.array(num_patients) / len(set(patients)), list(THREE.values()), atol=0.02)


def test_no_patient_is_in_two_splits():
    patients, labels = long_tail(num_patients=500)
    sides: dict[str, set[str]] = {}
    for patient, split in zip(patients, split_patients(patients, labels, THREE), strict=True):
        sides.setdefault(patient, set()).add(str(split))
    assert max(map(len, sides.values())) == 1
    assert set.union(*sides.values()) == set(THREE)


def test_the_split_is_a_function_of_seed_and_patients_alone():
    patients, labels = long_tail(num_patients=400)
    first = split_patients(patients, labels, THREE, seed=3)
    np.testing.assert_array_equal(first, split_patients(patients, labels, THREE, seed=3))
    assert (first != split_patients(patients, labels, THREE, seed=4)).any()
    order = np.random.default_rng(1).permutation(len(patients))
    shuffled = split_patients([patients[i] for i in order], labels[order], THREE, seed=3)
    np.testing.assert_array_equal(first[order], shuffled)


def test_one_patient_with_everything_goes_to_the_largest_split():
    labels = np.ones((7, 2), dtype=np.float32)
    assert set(split_patients(["p"] * 7, labels, {"a": 0.2, "b": 0.5, "c": 0.3})) == {"b"}


def test_unknown_labels_absent_classes_and_soft_labels_are_allowed():
    patients = [f"p{i}" for i in range(100)]
    labels = np.zeros((100, 3), dtype=np.float32)
    labels[:, 1] = np.nan
    labels[:50, 2] = 0.5
    splits = split_patients(patients, labels, {"a": 1.0, "b": 3.0})
    assert (splits == "a").sum() == 25
    assert (splits[:50] == "a").sum() in (12, 13)


def test_no_images_give_no_splits_and_bad_fractions_are_named():
    assert split_patients([], np.zeros((0, 3), dtype=np.float32), THREE).shape == (0,)
    for fractions in ({}, {"a": 1.0, "b": 0.0}, {"a": 1.2, "b": -0.2}, {"a": float("nan")}):
        with pytest.raises(InputError, match="fractions"):
            split_patients(["p"], np.zeros((1, 1), dtype=np.float32), fractions)
