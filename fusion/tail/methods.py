"""All tail classifiers, tuned on validation and applied to validation and test.

Fitting sees training features and labels, choosing sees validation labels, and the labels of test are not in reach.

G groups, N images, C classes, D features.
"""

import time
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from data.order import derive_seed
from extract.engine import sigmoid
from fusion.baselines import baseline_groups
from fusion.grouping import GroupSet
from fusion.tail.choose import Bands, assemble, best_per_band, choose_mixture, mixtures
from fusion.tail.classifiers import fit_logistic, natural_probabilities, tau_normalised
from fusion.tail.features import standardisation, whitening
from fusion.tail.neighbours import nearest, vote

Split = dict[str, Float[np.ndarray, "G C"]]
"""Values of the groups of val and of test."""
RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
TAUS = (0.0, 0.5, 1.0, 1.5, 2.0)
NEIGHBOURS = (10, 30, 100, 300, 1000)
TEMPERATURES = (0.1, 0.3, 1.0)
COMPONENTS = 128
"""Whitened principal components in which neighbours are sought, at most."""


@dataclass(frozen=True, eq=False)
class TailData:
    """What all methods start from."""

    train_features: Float[np.ndarray, "M D"]
    train_labels: Float[np.ndarray, "M C"]
    features: dict[str, Float[np.ndarray, "G D"]]
    val_labels: Float[np.ndarray, "G C"]
    bands: Bands
    bases: dict[str, Split]
    """Probabilities that others gave: the mean baseline, and fusion if there is one."""


@dataclass(frozen=True, eq=False)
class LinearHeadLogits:
    """Single-image logits of val and test, and the linear head that made them."""

    logits: dict[str, Float[np.ndarray, "N C"]]
    weights: Float[np.ndarray, "C D"]
    bias: Float[np.ndarray, "C"]
    sets: dict[str, GroupSet]


@dataclass(frozen=True, eq=False)
class TailResult:
    """Probabilities, what was chosen for each band, and seconds, per method."""

    scores: dict[str, Split] = field(default_factory=dict)
    chosen: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, name: str) -> Generator[None, None, None]:
        """Note how long a method took."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 2)


def run_methods(data: TailData, head: LinearHeadLogits | None, drawn: Int[np.ndarray, "m"] | None = None) -> TailResult:
    """Train, choose and mix.

    Args:
        head: Stage one's head if it is linear, for tau-normalisation.
        drawn: Training groups to learn from, some perhaps several times; None: all of them.
    """
    result, train = TailResult(), np.arange(len(data.train_labels)) if drawn is None else drawn
    result.scores.update(data.bases)
    jobs: dict[str, Callable[[], dict[Hashable, Split]]] = {
        "re-trained": lambda: linear_options(data, train, balanced=False),
        "balanced": lambda: linear_options(data, train, balanced=True),
        "neighbours": lambda: neighbour_options(data, train),
    }
    for name, make in jobs.items():
        with result.timed(name):
            keep_best(result, name, make(), data)
    learned = {split: {name: result.scores[name][split] for name in jobs} for split in ("val", "test")}
    if head is not None:
        with result.timed("tau"):
            keep_best(result, "tau", tau_options(head), data)
    for base, values in data.bases.items():
        with result.timed(f"{base} + tail"):
            chosen = choose_mixture(values["val"], learned["val"], data.val_labels, data.bands)
            result.chosen[f"{base} + tail"] = chosen
            result.scores[f"{base} + tail"] = {
                split: assemble(mixtures(values[split], learned[split]), chosen, data.bands) for split in values
            }
    return result


def keep_best(result: TailResult, name: str, options: Mapping[Hashable, Split], data: TailData) -> None:
    """Add a method with the setting that is best on validation, band by band."""
    on_val = {setting: values["val"] for setting, values in options.items()}
    chosen = best_per_band(on_val, data.val_labels, data.bands)
    result.chosen[name] = chosen
    result.scores[name] = {
        split: assemble({s: values[split] for s, values in options.items()}, chosen, data.bands)
        for split in ("val", "test")
    }


def linear_options(data: TailData, train: Int[np.ndarray, "m"], balanced: bool) -> dict[Hashable, Split]:
    """One-against-rest logistic classifiers, one set for each ridge."""
    project, labels = standardisation(data.train_features[train]), data.train_labels[train]
    features = {split: project(values) for split, values in data.features.items()}
    return {
        ridge: {
            split: natural_probabilities(fitted.logits(values), labels, balanced) for split, values in features.items()
        }
        for ridge, fitted in fit_logistic(project(data.train_features[train]), labels, RIDGES, balanced)
    }


def neighbour_options(data: TailData, train: Int[np.ndarray, "m"]) -> dict[Hashable, Split]:
    """Votes of the nearest training groups, for each number of them and each temperature."""
    project, labels = whitening(data.train_features[train], COMPONENTS), data.train_labels[train]
    index = project(data.train_features[train])
    near = {split: nearest(index, project(values), max(NEIGHBOURS)) for split, values in data.features.items()}
    return {
        (k, temperature): {split: vote(*found, labels, k, temperature) for split, found in near.items()}
        for k in NEIGHBOURS
        for temperature in TEMPERATURES
    }


def tau_options(head: LinearHeadLogits) -> dict[Hashable, Split]:
    """Stage one's head with normalised weights, averaged over the views of a group."""
    return {
        tau: {
            split: baseline_groups(
                "mean", sigmoid(tau_normalised(logits, head.weights, head.bias, tau)), head.sets[split]
            )
            for split, logits in head.logits.items()
        }
        for tau in TAUS
    }


def resampled_patients(patient_ids: Sequence[str], seed: int) -> Int[np.ndarray, "m"]:
    """Groups of as many patients as there are, drawn with replacement: what another training set might have been."""
    patients, owner = np.unique(np.array(patient_ids, dtype=str), return_inverse=True)
    rng = np.random.default_rng(derive_seed("training patients", seed))
    drawn = rng.integers(len(patients), size=len(patients))
    return np.concatenate([np.flatnonzero(owner == patient) for patient in np.sort(drawn)])
