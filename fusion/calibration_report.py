"""What calibration changes: ECE, Brier score, log loss (NLL), mAP, F1 of each method, paired intervals, text.

Axes: **G** groups, **C** classes.
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from data.bootstrap import patient_bootstrap
from data.bootstrap_metrics import metric_bootstrap
from data.calibration import Method
from data.metrics import POSITIVE_ABOVE
from data.spans import interval, span
from data.thresholds import Thresholds
from fusion.saved import Saved

PROPER = ("ECE", "Brier", "NLL")


def compare(
    saved: Saved,
    candidates: dict[Method, Float[np.ndarray, "G C"]],
    chosen: Thresholds | None,
    method: Method,
    replicates: int,
) -> dict[str, Any]:
    """ECE, Brier score, log loss, mAP of every method, and the change from no calibration; means over classes with a
    positive.

    Args:
        chosen: Thresholds of `method`, for the change of F1 from calling above 0.5; None where they were chosen on
            these rows.
    """
    labels, patients = saved.groups.labels, saved.groups.patient_ids
    scores: dict[str, np.ndarray] = {**candidates}
    results = metric_bootstrap(scores, labels, patients, metrics=PROPER, replicates=replicates)
    results["mAP"] = patient_bootstrap(scores, labels, patients, replicates=replicates)
    report: dict[str, Any] = {"groups": len(labels), "classes": int((labels > 0.5).any(axis=0).sum()), "methods": {}}
    for name in candidates:
        own = {key: interval(result.interval(name)) for key, result in results.items()}
        if name != "none":
            own |= {f"{key} change": interval(result.difference(name, "none")) for key, result in results.items()}
        report["methods"][name] = own
    if chosen is not None:
        report["F1"] = f1_change(saved, candidates["none"], candidates[method], chosen, replicates)
    return report


def f1_change(
    saved: Saved,
    plain: Float[np.ndarray, "G C"],
    calibrated: Float[np.ndarray, "G C"],
    chosen: Thresholds,
    replicates: int,
) -> dict[str, Any]:
    """F1 of uncalibrated probabilities above 0.5, of calibrated ones above their thresholds, and the change."""
    result = metric_bootstrap(
        {"plain": plain, "calibrated": calibrated},
        saved.groups.labels,
        saved.groups.patient_ids,
        metrics=("F1_chosen",),
        thresholds={"plain": np.full(len(chosen.classes), POSITIVE_ABOVE), "calibrated": chosen.values},
        replicates=replicates,
    )["F1_chosen"]
    return {
        "above 0.5, not calibrated": interval(result.interval("plain")),
        "above thresholds": interval(result.interval("calibrated")),
        "change": interval(result.difference("calibrated", "plain")),
    }


def table_lines(report: dict[str, Any], part: str, method: str, crossed: bool) -> list[str]:
    """The comparison as text."""
    how = "each calibrated without its own fifth of the patients" if crossed else "calibrated by the held-out ones"
    last = "" if crossed else "mAP change"
    lines = [
        f"{part}: {report['groups']} groups, {how}; means over {report['classes']} classes [95 % interval by patient]",
        f"  {'':<13}{'ECE':<25}{'change':<29}{'Brier score':<25}{'change':<29}{last}".rstrip(),
    ]
    for name, own in report["methods"].items():
        mark = "*" if name == method else " "
        cells = [f"{span(own[key], digits=4):<25}{change(own, key):<29}" for key in ("ECE", "Brier")] + [
            change(own, "mAP")
        ]
        if crossed:
            cells.pop()  # curves of five fits, put together: not the ranking of one calibration
        lines.append(f"{mark} {name:<13}{''.join(cells)}".rstrip())
    if "F1" in report:
        values = [span(report["F1"][key], sign) for key, sign in zip(report["F1"], ("", "", "+"), strict=True)]
        lines.append(f"  F1 above 0.5 {values[0]}, calibrated and above thresholds {values[1]}, change {values[2]}")
    return lines


def change(own: dict[str, Any], key: str) -> str:
    """The change from no calibration, or nothing in its own row."""
    return span(own[f"{key} change"], "+", 4) if f"{key} change" in own else ""
