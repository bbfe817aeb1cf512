"""Shards read back what was written, any WebDataset reader can stream them, and no altered byte is ever used."""

import json
import subprocess
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from webdataset.compat import WebDataset

from data.cache import FeatureCache, finish_cache, record_digest
from data.cache_verify import verify
from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.shards import META_KEYS, CacheIdentity, ShardWriter, bytes_per_image, npy_header, shard_name
from data.storage import decode_maps, encode_maps

SHAPE = (2, 3, 5)
RECORD = {"trained_patients": [], "manifest_sha256": "ef" * 32, "versions": {"torch": "9"}}
ODD_IDS = [
    "1.2.840.113654.1",  # WebDataset cuts a key at its first dot
    "1.2.840.113654.2",
    "a/b/../c",
    "with a space ",
    "7" * 50,
    "Größe-图像",
    "twin",
    "Twin",
    "00123",
    'quote"back\\slash',
]


def identity(num_images: int = len(ODD_IDS), per_shard: int = 4, weights: str = "ab", **changes) -> CacheIdentity:
    made_up = CacheIdentity(
        backbone="made up",
        weights_sha256=weights * 32,
        preprocessing={"size": 9, "mean": [0.5]},
        map_shape=SHAPE,
        images_sha256="cd" * 32,
        num_images=num_images,
        images_per_shard=per_shard,
        classes=("Edema", "Hernia"),
    )
    return replace(made_up, **changes)


def maps_of(ident: CacheIdentity, seed: int = 0, variant: int = 0) -> np.ndarray:
    """Maps as float16; what is stored of them is another matter."""
    rng = np.random.default_rng([seed, variant])
    return rng.normal(size=(ident.num_images, *ident.map_shape)).astype(np.float16)


def payloads_of(ident: CacheIdentity, seed: int = 0) -> list[np.ndarray]:
    """Of each variant."""
    maps = [torch.from_numpy(maps_of(ident, seed, variant)) for variant in range(len(ident.variants))]
    return [encode_maps(values, ident.dtype).numpy() for values in maps]


def odd_ids(count: int) -> dict[str, list[str]]:
    numbers = range(count)
    return {
        "image_id": ODD_IDS[:count],
        "study_id": [f"s{n // 2}" for n in numbers],
        "patient_id": ["p" for _ in numbers],
        "content": [f"{n:x}" for n in numbers],
    }


def write(
    folder: Path,
    ident: CacheIdentity | None = None,
    seed: int = 0,
    payloads: list[np.ndarray] | None = None,
    ids: dict[str, list[str]] | None = None,
) -> FeatureCache:
    ident = ident or identity()
    folder.mkdir(parents=True, exist_ok=True)
    payloads, ids = payloads or payloads_of(ident, seed), ids or odd_ids(ident.num_images)
    for number in range(ident.num_shards):
        writer = ShardWriter(folder, number, ident)
        for n in ident.ordinals_of(number):
            writer.write(n, [maps[n] for maps in payloads], {name: column[n] for name, column in ids.items()})
        writer.close()
    finish_cache(folder, ident, RECORD, [sha256_file(folder / shard_name(n)) for n in range(ident.num_shards)])
    return FeatureCache(folder)


def read_all(folder: Path) -> np.ndarray:
    cache = FeatureCache(folder)
    try:
        return cache.read(np.arange(cache.identity.num_images))
    finally:
        cache.close()


def test_what_was_written_is_read_back_in_any_order_with_all_ids(tmp_path):
    cache = write(tmp_path)
    maps = maps_of(identity())
    assert cache.identity == identity()
    assert list(cache.ordinal) == ODD_IDS
    order = np.array([9, 0, 4, 4, 7, 2])
    np.testing.assert_array_equal(cache.read(order), maps[order])
    assert cache.read(np.array([], dtype=int)).shape == (0, *SHAPE)
    assert cache.index.study_id.tolist() == [f"s{n // 2}" for n in range(10)]
    assert cache.index.content.tolist() == [f"{n:x}" for n in range(10)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [shard_name(n) for n in range(3)] + ["cache.json", "index.npz"]
    assert not verify(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("shape", [(1,), (2, 3, 5), (32, 32, 768), (7, 7, 2048), (1, 1, 1)])
def test_the_npy_header_is_numpys_own(tmp_path, shape, dtype):
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype=dtype))
    assert (tmp_path / "a.npy").read_bytes()[: len(npy_header(shape, dtype))] == npy_header(shape, dtype)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_webdataset_and_tar_read_our_shards(tmp_path, dtype):
    ident = identity(variants=("plain", "flip", "augmented_1"), dtype=dtype)
    write(tmp_path, ident)
    urls = [str(tmp_path / shard_name(n)) for n in range(3)]
    samples: list[dict] = list(WebDataset(urls, shardshuffle=False).decode())  # ty: ignore[invalid-argument-type]
    members = ["features.npy", "flip.npy", "augmented_1.npy"]
    for name, payload in zip(members, payloads_of(ident), strict=True):
        np.testing.assert_array_equal(np.stack([s[name] for s in samples]), payload)
    assert [s["json"]["image_id"] for s in samples] == ODD_IDS
    assert all(s["json"].keys() == META_KEYS for s in samples)
    listed = subprocess.run(["tar", "tf", urls[2]], capture_output=True, text=True, check=True).stdout.split()
    assert listed == [f"{n:09d}.{end}" for n in (8, 9) for end in (*members, "json")]


