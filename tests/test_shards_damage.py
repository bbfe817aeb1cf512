"""Whatever happens to a cache's bytes: what is read is what was written, or an error names shard and image."""

import numpy as np
import pytest

from data.cache import FeatureCache, verify_shards
from data.errors import InputError
from data.shards import ShardWriter, shard_name
from tests.test_shards import ODD_IDS, SHAPE, identity, maps_of, read_all, write

FLIP = 0x10


@pytest.fixture
def folder(tmp_path):
    write(tmp_path).close()
    return tmp_path


def flip(path, position, mask=FLIP):
    content = bytearray(path.read_bytes())
    content[position] ^= mask
    path.write_bytes(content)


def test_every_flipped_byte_of_a_map_is_caught_at_the_read_and_named_with_its_image(folder):
    cache = FeatureCache(folder)
    nbytes = 2 * int(np.prod(SHAPE))
    for n in range(4):
        for position in range(nbytes):
            flip(folder / shard_name(0), int(cache.index.offset[n]) + position)
            with pytest.raises(InputError, match="checksum differs") as error:
                cache.read(np.array([3 - n, n] if n != 3 - n else [n]))
            assert repr(ODD_IDS[n]) in str(error.value)
            assert str(folder / shard_name(0)) in str(error.value)
            flip(folder / shard_name(0), int(cache.index.offset[n]) + position)
    np.testing.assert_array_equal(cache.read(np.arange(10)), maps_of(identity()))


def refused(folder, wanted, naming) -> bool:
    """Whether a damaged cache is refused by name; if not, it must read exactly as before."""
    try:
        cache = FeatureCache(folder)
        maps = cache.read(np.arange(len(wanted)))
    except InputError as error:
        message = str(error)
    else:
        cache.close()
        assert (cache.identity, list(cache.ordinal)) == (identity(), ODD_IDS)
        np.testing.assert_array_equal(maps, wanted)
        return False
    assert naming in message
    assert "\n" not in message
    return True


@pytest.mark.parametrize("rebuild", [False, True])
def test_no_flipped_byte_of_a_shard_changes_what_is_read(folder, rebuild):
    path, index = folder / shard_name(2), folder / "index.npz"
    kept, wanted, caught = index.read_bytes(), maps_of(identity()), 0
    for position in range(0, path.stat().st_size, 61):  # every third position was tried once: 3,414 flips
        flip(path, position)
        if rebuild:
            index.unlink(missing_ok=True)
        caught += refused(folder, wanted, naming=str(path))
        flip(path, position)
        index.write_bytes(kept)
    assert caught >= 2


@pytest.mark.parametrize("name", ["cache.json", "index.npz"])
def test_no_flipped_byte_of_the_record_or_the_index_changes_what_is_read(folder, name):
    path, wanted, caught = folder / name, maps_of(identity()), 0
    whole = path.read_bytes()
    for position in range(0, len(whole), 31):
        flip(path, position)
        caught += refused(folder, wanted, naming=str(path))
        path.write_bytes(whole)
    assert caught == (0 if name == "index.npz" else pytest.approx(len(whole) / 31, rel=0.3))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"identity": 3}', "[" * 30000])
def test_a_damaged_record_is_one_line_naming_it(folder, content):
    (folder / "cache.json").write_text(content)
    with pytest.raises(InputError, match=r"cache\.json: damaged .*delete .* and rerun extract\.py"):
        FeatureCache(folder)


def test_truncation_at_and_inside_every_block_is_caught_before_any_read(folder):
    path = folder / shard_name(1)
    whole = path.read_bytes()
    for size in sorted({max(0, at + d) for at in range(0, len(whole), 512) for d in (-1, 0, 1)} - {len(whole)}):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"000001.tar: wanted {len(whole)} bytes, found {size}"):
            FeatureCache(folder)


def test_a_missing_shard_is_named(folder):
    (folder / shard_name(1)).unlink()
    with pytest.raises(InputError, match=r"000001.tar: wanted \d+ bytes, found no file"):
        FeatureCache(folder)
    with pytest.raises(InputError, match=r"000001.tar: SHA-256 no file"):
        verify_shards(folder)


@pytest.mark.parametrize("rebuild", [False, True])
def test_swapped_shards_are_caught(folder, rebuild):
    first, second = folder / shard_name(0), folder / shard_name(1)
    one, two = first.read_bytes(), second.read_bytes()
    assert len(one) == len(two), "or the sizes alone would tell"
    first.write_bytes(two)
    second.write_bytes(one)
    if rebuild:
        (folder / "index.npz").unlink()
    with pytest.raises(InputError, match=r"000000.tar"):
        read_all(folder)
    with pytest.raises(InputError, match=r"000000.tar: SHA-256"):
        verify_shards(folder)


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_shard_of_another_cache_is_caught(folder, tmp_path_factory, rebuild):
    other = tmp_path_factory.mktemp("other")
    write(other, identity(weights="ee"), seed=5).close()  # same images, other weights
    (folder / shard_name(1)).write_bytes((other / shard_name(1)).read_bytes())
    if rebuild:
        (folder / "index.npz").unlink()
    with pytest.raises(InputError, match=r"000001.tar"):
        read_all(folder)


@pytest.mark.parametrize(
    "what", ["swapped order", "twice", "missing last", "other shape", "list for ids", "bad number"]
)
def test_a_shard_with_wrong_members_is_refused_when_the_cache_is_finished(tmp_path, what):
    maps, ids = maps_of(identity()), {"image_id": "a", "study_id": "s", "patient_id": "p", "content": "0"}
    ident = identity(num_images=2, per_shard=2)
    writer = ShardWriter(tmp_path, 0)
    numbers = {"swapped order": [1, 0], "twice": [0, 0], "missing last": [0]}.get(what, [0, 1])
    for n in numbers:
        bad: dict = {"content": 5} if what == "list for ids" else {"xxh3": "no number"} if what == "bad number" else {}
        features = maps[n] if what != "other shape" else maps[n].reshape(3, 2, 5)
        if what == "bad number":
            writer.tar.write({"__key__": "zero", "features.npy": b"x"})
        writer.write(n, features, ids | bad)
    writer.close()
    from data.shards import build_index

    with pytest.raises(InputError, match=r"000000.tar"):
        build_index(tmp_path, ident)
