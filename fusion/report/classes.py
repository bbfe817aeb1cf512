"""What a run says class by class: scores against frequency, curves, calibration, and which labels come together.

Axes: **G** groups, **C** classes, **K** bins.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from data.errors import InputError
from data.metrics import (
    CALIBRATION_BINS,
    calibration_error,
    hard_labels,
    mean_defined,
    precision_recall_curve,
    roc_curve,
)
from data.predictions import read_predictions
from data.strict_json import read_json
from fusion.evaluate.svg import drawing
from fusion.report.charts import Plot, thinned
from fusion.report.source import Run

SMALL = Plot(width=172.0, height=138.0, left=26.0, bottom=20.0, right=8.0, top=8.0)
PAIR_WIDTH = 190.0


def frequency(run: Run) -> dict[str, Any]:
    """A row per class that was judged, the most frequent in training first; and AP against frequency as a picture."""
    part, best = run.units["groups"], run.best_baseline
    own = part["methods"]["fusion"]["per_class"]
    other = part["methods"][best]["per_class"] if best in part["methods"] else {}
    train = run.manifest.of_split("train")
    known, positive = hard_labels(train.labels)
    counts = dict(zip(train.classes, positive.sum(axis=0).tolist(), strict=True))
    shares = dict(zip(train.classes, (positive.sum(axis=0) / np.maximum(known.sum(axis=0), 1)).tolist(), strict=True))
    names = sorted((name for name in own if own[name]["AP"] is not None), key=lambda name: (-shares.get(name, 0), name))
    most = max((shares.get(name, 0) for name in names), default=1) or 1
    rows = []
    for name in names:
        ap, base = own[name]["AP"], other.get(name, {}).get("AP")
        rows.append(
            own[name]
            | {"name": name, "images": counts.get(name, 0), "share": shares.get(name, 0.0), "baseline": base}
            | {"bar": 100 * shares.get(name, 0.0) / most, "picture": pair_bar(ap, base, own[name]["group"])}
        )
    return {"rows": rows, "best": best if other else None, "scatter": scatter(rows)}


def pair_bar(ap: float, baseline: float | None, band: str) -> Markup:
    """A class's AP, and beside it the baseline's as a ring."""
    x = 6 + ap * (PAIR_WIDTH - 12)
    marks = Markup('<line class="grid" x1="6" x2="{:g}" y1="9" y2="9"/>').format(PAIR_WIDTH - 6)
    said = f"AP {ap:.3f}"
    if baseline is not None:
        from_x = 6 + baseline * (PAIR_WIDTH - 12)
        marks += Markup('<line class="{} link" x1="{:.1f}" x2="{:.1f}" y1="9" y2="9"/>').format(band, from_x, x)
        marks += Markup('<circle class="ring" cx="{:.1f}" cy="9" r="3.6"/>').format(from_x)
        said += f", baseline {baseline:.3f}"
    marks += Markup('<circle class="{}" cx="{:.1f}" cy="9" r="4.2"/>').format(band, x)
    return drawing(marks, PAIR_WIDTH, 18.0, "bar pair", said)


def scatter(rows: list[dict[str, Any]]) -> Markup:
    """AP up, share of positives in training across (logarithmic), coloured by head, medium and tail."""
    shares = [row["share"] for row in rows if row["share"] > 0]
    if not shares:
        return Markup()
    low, high = np.floor(np.log10(min(shares)) * 2) / 2, np.ceil(np.log10(max(shares)) * 2) / 2
    plot = Plot(x=(float(low), float(max(high, low + 0.5))), height=230.0, top=18.0)
    marks = plot.axes([], [0, 0.25, 0.5, 0.75, 1], "share of training images, logarithmic", "average precision")
    for share in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5):
        if low <= np.log10(share) <= plot.x[1]:
            marks += tick_below(plot, float(np.log10(share)), f"{100 * share:g} %")
    if len(shares) > 1:
        at = np.linspace(*plot.x, 2)
        slope = [min(max(0.0, share), 1.0) for share in 10**at]
        marks += plot.line(at, slope, "chance")
    for row in rows:
        if row["share"] > 0:
            said = f"{row['name']}: AP {row['AP']:.3f}, {100 * row['share']:.1f} % of training images"
            marks += plot.dot(float(np.log10(row["share"])), row["AP"], row["group"], said, 4.4)
    return plot.draw(marks, "scatter", "average precision of each class against its frequency in training")


def tick_below(plot: Plot, at: float, words: str) -> Markup:
    """A tick with words of its own."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
        plot.across(at), plot.height - plot.bottom + 13, words
    )


