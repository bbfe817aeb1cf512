"""Tail classifiers against slow loops and scikit-learn, and that nothing about them is chosen on test."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch

import fusion.tail.run
from data.errors import InputError
from data.manifest import Manifest, read_manifest, write_manifest
from data.metrics import average_precision
from data.predictions import read_predictions
from extract.engine import sigmoid
from extract.heads.linear import LinearHead
from fusion.config import GroupingConfig
from fusion.grouping import make_groups
from fusion.tail.choose import WEIGHTS, assemble, best_per_band, choose_mixture, mixtures
from fusion.tail.classifiers import class_weights, fit_logistic, natural_probabilities, positive_share, tau_normalised
from fusion.tail.features import pooled_groups, standardisation, whitening
from fusion.tail.methods import resampled_patients
from fusion.tail.neighbours import nearest, vote
from fusion.tail.run import main, run_tail
from tests.launch import run
from tests.make_data import make_cache, make_manifest, make_run

ROOT = Path(__file__).resolve().parents[1]
M, G, D, C, K = 41, 7, 5, 3, 9


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def made_labels(rng, rows=M, unknown=0.2):
    labels = (rng.random((rows, C)) < [0.5, 0.25, 0.1]).astype(np.float32)
    labels[:2] = [[1, 1, 1], [0, 0, 0]]
    known = rng.random((rows, C)) >= unknown
    known[:2] = True
    return np.where(known, labels, np.float32("nan"))


# Nearest neighbours


def test_votes_equal_a_slow_loop_in_which_unknown_labels_have_no_vote(rng):
    train, queries, labels = rng.normal(size=(M, D)), rng.normal(size=(G, D)), made_labels(rng, unknown=0.5)
    k, temperature = 4, 0.3
    found = vote(*nearest(train, queries, K), labels, k, temperature)
    nobody_knew = 0
    for g in range(G):
        similar = [float(queries[g] @ t / np.linalg.norm(queries[g]) / np.linalg.norm(t)) for t in train]
        near = sorted(range(M), key=lambda m: -similar[m])[:k]
        for c in range(C):
            voters = [m for m in near if not np.isnan(labels[m, c])]
            weights = [np.exp(similar[m] / temperature) for m in voters]
            known = labels[~np.isnan(labels[:, c]), c]
            wanted = np.average(labels[voters, c], weights=weights) if voters else known.mean()
            nobody_knew += not voters
            assert found[g, c] == pytest.approx(wanted, abs=1e-5)
    assert nobody_knew, "the case must occur"


def test_a_label_counts_for_its_own_class_alone_and_withdrawing_it_is_not_the_same_as_a_negative(rng):
    train, labels = rng.normal(size=(M, D)), made_labels(rng, unknown=0)
    found = nearest(train, train[:G], K)
    before = vote(*found, labels, K, 0.1)
    nearest_one = found[1][5, 0]
    for value in (1 - labels[nearest_one, 1], np.float32("nan")):
        other = labels.copy()
        other[nearest_one, 1] = value
        after = vote(*found, other, K, 0.1)
        assert after[5, 1] != before[5, 1]
        assert (after[:, [0, 2]] == before[:, [0, 2]]).all()
    nobody_knows = np.where(np.arange(C) == 1, np.float32("nan"), labels)
    assert (vote(*found, nobody_knows, K, 0.1)[:, 1] == 0).all()


def test_neighbours_are_exact_nearest_first_and_no_more_than_there_are(rng):
    train, queries = rng.normal(size=(M, D)), 3 * rng.normal(size=(G, D))
    similarities, numbers = nearest(train, queries, 2 * M)
    assert numbers.shape == (G, M)
    cosine = (queries / np.linalg.norm(queries, axis=1)[:, None]) @ (train / np.linalg.norm(train, axis=1)[:, None]).T
    np.testing.assert_array_equal(numbers, np.argsort(-cosine, axis=1))
    np.testing.assert_allclose(similarities, np.sort(cosine)[:, ::-1], atol=1e-6)


# Linear classifiers


@pytest.mark.parametrize("balanced", [True, False])
def test_the_classifier_is_scikit_learns_on_the_known_labels(rng, balanced):
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = rng.normal(size=(M, D)), made_labels(rng)
    ridges = (0.3, 0.02)
    for ridge, fitted in fit_logistic(features, labels, ridges, balanced):
        for c in range(C):
            known = ~np.isnan(labels[:, c])
            model = linear_model.LogisticRegression(
                C=1 / (ridge * known.sum()), class_weight="balanced" if balanced else None, tol=1e-10, max_iter=5000
            ).fit(features[known], labels[known, c])
            np.testing.assert_allclose(fitted.weights[:, c], model.coef_[0], atol=1e-4)
            assert fitted.bias[c] == pytest.approx(model.intercept_[0], abs=1e-4)


def test_positives_and_negatives_weigh_alike_when_balanced_and_unknown_ones_nothing(rng):
    labels = made_labels(rng)
    weights = class_weights(labels, balanced=True)
    for c in range(C):
        assert weights[labels[:, c] == 1, c].sum() == pytest.approx(0.5)
        assert weights[labels[:, c] == 0, c].sum() == pytest.approx(0.5)
        assert (weights[np.isnan(labels[:, c]), c] == 0).all()
    plain = class_weights(labels, balanced=False)
    assert all(len(np.unique(plain[~np.isnan(labels[:, c]), c])) == 1 for c in range(C))


@pytest.mark.parametrize("balanced", [True, False])
def test_a_class_without_positives_or_without_labels_gets_its_share_and_disturbs_no_other(rng, balanced):
    features, labels = rng.normal(size=(M, D)), made_labels(rng)
    wider = np.column_stack([labels, np.zeros(M), np.ones(M), np.full(M, np.nan)]).astype(np.float32)
    (_, few), (_, many) = next(fit_logistic(features, labels, [0.1], balanced)), next(
        fit_logistic(features, wider, [0.1], balanced)
    )  # fmt: skip
    np.testing.assert_allclose(many.weights[:, :C], few.weights, atol=1e-5)
    probabilities = natural_probabilities(many.logits(features), wider, balanced)
    assert (probabilities[:, C:] == [0, 1, 0]).all()


def test_balanced_probabilities_come_back_to_the_natural_frequency_in_the_same_order(rng):
    labels = (rng.random((4000, 1)) < 0.05).astype(np.float32)
    features = rng.normal(size=(4000, 1)) + labels
    _, fitted = next(fit_logistic(features, labels, [1e-3], balanced=True))
    logits = fitted.logits(features)
    assert sigmoid(logits).mean() > 0.25
    probabilities = natural_probabilities(logits, labels, balanced=True)
    assert probabilities.mean() == pytest.approx(labels.mean(), rel=0.15)
    order = np.argsort(logits[:, 0])
    assert (np.diff(probabilities[order, 0]) >= 0).all()
    assert positive_share(labels)[0] == pytest.approx(labels.mean())


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0])
def test_tau_normalised_logits_are_those_of_the_normalised_weights_without_bias(rng, tau):
    head = LinearHead(D, C)
    with torch.no_grad():
        head.classifier.weight *= torch.tensor([[1.0], [5.0], [0.2]])
        tokens = torch.from_numpy(rng.normal(size=(G, 4, D))).float()
        logits = head(tokens).numpy()
    weights, bias = head.classifier.weight.detach().numpy(), head.classifier.bias.detach().numpy()
    found = tau_normalised(logits, weights, bias, tau)
    for c in range(C):
        length = float(sum(w**2 for w in weights[c].tolist())) ** 0.5
        wanted = tokens.mean(dim=1).numpy() @ (weights[c] / length**tau)
        np.testing.assert_allclose(found[:, c], wanted, atol=1e-5)
        assert (np.argsort(found[:, c]) == np.argsort(logits[:, c])).all(), "no class's order can change"


# Features


def test_a_groups_features_are_the_mean_over_its_views_of_each_maps_mean_and_maximum(tmp_path):
    manifest = make_manifest(tmp_path)
    cache = make_cache(tmp_path / "cache", manifest)
    groups = make_groups(manifest, cache, GroupingConfig())
    found = pooled_groups(cache, groups)
    assert found.dtype == np.float32
    assert found.shape == (len(groups), 2 * 5)
    for g, ordinals in enumerate(groups.ordinals):
        maps = [cache.read(np.array([n]))[0].astype(np.float64) for n in ordinals]
        wanted = np.mean([np.concatenate([m.mean((0, 1)), m.max((0, 1))]) for m in maps], axis=0)
        np.testing.assert_allclose(found[g], wanted, atol=1e-5)
    cache.index.fold[groups.ordinals[3][0]] = 1
    with pytest.raises(InputError, match=r"1 of \d+ maps come from other backbones"):
        pooled_groups(cache, groups)


def test_projections_standardise_and_whiten_the_training_features(rng):
    train = (rng.normal(size=(200, D)) @ rng.normal(size=(D, D)) + 3).astype(np.float32)
    with_constant = np.column_stack([train, np.full(200, 7, dtype=np.float32)])
    standard = standardisation(with_constant)(with_constant)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(0), [1] * D + [0], atol=1e-6)
    white = whitening(with_constant, 99)(with_constant)
    assert white.shape == (200, D), "a direction without variance is left out"
    np.testing.assert_allclose(white.T @ white / 200, np.eye(D), atol=1e-4)
    np.testing.assert_allclose(whitening(train, 2)(train), white[:, :2], atol=1e-3)


def test_threads_change_nothing(rng):
    features, labels = rng.normal(size=(300, 32)), made_labels(rng, rows=300)
    fits, neighbours, before = [], [], (torch.get_num_threads(), faiss.omp_get_max_threads())
    for threads in (1, 2):
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        fits.append(np.stack([fitted.weights for _, fitted in fit_logistic(features, labels, (0.1, 0.01), True)]))
        neighbours.append(nearest(features, features[:50], K))
    torch.set_num_threads(before[0])
    faiss.omp_set_num_threads(before[1])
    np.testing.assert_allclose(fits[0], fits[1], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(neighbours[0][1], neighbours[1][1])
    np.testing.assert_allclose(neighbours[0][0], neighbours[1][0], rtol=0, atol=1e-6)


# Choosing


BANDS = {"head": [0], "medium": [], "tail": [1, 2]}


def test_each_band_takes_the_setting_with_the_best_mean_ap_of_its_own_classes(rng):
    labels = made_labels(rng)
    truth = np.nan_to_num(labels)
    noise = rng.random((M, C)).astype(np.float32)
    options = {
        "noise": noise,
        "knows head": np.where([True, False, False], truth, noise),
        "knows tail": np.where([False, True, True], truth, noise),
        "knows tail too": np.where([False, True, True], truth, noise),
    }
    chosen = best_per_band(options, labels, BANDS)
    assert chosen == {"head": "knows head", "medium": "noise", "tail": "knows tail"}, "the first of equals"
    assert (assemble(options, chosen, BANDS) == truth).all()
    assert set(best_per_band(options, np.full((M, C), np.nan, np.float32), BANDS).values()) == {"noise"}


def test_a_mixture_leaves_head_classes_alone_and_is_chosen_by_ap(rng):
    labels = made_labels(rng)
    base, other = rng.random((2, M, C)).astype(np.float32)
    truth = np.nan_to_num(labels)
    mixed = mixtures(base, {"other": other})
    assert list(mixed) == [("", 0.0), *(("other", weight) for weight in WEIGHTS)]
    np.testing.assert_allclose(mixed["other", 0.3], 0.7 * base + 0.3 * other)
    chosen = choose_mixture(base, {"other": other, "truth": truth}, labels, BANDS)
    assert chosen["head"] == chosen["medium"] == ("", 0.0)
    assert chosen["tail"][0] == "truth"
    assert choose_mixture(truth, {"other": other}, labels, BANDS)["tail"] == ("", 0.0)
    best = max(mixed, key=lambda s: np.mean([average_precision(mixed[s][:, c], labels[:, c]) for c in (1, 2)]))
    assert choose_mixture(base, {"other": other}, labels, BANDS)["tail"] == best


def test_drawn_patients_bring_all_of_their_groups(rng):
    patients = [f"p{n}" for n in (3, 1, 1, 2, 0, 3, 3)]
    drawn = resampled_patients(patients, seed=1)
    counts = np.bincount(drawn, minlength=7)
    assert len({counts[g] for g in (0, 5, 6)}) == 1
    assert counts[1] == counts[2]
    assert counts[0] + counts[1] + counts[3] + counts[4] == 4
    assert (drawn == resampled_patients(patients, seed=1)).all()
    assert any((resampled_patients(patients, s).tolist() != drawn.tolist()) for s in (2, 3))


# The command


BAND_OF = {"Edema": "head", "Nodule": "medium", "Hernia": "tail"}


@pytest.fixture(autouse=True)
def bands(monkeypatch):
    """Too few images here for a class to be rare."""
    monkeypatch.setattr(fusion.tail.run, "groups_of", lambda manifest: BAND_OF)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run after both stages, its stage-one head linear."""
    run_dir = tmp_path_factory.mktemp("tail") / "run"
    make_run(run_dir, num_studies=60)
    run("extract", run_dir, "--head.kind", "linear")
    run("fusion", run_dir, "--retrain_single", "false")
    return run_dir


