"""The fast patient bootstrap equals drawing patients and repeating their rows, and its intervals mean something."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

import data.bootstrap
from data.bootstrap import patient_bootstrap
from data.errors import InputError
from data.intervals import BootstrapResult, Interval, ratio_interval
from data.metrics import average_precision


def made_up(num_rows=230, num_patients=70, num_classes=5, seed=0, steps=12):
    """A strong and a weak method with tied scores; labels with gaps, one class rare (2 patients), one absent."""
    rng = np.random.default_rng(seed)
    patients = [f"p{i}" for i in rng.integers(0, num_patients, num_rows)]
    targets = (rng.random((num_rows, num_classes)) < 0.3).astype(np.float32)
    targets[rng.random(targets.shape) < 0.1] = np.nan
    targets[:, 3] = np.isin(patients, patients[:2])
    targets[:, 4] = 0
    signal = np.nan_to_num(targets)
    strong = np.round((signal + rng.normal(size=targets.shape)) * steps / 4) / steps
    weak = np.round((0.3 * signal + rng.normal(size=targets.shape)) * steps / 4) / steps
    return {"strong": strong, "weak": weak}, targets, patients


def slow_replicate(scores, targets, patients, drawn):
    """Average precision per class after repeating the rows of each drawn patient, by scikit-learn."""
    rows = np.concatenate([np.flatnonzero(np.array(patients) == patient) for patient in drawn])
    result = np.full(targets.shape[1], np.nan)
    for c in range(targets.shape[1]):
        truth, ranked = targets[rows, c], scores[rows, c]
        known = ~np.isnan(truth)
        if (truth[known] > 0.5).any():
            result[c] = average_precision_score(truth[known], ranked[known])
    return result


def test_each_replicate_equals_drawing_patients_and_repeating_their_rows():
    scores, targets, patients = made_up()
    result = patient_bootstrap(scores, targets, patients, replicates=9, seed=4)
    generator, names = np.random.default_rng(4), np.unique(patients)
    for r in range(9):
        drawn = names[generator.integers(len(names), size=len(names))]
        for method, values in scores.items():
            expected = slow_replicate(values, targets, patients, drawn)
            np.testing.assert_allclose(result.replicate_values[method][r], expected, rtol=0, atol=1e-12)


def test_estimates_are_the_plain_average_precision_on_all_rows():
    scores, targets, patients = made_up()
    result = patient_bootstrap(scores, targets, patients, replicates=3)
    ap = [average_precision(scores["weak"][:, c], targets[:, c]) for c in range(5)]
    np.testing.assert_array_equal(result.class_values["weak"], ap)
    assert result.intervals["weak"].estimate == pytest.approx(np.mean(ap[:4]))
    assert result.class_intervals("weak")[2].estimate == ap[2]


def test_a_class_is_dropped_for_all_methods_alike_and_counted():
    scores, targets, patients = made_up()
    result = patient_bootstrap(scores, targets, patients, replicates=400)
    # neither of two patients is among 70 draws: (1 - 2/70)^70 = 0.13
    assert 0.07 * 400 < result.dropped[3] < 0.2 * 400
    assert result.dropped.tolist() == [0, 0, 0, result.dropped[3], 400]
    strong, weak = (np.isnan(result.replicate_values[method]) for method in ("strong", "weak"))
    np.testing.assert_array_equal(strong, weak)
    without = strong[:, 3]
    np.testing.assert_allclose(
        result.macro("strong")[without], result.replicate_values["strong"][without][:, :3].mean(axis=1)
    )
    assert result.interval("strong", [3]).replicates == 400 - result.dropped[3]


def test_an_absent_class_has_no_interval():
    scores, targets, patients = made_up()
    interval = patient_bootstrap(scores, targets, patients, replicates=20).class_intervals("weak")[4]
    assert np.isnan([interval.estimate, interval.low, interval.high]).all()
    assert interval.replicates == 0
    assert interval.includes_zero


def test_any_subset_of_classes_comes_from_the_same_replicates():
    scores, targets, patients = made_up()
    full = patient_bootstrap(scores, targets, patients, replicates=50, seed=2)
    subset = {method: values[:, [0, 2]] for method, values in scores.items()}
    alone = patient_bootstrap(subset, targets[:, [0, 2]], patients, replicates=50, seed=2)
    assert full.interval("strong", [0, 2]) == alone.intervals["strong"]
    assert full.difference("strong", "weak", [0, 2]) == alone.difference("strong", "weak")


def test_the_difference_of_identical_methods_is_exactly_zero():
    scores, targets, patients = made_up()
    twins = {"one": scores["strong"], "two": scores["strong"].copy()}
    result = patient_bootstrap(twins, targets, patients, replicates=60, pairs=[("one", "two")])
    difference = result.differences["one", "two"]
    assert (difference.estimate, difference.low, difference.high, difference.share_above_zero) == (0, 0, 0, 0)
    assert difference.includes_zero


def test_pairing_narrows_the_difference_of_like_methods():
    scores, targets, patients = made_up()
    scores["like"] = scores["strong"] + np.random.default_rng(1).normal(scale=0.02, size=targets.shape)
    result = patient_bootstrap(
        scores, targets, patients, replicates=200, pairs=[("strong", "like"), ("strong", "weak")]
    )
    difference, alone = result.differences["strong", "like"], result.intervals["strong"]
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    gain = result.differences["strong", "weak"]
    assert gain.low > 0
    assert gain.share_above_zero == 1
    assert gain.estimate == pytest.approx(result.intervals["strong"].estimate - result.intervals["weak"].estimate)


def test_the_order_of_rows_and_the_size_of_chunks_change_nothing(monkeypatch):
    scores, targets, patients = made_up()
    first = patient_bootstrap(scores, targets, patients, replicates=30, seed=7)
    order = np.random.default_rng(9).permutation(len(targets))
    shuffled = {method: values[order] for method, values in scores.items()}
    monkeypatch.setattr(data.bootstrap, "CHUNK_ELEMENTS", 4 * len(targets))
    second = patient_bootstrap(shuffled, targets[order], [patients[i] for i in order], replicates=30, seed=7)
    for method in scores:
        np.testing.assert_array_equal(first.replicate_values[method], second.replicate_values[method])
    other_seed = patient_bootstrap(scores, targets, patients, replicates=30, seed=8)
    assert first.intervals != other_seed.intervals


def test_clustered_rows_widen_the_interval():
    rng = np.random.default_rng(5)
    of_patient = (rng.random((60, 1)) < 0.4).astype(np.float32)
    seen = of_patient + rng.normal(size=(60, 1))
    targets, scores = np.repeat(of_patient, 8, axis=0), {"m": np.repeat(seen, 8, axis=0)}  # 8 copies: no new evidence
    clustered = patient_bootstrap(scores, targets, [f"p{i // 8}" for i in range(480)], replicates=300).intervals["m"]
    as_if_alone = patient_bootstrap(scores, targets, [f"p{i}" for i in range(480)], replicates=300).intervals["m"]
    ratio = (clustered.high - clustered.low) / (as_if_alone.high - as_if_alone.low)
    assert 2.2 < ratio < 3.6  # sqrt(8) = 2.8
    assert clustered.estimate == as_if_alone.estimate


def test_intervals_cover_the_population_value_about_as_often_as_they_say():
    rng = np.random.default_rng(11)

    def sample(num_patients):
        labels = (rng.random((num_patients, 1)) < 0.4).astype(np.float32).repeat(2, axis=0)
        shared = rng.normal(size=(num_patients, 1)).repeat(2, axis=0)
        return labels, labels + shared + 0.3 * rng.normal(size=labels.shape)

    labels, scores = sample(100_000)
    truth = average_precision(scores[:, 0], labels[:, 0])
    covered = 0
    for trial in range(100):
        labels, scores = sample(150)
        patients = [f"p{i // 2}" for i in range(300)]
        result = patient_bootstrap({"m": scores}, labels, patients, replicates=200, seed=trial, confidence=0.9)
        covered += result.intervals["m"].low <= truth <= result.intervals["m"].high
    assert 80 <= covered <= 97


def hand_made(**macros):
    """A result with one class whose replicates are given."""
    values = {name: np.array(column, dtype=np.float64)[:, None] for name, column in macros.items()}
    return BootstrapResult(
        confidence=0.5,
        class_values={name: np.array([np.median(column)]) for name, column in macros.items()},
        replicate_values=values,
        dropped=np.array([0]),
    )


def test_the_gap_closed_is_a_ratio_per_replicate():
    result = hand_made(base=[0.2, 0.2, 0.2, 0.2, 0.2], fusion=[0.25, 0.3, 0.3, 0.35, 0.4], ceiling=[0.4] * 5)
    ratio = ratio_interval(result, ("fusion", "base"), ("ceiling", "base"))
    assert ratio is not None
    assert (ratio.estimate, ratio.low, ratio.high) == pytest.approx((0.5, 0.5, 0.75))
    assert ratio.replicates == 5


def test_no_ratio_where_the_gap_may_be_nothing():
    result = hand_made(base=[0.2] * 5, fusion=[0.25] * 5, ceiling=[0.1, 0.2, 0.21, 0.3, 0.3])
    assert ratio_interval(result, ("fusion", "base"), ("ceiling", "base")) is None


def test_an_interval_that_touches_zero_includes_it():
    assert Interval(0.1, 0.0, 0.2, 9).includes_zero
    assert not Interval(0.1, 0.01, 0.2, 9).includes_zero
    assert not Interval(-0.1, -0.2, -0.01, 9).includes_zero


def test_one_patient_is_refused():
    with pytest.raises(InputError, match="at least 2 patients"):
        patient_bootstrap({"m": np.zeros((3, 1))}, np.ones((3, 1)), ["p1"] * 3)
