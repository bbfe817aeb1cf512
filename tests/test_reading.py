"""Batches of maps read ahead by threads: the same maps as read one by one, in the order asked for, in flat memory."""

import resource
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from data.cache import CPU, FeatureCache
from data.errors import InputError
from data.manifest import Manifest
from data.reading import MAX_OPEN, BatchBuffer
from data.shards import shard_name
from tests.make_data import make_cache, make_manifest
from tests.test_shards import identity, write
from tests.test_shards_damage import flip

VARIANTS = ("plain", "flip", "augmented_1")


@pytest.fixture
def manifest(tmp_path) -> Manifest:
    return make_manifest(tmp_path, num_studies=23)


def draw_requests(cache: FeatureCache, count=40, seed=0):
    """Batches of random sizes: runs of neighbours, shuffled images, repeated ones."""
    rng, N = np.random.default_rng(seed), cache.identity.num_images
    for number in range(count):
        start, size = rng.integers(N), int(rng.integers(0, 19))
        order = np.arange(start, start + size) % N if number % 2 else rng.integers(N, size=size)
        yield number, order, rng.integers(len(cache.identity.variants), size=size)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_streamed_batches_are_those_read_one_by_one(tmp_path, manifest, dtype, num_threads):
    cache = make_cache(tmp_path / "cache", manifest, dtype=dtype, variants=VARIANTS)
    seen = []
    for number, stored in cache.stream(draw_requests(cache), num_threads=num_threads):
        _, ordinals, variants = list(draw_requests(cache))[number]
        assert stored.shape == (len(ordinals), *cache.identity.payload_shape)
        for one, ordinal, variant in zip(stored, ordinals, variants, strict=True):
            assert torch.equal(one, cache.read_stored(np.array([ordinal]), np.array([variant]))[0])
        seen.append(number)
    assert seen == list(range(40))


def test_a_batch_holds_until_the_next_is_asked_for(tmp_path, manifest):
    cache = make_cache(tmp_path / "cache", manifest)
    requests = [(n, np.arange(n, n + 5), np.zeros(5, dtype=int)) for n in range(20)]
    for n, stored in cache.stream(requests, num_threads=3):
        kept = stored.clone()
        assert np.array_equal(kept.numpy(), cache.read(np.arange(n, n + 5)))
        assert torch.equal(stored, kept)


def test_memory_is_used_again(tmp_path, manifest):
    cache = make_cache(tmp_path / "cache", manifest)
    places = set()
    for _, stored in cache.stream(((n, np.arange(7), np.zeros(7, dtype=int)) for n in range(50)), num_threads=2):
        places.add(stored.data_ptr())
    assert len(places) <= 3
    buffer = BatchBuffer(cache.folder, cache.identity, cache.index)
    large = buffer.read(np.arange(9), np.zeros(9, dtype=int)).data_ptr()
    assert all(buffer.read(np.arange(n), np.zeros(n, dtype=int)).data_ptr() == large for n in (3, 9, 10, 11))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_resident_memory_stays_flat_over_epochs(tmp_path):
    cache = write(tmp_path, identity(map_shape=(64, 64, 64)))  # 5 MB
    one_map, rng = cache.identity.map_shape[0] ** 3 * 2, np.random.default_rng(0)

    def epochs(count):
        for number in range(count):
            order = rng.permutation(10)[: rng.integers(5, 11)]
            yield number, order, np.zeros_like(order)

    stream = cache.stream(epochs(300))
    for _, (number, _) in zip(range(20), stream, strict=False):
        assert number < 20
    before = resident_bytes()
    assert sum(1 for _ in stream) == 280
    assert resident_bytes() - before < 4 * one_map, "280 batches of 7 maps have passed"


def test_a_damaged_map_stops_the_stream_at_its_batch_and_names_it(tmp_path, manifest):
    cache = make_cache(tmp_path / "cache", manifest)
    flip(cache.folder / shard_name(1), int(cache.index.offset[9, 0]) + 3)
    requests = [(n, np.array([n]), np.array([0])) for n in range(20)]
    seen = []
    with pytest.raises(InputError, match=rf"000001.tar: the map of image '{cache.index.image_id[9]}' is damaged"):
        seen.extend(n for n, _ in cache.stream(requests, num_threads=2))
    assert seen == list(range(9))
    unchecked = cache.stream(requests, checked=False)
    assert [n for n, _ in unchecked] == list(range(20))


def test_a_shard_cut_after_opening_is_caught(tmp_path, manifest):
    cache = make_cache(tmp_path / "cache", manifest)
    path = cache.folder / shard_name(0)
    path.write_bytes(path.read_bytes()[: int(cache.index.offset[3, 0]) + 5])
    with pytest.raises(InputError, match=rf"000000.tar: the map of image '{cache.index.image_id[3]}' is damaged"):
        cache.read(np.arange(6))


def test_what_memory_held_before_does_not_pass_for_a_map_that_is_gone(tmp_path, manifest):
    cache = make_cache(tmp_path / "cache", manifest)
    cache.read(np.arange(2, 4))
    path = cache.folder / shard_name(0)
    path.write_bytes(path.read_bytes()[: int(cache.index.offset[3, 0])])
    with pytest.raises(InputError, match=rf"000000.tar: the map of image '{cache.index.image_id[3]}' is damaged"):
        cache.read(np.arange(2, 4))


def test_leaving_a_stream_early_ends_its_threads_and_closes_its_files(tmp_path, manifest):
    cache = make_cache(tmp_path / "cache", manifest)
    before = threading.active_count()
    stream = cache.stream(draw_requests(cache), num_threads=4)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before


def test_an_error_in_the_plan_reaches_the_caller(tmp_path, manifest):
    cache = make_cache(tmp_path / "cache", manifest)

    def requests():
        yield 0, np.arange(3), np.zeros(3, dtype=int)
        raise KeyError("no such group")

    with pytest.raises(KeyError, match="no such group"):
        list(cache.stream(requests()))


def test_more_shards_than_may_be_open_are_read(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=4 * MAX_OPEN)
    cache = make_cache(tmp_path / "cache", manifest, per_shard=1, map_shape=(1, 1, 2))
    N = cache.identity.num_images
    assert N > 6 * MAX_OPEN
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 6 * MAX_OPEN), hard))
    try:
        order = np.random.default_rng(0).permutation(N)
        requests = [(0, order, np.zeros(N, dtype=int))] * 3
        parts = torch.cat([stored.clone() for _, stored in cache.stream(requests, num_threads=2)])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert np.array_equal(parts[:N].numpy(), cache.read(order))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gets_the_same_maps(tmp_path, manifest):
    cache = make_cache(tmp_path / "cache", manifest, dtype="uint8", map_shape=(16, 16, 64))
    requests = list(draw_requests(cache, count=200))
    device = torch.device("cuda")
    on_gpu = [stored.cpu() for _, stored in cache.stream(requests, device=device, num_threads=3)]
    for (_, stored), other in zip(cache.stream(requests, CPU), on_gpu, strict=True):
        assert torch.equal(stored, other)
