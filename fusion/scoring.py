"""Scores of all methods on identical rows, with paired intervals, and the table that people read.

G groups, N images, C classes.
"""

import io
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data.bootstrap import patient_bootstrap
from data.errors import InputError
from data.files import atomic_write
from data.intervals import BootstrapResult, ratio_interval
from data.manifest import Manifest
from data.metrics import mean_defined, per_class
from data.spans import interval, number, span
from data.summary import groups_of, summary
from fusion.baselines import to_image_rows
from fusion.config import FusionConfig
from fusion.grouping import GroupSet

Scores = dict[str, np.ndarray]
"""Per method, probabilities of groups (or images) by classes; for the ceiling F, any ranking."""


def group_map(probabilities: Float[np.ndarray, "G C"], groups: GroupSet) -> float:
    """Macro mAP over groups."""
    return mean_defined(per_class(probabilities, groups.labels).ap)


def keep_scores(path: Path, groups: GroupSet, scores: Scores, single: Float[np.ndarray, "N C"]) -> None:
    """Write ``scores_test.npz``: what every method of the table says, for whoever compares them further.

    Arrays: "groups/<method>" (G, C); "images/single" (N, C), each image's own prediction, group by group; "labels" (G,
    C), NaN where unknown; "group_id", "patient_id", "num_views" (G).

    Args:
        single: In manifest order.
    """
    arrays: dict[str, np.ndarray] = {f"groups/{name}": values for name, values in scores.items()}
    arrays |= {"images/single": single[np.concatenate(groups.rows)], "labels": groups.labels}
    arrays |= {"group_id": np.array(groups.ids, str), "patient_id": np.array(groups.patient_ids, str)}
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays, num_views=groups.num_views)
    atomic_write(path, content.getvalue())


def load_scores(path: Path) -> dict[str, np.ndarray]:
    """The arrays that `keep_scores` wrote.

    Raises:
        InputError: The file is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        raise InputError(f"{path}: missing or damaged; run train_fusion.py again") from None


def score(
    config: FusionConfig,
    manifest: Manifest,
    groups: GroupSet,
    scores: Scores,
    single: Float[np.ndarray, "N C"],
    best: str,
) -> dict[str, Any]:
    """Everything that ``metrics.json`` says of the test split, in both units.

    Args:
        single: Each image's own prediction, the baseline "single" on image rows.
        best: Baseline that was best on validation.
    """
    on_rows = {name: to_image_rows(values, groups) for name, values in scores.items()} | {"single": single}
    patients = {"groups": groups.patient_ids, "images": np.repeat(groups.patient_ids, groups.num_views).tolist()}
    row_order = np.argsort(np.concatenate(groups.rows))
    patients["images"] = [patients["images"][place] for place in row_order]
    labels = {"groups": groups.labels, "images": to_image_rows(groups.labels, groups)}
    report: dict[str, Any] = {}
    for unit, values in (("images", on_rows), ("groups", scores)):
        pairs = [("fusion", name) for name in values if name != "fusion"]
        pairs += [("ceiling F", best), ("ceiling P", "ceiling F")] if "ceiling F" in values else []
        result = patient_bootstrap(
            values, labels[unit], patients[unit], replicates=config.bootstrap_replicates, seed=config.seed, pairs=pairs
        )
        report[unit] = unit_report(manifest, values, labels[unit], result, best)
    return report


def unit_report(
    manifest: Manifest, values: Scores, labels: Float[np.ndarray, "G C"], result: BootstrapResult, best: str
) -> dict[str, Any]:
    """One unit: plain numbers, intervals, paired differences, gap closed."""
    bands = groups_of(manifest.of_split("train"))
    plain = {}
    for name, scores in values.items():
        probabilities = scores if scores.min() >= 0 and scores.max() <= 1 else rank_share(scores)
        plain[name] = summary(probabilities, labels, manifest.classes, bands)
    report: dict[str, Any] = {
        "rows": len(labels),
        "methods": {name: plain[name] | {"interval": interval(result.intervals[name])} for name in values},
        "differences": {f"{a} - {b}": interval(d) for (a, b), d in result.differences.items()},
        "dropped_in_replicates": {
            c: int(n)
            for c, n in zip(manifest.classes, result.dropped, strict=True)
            if 0 < n < result.intervals["fusion"].replicates
        },
    }
    if "ceiling F" in values:
        gap = ratio_interval(result, ("fusion", best), ("ceiling F", best))
        report["gap_closed"] = interval(gap) if gap is not None else None
    return report


def rank_share(scores: Float[np.ndarray, "G C"]) -> Float[np.ndarray, "G C"]:
    """Scores of any range as ranks in [0, 1], for metrics that only look at the order."""
    low, high = scores.min(axis=0), scores.max(axis=0)
    return ((scores - low) / np.maximum(high - low, 1e-12)).astype(np.float32)


def table_lines(report: dict[str, Any], config: FusionConfig) -> list[str]:
    """The comparison as text, one table per unit."""
    by = config.grouping.by
    absent = report["images"]["methods"]["fusion"]["absent"]
    lines = [
        f"Test split, groups are {'studies' if by == 'study' else 'patients'}; mAP [95 % interval by patient"
        f" bootstrap], baselines from the {report['baseline_head']}."
    ]
    if "frozen" in report["groups"]["methods"]:
        lines.append("fusion: after the joint phase, from images; frozen: before it, from cached maps.")
    if absent:
        lines.append(f"Without a positive and left out of every mean: {', '.join(absent)}.")
    for unit, title in (("images", "image rows, as the challenge scores"), ("groups", f"groups ({by})")):
        lines += ["", *unit_lines(report, unit, title)]
    return lines


def unit_lines(report: dict[str, Any], unit: str, title: str) -> list[str]:
    """One unit's table."""
    part = report[unit]
    lines = [
        f"{title}: {part['rows']} rows",
        f"{'method':<12}{'mAP':>22}{'head':>8}{'medium':>8}{'tail':>8}{'AUROC':>8}   {'fusion minus it':<24}",
    ]
    for name, values in part["methods"].items():
        difference = part["differences"].get(f"fusion - {name}")
        bands = "".join(f"{number(values[key]):>8}" for key in ("mAP_head", "mAP_medium", "mAP_tail", "mAUROC"))
        lines.append(
            f"{name:<12}{span(values['interval']):>22}{bands}   {span(difference, '+') if difference else ''}".rstrip()
        )
    best = report["best_baseline_on_validation"]
    if "gap_closed" in part:
        gap = part["gap_closed"]
        room = span(part["differences"][f"ceiling F - {best}"], "+")
        said = span(gap, digits=2) if gap else "not given, the interval of that room includes 0"
        lines.append(f"best baseline on validation: {best}; room F - {best}: {room}; gap closed by fusion: {said}")
        lines.append(f"perception loss P - F: {span(part['differences']['ceiling P - ceiling F'], '+')}")
    return lines
