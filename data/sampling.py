"""Which items an epoch of training visits, how often, and in which order. N items, C classes, B draws of a batch.

A sampler says how often each item is wanted per epoch, a number that need not be whole (`expected_visits`). It is
rounded up or down at random, so that it is right on average (`whole_visits`), and an item's visits are spread over the
epoch, no two in one batch if there are enough batches (`spread`). All of it is a pure function of labels, seed and
epoch; the number of steps is the same in every epoch and on every process.

An item is an image in stage one and a group in stage two. A label above 0.5 is positive; an unknown one is not.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Integer

from data.errors import InputError
from data.order import Draws, derive_seed, epoch_batches, first_visits

SamplerKind = Literal["none", "repeat_factor", "class_aware", "square_root", "co_occurrence", "repeat_factor_as_coded"]
GOLDEN = (5**0.5 - 1) / 2
MOST_CODED_COPIES = 10


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Which training items an epoch visits, and how often. Validation and test are never sampled."""

    kind: SamplerKind = "none"
    """none: each item once. repeat_factor: items of rare classes more often (LVIS). class_aware: a class at random,
    then an item of it. square_root: the same, classes drawn by the root of their size. co_occurrence: as class_aware,
    but several labels of an item count as one. repeat_factor_as_coded: a published variant, for comparison only."""

    threshold: float = 0.01
    """Frequency of a class, in (0, 1], below which repeat_factor repeats its items."""

    mix: dict[str, float] = field(default_factory=dict)
    """Share of each epoch's draws for every `source` of the manifest, say {mimic: 0.7, chexpert: 0.3}; empty: as they
    are. An epoch keeps its length."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"sampler.threshold must be in (0, 1], got {self.threshold}")
        shares = list(self.mix.values())
        if shares and (min(shares) < 0 or abs(sum(shares) - 1) > 1e-6):
            raise ValueError(f"sampler.mix must be shares that add up to 1, got {self.mix}")
        if shares and self.kind == "repeat_factor_as_coded":
            raise ValueError("sampler.mix does not go with repeat_factor_as_coded; use repeat_factor")


def epoch_draws(
    config: SamplerConfig,
    labels: Float[np.ndarray, "N C"],
    sources: list[str],
    batch_size: int,
    seed: int,
    epoch: int,
) -> list[Draws]:
    """The global batches of an epoch. Sizes differ by at most one and never exceed `batch_size`.

    Raises:
        InputError: `mix` and the items' sources differ.
    """
    if config.kind == "none" and not config.mix:
        batches = epoch_batches(len(labels), batch_size, seed, epoch)
        return [first_visits(batch) for batch in batches]
    if not len(labels):
        return []
    rng = np.random.default_rng(derive_seed("sampler", seed, epoch))
    if config.kind == "repeat_factor_as_coded":
        shuffled = rng.permutation(len(labels))
        order = np.repeat(shuffled, coded_copies(labels, config.threshold)[shuffled])
        batches = np.array_split(order, -(-len(order) // batch_size))
    else:
        visits = whole_visits(expected_visits(config, labels, sources), rng)
        batches = spread(visits, -(-int(visits.sum()) // batch_size), rng)
    return _numbered(batches)


def epoch_length(config: SamplerConfig, labels: Float[np.ndarray, "N C"], sources: list[str]) -> int:
    """Draws of an epoch, the same in each; errors as in `epoch_draws`."""
    if config.kind == "repeat_factor_as_coded":
        return int(coded_copies(labels, config.threshold).sum())
    expected = expected_visits(config, labels, sources)
    whole, remainder = _parts(expected)
    return int(whole.sum()) + _draws_of(remainder)


def expected_visits(
    config: SamplerConfig, labels: Float[np.ndarray, "N C"], sources: list[str]
) -> Float[np.ndarray, "N"]:
    """How often an epoch visits each item on average.

    With n_c positives of class c among N items:

    repeat_factor: max(1, sqrt(threshold / f_c)) of the positive class that is rarest, f_c = n_c / N; an epoch becomes
    longer (LVIS, Gupta et al., arXiv 1908.03195).

    class_aware: a class is drawn, each as likely, then one of its items (Shen et al., arXiv 1512.05830):
    N / C * sum over positive classes of 1 / n_c.

    square_root: a class is drawn with a probability proportional to sqrt(n_c) (q = 1/2 of Kang et al., arXiv
    1910.09217, eq. 1), then one of its items.

    co_occurrence: class_aware, each term times r_c = (1 / n_c) / (sum over positive classes of 1 / n_c), the
    re-balancing factor of the distribution-balanced loss (Wu et al., arXiv 2007.09654). An item with two equally rare
    labels is then drawn as often as one with either, and a common label adds next to nothing to a rare one.

    Items without a positive are a class of their own in the last three, for these would never visit them otherwise.
    """
    positive = labels > 0.5
    if config.kind == "none":
        expected = np.ones(len(labels))
    elif config.kind == "repeat_factor":
        expected = _repeat_factors(positive, np.full(positive.shape[1], len(labels)), config.threshold)
    else:
        expected = _class_draws(config.kind, positive)
    return _mixed(expected, config.mix, sources) if config.mix else expected


def coded_copies(labels: Float[np.ndarray, "N C"], threshold: float) -> Int[np.ndarray, "N"]:
    """Copies per item in the public code of a CXR-LT 2026 entry, where they follow each other directly.

    Its frequency of a class is n_c over the sum of all classes' counts, not over the number of images; repeat factors
    are cut at 10 and rounded to the nearest, so those below 1.5 have no effect.
    """
    positive = labels > 0.5
    total = np.full(positive.shape[1], max(1, positive.sum()))
    return np.round(np.minimum(_repeat_factors(positive, total, threshold), MOST_CODED_COPIES)).astype(int)


def whole_visits(expected: Float[np.ndarray, "N"], rng: np.random.Generator) -> Int[np.ndarray, "N"]:
    """Round every number up or down at random: up with the probability of what comes after its point.

    By systematic sampling (Madow 1949) along a random order, which fixes the sum where independent draws would let an
    epoch's length vary. A sum that is not whole is rounded up, by raising all these probabilities a little.
    """
    whole, remainder = _parts(expected)
    number = _draws_of(remainder)
    room = np.where(remainder > 0, 1 - remainder, 0.0)
    if room.sum() > 0:
        remainder = remainder + (number - remainder.sum()) * room / room.sum()
    order = rng.permutation(len(expected))
    edges = np.minimum(np.cumsum(remainder[order]), number)
    edges[-1] = number
    drawn = np.diff(np.floor(edges + rng.random()), prepend=0).astype(int)
    whole[order] += drawn
    return whole


def spread(visits: Int[np.ndarray, "N"], num_batches: int, rng: np.random.Generator) -> list[Integer[np.ndarray, "B"]]:
    """Put the visits to all items into near-equal batches.

    They are dealt out in turn, all visits to an item after each other: an item's visits are in different batches, or as
    evenly spread over them as possible if there are more. The batches that are dealt to one after the other are spread
    over the epoch by the golden ratio, so any few in a row lie far apart.
    """
    order = rng.permutation(len(visits))
    dealt = np.repeat(order, visits[order])
    in_time = np.argsort((rng.random() + GOLDEN * np.arange(num_batches)) % 1)
    batches, last = [], -1
    for place in in_time:
        batches.append(_apart(rng.permutation(dealt[place::num_batches]), last))
        last = int(batches[-1][-1])
    return batches


def _apart(batch: Integer[np.ndarray, "B"], last: int) -> Integer[np.ndarray, "B"]:
    """The batch in an order in which no item follows itself, if there is one.

    Args:
        last: Last item of the batch before.
    """
    if batch[0] != last and (batch[1:] != batch[:-1]).all():
        return batch
    items, places, counts = np.unique(batch, return_index=True, return_counts=True)
    counts, ordered = counts.astype(float), []
    for _ in batch:
        left = np.where((items == last) & (counts > 0), 0.5, counts)  # the same one again only if no other is left
        best = np.flatnonzero(left == left.max())
        chosen = best[np.argmin(places[best])]  # of several, in the batch's random order
        counts[chosen] -= 1
        last = int(items[chosen])
        ordered.append(last)
    return np.array(ordered, dtype=batch.dtype)


def _repeat_factors(positive: Bool[np.ndarray, "N C"], total: Int[np.ndarray, "C"], threshold: float) -> np.ndarray:
    frequency = np.maximum(positive.sum(axis=0), 1) / total
    return np.where(positive, np.maximum(1, np.sqrt(threshold / frequency)), 1.0).max(axis=1, initial=1.0)


def _class_draws(kind: str, positive: Bool[np.ndarray, "N C"]) -> Float[np.ndarray, "N"]:
    positive = np.column_stack([positive, ~positive.any(axis=1)])
    positive = positive[:, positive.any(axis=0)]
    each = 1 / np.maximum(positive.sum(axis=0), 1)
    weight = positive @ (np.sqrt(each) if kind == "square_root" else each)  # sqrt(n) / n
    if kind == "co_occurrence":
        weight = positive @ each**2 / weight
    return weight * (len(weight) / weight.sum())


def _mixed(expected: Float[np.ndarray, "N"], mix: dict[str, float], sources: list[str]) -> Float[np.ndarray, "N"]:
    codes, names = pd.factorize(np.array(sources, dtype=object))
    unnamed, absent = sorted(set(names) - set(mix)), sorted(name for name in mix if name not in set(names))
    if unnamed or absent:
        what = f"source {unnamed[0]!r} is missing" if unnamed else f"there is no training item of source {absent[0]!r}"
        raise InputError(f"sampler.mix: {what}; the training set has {', '.join(sorted(names))}: give each its share")
    wanted = np.array([mix[name] for name in names]) * expected.sum()
    return expected * (wanted / np.bincount(codes, weights=expected))[codes]


def _parts(expected: Float[np.ndarray, "N"]) -> tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N"]]:
    """Whole and fractional parts; what floating-point sums leave beside a whole number is taken off."""
    near = np.round(expected)
    expected = np.where(np.abs(expected - near) < 1e-9, near, expected)
    whole = np.floor(expected)
    return whole.astype(int), expected - whole


def _draws_of(remainder: Float[np.ndarray, "N"]) -> int:
    return int(np.ceil(remainder.sum() - 1e-6))


def _numbered(batches: list[np.ndarray]) -> list[Draws]:
    """Count each item's visits in the order of the epoch."""
    items = pd.Series(np.concatenate(batches))
    copies = items.groupby(items).cumcount().to_numpy()
    edges = np.cumsum([len(batch) for batch in batches])[:-1]
    return [Draws(*parts) for parts in zip(batches, np.split(copies, edges), strict=True)]
