"""The phantom's generative model: labels, splits, posteriors, and what a conjunction of views is worth."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from data.phantom.ceiling import study_posteriors
from data.phantom.cohort import CLASSES, Study, class_rates, sample_cohort, sample_studies
from data.phantom.constants import MISSED_SHARE, VIEW_SETS, VISIBILITY

NAMES = (*CLASSES, "No Finding")
VIEWS = (("PA",), ("LATERAL",), ("PA", "LATERAL"))


@pytest.fixture(scope="module")
def studies() -> list[Study]:
    return [study for number in range(3600) for study in sample_studies(number).studies]


@pytest.fixture(scope="module")
def posteriors(studies) -> dict[tuple[str, ...], list[dict[str, float]]]:
    """What perfect perception says of every study, were it examined with these views."""
    return {views: [study_posteriors(study, views) for study in studies] for views in VIEWS}


def labels(studies: list[Study], name: str) -> np.ndarray:
    return np.array([name in study.labels for study in studies])


def test_the_default_cohort_has_its_counts_and_30_positive_test_studies_of_every_class():
    cohort = sample_cohort((1200, 250, 450), seed=0)
    counts = {split: [s for p in patients for s in p.studies] for split, patients in cohort.items()}
    assert [len(studies) for studies in counts.values()] == [1200, 250, 450]
    seeds = [{p.seed for p in patients} for patients in cohort.values()]
    assert not seeds[0] & seeds[1]
    assert not seeds[0] & seeds[2]
    assert not seeds[1] & seeds[2]
    for name in NAMES:
        shares = [labels(studies, name).mean() for studies in counts.values()]
        assert labels(counts["test"], name).sum() >= 30, name
        assert max(shares) - min(shares) < 0.03, name


@pytest.mark.parametrize("num_studies", [(1, 1, 1), (7, 2, 3), (5, 40, 11)])
def test_small_cohorts_have_exactly_the_studies_asked_for(num_studies):
    cohort = sample_cohort(num_studies, seed=3)
    assert tuple(sum(len(p.studies) for p in patients) for patients in cohort.values()) == num_studies
    assert all(p.studies for patients in cohort.values() for p in patients)


def test_prevalence_falls_from_about_40_to_about_9_percent(studies):
    rates = class_rates()
    assert 0.35 < rates["Support Devices"] < 0.42
    assert 0.08 < min(rates.values()) < 0.10
    for name, rate in rates.items():
        truth = np.mean([name in study.truth for study in studies])
        assert truth == pytest.approx(rate, abs=0.02), name
        assert labels(studies, name).mean() == pytest.approx(truth, abs=0.006), name  # noise keeps the prevalence


def test_three_percent_of_the_positives_are_missed(studies):
    missed = [name not in study.labels for study in studies for name in study.truth - {"No Finding"}]
    assert np.mean(missed) == pytest.approx(MISSED_SHARE, abs=0.005)


def test_no_finding_is_1_exactly_where_nothing_but_support_devices_is(studies):
    for study in studies:
        for found in (study.labels, study.truth):
            assert ("No Finding" in found) == (not found - {"No Finding", "Support Devices"})


def test_findings_that_belong_together_come_together_and_electrodes_come_alone(studies):
    def share(name: str, given: str) -> float:
        return float(np.mean([name in s.findings for s in studies if given in s.findings]))

    rates = class_rates()
    assert share("Pleural Effusion", "Cardiomegaly") > 1.5 * rates["Pleural Effusion"]
    assert share("Edema", "Cardiomegaly") > 1.5 * rates["Edema"]
    assert share("Nodule", "Emphysema") > 1.5 * rates["Nodule"]
    assert share("Nodule", "electrode") == pytest.approx(rates["Nodule"], abs=0.03)


def test_views_per_study_follow_the_challenge(studies):
    sizes = np.bincount([len(study.views) for study in studies], minlength=6)[1:] / len(studies)
    np.testing.assert_allclose(sizes[:4], (0.446, 0.458, 0.087, 0.009), atol=0.015)
    assert sum(VIEW_SETS.values()) == pytest.approx(1)


def test_chronic_findings_stay_with_the_patient():
    patients = [p for p in map(sample_studies, range(400)) if len(p.studies) > 1]
    assert len(patients) > 80
    for patient in patients:
        first, second = patient.studies[:2]
        for name in ("Cardiomegaly", "Nodule", "Tortuous Aorta", "pacemaker"):
            assert first.findings.get(name) == second.findings.get(name)
    assert any(p.studies[0].findings != p.studies[1].findings for p in patients)


@pytest.mark.parametrize("views", VIEWS)
def test_posteriors_are_the_frequencies_that_counting_finds(studies, posteriors, views):
    for name in NAMES:
        scores, truth = np.array([p[name] for p in posteriors[views]]), labels(studies, name)
        for low, high in ((0, 0.1), (0.1, 0.3), (0.3, 0.6), (0.6, 1.01)):
            rows = (scores >= low) & (scores < high)
            if rows.sum() > 50:
                spread = np.sqrt(scores[rows].mean() * (1 - scores[rows].mean()) / rows.sum())
                # 6 standard errors, many because studies of one patient are not independent
                assert abs(scores[rows].mean() - truth[rows].mean()) < 6 * spread + 0.005, (name, low)


@pytest.mark.parametrize("name", ["Nodule", "Enlarged Cardiomediastinum"])
def test_with_perfect_single_view_posteriors_mean_and_max_stay_015_below_the_joint_rule(studies, posteriors, name):
    truth = labels(studies, name)  # views say nothing about findings, so every study may stand for a two-view one
    frontal, lateral, joint = (np.array([p[name] for p in posteriors[views]]) for views in VIEWS)
    reached = average_precision_score(truth, joint)
    assert reached > 0.9
    odds = np.log(frontal / (1 - frontal)) + np.log(lateral / (1 - lateral))
    for fused in ((frontal + lateral) / 2, np.maximum(frontal, lateral), np.minimum(frontal, lateral), odds):
        assert average_precision_score(truth, fused) < reached - 0.15


def test_some_classes_show_on_one_kind_of_view_only():
    shown = [tuple(kinds.values()) for kinds in VISIBILITY.values()]
    assert shown.count((True, False)) >= 4  # with the two conjunctions
    assert shown.count((False, True)) >= 2
