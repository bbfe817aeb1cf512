"""The order of training data: every item once, the same for any number of processes, resumable from two numbers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data.order import derive_seed, epoch_batches, rank_share


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (1, 4), (4, 4), (5, 4), (23, 7), (64, 1), (3, 100)])
def test_every_item_once_in_near_equal_batches(count, batch_size):
    batches = epoch_batches(count, batch_size, seed=3, epoch=2)
    sizes = [len(batch) for batch in batches]
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(count))
    assert len(batches) == -(-count // batch_size)
    assert not sizes or (max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1)


def test_the_order_changes_with_seed_and_epoch_and_with_nothing_else():
    def order(seed, epoch):
        return np.concatenate(epoch_batches(50, 8, seed, epoch)).tolist()

    first = order(1, 0)
    np.random.default_rng(9).random(5)
    assert order(1, 0) == first
    assert order(2, 0) != first
    assert order(1, 1) != first
    assert order(0, 1) != order(1, 0)
    assert first != list(range(50))


def test_a_run_stopped_at_any_step_sees_the_rest_of_the_epoch_on_any_number_of_processes():
    batches = epoch_batches(31, 6, seed=0, epoch=4)
    for stop in range(len(batches) + 1):
        seen = [batch[r::2] for batch in batches[:stop] for r in range(2)]
        seen += [rank_share(batch, r, 3) for batch in batches[stop:] for r in range(3)]
        assert sorted(np.concatenate(seen).tolist()) == list(range(31))


@pytest.mark.parametrize("num_processes", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 7, 16])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_shares_of_all_processes_are_the_batch(num_processes, size, weighted):
    rng = np.random.default_rng(size)
    batch = rng.permutation(1000)[:size]
    cost = rng.integers(1, 9, size) if weighted else None
    shares = [rank_share(batch, rank, num_processes, cost) for rank in range(num_processes)]
    assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist())
    assert max(map(len, shares)) <= -(-size // num_processes)


CXR_LT_VIEWS = {1: 69_478, 2: 71_298, 3: 13_529, 4: 1_422, 5: 67, 6: 24, 7: 1, 8: 2, 9: 1, 11: 1}
"""Studies of CXR-LT 2024 by their number of images."""


def slowest_share(num_processes, batch_size, deal, steps=200):
    """Views of the busiest process in a step against the mean, averaged over steps."""
    views = np.random.default_rng(0).permutation(np.repeat(list(CXR_LT_VIEWS), list(CXR_LT_VIEWS.values())))
    ratios = []
    for batch in epoch_batches(len(views), batch_size, seed=0, epoch=0)[:steps]:
        loads = [views[deal(batch, rank, num_processes, views[batch])].sum() for rank in range(num_processes)]
        ratios.append(max(loads) / np.mean(loads))
    return np.mean(ratios)


@pytest.mark.parametrize("batch_size", [64, 128])
def test_the_busiest_of_8_processes_has_5_percent_more_views_than_the_mean_at_most(batch_size):
    dealt = slowest_share(8, batch_size, rank_share)
    in_order = slowest_share(8, batch_size, lambda batch, rank, n, _: np.array_split(batch, n)[rank])
    print(f"batch {batch_size}: {dealt:.3f}, in order {in_order:.3f}")
    assert dealt <= 1.05 < in_order


def test_no_process_gets_more_items_than_its_share_however_light_they_are():
    cost = np.array([9, 1, 1, 1, 1, 1, 1, 1])
    assert {rank: len(rank_share(np.arange(8), rank, 2, cost)) for rank in range(2)} == {0: 4, 1: 4}


def test_seeds_are_63_bits_differ_by_purpose_and_stay_the_same_in_another_process():
    parts = [("a", 1, 2), ("a", 12), ("a", 1, 3), ("b", 1, 2), ("a", 2, 1)]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert all(0 <= seed < 2**63 for seed in seeds)
    code = "from data.order import derive_seed; print(derive_seed('a', 1, 2))"
    root = Path(__file__).parents[1]
    out = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={"PYTHONHASHSEED": "77"}, capture_output=True, text=True, check=True
    )
    assert int(out.stdout) == seeds[0]
