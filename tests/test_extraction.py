"""Overlapped extraction writes the bytes of a serial loop, and whatever breaks in any thread ends it at once."""

import errno
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch

from data.cache import FeatureCache, finish_cache
from data.errors import InputError
from data.files import sha256_file
from data.images import ImageError, read_image, read_scaled
from data.order import derive_seed
from data.runs import Log, run_command
from data.shards import CacheIdentity, ShardWriter, shard_name
from data.storage import encode_maps, pool_maps
from data.transforms import Augmentation, Preprocessing
from extract.backbone import Backbone, BackboneConfig
from extract.estimate import pooled
from extract.extraction import Pictures, extract_shards
from extract.writer import Image, plan_batches
from tests.make_data import make_manifest, write_images
from tests.make_state import accelerator  # noqa: F401

SIZE, CHANNELS = 64, 3
PREPROCESSING = Preprocessing(size=SIZE, channels=CHANNELS, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.5))
AUGMENTATION = Augmentation(hflip=0.5, rotate=20.0, translate=0.1, brightness=0.2, contrast=0.3)
FORMS = {
    "float16": {},
    "uint8": {"dtype": "uint8"},
    "pooled": {"pool": 2},
    "pooled uint8 with all variants": {"dtype": "uint8", "pool": 2, "variants": ("plain", "flip", "augmented_1")},
    "flip and two augmented": {"variants": ("plain", "flip", "augmented_1", "augmented_2")},
}


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(3)
    return Backbone(BackboneConfig(name="test_convnext"), CHANNELS).eval()


@pytest.fixture
def images(tmp_path):
    """Seventeen images; the one before the last has the content of the first."""
    manifest = make_manifest(tmp_path / "images", num_studies=9)
    write_images(manifest, size=71)
    count = len(manifest)
    manifest.image_path(count - 2).write_bytes(manifest.image_path(0).read_bytes())
    ids = manifest.images[["image_id", "study_id", "patient_id"]].to_dict("records")
    content = [sha256_file(manifest.image_path(row))[:16] for row in range(count)]
    return [
        Image(manifest.image_path(row), {str(k): str(v) for k, v in ids[row].items()} | {"content": content[row]})
        for row in range(count)
    ]


def identity_of(images, **form) -> CacheIdentity:
    return CacheIdentity(
        backbone="test_convnext",
        weights_sha256="ab" * 32,
        preprocessing=PREPROCESSING.to_dict(),
        map_shape=pooled((2, 2, 64), form.get("pool", 1)),
        images_sha256="cd" * 32,
        num_images=len(images),
        images_per_shard=7,
        classes=("Edema",),
        **form,
    )


def pictures_of(identity: CacheIdentity, seed: int = 5) -> Pictures:
    return Pictures(PREPROCESSING, AUGMENTATION, sum("augmented" in name for name in identity.variants), seed)


def extract(folder, images, identity, backbone, accelerator, *, shards=None, batch_size=3, num_workers=2, log=None):  # noqa: F811
    folder.mkdir(exist_ok=True)
    batches = plan_batches(range(identity.num_shards) if shards is None else shards, identity, batch_size)
    log = log or Log(folder, speaks=False)
    pictures = pictures_of(identity)
    return extract_shards(folder, batches, images, pictures, backbone, identity, accelerator, num_workers, log)


@torch.no_grad()
def serial(folder, images, identity, backbone, batch_size=3, seed=5) -> None:
    """One image after the other, then one batch after the other, in this thread."""
    folder.mkdir()
    backbone.to(memory_format=torch.channels_last)
    for number in range(identity.num_shards):
        writer = ShardWriter(folder, number, identity)
        rows = list(identity.ordinals_of(number))
        for part in (rows[i : i + batch_size] for i in range(0, len(rows), batch_size)):
            payloads = []
            for name in identity.variants:
                views = []
                for row in part:
                    grey = PREPROCESSING.resized(read_image(images[row].path, at_least=SIZE))
                    if name.startswith("augmented"):
                        grey = AUGMENTATION(
                            grey, derive_seed("cache", seed, images[row].ids["content"], int(name.split("_")[1]))
                        )
                    views.append(PREPROCESSING.normalised(grey.flip(-1) if name == "flip" else grey))
                maps = backbone(torch.stack(views).contiguous(memory_format=torch.channels_last))
                maps = pool_maps(maps) if identity.pool == 2 else maps
                payloads.append(encode_maps(maps, identity.dtype).numpy())
            for n, row in enumerate(part):
                writer.write(row, [np.ascontiguousarray(payload[n]) for payload in payloads], images[row].ids)
        writer.close()


