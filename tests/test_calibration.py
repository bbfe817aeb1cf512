"""Calibration curves and thresholds, against scikit-learn and slow loops."""

import copy
import json

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from data import calibration, thresholds
from data.bootstrap_metrics import metric_bootstrap
from data.calibration import METHODS, cross_fitted, fit_calibration, patient_folds
from data.errors import InputError
from data.operating_points import best_threshold
from data.thresholds import fit_thresholds

CLASSES = ("Edema", "Nodule", "Hernia", "Mass")
NAN = float("nan")


def made_up(num_rows=160, seed=0):
    """Logits twice too steep and shifted, labels with gaps; Hernia is rare, Mass has no positive."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(num_rows, 4)) - [0.2, 1.0, 2.8, 9.0]
    labels = (rng.random((num_rows, 4)) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    labels[:, 3] = 0
    labels[rng.random((num_rows, 4)) < 0.1] = np.nan
    patients = [f"p{row // 2}" for row in range(num_rows)]
    return (2 * truth + 1.5).astype(np.float32), labels, patients


def column(logits, labels, c):
    known = ~np.isnan(labels[:, c])
    return logits[known, c].astype(np.float64), labels[known, c] > 0.5


def test_a_temperature_is_the_logistic_regression_without_intercept():
    logits, labels, _ = made_up()
    fitted = fit_calibration(logits, labels, CLASSES, "temperature", min_positives=5)
    z, y = column(logits, labels, 1)
    wanted = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(z[:, None], y)
    assert fitted.own["Nodule"].slope == pytest.approx(wanted.coef_[0, 0], rel=1e-5)
    assert fitted.own["Nodule"].bias == 0


def smoothed(z, y):
    """Platt's targets as a regression knows them: each row twice, weighed by its target and its complement."""
    high, low = (y.sum() + 1) / (y.sum() + 2), 1 / ((~y).sum() + 2)
    target = np.where(y, high, low)
    rows, answers = np.concatenate([z, z])[:, None], np.repeat([1, 0], len(z))
    model = LogisticRegression(C=np.inf, tol=1e-12, max_iter=1000)
    return model.fit(rows, answers, sample_weight=np.concatenate([target, 1 - target]))


@pytest.mark.parametrize("c", [0, 1])
def test_a_platt_line_is_the_logistic_regression_on_smoothed_targets(c):
    logits, labels, _ = made_up()
    line = fit_calibration(logits, labels, CLASSES, "platt", min_positives=5).own[CLASSES[c]]
    wanted = smoothed(*column(logits, labels, c))
    assert (line.slope, line.bias) == pytest.approx((wanted.coef_[0, 0], wanted.intercept_[0]), rel=1e-4)


def test_isotonic_steps_are_those_of_scikit_learn_ties_included():
    logits, labels, _ = made_up()
    logits = np.round(logits, 1)  # ties
    fitted = fit_calibration(logits, labels, CLASSES, "isotonic", min_positives=5)
    z, y = column(logits, labels, 0)
    wanted = IsotonicRegression(out_of_bounds="clip").fit(z, y.astype(float))
    new = np.concatenate([z, np.linspace(-12, 12, 301)])
    np.testing.assert_allclose(fitted.own["Edema"](new), wanted.predict(new), atol=1e-12)


def test_classes_with_few_positives_take_one_curve_fitted_to_all_classes_that_have_one():
    logits, labels, _ = made_up()
    assert 0 < (labels[:, 2] == 1).sum() < 20
    fitted = fit_calibration(logits, labels, CLASSES, "platt", min_positives=20)
    assert set(fitted.own) == {"Edema", "Nodule"}
    pooled = [column(logits, labels, c) for c in range(3)]  # Mass has no positive
    wanted = smoothed(np.concatenate([z for z, _ in pooled]), np.concatenate([y for _, y in pooled]))
    assert fitted.shared.slope == pytest.approx(wanted.coef_[0, 0], rel=1e-4)
    assert fitted.shared.bias == pytest.approx(wanted.intercept_[0], rel=1e-3)
    values = fitted(logits)
    np.testing.assert_array_equal(values[:, 3], fitted.shared(logits[:, 3]).astype(np.float32))


@pytest.mark.parametrize("method", ["temperature", "platt", "isotonic"])
def test_a_class_whose_own_curve_would_turn_its_ranking_around_shares(method):
    logits, labels, _ = made_up()
    logits[:, 0] = -logits[:, 0]
    fitted = fit_calibration(logits, labels, CLASSES, method, min_positives=5)
    assert "Edema" not in fitted.own
    assert "Nodule" in fitted.own


def test_separated_classes_have_finite_curves():
    z = np.array([[-3.0], [-2.0], [1.0], [2.0]], dtype=np.float32)
    y = np.array([[0.0], [0.0], [1.0], [1.0]], dtype=np.float32)
    for method in METHODS:
        values = fit_calibration(z, y, ("Edema",), method, min_positives=1)(z)
        assert np.isfinite(values).all()
        assert (np.diff(values[:, 0]) >= 0).all()


def test_nothing_to_fit_on_is_refused():
    logits, labels, _ = made_up()
    with pytest.raises(InputError, match="found none"):
        fit_calibration(logits, np.zeros_like(labels), CLASSES, "platt")
    with pytest.raises(InputError, match="do not rise"):
        fit_calibration(-logits, labels, CLASSES, "platt")


