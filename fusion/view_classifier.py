"""The view of images that come without one, from cached features: `scripts/classify_views.py`.

About 15,700 images of MIMIC-CXR have no view position. A multinomial logistic regression on pooled maps learns the view
from the training images that have one. It is validated on val, and stays silent (UNKNOWN) below a confidence that is
chosen there for each view: predictions of that view above it must be right in 98 % of the validation images. Test is
only reported. No image is read.

Axes: **N** images, **D** features, **K** views that occur in training.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Float64, Int
from jsonargparse import ArgumentParser
from torch.nn import functional as F

from data.cache import FeatureCache
from data.errors import InputError
from data.files import atomic_write
from data.lock import locked
from data.manifest import Manifest, read_manifest, write_manifest
from data.order import derive_seed
from data.runs import Log, run_command
from data.tables import write_table
from data.views import VIEWS
from fusion.grouping import UNKNOWN, cached_manifest
from fusion.lbfgs import minimise
from fusion.tail.features import Projection, pooled_images, require_one_backbone, standardisation

PRECISION = 0.98
"""Share of right predictions of a view that validation must show before the view is predicted at all."""
LEAST = 20
"""Validation images above the confidence at least: a share of fewer says nothing."""
MOST = 20_000
"""Images of train and val that the fit may use: more change nothing, and their maps would have to be read."""
RIDGES = (1e-1, 1e-2, 1e-3, 1e-4)
BATCH = 4096


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="classify_views.py", description="The views of images without one, from a cache.")
    parser.add_argument("--run_dir", type=Path, required=True, help="a run with a finished cache")
    parser.add_argument("--cache_dir", type=Path | None, default=None, help="feature cache (default: RUN_DIR/cache)")
    parser.add_argument("--out", type=Path | None, default=None, help="manifest to write, UNKNOWN views replaced")
    options = vars(parser.parse_args(argv))
    run_command(lambda: classify_views(**options))


def classify_views(run_dir: Path, cache_dir: Path | None = None, out: Path | None = None) -> None:
    """Write `views.csv` and `views.json` into the run and, if asked for, a manifest; run again, it writes the same.

    Raises:
        InputError: No finished cache, maps of several backbones, fewer than two known views in training, no known
            view in validation, or `out` is the run's own manifest.
    """
    path = run_dir / "manifest.csv"
    if out is not None and (out.suffix != ".csv" or out.resolve() == path.resolve()):
        raise InputError(f"{out}: wanted another .csv than the run's own manifest, whose known views train this model")
    with locked(run_dir):
        log, cache, full = Log(run_dir, speaks=True), FeatureCache(cache_dir or run_dir / "cache"), read_manifest(path)
        table, report = predict_views(cached_manifest(full, cache), cache)
        write_table(run_dir / "views.csv", table)
        atomic_write(run_dir / "views.json", json.dumps(report, indent=1))
        for line in report_lines(report):
            log(line)
        if out is not None:
            write_manifest(with_views(full, table), out)
            log(f"{out}: the manifest with these views; to use it, make it the manifest.csv of a run folder of its own")
        log(f"next: look at {run_dir / 'views.csv'}")


def predict_views(manifest: Manifest, cache: FeatureCache) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A row `image_id, view, predicted, confidence` per cached image, and the scores; errors as in `classify_views`.

    Training rows are predictions of what was learned: they find mistyped views, they prove nothing.
    """
    ordinals = np.array([cache.ordinal[image_id] for image_id in manifest.images["image_id"]], dtype=int)
    require_one_backbone(cache, ordinals)
    types = np.array([VIEWS.index(view) for view in manifest.images["view"]], dtype=int)
    split = manifest.images["split"].to_numpy(dtype=str)
    train, val = (np.flatnonzero((split == name) & (types != UNKNOWN)) for name in ("train", "val"))
    if len(np.unique(types[train])) < 2 or not len(val):
        raise InputError(
            "manifest.csv: to learn views, training needs images of at least two known views and validation of one;"
            f" found {len(np.unique(types[train]))} and {len(np.unique(types[val]))}"
        )
    x = {name: pooled_images(cache, ordinals[some(rows, name)]) for name, rows in (("train", train), ("val", val))}
    model = fit_views(x["train"], types[some(train, "train")], x["val"], types[some(val, "val")])
    batches = [ordinals[at : at + BATCH] for at in range(0, len(ordinals), BATCH)]
    probabilities = np.concatenate([model.probabilities(pooled_images(cache, part)) for part in batches])
    best, confidence = model.views[probabilities.argmax(axis=1)], probabilities.max(axis=1)
    thresholds = {v: choose_confidence(confidence[val], best[val], types[val], v) for v in model.views.tolist()}
    sure = confidence >= np.array([thresholds[v] for v in best.tolist()])
    predicted = np.where(sure, best, UNKNOWN)
    table = manifest.images[["image_id", "view"]].assign(
        predicted=[VIEWS[number] for number in predicted], confidence=[f"{value:.6f}" for value in confidence]
    )
    report: dict[str, Any] = {
        "views": [VIEWS[v] for v in model.views],
        "ridge": model.ridge,
        "confidence": {VIEWS[v]: None if np.isinf(value) else value for v, value in thresholds.items()},
        "unknown": counts(predicted[types == UNKNOWN]),
    }
    for name in ("val", "test"):
        rows = (split == name) & (types != UNKNOWN)
        report[name] = scores(types[rows], best[rows], sure[rows])
    return table, report


def some(rows: Int[np.ndarray, "n"], purpose: str) -> Int[np.ndarray, "m"]:
    """At most `MOST` of them, always the same, in their order."""
    if len(rows) <= MOST:
        return rows
    rng = np.random.default_rng(derive_seed("images for views", purpose))
    return np.sort(rng.choice(rows, MOST, replace=False))