def curves(run: Run) -> dict[str, Any]:
    """Small precision-recall and ROC curves of every judged class, fusion's and its best baseline's."""
    try:
        scored = run.scored
    except InputError as error:
        return {"missing": f"The curves need the predictions: {error}."}
    names = run.manifest.classes
    methods = [name for name in (run.best_baseline, "fusion") if name in scored.methods]
    of_run = run.units["groups"]["methods"]["fusion"]["per_class"]
    panels = []
    for c, name in enumerate(names):
        known, positive = hard_labels(scored.labels[:, c])
        if not positive.any() or name not in of_run:
            continue
        share = positive.sum() / known.sum()
        pr, roc = small_axes(), small_axes() + SMALL.line([0, 1], [0, 1], "chance")
        pr += SMALL.line([0, 1], [share, share], "chance")
        for method in methods:
            values, css = scored.methods[method][:, c], "fusion" if method == "fusion" else "baseline"
            pr += SMALL.line(*thinned(*precision_recall_curve(values, scored.labels[:, c])), css)
            roc += SMALL.line(*thinned(*roc_curve(values, scored.labels[:, c])), css)
        panels.append(
            {
                "name": name,
                "band": of_run[name]["group"],
                "AP": of_run[name]["AP"],
                "AUROC": of_run[name]["AUROC"],
                "positives": int(positive.sum()),
                "known": int(known.sum()),
                "pr": SMALL.draw(pr, "small", f"precision against recall of {name}"),
                "roc": SMALL.draw(roc, "small", f"sensitivity against 1 - specificity of {name}"),
            }
        )
    baseline = methods[0] if len(methods) > 1 else None
    return {"missing": None, "panels": panels, "baseline": baseline}


def small_axes() -> Markup:
    """Axes of a small panel from 0 to 1."""
    return SMALL.axes([0, 1], [0, 0.5, 1])


def reliability(run: Run) -> dict[str, Any]:
    """Reliability of raw and, where there is a calibration, calibrated probabilities of the judged groups."""
    try:
        scored = run.scored
    except InputError as error:
        return {"missing": f"The diagram needs the predictions: {error}."}
    judged = hard_labels(scored.labels)[1].any(axis=0)
    sets = {"raw": scored.methods["fusion"]}
    calibrated = calibrated_groups(run, scored.ids)
    if calibrated is not None:
        sets["calibrated"] = calibrated
    labels = scored.labels[:, judged]
    rows = {
        name: {
            "ECE": mean_defined(calibration_error(values[:, judged], labels)),
            "picture": diagram(values[:, judged], labels, name),
        }
        for name, values in sets.items()
    }
    report = run.folder / "calibration_report.json"
    method = read_json(report, "run scripts/calibrate.py again").get("method") if report.is_file() else None
    return {
        "missing": None,
        "sets": rows,
        "classes": int(judged.sum()),
        "calibrated": calibrated is not None,
        "method": method if calibrated is not None else None,
    }


def calibrated_groups(run: Run, ids: list[str]) -> Float[np.ndarray, "G C"] | None:
    """Calibrated probabilities of the judged groups in their order; None where there are none for all of them."""
    path = run.folder / ("calibrated_test.csv" if run.split == "test" else "calibrated_oof.csv")
    if not path.is_file():
        return None
    try:
        table, values, classes = read_predictions(path)
    except InputError:
        return None
    first = {group_id: row for row, group_id in reversed(list(enumerate(table[f"{run.by}_id"])))}
    if classes != run.manifest.classes or any(group_id not in first for group_id in ids):
        return None
    return values[[first[group_id] for group_id in ids]]


def diagram(probabilities: Float[np.ndarray, "G C"], labels: Float[np.ndarray, "G C"], css: str) -> Markup:
    """Share of positives against mean probability in 15 bins of equal width, all classes pooled; bars: how many."""
    known, positive = hard_labels(labels)
    p, y = probabilities[known].astype(np.float64), positive[known]
    bins = np.minimum((p * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    counts = np.bincount(bins, minlength=CALIBRATION_BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(bins, weights=p, minlength=CALIBRATION_BINS) / counts
        share = np.bincount(bins, weights=y, minlength=CALIBRATION_BINS) / counts
    plot = Plot(height=300.0, top=18.0)
    marks = plot.axes([0, 0.25, 0.5, 0.75, 1], [0, 0.25, 0.5, 0.75, 1], "mean probability", "share of positives")
    tallest = np.log1p(counts.max())
    for k, count in enumerate(counts.tolist()):
        if count:
            marks += plot.bar(k / CALIBRATION_BINS, 1 / CALIBRATION_BINS, 0.18 * np.log1p(count) / tallest, "count")
    marks += plot.line([0, 1], [0, 1], "chance") + plot.line(mean, share, css)
    for k in np.flatnonzero(counts):
        said = f"{counts[k]} of {counts.sum()}: mean probability {mean[k]:.3f}, positive {share[k]:.3f}"
        marks += plot.dot(float(mean[k]), float(share[k]), css, said)
    return plot.draw(marks, "reliability", f"reliability of {css} probabilities")


def together(run: Run) -> dict[str, Any]:
    """Of the images positive in the row's class, the share positive in the column's too; all splits."""
    positive = hard_labels(run.manifest.labels)[1].astype(np.int64)
    counts, names = positive.T @ positive, run.manifest.classes
    kept = [c for c in np.argsort(-np.diagonal(counts), kind="stable").tolist() if counts[c, c]]
    rows = [
        {
            "name": names[a],
            "cells": [
                {
                    "share": counts[a, b] / counts[a, a],
                    "count": int(counts[a, b]),
                    "self": a == b,
                }
                for b in kept
            ],
        }
        for a in kept
    ]
    return {"heads": [names[c] for c in kept], "rows": rows}
