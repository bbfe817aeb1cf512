"""Shards read back what was written, any WebDataset reader can stream them, and no altered byte is ever used."""

import json
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from webdataset.compat import WebDataset

from data.cache import FeatureCache, finish_cache, verify_shards
from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.shards import META_KEYS, CacheIdentity, ShardWriter, npy_header, shard_name

SHAPE = (2, 3, 5)
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


def identity(num_images: int = len(ODD_IDS), per_shard: int = 4, weights: str = "ab") -> CacheIdentity:
    return CacheIdentity(
        backbone="made up",
        weights_sha256=weights * 32,
        preprocessing={"size": 9, "mean": [0.5]},
        map_shape=SHAPE,
        images_sha256="cd" * 32,
        num_images=num_images,
        images_per_shard=per_shard,
        classes=("Edema", "Hernia"),
    )


def maps_of(ident: CacheIdentity, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ident.num_images, *SHAPE)).astype(np.float16)


def write(folder: Path, ident: CacheIdentity | None = None, seed: int = 0) -> FeatureCache:
    ident = ident or identity()
    folder.mkdir(parents=True, exist_ok=True)
    maps = maps_of(ident, seed)
    for number in range(ident.num_shards):
        writer = ShardWriter(folder, number)
        for n in range(number * ident.images_per_shard, min((number + 1) * ident.images_per_shard, len(maps))):
            writer.write(
                n, maps[n], {"image_id": ODD_IDS[n], "study_id": f"s{n // 2}", "patient_id": "p", "content": f"{n:x}"}
            )
        writer.close()
    finish_cache(
        folder, ident, {"trained_patients": []}, [sha256_file(folder / shard_name(n)) for n in range(ident.num_shards)]
    )
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
    verify_shards(tmp_path)


@pytest.mark.parametrize("shape", [(1,), (2, 3, 5), (32, 32, 768), (7, 7, 2048), (1, 1, 1)])
def test_the_npy_header_is_numpys_own(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape, dtype="<f2"))
    assert (tmp_path / "a.npy").read_bytes()[: len(npy_header(shape))] == npy_header(shape)


def test_webdataset_and_tar_read_our_shards(tmp_path):
    write(tmp_path)
    urls = [str(tmp_path / shard_name(n)) for n in range(3)]
    samples: list[dict] = list(WebDataset(urls, shardshuffle=False).decode())  # ty: ignore[invalid-argument-type]
    np.testing.assert_array_equal(np.stack([s["features.npy"] for s in samples]), maps_of(identity()))
    assert [s["json"]["image_id"] for s in samples] == ODD_IDS
    assert all(s["json"].keys() == META_KEYS for s in samples)
    listed = subprocess.run(["tar", "tf", urls[2]], capture_output=True, text=True, check=True).stdout.split()
    assert listed == [f"{n:09d}.{end}" for n in (8, 9) for end in ("features.npy", "json")]


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
    writer = ShardWriter(tmp_path, 5)
    writer.write(0, maps_of(identity())[0], {"image_id": "a", "study_id": "s", "patient_id": "p", "content": "0"})
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


def test_another_format_is_refused(tmp_path):
    write(tmp_path).close()
    text = (tmp_path / "cache.json").read_text().replace('"format_version": 1', '"format_version": 2')
    record = json.loads(text)
    from data.cache import record_digest

    atomic_write(tmp_path / "cache.json", json.dumps(record | {"digest": record_digest(record)}))
    with pytest.raises(InputError, match="cache format 2, this version reads 1"):
        FeatureCache(tmp_path)