def copied(finished, folder):
    shutil.copytree(finished, folder)
    return folder


def tables(folder):
    return {split: (folder / f"predictions_{split}.csv").read_bytes() for split in ("val", "test")}


@pytest.mark.slow
def test_tail_predictions_keep_the_fusions_head_classes_and_come_twice_the_same(finished, tmp_path):
    run_dir = copied(finished, tmp_path / "run")
    main(["--run_dir", str(run_dir), "--replicates", "10"])
    first = tables(run_dir / "tail")
    report = json.loads((run_dir / "tail" / "metrics.json").read_text())
    names = ("mean", "fusion", "re-trained", "balanced", "neighbours", "tau", "mean + tail", "fusion + tail")
    assert tuple(report["methods"]) == names
    assert report["predictions"] == "fusion + tail"
    assert {"tau - mean", "fusion + tail - fusion"} <= set(report["differences"])
    ids, values, classes = read_predictions(run_dir / "tail" / "predictions_test.csv")
    wanted_ids, fused, _ = read_predictions(run_dir / "fusion" / "predictions_test.csv")
    assert ids.equals(wanted_ids)
    assert classes == tuple(BAND_OF)
    chosen = report["chosen_on_validation"]["fusion + tail"]
    assert chosen["head"] == "('', 0.0)"
    for c, band in enumerate(BAND_OF.values()):
        assert (values[:, c] == fused[:, c]).all() == (chosen[band] == "('', 0.0)")
    assert (values != fused).any(), "the case must occur"
    run_tail(run_dir, replicates=10, out=run_dir / "again")
    assert tables(run_dir / "again") == first