def test_no_row_is_calibrated_by_its_own_patient():
    logits, labels, patients = made_up()
    folds = patient_folds(patients, labels)
    np.testing.assert_array_equal(np.sum(folds, axis=0), 1)
    before = cross_fitted(logits, labels, patients, CLASSES, "platt", 5)
    mine = folds[2]
    changed = np.where(mine[:, None], 1 - labels, labels)
    out = np.empty_like(logits)  # the same folds, the held-out labels turned around
    for held_out in folds:
        out[held_out] = fit_calibration(logits[~held_out], changed[~held_out], CLASSES, "platt", 5)(logits[held_out])
    np.testing.assert_array_equal(out[mine], before[mine])
    assert (out[~mine] != before[~mine]).any()
    for held_out in folds:
        inside = {patient for patient, own in zip(patients, held_out, strict=True) if own}
        assert not inside & {patient for patient, own in zip(patients, held_out, strict=True) if not own}


@pytest.mark.parametrize("method", METHODS)
def test_calibration_comes_back_from_json_to_the_bit(method):
    logits, labels, _ = made_up()
    fitted = fit_calibration(logits, labels, CLASSES, method, min_positives=5)
    record = json.loads(json.dumps(calibration.to_json(fitted), allow_nan=False))
    again = calibration.from_json(record, "calibration.json")
    assert again == fitted
    np.testing.assert_array_equal(again(logits), fitted(logits))


def edit(record, path, value):
    """A copy with one place changed, or left out for `...`."""
    record = copy.deepcopy(record)
    place = record
    for key in path[:-1]:
        place = place[key]
    if value is ...:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return record


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("method",), "magic", "method must be"),
        (("extra",), 1, "wanted the keys"),
        (("shared", "slope"), -1.0, "slope must be positive"),
        (("shared", "bias"), NAN, "finite"),
        (("shared", "bias"), True, "of type float"),
        (("shared",), [], "of type dict"),
        (("classes", "Edema", "slope"), ..., "wanted the keys"),
        (("classes", "Edema", "curve"), "other", "curve must be"),
        (("classes", "Hernia", "slope"), 1.0, "wanted the keys"),
        (("classes", "Mass", "positives"), "0", "of type int"),
        (("classes", "Mass"), None, "curve must be"),
    ],
)
def test_a_calibration_that_says_anything_else_is_refused_by_name(path, value, said):
    logits, labels, _ = made_up()
    record = calibration.to_json(fit_calibration(logits, labels, CLASSES, "platt", min_positives=20))
    with pytest.raises(InputError, match=said) as error:
        calibration.from_json(edit(record, path, value), "c.json")
    assert "c.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("knots", [1.0, 0.0]),
        ("knots", [0.0]),
        ("probabilities", [0.9, 0.1]),
        ("probabilities", [0.0, 1.1]),
        ("knots", ["a", 1]),
    ],
)
def test_steps_that_fall_or_leave_0_to_1_are_refused(key, value):
    entry = {"positives": 9, "curve": "own", "knots": [0.0, 1.0], "probabilities": [0.1, 0.9]} | {key: value}
    record = {"method": "isotonic", "min_positives": 1, "shared": {"slope": 1, "bias": 0}, "classes": {"Edema": entry}}
    with pytest.raises(InputError, match=r"knots|probabilities"):
        calibration.from_json(record, "c.json")


def test_thresholds_of_few_positives_are_shared_and_come_back_from_json():
    logits, labels, _ = made_up()
    p = fit_calibration(logits, labels, CLASSES, "platt")(logits)
    chosen = fit_thresholds(p, labels, CLASSES)
    assert set(chosen.own) == {"Edema", "Nodule"}
    known = ~np.isnan(labels[:, :3])
    assert chosen.shared == best_threshold(p[:, :3][known], labels[:, :3][known] > 0.5)
    record = json.loads(json.dumps(thresholds.to_json(chosen)))
    assert thresholds.from_json(record, "t.json") == chosen
    assert (chosen(p) == (p > chosen.values)).all()
    for path, value in [(("shared",), 1.5), (("criterion",), "F2"), (("classes", "Mass", "threshold"), 0.01),
                        (("classes", "Edema", "chosen"), "x"), (("classes", "Edema", "threshold"), None)]:  # fmt: skip
        with pytest.raises(InputError, match=r"t\.json"):
            thresholds.from_json(edit(record, path, value), "t.json")


def test_calibration_mends_what_was_bent():
    """Fitted on some patients, the scores of others get better, and the interval says so."""
    logits, labels, _ = made_up(1500, seed=1)
    new_logits, new_labels, patients = made_up(1500, seed=2)
    scores = {"plain": (1 / (1 + np.exp(-new_logits))).astype(np.float32)}
    scores |= {method: fit_calibration(logits, labels, CLASSES, method)(new_logits) for method in METHODS[1:]}
    results = metric_bootstrap(scores, new_labels, patients, metrics=("ECE", "Brier"), replicates=99)
    for method in METHODS[1:]:
        for result in results.values():
            assert result.difference(method, "plain").high < 0, method
