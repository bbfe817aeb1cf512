"""Views from cached features: the fit against scikit-learn, abstention against a slow loop, nothing from test."""

import json

import numpy as np
import pandas as pd
import pytest

import fusion.view_classifier
from data.errors import InputError
from data.manifest import MANIFEST_COLUMNS, Manifest, read_manifest, write_manifest
from data.tables import read_table
from data.views import VIEWS
from fusion.view_classifier import (
    RIDGES,
    choose_confidence,
    classify_views,
    fit_softmax,
    predict_views,
    some,
    with_views,
)
from tests.make_data import CLASSES, make_cache

N, D, K = 83, 6, 3


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_the_fit_equals_scikit_learn_at_every_ridge(rng):
    linear_model = pytest.importorskip("sklearn.linear_model")
    y = rng.integers(K, size=N)
    x = rng.normal(size=(N, D)) + np.eye(K, D)[y]
    for ridge, weights, bias in fit_softmax(x, y, K):
        wanted = linear_model.LogisticRegression(C=1 / (ridge * N), tol=1e-9, max_iter=5000).fit(x, y)
        logits = x @ weights + bias
        found = np.exp(logits - logits.max(1, keepdims=True))
        np.testing.assert_allclose(found / found.sum(1, keepdims=True), wanted.predict_proba(x), atol=2e-3)
    assert [ridge for ridge, *_ in fit_softmax(x, y, K)] == list(RIDGES)


@pytest.mark.parametrize(("precision", "least"), [(0.9, 5), (0.7, 1), (0.98, 3), (1.0, 40)])
def test_the_confidence_equals_a_slow_loop(rng, precision, least):
    confidence = rng.integers(34, 101, size=N) / 100  # with ties
    predicted = rng.integers(K, size=N)
    truth = np.where(rng.random(N) < confidence, predicted, (predicted + 1) % K)
    for view in range(K):
        wanted = float("inf")
        for threshold in sorted(set(confidence.tolist()), reverse=True):
            above = [n for n in range(N) if predicted[n] == view and confidence[n] >= threshold]
            right = sum(truth[n] == view for n in above)
            if len(above) >= least and right >= precision * len(above):
                wanted = min(wanted, min(confidence[n] for n in above))
        assert choose_confidence(confidence, predicted, truth, view, precision, least) == wanted