def shard_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("decoder", "shard writer"))]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("num_workers", [0, 3])
def test_the_bytes_are_those_of_a_serial_loop(tmp_path, images, backbone, accelerator, form, num_workers):  # noqa: F811
    identity = identity_of(images, **FORMS[form])
    serial(tmp_path / "serial", images, identity, backbone)
    digests = extract(tmp_path / "a", images, identity, backbone, accelerator, num_workers=num_workers)
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "serial")
    assert digests == {n: sha256_file(tmp_path / "serial" / shard_name(n)) for n in range(3)}
    assert not own_threads()


@pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
def test_batches_of_any_size_stay_within_a_shard(tmp_path, images, backbone, accelerator, batch_size):  # noqa: F811
    identity = identity_of(images)
    batches = plan_batches(range(identity.num_shards), identity, batch_size)
    assert [n for batch in batches for n in batch.ordinals] == list(range(len(images)))
    assert all(batch.shard == n // 7 for batch in batches for n in batch.ordinals)
    assert [batch.ends_shard for batch in batches] == [
        batch is [b for b in batches if b.shard == batch.shard][-1] for batch in batches
    ]
    serial(tmp_path / "serial", images, identity, backbone, batch_size)
    extract(tmp_path / "a", images, identity, backbone, accelerator, batch_size=batch_size)
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "serial")


def test_shares_of_several_processes_make_the_same_shards(tmp_path, images, backbone, accelerator):  # noqa: F811
    identity = identity_of(images)
    extract(tmp_path / "one", images, identity, backbone, accelerator)
    for rank in range(2):
        extract(tmp_path / "two", images, identity, backbone, accelerator, shards=range(rank, 3, 2))
    assert extract(tmp_path / "two", images, identity, backbone, accelerator, shards=[]) == {}
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "two")


def test_variants_are_maps_of_the_mirrored_and_of_reproducibly_augmented_images(
    tmp_path,
    images,
    backbone,
    accelerator,  # noqa: F811
):
    identity = identity_of(images, variants=("plain", "flip", "augmented_1", "augmented_2"))
    digests = extract(tmp_path / "a", images, identity, backbone, accelerator)
    finish_cache(tmp_path / "a", identity, {"trained_patients": []}, [digests[n] for n in sorted(digests)])
    cache = FeatureCache(tmp_path / "a")
    first, twin = (np.stack([cache.read(np.array([n]), variant=v)[0] for v in range(4)]) for n in (0, len(images) - 2))
    np.testing.assert_array_equal(first, twin)  # same content, other ids: same augmentation
    assert len({variant.tobytes() for variant in first}) == 4
    grey = PREPROCESSING.resized(read_image(images[3].path, at_least=SIZE)).flip(-1)
    with torch.no_grad():
        expected = backbone(PREPROCESSING.normalised(grey)[None])[0]
    np.testing.assert_allclose(cache.read(np.array([3]), variant=1)[0], expected, rtol=2e-3, atol=2e-3)
    cache.close()


@pytest.mark.parametrize("broken", [0, 8, 16])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_ends_the_run_by_name_and_finished_shards_stay(
    tmp_path,
    images,
    backbone,
    accelerator,  # noqa: F811
    broken,
    num_workers,
):
    identity = identity_of(images)
    extract(tmp_path / "whole", images, identity, backbone, accelerator)
    content = images[broken].path.read_bytes()
    images[broken].path.write_bytes(content[:200])
    with pytest.raises(ImageError, match=images[broken].path.name):
        extract(tmp_path / "a", images, identity, backbone, accelerator, num_workers=num_workers)
    assert not own_threads()
    left = shard_bytes(tmp_path / "a")
    assert left.items() <= shard_bytes(tmp_path / "whole").items()
    images[broken].path.write_bytes(content)
    missing = [n for n in range(3) if shard_name(n) not in left]
    extract(tmp_path / "a", images, identity, backbone, accelerator, shards=missing)
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "whole")


