"""Metrics equal scikit-learn and torchmetrics, on ties and unknown labels too; what is undefined is absent."""

import json
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score, log_loss, roc_auc_score
from torchmetrics.classification import BinaryCalibrationError

from data import metrics
from data.errors import InputError
from data.metrics import auroc, average_precision, calibration_error, per_class
from data.operating_points import f1_at
from data.summary import summary

NAN = float("nan")
CLASSES = ("Edema", "Mass", "Hernia", "Fibrosis")
GROUPS = {"Edema": "head", "Mass": "medium", "Hernia": "tail", "Fibrosis": "tail"}


def made_up(num_rows=301, num_classes=4, steps=20, unknown=0.15, seed=0):
    """Probabilities on a coarse grid (many ties) that know something of targets with gaps."""
    rng = np.random.default_rng(seed)
    targets = (rng.random((num_rows, num_classes)) < np.linspace(0.4, 0.05, num_classes)).astype(np.float32)
    scores = np.clip(rng.normal(0.35 + 0.25 * targets, 0.2), 0, 1)
    targets[rng.random(targets.shape) < unknown] = np.nan
    return (np.round(scores * steps) / steps).astype(np.float32), targets


@pytest.mark.parametrize("steps", [1, 2, 20, 10_000])
def test_average_precision_and_auroc_equal_scikit_learn_with_ties_and_unknown_labels(steps):
    scores, targets = made_up(steps=steps)
    found = per_class(scores, targets)
    for c in range(targets.shape[1]):
        known = ~np.isnan(targets[:, c])
        truth, ranked = targets[known, c], scores[known, c]
        assert found.ap[c] == pytest.approx(average_precision_score(truth, ranked), abs=1e-12)
        assert found.auroc[c] == pytest.approx(roc_auc_score(truth, ranked), abs=1e-12)
        assert average_precision(scores[:, c], targets[:, c]) == found.ap[c]
        assert auroc(scores[:, c], targets[:, c]) == found.auroc[c]
        assert (found.positives[c], found.known[c]) == (truth.sum(), known.sum())


def test_weights_act_as_in_scikit_learn_even_when_the_best_rows_weigh_nothing():
    scores, targets = made_up(num_classes=1, unknown=0)
    weights = np.random.default_rng(1).integers(0, 3, len(scores)).astype(np.float64)
    weights[scores[:, 0] > 0.8] = 0
    expected = average_precision_score(targets[:, 0], scores[:, 0], sample_weight=weights)
    assert average_precision(scores[:, 0], targets[:, 0], weights) == pytest.approx(expected, abs=1e-12)
    expected = roc_auc_score(targets[:, 0], scores[:, 0], sample_weight=weights)
    assert auroc(scores[:, 0], targets[:, 0], weights) == pytest.approx(expected, abs=1e-12)


def test_constant_scores_give_the_prevalence_in_any_order_of_rows():
    targets = np.zeros(40, dtype=np.float32)
    targets[:2] = 1
    for order in (targets, targets[::-1]):
        assert average_precision(np.full(40, 0.3), order) == pytest.approx(0.05)
        assert auroc(np.full(40, 0.3), order) == 0.5


def test_a_class_without_positives_or_known_labels_is_nan_and_in_no_mean():
    scores, targets = made_up()
    targets[:, 1] = np.where(np.isnan(targets[:, 1]), np.nan, 0)
    targets[:, 2] = np.nan
    found = per_class(scores, targets)
    assert np.isnan(found.ap).tolist() == [False, True, True, False]
    assert np.isnan(found.auroc).tolist() == [False, True, True, False]
    report = summary(scores, targets, CLASSES, GROUPS)
    assert report["absent"] == ["Mass", "Hernia"]
    assert report["mAP"] == pytest.approx((found.ap[0] + found.ap[3]) / 2)
    assert report["mAP_tail"] == pytest.approx(found.ap[3])
    assert report["ECE"] == pytest.approx(calibration_error(scores, targets)[[0, 3]].mean())
    assert report["mAP_medium"] is None
    assert report["per_class"]["Mass"]["AP"] is None
    assert report["per_class"]["Hernia"]["known"] == 0
    json.dumps(report, allow_nan=False)


def test_a_class_of_positives_only_has_average_precision_one_and_no_auroc():
    assert average_precision(np.array([0.1, 0.9]), np.ones(2)) == 1
    assert np.isnan(auroc(np.array([0.1, 0.9]), np.ones(2)))


def test_soft_labels_are_positive_above_one_half():
    scores = np.array([0.9, 0.8, 0.7, 0.6])
    soft = np.array([0.5, 0.51, 0.2, 0.9])
    assert average_precision(scores, soft) == average_precision(scores, np.array([0.0, 1.0, 0.0, 1.0]))


