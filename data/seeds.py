"""Comparing methods over several seeds: the mean over seeds, with the interval that the test patients give it.

Axes: **S** seeds, **R** replicates, **C** classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from data.intervals import BootstrapResult


def mean_over_seeds(result: BootstrapResult, runs: Mapping[str, Sequence[str]]) -> BootstrapResult:
    """One method per key of `runs`: the mean of the average precisions of its seeds, class by class.

    Every seed was scored on the same draws of patients, so differences of such means stay paired. Their intervals say
    how the test patients matter; how the seeds do is said by `seed_differences`.

    Args:
        result: Bootstrap over all runs.
        runs: Method to the names of its S runs in `result`.
    """
    return replace(
        result,
        class_values={
            method: np.mean([result.class_values[name] for name in names], axis=0) for method, names in runs.items()
        },
        replicate_values={
            method: np.mean([result.replicate_values[name] for name in names], axis=0) for method, names in runs.items()
        },
        pairs=(),
    )


def seed_differences(result: BootstrapResult, first: Sequence[str], second: Sequence[str]) -> list[float]:
    """Macro mAP of the runs `first` minus that of the runs `second`, seed by seed."""
    return [result.estimate(a) - result.estimate(b) for a, b in zip(first, second, strict=True)]