def made_manifest(folder, num_images=700):
    """One image per study; the first 40 of every hundred are PA, 30 AP, 20 lateral, 2 other, 8 unknown."""
    rng = np.random.default_rng(3)
    names = np.repeat(["PA", "AP", "LATERAL", "OTHER", "UNKNOWN"], [40, 30, 20, 2, 8])
    views = [str(names[n % 100]) for n in rng.permutation(num_images)]
    split = ["train" if n % 7 < 3 else "val" if n % 7 < 5 else "test" for n in range(num_images)]
    rows = [
        [f"i{n:03}", f"s{n}", f"p{n}", view, f"{n}.png", part, "made up"]
        for n, (view, part) in enumerate(zip(views, split, strict=True))
    ]
    labels = (rng.random((num_images, len(CLASSES))) < 0.3).astype(np.float32)
    return Manifest(pd.DataFrame(rows, columns=list(MANIFEST_COLUMNS), dtype=str), labels, CLASSES, folder)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run whose features show the view, also that of images without one: (manifest, cache, true views)."""
    manifest = made_manifest(tmp_path / "images")
    write_manifest(manifest, tmp_path / "manifest.csv")
    cache = make_cache(tmp_path / "cache", manifest, map_shape=(1, 1, 2), per_shard=100)
    rng, known = np.random.default_rng(4), manifest.images["view"].to_numpy(dtype=str)
    truth = np.where(known == "UNKNOWN", rng.choice(["PA", "AP", "LATERAL"], len(known)), known)
    number = np.array([VIEWS.index(view) for view in truth])
    features = (rng.normal(size=(len(number), D)) + 4 * np.eye(len(VIEWS), D)[number]).astype(np.float32)
    row_of = {image_id: row for row, image_id in enumerate(manifest.images["image_id"])}
    of_ordinal = features[[row_of[image_id] for image_id in cache.index.image_id.tolist()]]
    monkeypatch.setattr(
        fusion.view_classifier, "pooled_images", lambda cache, ordinals, variant=0: of_ordinal[ordinals]
    )
    return manifest, cache, truth


def test_unknown_views_are_found_and_known_ones_never_change(made, tmp_path):
    manifest, _, truth = made
    (tmp_path / "other").mkdir()
    classify_views(tmp_path, out=tmp_path / "other" / "manifest.csv")
    table = read_table(tmp_path / "views.csv")
    assert list(table.columns) == ["image_id", "view", "predicted", "confidence"]
    assert table["image_id"].tolist() == manifest.images["image_id"].tolist()
    known = manifest.images["view"].to_numpy(dtype=str)
    new = read_manifest(tmp_path / "other" / "manifest.csv")
    found = new.images["view"].to_numpy(dtype=str)
    assert (found[known != "UNKNOWN"] == known[known != "UNKNOWN"]).all()
    replaced = (known == "UNKNOWN") & (found != "UNKNOWN")
    assert replaced.sum() > 0.7 * (known == "UNKNOWN").sum()
    assert (found[replaced] == truth[replaced]).mean() > 0.95
    assert new.image_path(3).resolve() == manifest.image_path(3).resolve()
    np.testing.assert_array_equal(new.labels, manifest.labels)
    report = json.loads((tmp_path / "views.json").read_text())
    assert report["confidence"]["OTHER"] is None, "4 validation images prove nothing"
    assert report["val"]["precision"] >= 0.98
    assert sum(report["unknown"].values()) == (known == "UNKNOWN").sum()
    first = (tmp_path / "views.csv").read_bytes()
    classify_views(tmp_path)
    assert (tmp_path / "views.csv").read_bytes() == first


def test_scores_of_a_split_equal_a_slow_count(made):
    manifest, cache, _ = made
    table, report = predict_views(manifest, cache)
    for split in ("val", "test"):
        rows = (manifest.images["split"] == split) & (table["view"] != "UNKNOWN")
        own = table[rows.to_numpy(dtype=bool)]
        sure = own[own["predicted"] != "UNKNOWN"]
        assert report[split]["images"] == len(own)
        assert report[split]["precision"] == pytest.approx((sure["predicted"] == sure["view"]).mean())
        for truth, row in report[split]["confusion"].items():
            for predicted, count in row.items():
                assert count == ((own["view"] == truth) & (own["predicted"] == predicted)).sum()


def test_views_of_test_images_teach_and_choose_nothing(made):
    manifest, cache, _ = made
    table, report = predict_views(manifest, cache)
    images = manifest.images.copy()
    test = (images["split"] == "test") & (images["view"] != "UNKNOWN")
    images.loc[test, "view"] = images.loc[test, "view"].map({"PA": "AP", "AP": "OTHER", "OTHER": "PA"}).fillna("PA")
    changed, other = predict_views(Manifest(images, manifest.labels, CLASSES, manifest.root), cache)
    assert changed[["predicted", "confidence"]].equals(table[["predicted", "confidence"]])
    assert other["confidence"] == report["confidence"]
    assert other["test"] != report["test"]


def test_features_that_say_nothing_leave_every_view_unknown(made, monkeypatch):
    manifest, cache, _ = made
    noise = np.random.default_rng(9).normal(size=(len(manifest), D)).astype(np.float32)
    monkeypatch.setattr(fusion.view_classifier, "pooled_images", lambda cache, ordinals, variant=0: noise[ordinals])
    table, report = predict_views(manifest, cache)
    assert set(table["predicted"]) == {"UNKNOWN"}
    assert set(report["confidence"].values()) == {None}
    assert with_views(manifest, table).images["view"].tolist() == manifest.images["view"].tolist()


def test_a_large_split_is_thinned_in_order_and_always_alike(monkeypatch):
    monkeypatch.setattr(fusion.view_classifier, "MOST", 10)
    rows = np.arange(100, 150)
    thin = some(rows, "train")
    assert len(thin) == 10
    assert set(thin) <= set(rows)
    assert thin.tolist() == sorted(thin)
    assert thin.tolist() == some(rows, "train").tolist() != some(rows, "val").tolist()
    assert some(rows[:10], "train").tolist() == rows[:10].tolist()


def test_what_cannot_be_learned_or_would_feed_on_itself_is_refused(made, tmp_path):
    manifest, cache, _ = made
    with pytest.raises(InputError, match=r"wanted another \.csv than the run's own manifest"):
        classify_views(tmp_path, out=tmp_path / "images" / ".." / "manifest.csv")
    images = manifest.images.copy()
    images.loc[(images["split"] == "train").to_numpy(dtype=bool) & (images["view"] != "PA"), "view"] = "UNKNOWN"
    with pytest.raises(InputError, match=r"at least two known views and validation of one; found 1 and 4"):
        predict_views(Manifest(images, manifest.labels, CLASSES, manifest.root), cache)
    cache.index.fold[5] = 1
    with pytest.raises(InputError, match=r"1 of 700 maps come from other backbones"):
        predict_views(manifest, cache)
