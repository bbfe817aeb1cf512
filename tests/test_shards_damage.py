"""Whatever happens to a cache's bytes: what is read is what was written, or an error names shard and image; and
`verify` names every fault."""

import json

import numpy as np
import pytest

from data.cache import FeatureCache, record_digest
from data.cache_verify import verify
from data.errors import InputError
from data.files import atomic_write
from data.shard_index import build_index
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
            flip(folder / shard_name(0), int(cache.index.offset[n, 0]) + position)
            with pytest.raises(InputError, match="checksum differs") as error:
                cache.read(np.array([3 - n, n] if n != 3 - n else [n]))
            assert repr(ODD_IDS[n]) in str(error.value)
            assert str(folder / shard_name(0)) in str(error.value)
            flip(folder / shard_name(0), int(cache.index.offset[n, 0]) + position)
    np.testing.assert_array_equal(cache.read(np.arange(10)), maps_of(identity()))


def test_damage_to_a_variant_is_named_and_leaves_the_others_readable(tmp_path):
    cache = write(tmp_path, identity(variants=("plain", "flip"), dtype="uint8"))
    flip(tmp_path / shard_name(1), int(cache.index.offset[5, 1]) + 7)
    assert cache.read(np.arange(10)).shape == (10, *SHAPE)
    with pytest.raises(InputError, match=r"000001.tar: the flip map of image 'Größe-图像' is damaged"):
        cache.read(np.arange(10), variant=1)
    (fault,) = verify(tmp_path)
    assert "000001.tar" in fault
    assert "'Größe-图像' (flip)" in fault


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
def test_no_flipped_bit_of_a_shard_changes_what_is_read_and_every_one_is_named_by_verify(folder, rebuild):
    path, index = folder / shard_name(2), folder / "index.npz"
    kept, wanted, caught = index.read_bytes(), maps_of(identity()), 0
    for position in range(0, path.stat().st_size, 67 if rebuild else 61):
        flip(path, position, mask=1 << position % 8)
        if rebuild:
            index.unlink(missing_ok=True)
        caught += refused(folder, wanted, naming=str(path))
        index.write_bytes(kept)
        (fault,) = verify(folder)
        assert fault.startswith(f"{path}: SHA-256 is")
        flip(path, position, mask=1 << position % 8)
    assert caught >= 2
    assert not verify(folder)


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
    (fault,) = verify(folder)
    assert "cache.json: damaged" in fault


def test_an_edited_record_is_refused_even_with_a_fitting_digest(folder):
    record = json.loads((folder / "cache.json").read_text())
    record["shards"][1]["bytes"] -= 512
    (folder / "cache.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="its digest differs from its content"):
        FeatureCache(folder)
    atomic_write(folder / "cache.json", json.dumps(record | {"digest": record_digest(record)}))
    with pytest.raises(InputError, match=r"000001.tar: wanted \d+ bytes, found \d+"):
        FeatureCache(folder)
    record["shards"][1]["bytes"] += 512
    for shards in (record["shards"][:2], record["shards"][::-1], [*record["shards"], {"name": "../secret.tar"}]):
        edited = record | {"shards": shards}
        atomic_write(folder / "cache.json", json.dumps(edited | {"digest": record_digest(edited)}))
        with pytest.raises(InputError, match=r"cache.json: damaged .it lists other shards than its images fill"):
            FeatureCache(folder)
    record["shards"][2]["index_sha256"] = "ab" * 32
    atomic_write(folder / "cache.json", json.dumps(record | {"digest": record_digest(record)}))
    with pytest.raises(InputError, match=r"000002.tar: not the shard that cache.json lists"):
        FeatureCache(folder)
    assert any("000002.tar: its ids or checksums are not those" in fault for fault in verify(folder))


def test_an_edited_index_is_named_by_verify_and_not_used(folder):
    with np.load(folder / "index.npz", allow_pickle=False) as arrays:
        columns = dict(arrays)
    columns["offset"][[0, 1]] = columns["offset"][[1, 0]]
    columns["checksum"][[0, 1]] = columns["checksum"][[1, 0]]  # every map would pass as its neighbour's
    np.savez(folder / "index.npz", **columns)
    (fault,) = verify(folder)
    assert "index.npz: differs from cache.json in 000000.tar" in fault
    np.testing.assert_array_equal(read_all(folder), maps_of(identity()))
    assert not verify(folder), "the reader has rebuilt it"
    (folder / "index.npz").unlink()
    assert "index.npz: missing" in verify(folder)[0]


def test_cuts_at_and_inside_every_block_are_caught_before_any_read_and_by_verify(folder):
    path = folder / shard_name(1)
    whole = path.read_bytes()
    for size in sorted({max(0, at + d) for at in range(0, len(whole), 512) for d in (-1, 0, 1)} - {len(whole)}):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match=rf"000001.tar: wanted {len(whole)} bytes, found {size}"):
            FeatureCache(folder)
        (fault,) = verify(folder)
        assert "000001.tar: SHA-256 is" in fault
        assert f"it has {size} bytes instead of {len(whole)}" in fault


