"""How much there was to gain: ceilings that only a phantom, whose truth is known, can tell.

P, perception: the probability of the label given what is truly visible in the views present. F, fusion: per class, the
best on validation of mean, max, min, or a logistic combination of the single-image logits of the views that can show
the class. G groups, V views, C classes, N images.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float

from data.errors import InputError
from data.metrics import average_precision
from data.tables import read_table
from data.views import VIEWS
from fusion.grouping import GroupSet

KINDS = {"PA": "frontal", "AP": "frontal", "LATERAL": "lateral", "OTHER": "other", "UNKNOWN": "other"}
KIND_OF = np.array([KINDS[view] for view in VIEWS])
RULES = ("mean", "max", "min", "logistic")


def perception_ceiling(truth_dir: Path, groups: GroupSet, classes: tuple[str, ...]) -> Float[np.ndarray, "G C"]:
    """P: read from ``ceiling.csv``; groups are studies.

    Raises:
        InputError: a study or class is not in the table.
    """
    table = read_table(truth_dir / "ceiling.csv", required=("study_id", *classes)).set_index("study_id")
    missing = [study for study in groups.ids if study not in table.index]
    if missing:
        raise InputError(
            f"{truth_dir / 'ceiling.csv'}: study {missing[0]} is missing; is it the truth of this manifest?"
        )
    return table.loc[groups.ids, list(classes)].to_numpy(dtype=np.float32)


def read_visibility(truth_dir: Path, classes: tuple[str, ...]) -> dict[str, set[str]]:
    """Kinds of view that can show each class; all kinds for a class the phantom does not speak of."""
    table = read_table(truth_dir / "visibility.csv", required=("class", "frontal", "lateral")).set_index("class")
    kinds = {name: {kind for kind in ("frontal", "lateral") if table.at[name, kind] == "1"} for name in table.index}
    return {name: (kinds.get(name) or {"frontal", "lateral"}) | {"other"} for name in classes}


def fusion_ceiling(
    val: GroupSet,
    val_logits: Float[np.ndarray, "N C"],
    test: GroupSet,
    test_logits: Float[np.ndarray, "M C"],
    visibility: dict[str, set[str]],
) -> tuple[Float[np.ndarray, "G C"], dict[str, str]]:
    """F for the test groups, and the rule chosen per class.

    Args:
        val_logits: Single-image logits of the validation split's images, in manifest order; `test_logits` likewise.
        visibility: Class name, in the order of the columns, to kinds of view.
    """
    scores = np.empty((len(test), test_logits.shape[1]), dtype=np.float32)
    chosen = {}
    for c, (name, kinds) in enumerate(visibility.items()):
        on_val = {rule: combine(rule, val, val_logits[:, c], kinds, None) for rule in RULES[:3]}
        on_test = {rule: combine(rule, test, test_logits[:, c], kinds, None) for rule in RULES[:3]}
        weights = fit_logistic(features(val, val_logits[:, c], kinds), val.labels[:, c])
        on_val["logistic"] = combine("logistic", val, val_logits[:, c], kinds, weights)
        on_test["logistic"] = combine("logistic", test, test_logits[:, c], kinds, weights)
        quality = {rule: average_precision(values, val.labels[:, c]) for rule, values in on_val.items()}
        chosen[name] = max(RULES, key=lambda rule: np.nan_to_num(quality[rule], nan=-1.0))
        scores[:, c] = on_test[chosen[name]]
    return scores, chosen


def combine(
    rule: str, groups: GroupSet, logits: Float[np.ndarray, "N"], kinds: set[str], weights: np.ndarray | None
) -> Float[np.ndarray, "G"]:
    """One score per group from the logits of the views that can show the class; of all views if none can."""
    if rule == "logistic":
        return (features(groups, logits, kinds) @ weights).astype(np.float32)
    reduce = {"mean": np.mean, "max": np.max, "min": np.min}[rule]
    scores = []
    for rows, types in zip(groups.rows, groups.view_types, strict=True):
        able = np.isin(KIND_OF[types], list(kinds))
        scores.append(reduce(logits[rows[able] if able.any() else rows]))
    return np.array(scores, dtype=np.float32)


def features(groups: GroupSet, logits: Float[np.ndarray, "N"], kinds: set[str]) -> Float[np.ndarray, "G f"]:
    """Per kind of view that can show the class: mean logit (0 if the group has none) and presence; and a constant."""
    columns = [np.ones(len(groups))]
    for kind in sorted(kinds):
        of_kind = [rows[KIND_OF[types] == kind] for rows, types in zip(groups.rows, groups.view_types, strict=True)]
        columns.append(np.array([logits[rows].mean() if len(rows) else 0.0 for rows in of_kind]))
        columns.append(np.array([float(len(rows) > 0) for rows in of_kind]))
    return np.stack(columns, axis=1)


def fit_logistic(x: Float[np.ndarray, "G f"], y: Float[np.ndarray, "G"], ridge: float = 1.0) -> Float[np.ndarray, "f"]:
    """Logistic regression by Newton steps with a ridge on everything but the constant; unknown labels left out."""
    known = ~np.isnan(y)
    x, y = x[known], (y[known] > 0.5).astype(float)
    penalty = ridge * np.diag([0.0] + [1.0] * (x.shape[1] - 1)) + 1e-6 * np.eye(x.shape[1])
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + penalty @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + penalty
        weights = weights - np.clip(np.linalg.solve(hessian, gradient), -5, 5)
    return weights
