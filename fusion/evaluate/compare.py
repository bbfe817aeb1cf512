"""Two prediction tables on the same images: paired differences, and where they come from.

A first, B second; every difference is A minus B. N rows, C classes.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from data.manifest import Manifest, read_manifest
from data.metrics import hard_labels
from data.rank_correlation import rank_correlations
from data.spans import interval, or_none
from fusion.evaluate.moved import moved_most
from fusion.evaluate.pairs import Side, in_common, same_labels, short_names
from fusion.evaluate.parts import Judged, parts_report
from fusion.evaluate.report import UNITS, choose_thresholds, class_bands, thresholds_from
from fusion.evaluate.rows import Rows, Template, read_evaluated
from fusion.evaluate.scores import Scored, Settings, bootstrap_scores
from fusion.evaluate.source import Source, load_source_fitted
from fusion.evaluate.strata import About
from fusion.result_folder import GroupBy


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `comparison.json` holds, and the arrays that only the page draws."""

    report: dict[str, Any]
    replicates: Float[np.ndarray, "R"]
    """mAP difference of each replicate, image rows."""


def compare(
    sources: tuple[Source, Source],
    about: About | None,
    only: Template | None,
    specificity: float,
    replicates: int,
) -> Comparison:
    """Score both on their common images and classes.

    Raises:
        InputError: Nothing in common, labels that differ between the two manifests, or as `read_evaluated`.
    """
    manifests = [read_manifest(source.manifest) for source in sources]
    same_labels(manifests, sources)
    names = short_names(*(source.path for source in sources))
    first, second = (
        _side(name, source, manifest, sources[0].by, about, only)
        for name, source, manifest in zip(names, sources, manifests, strict=True)
    )
    left_out = {side.name: len(side.evaluated.images) for side in (first, second)}
    first, second = in_common(first, second)
    bands = class_bands(manifests[0])
    settings = Settings(classes=first.evaluated.classes, bands=bands, specificity=specificity, replicates=replicates)
    scored = {unit: _score(first, second, unit, settings) for unit in UNITS}
    report: dict[str, Any] = {
        "first": first.name,
        "second": second.name,
        "splits": list(first.evaluated.splits),
        "group_by": sources[0].by,
        "fused_by": {name: source.by for name, source in zip(names, sources, strict=True)},
        "classes": list(first.evaluated.classes),
        "images_not_compared": {name: count - len(first.evaluated.images) for name, count in left_out.items()},
        "thresholds_from": {side.name: thresholds_from(side.evaluated, side.thresholds) for side in (first, second)},
        "calibrated": {side.name: side.evaluated.images.calibrated is not None for side in (first, second)},
        "specificity": specificity,
        "replicates": replicates,
    }
    for unit in UNITS:
        report[unit] = _unit(first, second, unit, scored[unit], settings)
    report["moved"] = moved_most(first.evaluated.groups, second.evaluated.groups, settings.classes)
    results = scored["images"].results["AP"]
    return Comparison(report, results.macro("first") - results.macro("second"))


def _side(
    name: str, source: Source, manifest: Manifest, by: GroupBy, about: About | None, only: Template | None
) -> Side:
    evaluated = read_evaluated(source.predictions, manifest, by, about, only, load_source_fitted(source))
    return Side(name, evaluated, choose_thresholds(replace(source, by=by), manifest, evaluated))


def _score(first: Side, second: Side, unit: str, settings: Settings) -> Scored:
    sides = {"first": first, "second": second}
    thresholds = {name: side.thresholds[unit] for name, side in sides.items() if side.thresholds}
    calibrated = {
        name: values for name, side in sides.items() if (values := getattr(side.evaluated, unit).calibrated) is not None
    }
    rows = getattr(first.evaluated, unit)
    return bootstrap_scores(_methods(first, second, unit), calibrated, rows, thresholds, settings)


def _methods(first: Side, second: Side, unit: str) -> dict[str, Float32[np.ndarray, "N C"]]:
    return {
        "first": getattr(first.evaluated, unit).probabilities,
        "second": getattr(second.evaluated, unit).probabilities,
    }


def _unit(first: Side, second: Side, unit: str, scored: Scored, settings: Settings) -> dict[str, Any]:
    """One unit: headline numbers, classes and parts, each with both sides and their difference."""
    rows: Rows = getattr(first.evaluated, unit)
    methods = _methods(first, second, unit)
    judged = {
        name: Judged(
            methods[name], getattr(side.evaluated, unit).calibrated, side.thresholds[unit] if side.thresholds else None
        )
        for name, side in (("first", first), ("second", second))
    }
    return {
        "rows": len(rows),
        "patients": len(set(rows.patient_ids)),
        "headline": {
            key: {name: interval(scored.interval(key, name)) for name in methods}
            | {"difference": interval(scored.difference(key, "first", "second"))}
            for key in scored.columns
        },
        "per_class": {
            name: _class(c, methods, rows, scored) | {"group": settings.bands[name]}
            for c, name in enumerate(settings.classes)
        },
        "parts": parts_report(judged, rows, settings),
    }


def _class(column: int, methods: dict[str, Float32[np.ndarray, "N C"]], rows: Rows, scored: Scored) -> dict[str, Any]:
    known, positive = hard_labels(rows.targets[:, column])
    correlation = rank_correlations(*(values[:, [column]] for values in methods.values()))[0, 0]
    return {
        "positives": int(positive.sum()),
        "known": int(known.sum()),
        "rank_correlation": or_none(correlation),
        "AP": {name: interval(scored.results["AP"].interval(name, [column])) for name in methods},
        "AP_difference": interval(scored.results["AP"].difference("first", "second", [column])),
        "AUROC_difference": interval(scored.results["AUROC"].difference("first", "second", [column])),
    }