@dataclass(frozen=True, eq=False)
class ViewClassifier:
    """softmax((x - mean) @ matrix @ weights + bias) over the views that occur in training."""

    views: Int[np.ndarray, "K"]
    """Numbers into `VIEWS`, ascending."""
    scale: Projection
    weights: Float64[np.ndarray, "D K"]
    bias: Float64[np.ndarray, "K"]
    ridge: float

    def probabilities(self, features: Float[np.ndarray, "N D"]) -> Float64[np.ndarray, "N K"]:
        """Of each view."""
        return torch.from_numpy(self.scale(features) @ self.weights + self.bias).softmax(dim=1).numpy()


def fit_views(
    x: Float[np.ndarray, "N D"], y: Int[np.ndarray, "N"], val_x: Float[np.ndarray, "M D"], val_y: Int[np.ndarray, "M"]
) -> ViewClassifier:
    """The classifier whose ridge is right most often on validation; the largest ridge of equals."""
    views, scale = np.unique(y), standardisation(x)
    fitted = [
        ViewClassifier(views, scale, weights, bias, ridge)
        for ridge, weights, bias in fit_softmax(scale(x), np.searchsorted(views, y), len(views))
    ]
    right = [(views[model.probabilities(val_x).argmax(axis=1)] == val_y).mean() for model in fitted]
    return fitted[int(np.argmax(right))]


def fit_softmax(
    x: Float64[np.ndarray, "N D"], y: Int[np.ndarray, "N"], num_views: int
) -> list[tuple[float, Float64[np.ndarray, "D K"], Float64[np.ndarray, "K"]]]:
    """Minimise mean cross-entropy + ridge / 2 * |w|^2 in float64, from the largest ridge on, each from the one before.

    The bias is not penalised. scikit-learn's `LogisticRegression` has the same minimum for C = 1 / (ridge * N).
    """
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    solution = torch.zeros(x.shape[1] + 1, num_views, dtype=torch.float64)
    found = []

    def loss(w: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(inputs @ w[1:] + w[0], targets)

    for ridge in RIDGES:
        solution = minimise(solution, loss, ridge)
        found.append((ridge, solution[1:].numpy().copy(), solution[0].numpy().copy()))
    return found


def choose_confidence(
    confidence: Float64[np.ndarray, "N"],
    predicted: Int[np.ndarray, "N"],
    truth: Int[np.ndarray, "N"],
    view: int,
    precision: float = PRECISION,
    least: int = LEAST,
) -> float:
    """The lowest confidence from which predictions of `view` are right often enough; infinite where there is none.

    Args:
        precision: Share of right ones among all at or above it.
        least: Number of them at least.
    """
    own = predicted == view
    order = np.argsort(-confidence[own], kind="stable")
    values, right = confidence[own][order], (truth[own] == view)[order]
    taken = np.arange(1, len(values) + 1)
    whole = np.append(values[1:] != values[:-1], True)[: len(values)]  # equal confidences pass or fail together
    good = whole & (np.cumsum(right) >= precision * taken) & (taken >= least)
    return float(values[good][-1]) if good.any() else float("inf")


def scores(truth: Int[np.ndarray, "N"], best: Int[np.ndarray, "N"], sure: Bool[np.ndarray, "N"]) -> dict[str, Any]:
    """Of the images of a split whose view is known; None where there are none."""
    right = truth == best
    confusion = {
        VIEWS[t]: counts(np.where(sure, best, UNKNOWN)[truth == t]) for t in range(len(VIEWS)) if (truth == t).any()
    }
    return {
        "images": len(truth),
        "accuracy": float(right.mean()) if len(truth) else None,
        "predicted": float(sure.mean()) if len(truth) else None,
        "precision": float(right[sure].mean()) if sure.any() else None,
        "confusion": confusion,
    }


def counts(views: Int[np.ndarray, "N"]) -> dict[str, int]:
    """How often each view occurs."""
    return {name: int((views == number).sum()) for number, name in enumerate(VIEWS)}


def with_views(manifest: Manifest, table: pd.DataFrame) -> Manifest:
    """The manifest with UNKNOWN replaced by what was predicted; a known view is never changed."""
    predicted = dict(zip(table["image_id"], table["predicted"], strict=True))
    pairs = zip(manifest.images["image_id"], manifest.images["view"], strict=True)
    views = [predicted.get(image_id, view) if view == "UNKNOWN" else view for image_id, view in pairs]
    images = manifest.images.assign(view=pd.array(views, dtype="str"))
    return Manifest(images, manifest.labels, manifest.classes, manifest.root)


def report_lines(report: dict[str, Any]) -> list[str]:
    """The scores as text."""
    chosen = ", ".join(
        f"{view} {value:.3f}" if value else f"{view} never" for view, value in report["confidence"].items()
    )
    lines = [f"confidence chosen on validation for {PRECISION:.0%} right predictions of each view: {chosen}"]
    for split in ("val", "test"):
        part = report[split]
        if not part["images"]:
            lines.append(f"{split}: no image of a known view")
            continue
        precise = "none" if part["precision"] is None else f"{part['precision']:.3f} of them right"
        lines.append(
            f"{split}: {part['images']} images of a known view, {part['accuracy']:.3f} right; with abstention"
            f" {part['predicted']:.3f} predicted, {precise}"
        )
        lines.append(f"{'  true, predicted as':<22}" + "".join(f"{view:>9}" for view in VIEWS))
        lines += [
            f"  {truth:<20}" + "".join(f"{number:>9}" for number in row.values())
            for truth, row in part["confusion"].items()
        ]
    told = ", ".join(f"{number} {view}" for view, number in report["unknown"].items() if number)
    return [*lines, f"images without a view: {told or 'none'}"]
