"""Thresholds maximise F1 on the rows they are chosen on; sensitivity, Brier and micro averages equal scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, roc_curve

from data.errors import InputError
from data.metrics import brier_score
from data.operating_points import best_f1_thresholds, f1_at, sensitivity_at


def made_up(num_rows=211, num_classes=5, steps=17, unknown=0.2, seed=0):
    """Probabilities with ties, labels with gaps; the last class has no positive."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_rows, num_classes)) < np.linspace(0.4, 0.05, num_classes)).astype(np.float32)
    scores = np.clip(rng.normal(0.3 + 0.25 * targets, 0.2), 0, 1)
    targets[:, -1] = 0
    targets[rng.random(targets.shape) < unknown] = np.nan
    return (np.round(scores * steps) / steps).astype(np.float32), targets


@pytest.mark.parametrize("steps", [2, 17, 10_000])
def test_no_threshold_has_a_larger_f1_than_the_chosen_one_where_it_was_chosen(steps):
    scores, targets = made_up(steps=steps)
    thresholds = best_f1_thresholds(scores, targets)
    best = f1_at(scores, targets, thresholds)
    for c in range(4):
        known = ~np.isnan(targets[:, c])
        truth, ranked = targets[known, c], scores[known, c]
        tried = [f1_score(truth, ranked > cut, zero_division=0) for cut in [-1, *np.unique(ranked)]]
        assert best[c] == pytest.approx(max(tried), abs=1e-12)
        assert best[c] == pytest.approx(f1_score(truth, ranked > thresholds[c], zero_division=0), abs=1e-12)
    assert thresholds[4] == 0.5  # nothing to choose from
    assert np.isnan(best[4])


def test_a_threshold_lies_half_way_between_neighbours_and_the_highest_of_equals_is_taken():
    scores = np.array([[0.9], [0.8], [0.5], [0.1]])
    assert best_f1_thresholds(scores, np.array([[1.0], [1.0], [0.0], [0.0]]))[0] == pytest.approx(0.65)
    assert best_f1_thresholds(scores, np.array([[1.0], [1.0], [1.0], [1.0]]))[0] == pytest.approx(0.05)
    scores, targets = np.array([[0.9], [0.7], [0.6], [0.5], [0.1]]), np.array([[1.0], [0.0], [0.0], [1.0], [0.0]])
    assert f1_at(scores, targets, np.array([0.8]))[0] == f1_at(scores, targets, np.array([0.3]))[0] == 2 / 3
    assert best_f1_thresholds(scores, targets)[0] == pytest.approx(0.8)


def test_unknown_labels_move_no_threshold():
    scores, targets = made_up()
    other = np.where(np.isnan(targets), 1 - scores, scores)
    np.testing.assert_array_equal(best_f1_thresholds(scores, targets), best_f1_thresholds(other, targets))


@pytest.mark.parametrize("specificity", [0.5, 0.9, 0.95, 1.0])
def test_sensitivity_at_a_specificity_equals_the_roc_curve_of_scikit_learn(specificity):
    scores, targets = made_up()
    found = sensitivity_at(specificity, scores, targets)
    for c in range(4):
        known = ~np.isnan(targets[:, c])
        false_rate, true_rate, _ = roc_curve(targets[known, c], scores[known, c], drop_intermediate=False)
        assert found[c] == pytest.approx(true_rate[false_rate <= 1 - specificity + 1e-12].max(), abs=1e-12)
    assert np.isnan(found[4])


def test_ten_false_positives_of_a_hundred_negatives_keep_a_specificity_of_nine_tenths():
    scores = np.array([*np.full(10, 0.9), 0.8, *np.full(90, 0.1)])[:, None]
    targets = np.array([*np.zeros(10), 1.0, *np.zeros(90)])[:, None]
    assert sensitivity_at(0.9, scores, targets)[0] == 1
    assert sensitivity_at(0.901, scores, targets)[0] == 0
    assert np.isnan(sensitivity_at(0.9, scores, np.ones_like(targets))[0])


def test_brier_score_equals_scikit_learn_and_is_undefined_without_known_labels():
    scores, targets = made_up(num_classes=4)
    targets[:, 2] = np.nan
    found = brier_score(scores, targets)
    for c in (0, 1, 3):
        known = ~np.isnan(targets[:, c])
        truth = targets[known, c]
        assert found[c] == pytest.approx(
            brier_score_loss(truth, scores[known, c].astype(np.float64), pos_label=1), abs=1e-12
        )
    assert np.isnan(found[2])
    with pytest.raises(InputError, match="apply a sigmoid"):
        brier_score(8 * scores - 4, targets)
