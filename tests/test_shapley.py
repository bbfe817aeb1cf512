"""Shapley shares of views: against the formula as a slow sum over orders, and the properties that define them."""

from itertools import permutations

import numpy as np
import pytest
import torch

from data.views import VIEWS
from extract.heads import HeadConfig
from fusion.grouping import slots_in_order
from fusion.model import FusionModel, ModelConfig
from fusion.shapley import MOST_EXACT, exact_shares, sampled_shares, shapley_shares, subset_logits

H, W, D, C, S = 3, 2, 5, 4, 6
EMPTY = np.array([0.3, -1.2, 0.0, 2.0])


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = ModelConfig(width=24, depth=1, num_heads=3, num_slots=S, head=HeadConfig(width=18, num_heads=2))
    model = FusionModel(config, (H, W, D), C).eval()
    torch.nn.init.normal_(model.slot_embedding)
    torch.nn.init.normal_(model.view_embedding)
    return model


def made_up_worth(num_views, seed=0):
    """A random value for every subset."""
    values = np.random.default_rng(seed).normal(size=(2**num_views, C))
    return lambda subsets: values[subsets @ (1 << np.arange(num_views))]


def slow_shares(worth, num_views):
    """Mean gain over all V! orders, one subset at a time."""

    def value(views):
        subset = np.zeros((1, num_views), dtype=bool)
        subset[0, list(views)] = True
        return worth(subset)[0] if views else EMPTY

    orders = list(permutations(range(num_views)))
    shares = np.zeros((num_views, C))
    for order in orders:
        for k, view in enumerate(order):
            shares[view] += (value(order[: k + 1]) - value(order[:k])) / len(orders)
    return shares


@pytest.mark.parametrize("num_views", [1, 2, 3, 4, 5])
def test_exact_shares_equal_the_mean_gain_over_all_orders(num_views):
    worth = made_up_worth(num_views)
    shares = exact_shares(worth, num_views, EMPTY)
    np.testing.assert_allclose(shares, slow_shares(worth, num_views), atol=1e-12)


@pytest.mark.parametrize("num_views", [1, 3, 8, 9])
def test_shares_add_up_to_the_groups_logit_minus_the_baseline(model, num_views):
    maps, types = views(num_views)
    shares = shapley_shares(model, maps, types, EMPTY, S)
    with torch.inference_mode():
        slots = torch.from_numpy(slots_in_order(num_views, S))
        logits = model(maps[None], types[None], slots[None])[0].numpy()
    assert shares.shape == (num_views, C)
    np.testing.assert_allclose(shares.sum(axis=0), logits - EMPTY, atol=2e-6)
    assert (num_views > MOST_EXACT) == (num_views == 9)  # both ways were taken


def test_efficiency_is_exact_up_to_rounding_in_a_game_of_doubles():
    for num_views, method in ((7, exact_shares), (9, sampled_shares)):
        worth = made_up_worth(num_views)
        whole = worth(np.ones((1, num_views), dtype=bool))[0] - EMPTY
        np.testing.assert_allclose(method(worth, num_views, EMPTY).sum(axis=0), whole, atol=1e-12)


def views(num_views, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_views, H, W, D, generator=generator),
        torch.sort(torch.randint(len(VIEWS), (num_views,), generator=generator)).values,
    )


@pytest.mark.parametrize("twin", [0, 1, 2])
def test_equal_views_have_equal_shares(model, twin):
    maps, types = views(4)
    maps[twin + 1], types[twin + 1] = maps[twin], types[twin]
    shares = shapley_shares(model, maps, types, EMPTY, S)
    np.testing.assert_allclose(shares[twin], shares[twin + 1], atol=2e-6)
    others = [view for view in range(4) if view not in (twin, twin + 1)]
    assert np.abs(shares[others] - shares[twin]).min() > 1e-4


def test_a_view_that_changes_nothing_has_no_share():
    worth, num_views = made_up_worth(5), 5

    def deaf(subsets):
        values = np.tile(EMPTY, (len(subsets), 1))
        heard = subsets.copy()
        heard[:, 2] = False
        some = heard.any(axis=1)
        values[some] = worth(heard[some])
        return values

    for shares in (exact_shares(deaf, num_views, EMPTY), sampled_shares(deaf, num_views, EMPTY)):
        np.testing.assert_allclose(shares[2], 0, atol=1e-12)
        assert (np.abs(shares[[0, 1, 3, 4]]) > 1e-3).all()


def test_sampled_shares_come_closer_to_the_exact_ones_with_more_orders():
    worth = made_up_worth(6)
    exact = exact_shares(worth, 6, EMPTY)
    few, many = (
        np.mean([np.abs(sampled_shares(worth, 6, EMPTY, seed, n) - exact).mean() for seed in range(4)])
        for n in (16, 640)
    )
    assert many < 0.3 * few  # the square root of 40 promises 0.16


def test_sampled_shares_depend_on_the_seed_alone(model):
    maps, types = views(9)
    first, again, other = (shapley_shares(model, maps, types, EMPTY, S, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-6


def test_a_subset_is_worth_what_a_group_of_just_these_views_gets(model):
    maps, types = views(5)
    subsets = np.array(
        [[0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0], [1, 0, 1, 0, 1]], dtype=bool
    )
    logits = subset_logits(model, maps, types, subsets, S, max_views=3)
    for subset, values in zip(subsets, logits, strict=True):
        keep = torch.from_numpy(subset)
        slots = torch.arange(int(subset.sum()))
        with torch.inference_mode():
            alone = model(maps[keep][None], types[keep][None], slots[None])[0]
        np.testing.assert_allclose(values, alone.numpy(), atol=1e-5)
    with pytest.raises(AssertionError, match="empty set"):
        subset_logits(model, maps, types, np.zeros((1, 5), dtype=bool), S)
