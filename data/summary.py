"""All numbers of one evaluation that need no resampling, as `metrics.json` has them.

Axes: **N** rows (images or groups), **C** classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from data.errors import InputError
from data.label_spaces import class_groups
from data.manifest import Manifest
from data.metrics import calibration_error, mean_defined, per_class
from data.operating_points import f1_at
from data.spans import or_none


def groups_of(train_set: Manifest) -> dict[str, str]:
    """Head, medium or tail of each class, by the images that a model learns from."""
    positives = (train_set.labels > 0.5).sum(axis=0).tolist()
    return class_groups(dict(zip(train_set.classes, positives, strict=True)), len(train_set))


def summary(
    probabilities: Float[np.ndarray, "N C"],
    targets: Float[np.ndarray, "N C"],
    classes: Sequence[str],
    groups: dict[str, str],
) -> dict[str, Any]:
    """All numbers of one evaluation, ready for JSON: an undefined one is None, never 0 or 1 or NaN.

    Each mean is over the classes that have a positive, so that all of them speak of the same classes (`mAUROC`
    needs a negative too). `absent` lists the others.

    Args:
        groups: "head", "medium" or "tail" for every class.

    Raises:
        InputError: A class without a group, probabilities outside [0, 1], or as in `average_precision`.
    """
    assert len(classes) == targets.shape[1], "one name per column"
    for name in classes:
        if name not in groups:
            raise InputError(f"class {name!r} has no frequency group; wanted head, medium or tail")
    scores = per_class(probabilities, targets)
    f1, ece = f1_at(probabilities, targets), calibration_error(probabilities, targets)
    present = scores.positives > 0
    group_of = np.array([groups[name] for name in classes])
    means = {"mAP": mean_defined(scores.ap), "mAUROC": mean_defined(scores.auroc)}
    means |= {f"mAP_{group}": mean_defined(scores.ap[group_of == group]) for group in ("head", "medium", "tail")}
    means |= {"F1": mean_defined(f1), "ECE": mean_defined(ece[present])}
    return {
        "rows": len(targets),
        **{key: or_none(value) for key, value in means.items()},
        "absent": [name for name, seen in zip(classes, present, strict=True) if not seen],
        "per_class": {
            name: {
                "group": groups[name],
                "AP": or_none(scores.ap[c]),
                "AUROC": or_none(scores.auroc[c]),
                "F1": or_none(f1[c]),
                "ECE": or_none(ece[c]),
                "positives": int(scores.positives[c]),
                "known": int(scores.known[c]),
            }
            for c, name in enumerate(classes)
        },
    }
