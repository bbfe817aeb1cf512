"""Percentile intervals and paired differences of resampled metrics: what `data.bootstrap` gives back.

Axes: **C** classes, **R** replicates.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from data.metrics import mean_defined


@dataclass(frozen=True)
class Interval:
    """A percentile interval around the value computed from all rows; NaN where nothing could be computed."""

    estimate: float
    low: float
    high: float
    replicates: int
    """Replicates in which the value was defined; the percentiles are theirs."""

    @property
    def includes_zero(self) -> bool:
        """True also for an undefined interval: nothing was shown to differ from 0."""
        return not (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Difference(Interval):
    """First method minus second, on the same replicates."""

    share_above_zero: float
    """Share of the replicates in which the first method is strictly better."""


@dataclass(frozen=True)
class BootstrapResult:
    """One metric of every method, class and replicate; means over any classes come from here without a re-run.

    The metric is average precision, or one of `data.bootstrap_metrics`. A class without positives in a replicate is NaN
    there for every method alike: the draw decides it, not the scores.
    """

    confidence: float
    class_values: dict[str, Float[np.ndarray, "C"]]
    """Per method: the metric on all rows, NaN for an absent class."""
    replicate_values: dict[str, Float[np.ndarray, "R C"]]
    dropped: Int[np.ndarray, "C"]
    """Per class: replicates without a positive, in which the class was left out of the mean."""
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def intervals(self) -> dict[str, Interval]:
        """Macro mean (mAP) over all classes, per method."""
        return {method: self.interval(method) for method in self.class_values}

    @property
    def differences(self) -> dict[tuple[str, str], Difference]:
        """Macro mean of the first minus that of the second, for the pairs asked for."""
        return {pair: self.difference(*pair) for pair in self.pairs}

    def class_intervals(self, method: str) -> list[Interval]:
        """The interval of each class, in the order of the columns."""
        return [self.interval(method, [c]) for c in range(len(self.dropped))]

    def interval(self, method: str, classes: Sequence[int] | None = None) -> Interval:
        """Macro mean over the columns `classes` (None: all), such as the tail."""
        return percentiles(self.estimate(method, classes), self.macro(method, classes), self.confidence)

    def difference(self, first: str, second: str, classes: Sequence[int] | None = None) -> Difference:
        """Macro mean of `first` minus that of `second` over the columns `classes` (None: all)."""
        changes = self.macro(first, classes) - self.macro(second, classes)
        estimate = self.estimate(first, classes) - self.estimate(second, classes)
        interval = percentiles(estimate, changes, self.confidence)
        defined = changes[~np.isnan(changes)]
        share = float((defined > 0).mean()) if defined.size else float("nan")
        return Difference(**vars(interval), share_above_zero=share)

    def estimate(self, method: str, classes: Sequence[int] | None = None) -> float:
        """Macro mean on all rows over the columns `classes` (None: all), absent ones left out."""
        return mean_defined(self.class_values[method][_columns(classes)])

    def macro(self, method: str, classes: Sequence[int] | None = None) -> Float[np.ndarray, "R"]:
        """Macro mean of each replicate over the columns `classes` (None: all); NaN where none has a positive."""
        ap = self.replicate_values[method][:, _columns(classes)]
        present = ~np.isnan(ap)
        count = present.sum(axis=1)
        total = np.where(present, ap, 0.0).sum(axis=1)
        return np.divide(total, count, out=np.full(len(ap), np.nan), where=count > 0)


def ratio_interval(
    result: BootstrapResult, numerator: tuple[str, str], denominator: tuple[str, str]
) -> Interval | None:
    """Interval of (a - b) / (c - b), such as the share of a gap closed: a the fusion, b the baseline, c the ceiling.

    Returns:
        None where the interval of the denominator includes 0: such a ratio has no bounded interval (Fieller 1954).
    """
    below = result.difference(*denominator)
    if below.includes_zero:
        return None
    top = result.macro(numerator[0]) - result.macro(numerator[1])
    bottom = result.macro(denominator[0]) - result.macro(denominator[1])
    ratios = np.divide(top, bottom, out=np.full(len(top), np.nan), where=bottom != 0)
    return percentiles(result.difference(*numerator).estimate / below.estimate, ratios, result.confidence)


def percentiles(estimate: float, values: Float[np.ndarray, "R"], confidence: float) -> Interval:
    """The interval of a value's replicates; NaN ones are left out and not counted."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return Interval(estimate, float("nan"), float("nan"), 0)
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate, float(low), float(high), len(defined))


def _columns(classes: Sequence[int] | None) -> slice | list[int]:
    return slice(None) if classes is None else list(classes)
