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


def test_work_is_dealt_evenly():
    rng = np.random.default_rng(0)
    ratios = []
    for _ in range(50):
        cost = rng.choice([1, 2, 3, 4], 64, p=[0.4, 0.35, 0.15, 0.1])
        loads = [cost[rank_share(np.arange(64), rank, 8, cost)].sum() for rank in range(8)]
        ratios.append(max(loads) / np.mean(loads))
    assert np.mean(ratios) < 1.08
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
