"""What each view adds to a prediction: Shapley shares over the subsets of a group's views.

The game: a subset of views is worth the fusion logit that the model gives to a group of just these views, in canonical
order with the first slots, as if no other image had been taken. Nothing is masked, so no subset is outside what the
model was trained on (view dropout made such groups). The empty set, of which no model can be asked, is worth a
baseline that the caller gives: here the mean logit of groups that have nothing to do with this one.

Logits, not probabilities: they add up (a share of +1 multiplies the odds by e) and do not vanish where a class is
rare.

Axes: **V** views, **S** subsets, **C** classes, **H W D** map.
"""

from collections.abc import Callable
from math import factorial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from data.order import derive_seed
from fusion.grouping import slots_in_order
from fusion.model import FusionModel

MOST_EXACT = 8
"""Views up to which all subsets (256) are asked; beyond it orders are sampled."""

NUM_ORDERS = 128
"""Sampled orders of the views, an even number: each goes with its reverse, which lowers the variance."""

Worth = Callable[[Bool[np.ndarray, "S V"]], Float[np.ndarray, "S C"]]
"""Values of non-empty subsets."""


def shapley_shares(
    model: FusionModel,
    maps: Float[Tensor, "V H W D"],
    view_types: Int[Tensor, "V"],
    empty: Float[np.ndarray, "C"],
    num_slots: int,
    seed: int = 0,
) -> Float64[np.ndarray, "V C"]:
    """Share of each view in each logit of a group; the shares of a class sum to the group's logit minus `empty`.

    Args:
        maps: Of one group in canonical order (`fusion.grouping.GroupSet`), in which equal images are neighbours: so
            the names and the order of files change no share, and equal images have equal shares.
        empty: Logits of no view at all.
        num_slots: Of the model.
        seed: Of the sampled orders, used above `MOST_EXACT` views.
    """

    def worth(subsets: Bool[np.ndarray, "S V"]) -> Float[np.ndarray, "S C"]:
        return subset_logits(model, maps, view_types, subsets, num_slots)

    if len(maps) <= MOST_EXACT:
        return exact_shares(worth, len(maps), empty)
    return sampled_shares(worth, len(maps), empty, seed)


@torch.inference_mode()
def subset_logits(
    model: FusionModel,
    maps: Float[Tensor, "V H W D"],
    view_types: Int[Tensor, "V"],
    subsets: Bool[np.ndarray, "S V"],
    num_slots: int,
    max_views: int = 128,
) -> Float[np.ndarray, "S C"]:
    """Logits of groups that consist of these views only; subsets of a size go through the model together.

    Args:
        subsets: Views in each, at least one.
        max_views: Views per forward pass (one subset always fits).
    """
    assert not model.training, "explain a model in evaluation mode"
    sizes, logits = subsets.sum(axis=1), {}
    assert sizes.min() >= 1, "the empty set has no logits"
    for size in np.unique(sizes):
        places = np.flatnonzero(sizes == size)
        step = max(1, max_views // int(size))
        for part in np.split(places, range(step, len(places), step)):
            views = torch.from_numpy(np.nonzero(subsets[part])[1].reshape(len(part), size))
            slots = torch.from_numpy(slots_in_order(int(size), num_slots)).expand(len(part), -1)
            values = model(maps[views], view_types[views], slots.to(maps.device))
            logits |= dict(zip(part.tolist(), values.float().cpu().numpy(), strict=True))
    return np.stack([logits[place] for place in range(len(subsets))])


def exact_shares(worth: Worth, num_views: int, empty: Float[np.ndarray, "C"]) -> Float64[np.ndarray, "V C"]:
    """Shapley values from all 2**V subsets (Shapley 1953): v gains sum_S |S|! (V - |S| - 1)! / V! (w(S + v) - w(S))."""
    codes = np.arange(2**num_views)
    members = (codes[:, None] >> np.arange(num_views) & 1).astype(bool)
    values = np.concatenate([np.asarray(empty, np.float64)[None], worth(members[1:]).astype(np.float64)])
    weights = [factorial(k) * factorial(num_views - k - 1) / factorial(num_views) for k in range(num_views)]
    shares = np.empty((num_views, values.shape[1]))
    for view in range(num_views):
        without = codes[~members[:, view]]
        weight = np.array(weights)[members[without].sum(axis=1)]
        shares[view] = weight @ (values[without | 1 << view] - values[without])
    return shares


def sampled_shares(
    worth: Worth, num_views: int, empty: Float[np.ndarray, "C"], seed: int = 0, num_orders: int = NUM_ORDERS
) -> Float64[np.ndarray, "V C"]:
    """Shapley values as the mean gain of each view over sampled orders in which the views join (Castro et al. 2009).

    Along every order the gains sum to the whole, so the shares do too, however few the orders.

    Args:
        num_orders: Even; half of them are drawn, the others are these reversed.
    """
    random = np.random.default_rng(derive_seed("shapley", seed, num_views))
    drawn = [random.permutation(num_views) for _ in range(num_orders // 2)]
    return shares_along([order for one in drawn for order in (one, one[::-1])], worth, num_views, empty)


def shares_along(
    orders: list[np.ndarray], worth: Worth, num_views: int, empty: Float[np.ndarray, "C"]
) -> Float64[np.ndarray, "V C"]:
    """Mean gain of each view over given orders; each subset met is asked once."""
    chains = [[tuple(np.sort(order[: k + 1])) for k in range(num_views)] for order in orders]
    met = sorted({subset for chain in chains for subset in chain})
    members = np.zeros((len(met), num_views), dtype=bool)
    for row, subset in enumerate(met):
        members[row, list(subset)] = True
    value = dict(zip(met, worth(members).astype(np.float64), strict=True)) | {(): np.asarray(empty, np.float64)}
    shares = np.zeros((num_views, len(value[()])))
    for order, chain in zip(orders, chains, strict=True):
        for view, before, after in zip(order, [(), *chain], chain, strict=False):
            shares[view] += value[after] - value[before]
    return shares / len(orders)