def test_f1_at_one_half_equals_scikit_learn():
    scores, targets = made_up()
    scores[:, 3] = 0.5  # exactly one half calls nothing positive
    found = f1_at(scores, targets)
    for c in range(targets.shape[1]):
        known = ~np.isnan(targets[:, c])
        assert found[c] == pytest.approx(f1_score(targets[known, c], scores[known, c] > 0.5, zero_division=0))
    assert found[3] == 0
    assert np.isnan(f1_at(scores, np.zeros_like(targets))).all()


def test_calibration_error_equals_torchmetrics_over_known_labels():
    scores, targets = made_up(steps=977)
    scores = np.minimum(scores, np.float32(0.999))  # torchmetrics puts an exact 1 into a sixteenth bin of its own
    found = calibration_error(scores, targets)
    for c in range(targets.shape[1]):
        known = ~np.isnan(targets[:, c])
        metric = BinaryCalibrationError(n_bins=15, norm="l1")
        expected = metric(torch.tensor(scores[known, c]), torch.tensor(targets[known, c]).long())
        assert found[c] == pytest.approx(expected.item(), abs=1e-6)


def test_log_loss_equals_scikit_learn_and_a_certain_error_is_finite():
    scores, targets = made_up(steps=40)
    scores[:3, 0], targets[:3, 0] = [1, 0, 1], [0, 1, 1]
    targets[:, 2] = np.nan
    found = metrics.log_loss(scores, targets)
    for c in (0, 1, 3):
        known = ~np.isnan(targets[:, c])
        expected = log_loss(targets[known, c], scores[known, c], labels=[0, 1])
        assert found[c] == pytest.approx(expected, rel=1e-6)
    assert np.isnan(found[2])
    with pytest.raises(InputError, match="apply a sigmoid"):
        metrics.log_loss(8 * scores - 4, targets)


def test_a_probability_of_exactly_one_belongs_to_the_last_bin():
    ece = calibration_error(np.array([[1.0], [0.95]]), np.array([[0.0], [1.0]]))
    assert ece[0] == pytest.approx(abs(1.95 / 2 - 0.5))  # two bins would give 0.525
    assert calibration_error(np.array([[0.0]]), np.array([[0.0]]))[0] == 0


def test_calibration_error_of_honest_probabilities_is_small_and_of_overconfident_ones_is_not():
    rng = np.random.default_rng(3)
    honest = rng.random((20_000, 1))
    targets = (rng.random((20_000, 1)) < honest).astype(np.float64)
    assert calibration_error(honest, targets)[0] < 0.02
    assert calibration_error((honest > 0.5).astype(np.float64), targets)[0] == pytest.approx(0.25, abs=0.02)


def test_summary_means_are_the_means_of_its_classes():
    scores, targets = made_up()
    report = summary(scores, targets, CLASSES, GROUPS)
    rows = report["per_class"]
    for total, part in (("mAP", "AP"), ("mAUROC", "AUROC"), ("F1", "F1"), ("ECE", "ECE")):
        assert report[total] == pytest.approx(np.mean([row[part] for row in rows.values()]))
    assert report["mAP_tail"] == pytest.approx((rows["Hernia"]["AP"] + rows["Fibrosis"]["AP"]) / 2)
    assert report["mAP_head"] == rows["Edema"]["AP"]
    assert report["rows"] == 301
    assert report["absent"] == []


@pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused_where_they_stand(bad):
    scores, targets = made_up()
    scores[7, 2] = bad
    with pytest.raises(InputError, match=re.escape("scores at [7, 2]: wanted finite numbers")):
        per_class(scores, targets)


def test_labels_outside_zero_to_one_are_refused():
    scores, targets = made_up()
    targets[5, 1] = -1
    with pytest.raises(InputError, match=re.escape("targets at [5, 1]: wanted 0 to 1 or NaN")):
        per_class(scores, targets)


def test_logits_are_refused_where_probabilities_are_needed():
    scores, targets = made_up()
    with pytest.raises(InputError, match="apply a sigmoid"):
        summary(scores * 8 - 4, targets, CLASSES, GROUPS)


def test_a_class_without_a_group_is_refused_by_name():
    with pytest.raises(InputError, match="'Fibrosis' has no frequency group"):
        summary(*made_up(), CLASSES, {name: "head" for name in CLASSES[:3]})


def test_a_wrong_shape_is_refused():
    scores, targets = made_up()
    with pytest.raises(Exception, match=r"type-check|Type-check"):
        per_class(scores, targets[:, :3])


def test_no_rows_at_all_is_absent_too():
    empty = np.zeros((0, 2), dtype=np.float32)
    report = summary(empty, empty, CLASSES[:2], GROUPS)
    assert report["mAP"] is None
    assert report["absent"] == ["Edema", "Mass"]
