"""Calibration of each class's logit by temperature, Platt or isotonic regression, and its plain JSON form.

Fitted on predictions of patients that the model was not trained on (validation, or out-of-fold), applied to any. A
class with too few positives or negatives, or whose own curve would turn its ranking around, takes the *shared* curve:
one line through all classes that have a positive, put together. Where it is used is written down, class by class.

Axes: **N** rows (one per group: the images of a group share one prediction, so each would count again), **C** classes.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float

from data.calibration_curves import Line, Steps, fit_isotonic, fit_platt, fit_temperature, read_line, read_steps, rises
from data.errors import InputError
from data.metrics import check_scores, hard_labels
from data.order import derive_seed
from data.splits import split_patients
from data.strict_json import check_keys

Method = Literal["none", "temperature", "platt", "isotonic"]
METHODS: tuple[Method, ...] = get_args(Method)

MIN_POSITIVES = 20
"""Positives (and negatives) a class needs for a curve of its own: ten for each number that Platt's line has."""

NUM_FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """How the logits of every class become probabilities."""

    method: Method
    min_positives: int
    classes: tuple[str, ...]
    own: dict[str, Line | Steps]
    """Curves of the classes that have one."""
    shared: Line
    """Curve of all others."""
    positives: dict[str, int]
    """Of every class, in the rows it was fitted on."""

    def __call__(self, logits: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
        """Calibrated probabilities, float32, for columns in the order of `classes`."""
        check_scores(logits)
        curves = [self.own.get(name, self.shared) for name in self.classes]
        columns = [curve(logits[:, c]) for c, curve in enumerate(curves)]
        return np.stack(columns, axis=1).astype(np.float32)


def fit_calibration(
    logits: Float[np.ndarray, "N C"],
    targets: Float[np.ndarray, "N C"],
    classes: Sequence[str],
    method: Method,
    min_positives: int = MIN_POSITIVES,
) -> Calibration:
    """Fit a curve to the known labels of each class.

    temperature: Guo et al., arXiv 1706.04599, section 4.2, one for each class. platt: Platt 1999, with his smoothed
    targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2), which keep separated classes finite. isotonic: Zadrozny and Elkan
    2002. The shared curve is a temperature for temperature and a Platt line for the two others. none: the sigmoid of
    the logit, for all classes.

    Args:
        targets: In [0, 1], above 0.5 positive, NaN unknown.
        min_positives: And negatives, below which a class takes the shared curve.

    Raises:
        InputError: No class has a positive and a negative, or the logits do not rise with the labels.
    """
    check_scores(logits)
    known, positive = hard_labels(targets)
    seen = positive.any(axis=0) & (known & ~positive).any(axis=0)
    if not seen.any():
        raise InputError("calibration needs a class with known positives and known negatives, found none")
    counts = dict(zip(classes, positive.sum(axis=0).tolist(), strict=True))
    if method == "none":
        return Calibration(method, min_positives, tuple(classes), {}, Line(1.0, 0.0), counts)
    line = fit_temperature if method == "temperature" else fit_platt
    pooled = known & seen  # columns without a positive would pull the shared curve to 0
    shared = line(logits[pooled], positive[pooled])
    if not shared.slope > 0:
        raise InputError("calibration: the predictions do not rise with the labels; are they of the same images?")
    fit = fit_isotonic if method == "isotonic" else line
    own: dict[str, Line | Steps] = {}
    for c, name in enumerate(classes):
        rows = known[:, c]
        num_positives = int(positive[rows, c].sum())
        if min(num_positives, rows.sum() - num_positives) < max(1, min_positives):
            continue
        curve = fit(logits[rows, c], positive[rows, c])
        if rises(curve):
            own[name] = curve
    return Calibration(method, min_positives, tuple(classes), own, shared, counts)


def cross_fitted(
    logits: Float[np.ndarray, "N C"],
    targets: Float[np.ndarray, "N C"],
    patient_ids: Sequence[str],
    classes: Sequence[str],
    method: Method,
    min_positives: int = MIN_POSITIVES,
    seed: int = 0,
) -> Float[np.ndarray, "N C"]:
    """Calibrated probabilities of each row by a calibration fitted on the patients of the four other fifths.

    What a calibration does to the rows it was fitted on says little; this estimates what it does to others.
    """
    out = np.empty(logits.shape, dtype=np.float32)
    for held_out in patient_folds(patient_ids, targets, seed):
        fitted = fit_calibration(logits[~held_out], targets[~held_out], classes, method, min_positives)
        out[held_out] = fitted(logits[held_out])
    return out


def patient_folds(
    patient_ids: Sequence[str], targets: Float[np.ndarray, "N C"], seed: int = 0
) -> list[Bool[np.ndarray, "N"]]:
    """Masks (N,) of five parts by patient, fewer where there are fewer patients, rare classes balanced first."""
    count = min(NUM_FOLDS, len(set(patient_ids)))
    if count < 2:
        raise InputError(f"fitting on some patients and looking at others needs at least 2 of them, found {count}")
    order = derive_seed("held-out fifths", seed)
    part = split_patients(list(patient_ids), targets.astype(np.float32), {str(k): 1.0 for k in range(count)}, order)
    return [part == str(k) for k in range(count)]


def to_json(calibration: Calibration) -> dict[str, Any]:
    """Plain dictionaries for `calibration.json`."""
    return {
        "method": calibration.method,
        "min_positives": calibration.min_positives,
        "shared": asdict(calibration.shared),
        "classes": {
            name: {"positives": calibration.positives[name], "curve": "own" if name in calibration.own else "shared"}
            | (asdict(calibration.own[name]) if name in calibration.own else {})
            for name in calibration.classes
        },
    }


def from_json(record: Any, where: str) -> Calibration:
    """Read what `to_json` made, strictly.

    Args:
        where: The file, for messages.

    Raises:
        InputError: Another key, type or range, named.
    """
    wanted = {"method": str, "min_positives": int, "shared": dict, "classes": dict}
    check_keys(record, wanted, where)
    if record["method"] not in METHODS:
        raise InputError(f"{where}: method must be one of {', '.join(METHODS)}, found {record['method']!r}")
    shared = read_line(record["shared"], f"{where}: shared")
    own: dict[str, Line | Steps] = {}
    for name, entry in record["classes"].items():
        place = f"{where}: {name}"
        kind = entry.get("curve") if isinstance(entry, dict) else None
        if kind not in (("shared",) if record["method"] == "none" else ("own", "shared")):
            raise InputError(f"{place}: curve must be own or shared (none: shared), found {kind!r}; fit it again")
        curve = {key: value for key, value in entry.items() if key not in ("positives", "curve")}
        check_keys({key: entry.get(key) for key in ("positives",)}, {"positives": int}, place)
        if kind == "shared":
            check_keys(curve, {}, place)
        else:
            own[name] = read_steps(curve, place) if record["method"] == "isotonic" else read_line(curve, place)
    positives = {name: entry["positives"] for name, entry in record["classes"].items()}
    return Calibration(record["method"], record["min_positives"], tuple(record["classes"]), own, shared, positives)