@pytest.mark.slow
def test_labels_of_test_change_no_prediction(finished, tmp_path):
    runs = [copied(finished, tmp_path / name) for name in ("as_it_is", "permuted")]
    manifest = read_manifest(runs[1] / "manifest.csv")
    labels, test = manifest.labels.copy(), np.flatnonzero(manifest.images["split"] == "test")
    labels[test] = 1 - labels[test]
    write_manifest(Manifest(manifest.images, labels, manifest.classes, manifest.root), runs[1] / "manifest.csv")
    for run_dir in runs:
        run_tail(run_dir, replicates=10)
    assert tables(runs[0] / "tail") == tables(runs[1] / "tail")
    reports = [json.loads((run_dir / "tail" / "metrics.json").read_text()) for run_dir in runs]
    assert reports[0]["chosen_on_validation"] == reports[1]["chosen_on_validation"]
    assert reports[0]["methods"] != reports[1]["methods"]


@pytest.mark.slow
def test_without_a_fusion_run_the_mixture_starts_from_the_mean_and_misfits_are_named(finished, tmp_path):
    run_dir = copied(finished, tmp_path / "run")
    path = run_dir / "fusion" / "predictions_val.csv"
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(text[:1] + text[2:]))
    with pytest.raises(InputError, match=r"predictions_val\.csv: image \S+ has no prediction"):
        run_tail(run_dir)
    path.write_text("".join(line.replace("Hernia", "Mass") for line in text))
    with pytest.raises(InputError, match="its classes are not those"):
        run_tail(run_dir)
    shutil.rmtree(run_dir / "fusion")
    run_tail(run_dir, replicates=10)
    report = json.loads((run_dir / "tail" / "metrics.json").read_text())
    assert report["predictions"] == "mean + tail"
    assert "fusion" not in report["methods"]


@pytest.mark.slow
def test_the_script_starts_from_another_folder_and_names_what_is_missing(tmp_path):
    words = [sys.executable, str(ROOT / "scripts" / "tail.py"), "--run_dir", str(tmp_path)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'cache' / 'cache.json'}: no finished")
