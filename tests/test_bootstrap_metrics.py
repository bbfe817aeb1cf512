"""A replicate's metrics are those of the rows that were drawn; draws are those of the mAP's bootstrap."""

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, log_loss, roc_auc_score

import data.bootstrap
import data.bootstrap_metrics
from data.bootstrap import patient_bootstrap
from data.bootstrap_metrics import METRICS, metric_bootstrap
from data.errors import InputError
from data.metrics import calibration_error
from data.operating_points import sensitivity_at

CUTS = {"one": np.array([0.2, 0.4, 0.55, 0.3])}


def made_up(num_rows=131, num_classes=4, num_patients=41, seed=0):
    """Two methods on a coarse grid (ties), gaps in the labels, a last class with one positive."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_rows, num_classes)) < np.linspace(0.5, 0.2, num_classes)).astype(np.float32)
    scores = {
        name: (np.round(np.clip(rng.normal(0.3 + gain * targets, 0.2), 0, 1) * 23) / 23).astype(np.float32)
        for name, gain in (("one", 0.3), ("two", 0.2))
    }
    targets[rng.random(targets.shape) < 0.1] = np.nan
    targets[:, -1] = np.arange(num_rows) == 0
    return scores, targets, [f"p{i}" for i in rng.integers(num_patients, size=num_rows)]


def drawn_rows(patients, replicates, seed):
    """Row numbers of every replicate, a patient drawn twice standing there twice: the slow way."""
    names = sorted(set(patients))
    rows = {name: [i for i, patient in enumerate(patients) if patient == name] for name in names}
    rng = np.random.default_rng(seed)
    return [[i for n in rng.integers(len(names), size=len(names)) for i in rows[names[n]]] for _ in range(replicates)]


def slow(scores, targets, cut):
    """The metrics of one class from scikit-learn, in the order of METRICS."""
    known = ~np.isnan(targets)
    truth, ranked = targets[known], scores[known].astype(np.float64)
    if not truth.any():
        return [np.nan] * len(METRICS)
    return [
        roc_auc_score(truth, ranked),
        sensitivity_at(0.8, scores[:, None], targets[:, None])[0],
        f1_score(truth, ranked > 0.5, zero_division=0),
        np.nan if cut is None else f1_score(truth, ranked > cut, zero_division=0),
        brier_score_loss(truth, ranked, pos_label=1),
        log_loss(truth, np.clip(ranked, 2.0**-23, 1 - 2.0**-23), labels=[0, 1]),
        calibration_error(scores[:, None], targets[:, None])[0],
    ]


def test_every_metric_of_every_replicate_equals_scikit_learn_on_the_rows_drawn(monkeypatch):
    monkeypatch.setattr(data.bootstrap_metrics, "_centred", lambda replicates, estimate: replicates)
    scores, targets, patients = made_up()
    found = metric_bootstrap(scores, targets, patients, thresholds=CUTS, specificity=0.8, replicates=9, seed=4)
    absent = 0
    for r, rows in enumerate(drawn_rows(patients, 9, seed=4)):
        for method, values in scores.items():
            for c in range(targets.shape[1]):
                cut = CUTS[method][c] if method in CUTS else None
                expected = slow(values[rows, c], targets[rows, c], cut)
                got = [found[name].replicate_values[method][r, c] for name in METRICS]
                np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)
                absent += np.isnan(expected[0])
    assert absent > 0
    assert found["Brier"].dropped.sum() * len(scores) == absent
    for name, number in zip(METRICS, slow(scores["one"][:, 1], targets[:, 1], CUTS["one"][1]), strict=True):
        assert found[name].class_values["one"][1] == pytest.approx(number, abs=1e-12)
    assert np.isnan(found["F1_chosen"].class_values["two"]).all()


def test_classes_without_positives_negatives_or_known_labels_are_in_no_mean():
    scores, targets, patients = made_up()
    targets[:, 0] = 1
    targets[:, 1] = np.nan
    targets[:, 2] = 0
    found = metric_bootstrap(scores, targets, patients, thresholds=CUTS, specificity=0.8, replicates=5)
    assert [np.isnan(found["AUROC"].class_values["one"][c]) for c in range(4)] == [True, True, True, False]
    assert [np.isnan(found["Brier"].class_values["one"][c]) for c in range(4)] == [False, True, True, False]
    assert found["Brier"].dropped[:3].tolist() == [0, 5, 5]
    assert found["AUROC"].estimate("one") == found["AUROC"].class_values["one"][3]


def test_draws_are_those_of_the_mean_average_precision_and_chunks_change_nothing(monkeypatch):
    scores, targets, patients = made_up()
    options = {"replicates": 21, "seed": 3}
    whole = metric_bootstrap(scores, targets, patients, thresholds=CUTS, specificity=0.8, **options)
    ap = patient_bootstrap(scores, targets, patients, **options)
    np.testing.assert_array_equal(whole["Brier"].dropped, ap.dropped)
    np.testing.assert_array_equal(np.isnan(whole["F1"].replicate_values["one"]), np.isnan(ap.replicate_values["one"]))
    monkeypatch.setattr(data.bootstrap, "CHUNK_ELEMENTS", 4 * len(targets))
    order = np.random.default_rng(1).permutation(len(targets))
    shuffled = {method: values[order] for method, values in scores.items()}
    people = [patients[i] for i in order]
    parts = metric_bootstrap(shuffled, targets[order], people, thresholds=CUTS, specificity=0.8, **options)
    for name in METRICS:
        for method in scores:
            np.testing.assert_allclose(
                parts[name].replicate_values[method], whole[name].replicate_values[method], rtol=0, atol=1e-12
            )


def test_metrics_asked_for_alone_are_those_of_all_together():
    scores, targets, patients = made_up()
    whole = metric_bootstrap(scores, targets, patients, thresholds=CUTS, specificity=0.8, replicates=6)
    for names in (("sensitivity",), ("F1_chosen", "ECE"), ("Brier",)):
        options = {"metrics": names, "thresholds": CUTS, "specificity": 0.8, "replicates": 6}
        some = metric_bootstrap(scores, targets, patients, **options)
        assert set(some) == set(names)
        for name in names:
            for method in scores:
                np.testing.assert_array_equal(some[name].class_values[method], whole[name].class_values[method])
                np.testing.assert_array_equal(some[name].replicate_values[method], whole[name].replicate_values[method])


def test_the_interval_of_calibration_error_surrounds_its_estimate():
    scores, targets, patients = made_up(num_rows=400, num_patients=300)
    found = metric_bootstrap(scores, targets, patients, thresholds={}, specificity=0.9, replicates=100)["ECE"]
    interval = found.interval("one", [0])
    assert interval.low < interval.estimate < interval.high
    assert found.replicate_values["one"][:, 0].mean() == pytest.approx(interval.estimate)
    assert np.nanmin(found.replicate_values["one"]) >= 0


def test_one_patient_and_logits_are_refused():
    scores, targets, patients = made_up()
    with pytest.raises(InputError, match="at least 2 patients"):
        metric_bootstrap(scores, targets, ["p"] * len(targets), thresholds={}, specificity=0.9)
    with pytest.raises(InputError, match="apply a sigmoid"):
        metric_bootstrap({"one": 9 * scores["one"] - 4}, targets, patients, thresholds={}, specificity=0.9)