def test_maps_of_every_variant_and_form_are_read_back(tmp_path):
    ident = identity(variants=("plain", "flip"), dtype="uint8")
    cache = write(tmp_path, ident)
    assert cache.identity == ident
    for variant in (0, 1):
        wanted = decode_maps(torch.from_numpy(payloads_of(ident)[variant]), "uint8", SHAPE).numpy()
        np.testing.assert_array_equal(cache.read(np.array([9, 3, 4]), variant), wanted[[9, 3, 4]])
        np.testing.assert_allclose(wanted, maps_of(ident, variant=variant), atol=0.02)


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("shape", [(7, 7, 512), (16, 16, 96), (2, 3, 5)])
def test_the_bytes_of_an_image_are_told_beforehand(tmp_path, dtype, shape):
    ident = identity(map_shape=shape, dtype=dtype, per_shard=10, variants=("plain", "flip"))
    write(tmp_path, ident)
    end_of_tar = 10240  # tar files end at a multiple of it
    foretold = 10 * bytes_per_image(shape, dtype, num_variants=2)
    assert foretold <= (tmp_path / shard_name(0)).stat().st_size < foretold + end_of_tar + 1024


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
@pytest.mark.parametrize("value", [65520.0, -1e6, np.inf, np.nan])
def test_a_map_that_float16_cannot_hold_is_refused_naming_its_image(tmp_path, dtype, value):
    ident = identity(dtype=dtype)
    maps = torch.zeros(1, *SHAPE)
    maps[0, 1, 2, 3] = value
    writer = ShardWriter(tmp_path, 0, ident)
    with pytest.raises(InputError, match=r"image 'b\.7': its map has values beyond float16's 65504, or NaN"):
        writer.write(0, list(encode_maps(maps, dtype).numpy()), {"image_id": "b.7"})
    maps[0, 1, 2, 3] = 65504.0
    writer.write(0, list(encode_maps(maps, dtype).numpy()), {"image_id": "b.7"})
    writer.close()


def test_equal_content_makes_equal_bytes_whatever_the_clock_and_the_user(tmp_path, monkeypatch):
    write(tmp_path / "a")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e7)
    monkeypatch.setenv("USER", "somebody")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    write(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name
    with tarfile.open(tmp_path / "a" / shard_name(0)) as tar:
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}


def test_a_shard_has_its_name_only_when_it_is_complete(tmp_path):
    writer = ShardWriter(tmp_path, 5, identity())
    writer.write(0, [maps_of(identity())[0]], {"image_id": "a", "study_id": "s", "patient_id": "p", "content": "0"})
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-000005.tar"]
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["000005.tar"]


@pytest.mark.parametrize("content", [None, b"", b"PK", b"\x93NUMPY", b"garbage" * 99])
def test_a_missing_or_damaged_index_is_rebuilt(tmp_path, content):
    write(tmp_path).close()
    whole = (tmp_path / "index.npz").read_bytes()
    if content is None:
        (tmp_path / "index.npz").unlink()
    else:
        (tmp_path / "index.npz").write_bytes(content)
    np.testing.assert_array_equal(read_all(tmp_path), maps_of(identity()))
    assert (tmp_path / "index.npz").read_bytes() == whole


def test_the_index_of_another_cache_is_not_used(tmp_path):
    write(tmp_path / "a").close()
    write(tmp_path / "b", seed=1).close()
    (tmp_path / "a" / "index.npz").write_bytes((tmp_path / "b" / "index.npz").read_bytes())
    np.testing.assert_array_equal(read_all(tmp_path / "a"), maps_of(identity()))


def test_a_cache_on_a_read_only_disk_works_without_its_index(tmp_path, monkeypatch):
    write(tmp_path).close()
    (tmp_path / "index.npz").unlink()

    def refuse(*_):
        raise PermissionError(13, "read-only")

    monkeypatch.setattr("data.cache._save_index", refuse)
    np.testing.assert_array_equal(read_all(tmp_path), maps_of(identity()))


def test_without_a_finished_cache_the_next_command_is_named(tmp_path):
    with pytest.raises(InputError, match=r"cache.json: no finished feature cache here; run extract.py first"):
        FeatureCache(tmp_path)


def test_a_cache_of_the_former_format_is_refused_with_the_command_that_repairs_it(tmp_path):
    write(tmp_path).close()
    record = json.loads((tmp_path / "cache.json").read_text().replace('"format_version": 2', '"format_version": 1'))
    atomic_write(tmp_path / "cache.json", json.dumps(record | {"digest": record_digest(record)}))
    with pytest.raises(InputError, match=r"cache format 1, this version reads 2; delete .* and rerun extract\.py"):
        FeatureCache(tmp_path)
