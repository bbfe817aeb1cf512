"""Curves from a logit to a probability: a line inside a sigmoid, or steps; how they are fitted, and read from JSON.

**N** rows, **K** knots.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float64
from scipy.optimize import brentq, isotonic_regression, minimize
from scipy.special import expit

from data.errors import InputError
from data.strict_json import check_keys

STEEPEST = 50.0
"""Bound on a temperature's slope and its inverse: perfectly separated classes have no finite best one."""


@dataclass(frozen=True)
class Line:
    """Probability sigmoid(slope * logit + bias); a temperature T is slope 1 / T without bias."""

    slope: float
    bias: float

    def __call__(self, logits: Float[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
        """Probabilities in [0, 1]."""
        return expit(self.slope * logits.astype(np.float64) + self.bias)


@dataclass(frozen=True)
class Steps:
    """Linear between knots and constant outside, as scikit-learn's `IsotonicRegression(out_of_bounds="clip")`."""

    knots: tuple[float, ...]
    """Logits, strictly ascending."""
    probabilities: tuple[float, ...]
    """At the knots, never falling."""

    def __call__(self, logits: Float[np.ndarray, "N"]) -> Float64[np.ndarray, "N"]:
        """Probabilities in [0, 1], exact zeros and ones among them."""
        return np.interp(logits.astype(np.float64), self.knots, self.probabilities)


def fit_temperature(logits: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> Line:
    """The slope without bias of least log loss: the zero of its derivative, which rises with the slope."""
    z = logits.astype(np.float64)

    def derivative(slope: float) -> float:
        return float(np.mean(z * (expit(slope * z) - positive)))

    low, high = 1 / STEEPEST, STEEPEST
    if derivative(high) <= 0:
        return Line(high, 0.0)
    if derivative(low) >= 0:  # at the bound, or turned around: no slope for a class of its own
        return Line(0.0, 0.0)
    return Line(float(brentq(derivative, low, high, xtol=1e-12)), 0.0)


def fit_platt(logits: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> Line:
    """Slope and bias of least log loss to Platt's targets, by Newton steps in a trust region on standardised logits."""
    z = logits.astype(np.float64)
    centre, spread = z.mean(), z.std()
    inputs = np.stack([(z - centre) / max(spread, 1e-12), np.ones_like(z)], axis=1)
    num_positives = positive.sum()
    high, low = (num_positives + 1) / (num_positives + 2), 1 / (len(z) - num_positives + 2)
    targets = np.where(positive, high, low)

    def loss(weights: np.ndarray) -> float:
        scores = inputs @ weights
        return float(np.mean(np.logaddexp(0, scores) - targets * scores))

    def gradient(weights: np.ndarray) -> np.ndarray:
        return inputs.T @ (expit(inputs @ weights) - targets) / len(z)

    def curvature(weights: np.ndarray) -> np.ndarray:
        p = expit(inputs @ weights)
        return (inputs * (p * (1 - p))[:, None]).T @ inputs / len(z)

    start = np.array([1.0, 0.0])
    found = minimize(loss, start, jac=gradient, hess=curvature, method="trust-exact", options={"gtol": 1e-9}).x
    slope = float(found[0] / max(spread, 1e-12))
    return Line(slope, float(found[1] - slope * centre))


def fit_isotonic(logits: Float[np.ndarray, "N"], positive: Bool[np.ndarray, "N"]) -> Steps:
    """Equal logits become one point of their mean label; each level keeps its first and last logit as knots."""
    z, place, counts = np.unique(logits.astype(np.float64), return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=positive.astype(np.float64)) / counts
    heights = np.clip(isotonic_regression(means, weights=counts).x, 0, 1)
    ends = np.append(heights[1:] != heights[:-1], True)
    kept = ends | np.append(True, ends[:-1])
    return Steps(tuple(z[kept].tolist()), tuple(heights[kept].tolist()))


def rises(curve: Line | Steps) -> bool:
    """Whether a curve keeps any of the ranking, and does not turn it around."""
    if isinstance(curve, Line):
        return curve.slope > 0
    return curve.probabilities[-1] > curve.probabilities[0]


def read_line(record: Any, where: str) -> Line:
    """A line from its JSON object; an InputError names what is wrong with it."""
    check_keys(record, {"slope": float, "bias": float}, where)
    line = Line(float(record["slope"]), float(record["bias"]))
    if not (np.isfinite([line.slope, line.bias]).all() and line.slope > 0):
        raise InputError(f"{where}: slope must be positive and both finite, found {line.slope} and {line.bias}")
    return line


def read_steps(record: Any, where: str) -> Steps:
    """Steps from their JSON object; an InputError names what is wrong with it."""
    check_keys(record, {"knots": list, "probabilities": list}, where)
    values = [*record["knots"], *record["probabilities"]]
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        raise InputError(f"{where}: knots and probabilities must be numbers")
    knots, heights = np.array(record["knots"], dtype=float), np.array(record["probabilities"], dtype=float)
    sound = len(knots) == len(heights) > 0 and np.isfinite([*knots, *heights]).all()
    if not sound or (np.diff(knots) <= 0).any() or (np.diff(heights) < 0).any():
        raise InputError(f"{where}: wanted as many ascending knots as probabilities that never fall, at least one")
    if heights.min() < 0 or heights.max() > 1:
        raise InputError(f"{where}: probabilities must be in 0..1, found {heights.min()} to {heights.max()}")
    return Steps(tuple(knots.tolist()), tuple(heights.tolist()))