def test_any_other_failure_of_a_decoder_names_its_image_too(tmp_path, images, backbone, accelerator, monkeypatch):  # noqa: F811
    def fail(path, at_least):
        if path == images[5].path:
            raise MemoryError
        return read_scaled(path, at_least)

    monkeypatch.setattr("extract.extraction.read_scaled", fail)
    with pytest.raises(MemoryError) as caught:
        extract(tmp_path / "a", images, identity_of(images), backbone, accelerator)
    assert caught.value.__notes__ == [f"while decoding image {images[5].ids['image_id']!r}"]
    assert not own_threads()


@pytest.mark.parametrize("point", [("write", 0), ("write", 5), ("write", 7), ("write", 16), ("close", 0), ("close", 2)])
def test_a_full_disk_is_one_line_and_the_next_run_ends_with_the_same_bytes(
    tmp_path,
    images,
    backbone,
    accelerator,  # noqa: F811
    monkeypatch,
    capsys,
    point,
):
    identity = identity_of(images)
    extract(tmp_path / "whole", images, identity, backbone, accelerator)
    method, after = point
    real, calls = getattr(ShardWriter, method), []

    def full(*arguments):
        calls.append(0)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(ShardWriter, method, full)
    with pytest.raises(SystemExit) as exit:
        run_command(lambda: extract(tmp_path / "a", images, identity, backbone, accelerator))
    assert exit.value.code == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    number = after // 7 if method == "write" else after
    assert f"{shard_name(number)}: No space left on device; run the same command again" in line
    assert sorted(shard_bytes(tmp_path / "a")) == [shard_name(n) for n in range(number)], "room is given back"
    assert not own_threads()
    monkeypatch.setattr(ShardWriter, method, real)
    extract(tmp_path / "a", images, identity, backbone, accelerator, shards=range(number, 3))
    assert shard_bytes(tmp_path / "a") == shard_bytes(tmp_path / "whole")


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_a_map_that_no_cache_can_hold_is_refused_naming_its_image(tmp_path, images, accelerator, dtype):  # noqa: F811
    torch.manual_seed(3)
    backbone = Backbone(BackboneConfig(name="test_convnext"), CHANNELS)
    with torch.no_grad():
        for weight in backbone.parameters():
            weight.mul_(1e8)
    with pytest.raises(InputError, match=rf"image '{images[0].ids['image_id']}'.*float16"):
        extract(tmp_path / "a", images, identity_of(images, dtype=dtype), backbone, accelerator)
    assert not shard_bytes(tmp_path / "a")
    assert not own_threads()


@pytest.mark.parametrize("stop_at", [0, 2, 5])
def test_a_signal_ends_all_threads_and_leaves_whole_shards_only(tmp_path, images, backbone, accelerator, stop_at):  # noqa: F811
    class Stopping(Log):
        def progress(self, items, description, total=None):
            for n, item in enumerate(items):
                if n == stop_at:
                    raise SystemExit(143)
                yield item

    identity = identity_of(images)
    extract(tmp_path / "whole", images, identity, backbone, accelerator)
    with pytest.raises(SystemExit):
        extract(
            tmp_path / "a", images, identity, backbone, accelerator, log=Stopping(tmp_path, speaks=False), num_workers=1
        )
    assert not own_threads()
    assert shard_bytes(tmp_path / "a").items() <= shard_bytes(tmp_path / "whole").items()


def test_the_number_of_torch_threads_is_left_alone(tmp_path, images, backbone, accelerator):  # noqa: F811
    def of_a_new_thread() -> list[int]:
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        return found

    number = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        extract(tmp_path / "a", images, identity_of(images), backbone, accelerator)
        assert torch.get_num_threads() == 2
        assert of_a_new_thread() == [2]
    finally:
        torch.set_num_threads(number)


def test_another_seed_augments_in_another_way(images):
    identity = identity_of(images, variants=("plain", "augmented_1"))
    a, b, c = (torch.empty(2, 1, SIZE, SIZE) for _ in range(3))
    pictures_of(identity, seed=5).decode(images[0], a)
    pictures_of(identity, seed=6).decode(images[0], b)
    replace(pictures_of(identity), seed=5).decode(images[0], c)
    assert torch.equal(a[0], b[0])
    assert not torch.equal(a[1], b[1])
    assert torch.equal(a, c)
