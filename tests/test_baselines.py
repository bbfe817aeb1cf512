"""Baselines and ceilings against slow loops and hand-worked cases."""

import numpy as np
import pytest

from data.views import VIEWS
from fusion.baselines import BASELINES, VIEW_WEIGHTS, baseline_groups, combine, to_image_rows
from fusion.ceilings import KIND_OF, features, fit_logistic, fusion_ceiling
from fusion.grouping import GroupSet

C = 5


def group_set(sizes, seed=0):
    rng = np.random.default_rng(seed)
    rows = np.split(rng.permutation(sum(sizes)), np.cumsum(sizes)[:-1])
    types = [np.sort(rng.integers(len(VIEWS), size=n)) for n in sizes]
    labels = (rng.random((len(sizes), C)) < 0.4).astype(np.float32)
    names = [f"g{g}" for g in range(len(sizes))]
    return GroupSet(names, names, labels, rows, rows, types, ["made up"] * len(names))


@pytest.mark.parametrize("method", BASELINES)
def test_baselines_equal_a_slow_loop(method):
    groups = group_set([1, 3, 2, 4])
    values = np.random.default_rng(1).random((10, C)).astype(np.float32)
    found = baseline_groups(method, values, groups)
    for g, (rows, types) in enumerate(zip(groups.rows, groups.view_types, strict=True)):
        for c in range(C):
            views = [float(values[row, c]) for row in rows]
            weights = [VIEW_WEIGHTS[VIEWS[t]] for t in types]
            wanted = {
                "single": views[0],
                "mean": sum(views) / len(views),
                "max": max(views),
                "weighted": sum(w * v for w, v in zip(weights, views, strict=True)) / sum(weights),
            }[method]
            assert found[g, c] == pytest.approx(wanted, abs=1e-6)


def test_the_view_weights_are_the_published_seven_three_five():
    probabilities = np.array([[1.0], [0.0], [0.0]], dtype=np.float32)
    types = np.array([VIEWS.index("PA"), VIEWS.index("LATERAL"), VIEWS.index("OTHER")])
    assert combine("weighted", probabilities, types)[0] == pytest.approx(7 / 15)


def test_every_image_row_gets_its_groups_values():
    groups = group_set([2, 1, 4])
    values = np.arange(3 * C, dtype=np.float32).reshape(3, C)
    spread = to_image_rows(values, groups)
    for g, rows in enumerate(groups.rows):
        assert (spread[rows] == values[g]).all()


def test_the_fusion_ceiling_finds_the_view_that_shows_a_class():
    """A class that only laterals show: the rule must ignore the frontal's confident noise."""
    rng = np.random.default_rng(0)
    frontal, lateral = VIEWS.index("PA"), VIEWS.index("LATERAL")
    truth = (rng.random(400) < 0.3).astype(np.float32)
    logits = rng.normal(0, 3, (800, 1)).astype(np.float32)
    logits[1::2, 0] = 2 * truth - 1 + rng.normal(0, 0.1, 400)
    names = [str(g) for g in range(400)]
    rows = [np.array([2 * g, 2 * g + 1]) for g in range(400)]
    groups = GroupSet(names, names, truth[:, None], rows, rows, [np.array([frontal, lateral])] * 400, ["made up"] * 400)
    scores, rules = fusion_ceiling(groups, logits, groups, logits, {"Consolidation": {"lateral", "other"}})
    assert scores[truth == 1].min() > scores[truth == 0].max()
    assert set(rules) == {"Consolidation"}


def test_logistic_regression_equals_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(300), rng.normal(size=(300, 3))])
    y = (rng.random(300) < 1 / (1 + np.exp(-x @ [0.3, 1.0, -2.0, 0.0]))).astype(float)
    wanted = linear_model.LogisticRegression(C=1.0, tol=1e-10, max_iter=1000).fit(x[:, 1:], y)
    found = fit_logistic(x, y)
    np.testing.assert_allclose(found[1:], wanted.coef_[0], atol=1e-4)
    assert found[0] == pytest.approx(wanted.intercept_[0], abs=1e-4)


def test_unknown_labels_leave_the_fit_alone():
    rng = np.random.default_rng(0)
    x, y = np.column_stack([np.ones(90), rng.normal(size=90)]), (rng.random(90) < 0.5).astype(float)
    with_unknown = np.concatenate([y, np.full(7, np.nan)])
    more = np.concatenate([x, np.full((7, 2), 50.0)])
    np.testing.assert_allclose(fit_logistic(more, with_unknown), fit_logistic(x, y))


def test_features_hold_mean_and_presence_of_each_kind_of_view():
    groups = group_set([3, 2])
    logits = np.random.default_rng(3).normal(size=5).astype(np.float32)
    found = features(groups, logits, {"frontal", "lateral"})
    for g, (rows, types) in enumerate(zip(groups.rows, groups.view_types, strict=True)):
        wanted = [1.0]
        for kind in ("frontal", "lateral"):
            of_kind = [logits[r] for r, t in zip(rows, types, strict=True) if KIND_OF[t] == kind]
            wanted += [float(np.mean(of_kind)) if of_kind else 0.0, float(bool(of_kind))]
        np.testing.assert_allclose(found[g], wanted, rtol=1e-6)