def test_a_missing_shard_is_named(folder):
    (folder / shard_name(1)).unlink()
    with pytest.raises(InputError, match=r"000001.tar: wanted \d+ bytes, found no file"):
        FeatureCache(folder)
    (fault,) = verify(folder)
    assert "000001.tar: missing" in fault


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
    faults = [fault for fault in verify(folder) if "index.npz" not in fault]
    assert len(faults) == 2
    assert "000000.tar: holds 000001.tar: shards were swapped" in faults[0]
    assert "000001.tar: holds 000000.tar: shards were swapped" in faults[1]


@pytest.mark.parametrize("rebuild", [False, True])
def test_a_shard_of_another_cache_is_caught(folder, tmp_path_factory, rebuild):
    other = tmp_path_factory.mktemp("other")
    write(other, identity(weights="ee"), seed=5).close()  # same images, other weights
    (folder / shard_name(1)).write_bytes((other / shard_name(1)).read_bytes())
    if rebuild:
        (folder / "index.npz").unlink()
    with pytest.raises(InputError, match=r"000001.tar"):
        read_all(folder)
    (fault,) = [fault for fault in verify(folder) if "index.npz" not in fault]
    assert "000001.tar: SHA-256 is" in fault
    assert "its ids or checksums are not those that cache.json lists" in fault


def test_verify_names_all_faults_at_once_and_files_that_do_not_belong(folder):
    flip(folder / shard_name(0), 3000)
    (folder / shard_name(1)).unlink()
    (folder / shard_name(7)).write_bytes(b"from elsewhere")
    (folder / "index.npz").write_bytes(b"PK")
    faults = verify(folder)
    for name, words in (
        (shard_name(7), "cache.json does not list it"),
        ("index.npz", "damaged"),
        (shard_name(0), "SHA-256"),
        (shard_name(1), "missing"),
    ):
        assert sum(f"{folder / name}: " in fault and words in fault for fault in faults) == 1
    assert len(faults) == 4


@pytest.mark.parametrize(
    "what",
    [
        *("swapped order", "twice", "missing last", "other shape", "other dtype", "list for ids", "bad number"),
        *("no such fold", "one variant", "three variants", "bad checksum"),
    ],
)
def test_a_shard_with_wrong_members_is_refused_when_the_cache_is_finished(tmp_path, what):
    ident = identity(num_images=2, per_shard=2, variants=("plain", "flip"))
    maps, ids = maps_of(ident), {"image_id": "a", "study_id": "s", "patient_id": "p", "content": "0"}
    variants = {"one variant": ("plain",), "three variants": ("plain", "flip", "augmented_1")}.get(what, ident.variants)
    written = identity(variants=variants, dtype="uint8" if what == "other dtype" else "float16")
    writer = ShardWriter(tmp_path, 0, written)
    numbers = {"swapped order": [1, 0], "twice": [0, 0], "missing last": [0]}.get(what, [0, 1])
    bad: dict = {"list for ids": {"content": 5}, "no such fold": {"fold": 1}}.get(what, {})
    for n in numbers:
        features = maps[n] if what != "other shape" else maps[n].reshape(3, 2, 5)
        if what == "other dtype":
            features = np.zeros(written.payload_shape, dtype=np.uint8)
        if what == "bad number":
            writer.tar.write({"__key__": "zero", "features.npy": b"x"})
        if what == "bad checksum":
            writer.tar.write({"__key__": f"{n:09d}", "features.npy": b"", "json": b'{"xxh3": ["-1"]}'})
        writer.write(n, [features] * len(variants), ids | bad)
    writer.close()
    with pytest.raises(InputError, match=r"000000.tar"):
        build_index(tmp_path, ident)
