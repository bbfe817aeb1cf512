"""Prevalences without labels, against Saerens' own iteration and against shifts that were made."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from data.label_shift import at_prevalence, estimate_prevalence, misfit, platt_replicates, precision_at_prevalence

BEFORE = 0.3


def draw(num_rows, prevalence, seed, lift=1.5):
    """Labels, scores, and their exact probabilities at the prevalence `BEFORE`."""
    rng = np.random.default_rng(seed)
    y = rng.random(num_rows) < prevalence
    z = rng.normal(loc=np.where(y, lift, 0.0))
    odds = np.exp(lift * z - lift**2 / 2) * BEFORE / (1 - BEFORE)
    return y, z, odds / (1 + odds)


def estimate(p, before=BEFORE):
    """Of one set of rows."""
    return estimate_prevalence(p[:, None], np.array([before]), np.ones((len(p), 1)))[0]


def slow_em(p, before, weights, steps=20000):
    """Saerens et al. 2002, eq. 2.9, row by row in the sum, until nothing moves."""
    prior = before
    for _ in range(steps):
        total = 0.0
        for own, weight in zip(p, weights, strict=True):
            up, down = own * prior / before, (1 - own) * (1 - prior) / (1 - before)
            total += weight * up / (up + down)
        new = total / sum(weights)
        if abs(new - prior) < 1e-13:
            break
        prior = new
    return prior


@pytest.mark.parametrize("prevalence", [0.1, 0.3, 0.7])
def test_the_estimate_is_where_saerens_iteration_ends(prevalence):
    _, _, p = draw(23, prevalence, seed=3)
    weights = np.random.default_rng(0).integers(0, 3, (23, 2)).astype(float)
    found = estimate_prevalence(np.stack([p, p], axis=1), np.full(2, BEFORE), weights)
    np.testing.assert_allclose(found, [slow_em(p, BEFORE, column) for column in weights.T], atol=1e-6)


@pytest.mark.parametrize("prevalence", [0.05, 0.3, 0.8])
def test_a_shift_that_was_made_is_found(prevalence):
    y, _, p = draw(6000, prevalence, seed=1)
    assert estimate(p) == pytest.approx(y.mean(), abs=0.02)


def test_probabilities_at_another_prevalence_follow_bayes_and_keep_their_order():
    y, _, p = draw(6000, 0.8, seed=2)
    moved = at_prevalence(np.stack([p, p, p], axis=1), np.array([BEFORE, 0.0, BEFORE]), np.array([0.8, 0.5, np.nan]))
    np.testing.assert_allclose(moved[:, 1:], np.stack([p, p], axis=1), atol=1e-7)  # nothing known: as they were
    odds = p / (1 - p) * (0.8 / 0.2) / (BEFORE / (1 - BEFORE))
    np.testing.assert_allclose(moved[:, 0], odds / (1 + odds), atol=1e-6)
    assert abs(moved[:, 0].mean() - y.mean()) < 0.02 < abs(p.mean() - y.mean())


def test_average_precision_moves_with_prevalence_as_it_does_on_new_rows():
    y, z, _ = draw(40000, BEFORE, seed=4)
    new_y, new_z, _ = draw(40000, 0.05, seed=5)
    moved = precision_at_prevalence(z, y.astype(np.float32), 0.05)
    assert moved == pytest.approx(average_precision_score(new_y, new_z), abs=0.02)
    assert average_precision_score(y, z) - moved > 0.2
    assert np.isnan(precision_at_prevalence(z, y.astype(np.float32), float("nan")))


def test_misfit_sees_other_findings_and_no_prevalence():
    y, z, _ = draw(800, BEFORE, seed=6)
    _, same, _ = draw(900, 0.6, seed=7)
    _, weaker, _ = draw(900, 0.6, seed=8, lift=0.5)
    assert misfit(z, y, same, 0.6) < 1 < misfit(z, y, weaker, 0.6)
    assert np.isnan(misfit(z, np.zeros_like(y), same, 0.6))


def test_without_a_positive_nothing_is_estimated():
    assert np.isnan(estimate(np.array([0.2, 0.4]), 0.0))


def test_the_line_of_each_replicate_is_the_logistic_regression_on_its_rows():
    y, z, _ = draw(90, BEFORE, seed=9)
    weights = np.random.default_rng(2).integers(0, 3, (90, 3)).astype(float)
    slopes, biases = platt_replicates(3 * z, y, weights)
    for slope, bias, column in zip(slopes, biases, weights.T, strict=True):
        num_positives, num_negatives = column @ y, column @ ~y
        target = np.where(y, (num_positives + 1) / (num_positives + 2), 1 / (num_negatives + 2))
        rows, answers = np.concatenate([3 * z, 3 * z])[:, None], np.repeat([1, 0], 90)
        model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000)
        model.fit(rows, answers, sample_weight=np.concatenate([column * target, column * (1 - target)]))
        assert (slope, bias) == pytest.approx((model.coef_[0, 0], model.intercept_[0]), rel=1e-4)
