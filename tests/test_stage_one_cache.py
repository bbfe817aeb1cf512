"""What decides whether cached work is kept: the identity of the maps, and the patients that the backbone saw."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data.golden
import extract.cache
from data.cache import FeatureCache
from data.cache_tools import main as cache_command
from data.errors import InputError
from data.files import sha256_file
from data.manifest import Manifest
from data.runs import Log
from data.shard_index import is_whole_shard
from data.shards import patient_hash, shard_name
from data.transforms import Augmentation, Preprocessing
from extract.backbone import BackboneConfig, ImageClassifier
from extract.cache import begin, keep_training_data, provenance, refuse_new_split, write_cache
from extract.checkpoint import load_tensors, save_folder
from extract.config import CacheConfig, ExtractConfig
from extract.heads import HeadConfig
from tests.make_data import make_manifest, write_images
from tests.make_state import accelerator  # noqa: F401
from tests.test_shards import identity

ROOT = Path(__file__).resolve().parents[1]


def with_splits(manifest: Manifest, swap: dict[str, str]) -> Manifest:
    frame = manifest.images.copy()
    frame["split"] = [swap.get(split, split) for split in frame["split"]]
    return Manifest(frame, manifest.labels, manifest.classes, manifest.root)


@pytest.fixture
def manifest(tmp_path):
    return make_manifest(tmp_path)


def keep(folder, manifest, finished):
    keep_training_data(folder, manifest.of_split("train"), manifest.of_split("val"), finished=finished)


def test_training_goes_on_with_the_same_data_only(tmp_path, manifest):
    keep(tmp_path, manifest, finished=False)
    keep(tmp_path, manifest, finished=False)
    relabelled = Manifest(manifest.images, 1 - manifest.labels, manifest.classes, manifest.root)
    for other in (
        relabelled,
        with_splits(manifest, {"train": "val", "val": "train"}),
        manifest.select(np.arange(5, 50)),
    ):
        with pytest.raises(
            InputError, match=r"data\.json: this training was begun with other images, labels or splits"
        ):
            keep(tmp_path, other, finished=False)
    keep(tmp_path, relabelled, finished=True)  # maps do not depend on labels


def test_a_patient_once_trained_on_is_never_held_out_later_even_when_the_cache_is_made_anew(tmp_path, manifest):
    keep(tmp_path, manifest, finished=False)
    refuse_new_split(tmp_path, manifest)
    swapped = with_splits(manifest, {"train": "test", "test": "train"})
    first = min(manifest.of_split("train").images["patient_id"])
    with pytest.raises(InputError, match=rf"trained on in .*, first {first}; the split changed"):
        refuse_new_split(tmp_path, swapped)
    recorded = provenance(tmp_path, swapped, identity())["trained_patients"]
    assert recorded == sorted(
        patient_hash(p, identity().weights_sha256) for p in manifest.of_split("train").images["patient_id"].unique()
    )
    assert not set(recorded) & set(manifest.images["patient_id"]), "no patient stands there by name"


PREPROCESSING = Preprocessing(size=64)
TINY = ExtractConfig(
    num_workers=0,
    image=PREPROCESSING,
    augmentation=Augmentation(rotate=10.0),
    backbone=BackboneConfig(name="test_convnext"),
    head=HeadConfig(width=16, num_heads=2),
    cache=CacheConfig(batch_size=4, augmented=1),
)


def save_best(config: ExtractConfig, num_classes: int) -> None:
    """A model folder with random weights."""
    torch.manual_seed(1)
    model = ImageClassifier(config.backbone, config.head, config.image.channels, num_classes)
    save_folder(config.run_dir / "stage_one" / "best", {"model.safetensors": model.state_dict()})


def content_of(manifest: Manifest) -> list[str]:
    return [sha256_file(manifest.image_path(row))[:16] for row in range(len(manifest))]


def cache(config: ExtractConfig, manifest: Manifest, accelerator) -> None:  # noqa: F811
    write_cache(config, manifest, content_of(manifest), accelerator, Log(config.run_dir, speaks=False))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run folder with a finished cache, and its manifest."""
    run_dir = tmp_path_factory.mktemp("run")
    manifest = make_manifest(run_dir / "images", num_studies=8)
    write_images(manifest)
    config = replace(TINY, run_dir=run_dir)
    save_best(config, 3)
    keep(run_dir / "stage_one", manifest, finished=True)
    from accelerate import Accelerator

    cache(config, manifest, Accelerator(cpu=True))
    return run_dir, manifest


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may change."""
    run_dir, manifest = made
    shutil.copytree(run_dir, tmp_path / "moved")
    return replace(TINY, run_dir=tmp_path / "moved"), replace(manifest, root=tmp_path / "moved" / "images")


def flip_a_bit(config, manifest):
    weights = load_tensors(config.run_dir / "stage_one/best/model.safetensors")
    first = min(weights)
    weights[first].view(torch.int32).flatten()[0] ^= 1
    save_folder(config.run_dir / "stage_one" / "best", {"model.safetensors": weights})
    return config, manifest


def with_model(**changes):
    """Another architecture, whose weights are other ones, too."""

    def change(config, manifest):
        config = replace(config, **changes)
        save_best(config, len(manifest.classes))
        return config, manifest

    return change


def with_image(**changes):
    return lambda config, manifest: (replace(config, image=replace(config.image, **changes)), manifest)


def with_cache(**changes):
    return lambda config, manifest: (replace(config, cache=replace(config.cache, **changes)), manifest)


def with_rows(rows):
    return lambda config, manifest: (config, manifest.select(rows(len(manifest))))


def with_id(column):
    def change(config, manifest):
        frame = manifest.images.copy()
        frame.loc[frame["image_id"] == "i003.0", column] = "elsewhere"
        return config, Manifest(frame, manifest.labels, manifest.classes, manifest.root)

    return change


def added(config, manifest):
    frame = manifest.images.copy()
    frame.loc[len(frame)] = frame.iloc[0].to_dict() | {"image_id": "new"}
    return config, Manifest(frame, np.vstack([manifest.labels, manifest.labels[:1]]), manifest.classes, manifest.root)


def other_pixels(config, manifest):
    path = manifest.root / "i003.0.png"
    path.write_bytes((manifest.root / "i004.0.png").read_bytes())
    return config, manifest


def edited_record(**changes):
    def change(config, manifest):
        path = config.run_dir / "cache" / "cache.json"
        record = json.loads(path.read_text())
        record["identity"] |= changes
        path.write_text(json.dumps(record | {"digest": data.cache.record_digest(record)}))
        return config, manifest

    return change


def other_classes(config, manifest):
    return config, Manifest(manifest.images, manifest.labels, ("Edema", "Nodule", "Mass"), manifest.root)


ANEW = r"to make it anew: rm -r \S+moved/cache, then the same command again"
CHANGES = {
    "one bit of the weights": (flip_a_bit, r"another weights of the backbone \(\w{12}, now \w{12}\); " + ANEW),
    "backbone": (with_model(backbone=BackboneConfig(name="test_resnet")), r"backbone \(test_convnext, now test_resnet"),
    "input size": (with_image(size=96), r"preprocessing.size 64, now 96\); " + ANEW),
    "resize mode": (with_image(resize="fit"), "preprocessing.resize stretch, now fit"),
    "intensity": (with_image(intensity="percentile"), "preprocessing.intensity full, now percentile"),
    "mean": (with_image(mean=(0.4,)), r"preprocessing.mean \[0.5\], now \[0.4\]"),
    "std": (with_image(std=(0.2,)), r"preprocessing.std \[0.25\], now \[0.2\]"),
    "channels": (
        with_model(image=Preprocessing(size=64, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)),
        "preprocessing.channels 1, now 3",
    ),
    "dtype": (
        with_cache(dtype="uint8"),
        r"another cache.dtype \(float16, now uint8\); to keep it: --cache.dtype float16; to change it:"
        r" python scripts/cache.py convert \S+cache --replace --dtype uint8$",
    ),
    "pooling": (with_cache(pool=2), r"cache.pool \(1, now 2\); .* --replace --dtype float16 --pool 2$"),
    "pooling and dtype": (with_cache(pool=2, dtype="uint8"), r"float16, now uint8.*1, now 2.* --dtype uint8 --pool 2$"),
    "flip": (with_cache(flip=True), r"maps per image \(\[\"plain\", \"augmented_1\"\], now \[\"plain\", \"flip\""),
    "augmented maps": (with_cache(augmented=0), r"maps per image .*; another augmentation .*; " + ANEW),
    "augmentation": (
        lambda config, manifest: (replace(config, augmentation=Augmentation(rotate=20.0)), manifest),
        r"augmentation.rotate 10.0, now 20.0",
    ),
    "seed of the augmentation": (
        lambda config, manifest: (replace(config, seed=4), manifest),
        r"augmentation.seed 0, now 4",
    ),
    "shard size": (with_cache(shard_megabytes=1), r"images per shard \(cache.shard_megabytes\) \(\d+, now \d+"),
    "an image more": (added, r"other images \(1 added, first 'new'\); " + ANEW),
    "images less": (with_rows(lambda n: np.arange(2, n)), r"other images \(2 gone, first 'i000.0'\)"),
    "pixels of an image": (other_pixels, r"other images \(1 with other pixels, first 'i003.0'\)"),
    "study of an image": (with_id("study_id"), r"other images \(1 with another study_id, first 'i003.0'\)"),
    "patient of an image": (with_id("patient_id"), r"other images \(1 with another patient_id, first 'i003.0'\)"),
    "classes": (other_classes, r"classes of the backbone .*Hernia.*, now .*Mass"),
    "cache format": (edited_record(format_version=1), r"cache format 1, this version reads \d; delete .* and rerun"),
    "golden decode": (
        edited_record(golden_decode="ab" * 32),
        r"decoding of the test picture \(abababababab, now \w{12}: no version changed\); install the former",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_stale_cache_is_refused_naming_what_differs_and_what_repairs_it(run, accelerator, name):  # noqa: F811
    change, message = CHANGES[name]
    config, manifest = change(*run)
    before = {path.name: path.read_bytes() for path in (config.run_dir / "cache").iterdir()}
    with pytest.raises(InputError, match=message) as refusal:
        cache(config, manifest, accelerator)
    assert "\n" not in str(refusal.value)
    assert str(config.run_dir / "cache") in str(refusal.value)
    assert {path.name: path.read_bytes() for path in (config.run_dir / "cache").iterdir()} == before


@pytest.mark.parametrize("name", ["one bit of the weights", "input size", "dtype", "images less", "classes"])
def test_an_unfinished_cache_is_refused_for_the_same_reasons(run, accelerator, name):  # noqa: F811
    config, _ = run
    folder = config.run_dir / "cache"
    plan = FeatureCache(folder).identity.to_dict()
    (folder / "cache.json").unlink()
    (folder / "plan.json").write_text(json.dumps(plan))
    config, manifest = CHANGES[name][0](*run)
    with pytest.raises(InputError, match="this cache was made with"):
        cache(config, manifest, accelerator)
    assert (folder / shard_name(0)).exists()


def relabelled(config, manifest):
    return config, Manifest(manifest.images, 1 - manifest.labels, manifest.classes, manifest.root)


def reordered(config, manifest):
    return config, manifest.select(np.random.default_rng(0).permutation(len(manifest)))


HARMLESS = {
    "a moved run folder": lambda config, manifest: (config, manifest),
    "corrected labels": relabelled,
    "training patients moved to no split": lambda c, m: (c, with_splits(m, {"val": "train", "test": "train"})),
    "rows in another order": reordered,
    "decoding threads and batch size": lambda c, m: (replace(with_cache(batch_size=3)(c, m)[0], num_workers=3), m),
    "training options": lambda c, m: (replace(c, epochs=7, batch_size=9, ema_decay=0.5), m),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_maps_do_not_depend_on_may_change(run, accelerator, name, monkeypatch):  # noqa: F811
    monkeypatch.setattr(extract.cache, "extract_shards", lambda *_: pytest.fail("maps are made again"))
    config, manifest = HARMLESS[name](*run)
    before = {path.name: path.read_bytes() for path in (config.run_dir / "cache").iterdir()}
    cache(config, manifest, accelerator)
    assert {path.name: path.read_bytes() for path in (config.run_dir / "cache").iterdir()} == before


def test_a_changed_decoder_is_named_with_its_versions(run, accelerator, monkeypatch):  # noqa: F811
    config, manifest = run
    path = config.run_dir / "cache" / "cache.json"
    record = json.loads(path.read_text())
    assert record["versions"].keys() == set(data.golden.DECODERS)
    record["versions"]["simplejpeg"] = "1.0.0"
    path.write_text(json.dumps(record | {"digest": data.cache.record_digest(record)}))
    cache(config, manifest, accelerator)  # another version alone is no reason
    monkeypatch.setattr(extract.cache, "golden_decode", lambda: "ef" * 32)
    with pytest.raises(InputError, match=r"test picture \(\w{12}, now efefefefefef: simplejpeg 1.0.0, now"):
        cache(config, manifest, accelerator)


PRINT_IDENTITY = """
import sys, numpy as np
from data.config import parse_config
from data.manifest import read_manifest
from extract.cache import cache_identity
from extract.config import ExtractConfig
config, _ = parse_config(ExtractConfig, None, sys.argv[1:3])
images = read_manifest(config.run_dir / "manifest.csv").images[["image_id", "study_id", "patient_id"]]
print(cache_identity(config, (2, 3, 5), images.assign(content="ab"), ("Edema",)).to_dict())
"""


@pytest.mark.slow
def test_identity_does_not_depend_on_hash_seed_language_time_zone_or_comments(run):
    from data.manifest import write_manifest

    config, manifest = run
    write_manifest(manifest, config.run_dir / "manifest.csv")
    found = []
    for number, (seed, language, zone) in enumerate([("0", "C", "UTC"), ("7", "de_DE.UTF-8", "Pacific/Kiritimati")]):
        path = config.run_dir / f"{number}.yaml"
        path.write_text(f"# comment {number}\n" * number + f"run_dir: {config.run_dir}\nimage: {{size: 64}}\n")
        environment = os.environ | {"PYTHONHASHSEED": seed, "LANG": language, "LC_ALL": language, "TZ": zone}
        command = [sys.executable, "-c", PRINT_IDENTITY, "--config", str(path)]
        run_ = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert run_.returncode == 0, run_.stderr
        found.append(run_.stdout)
    assert found[0] == found[1]
    assert "test_convnext" not in found[0]


def test_whole_shards_of_the_same_plan_are_kept_and_damaged_ones_made_anew(run, accelerator):  # noqa: F811
    config, manifest = run
    config = replace(config, cache=replace(config.cache, shard_megabytes=1, augmented=0))
    folder = config.run_dir / "cache"
    shutil.rmtree(folder)
    cache(config, manifest, accelerator)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(list(folder.glob("*.tar"))) >= 1
    plan = FeatureCache(folder).identity.to_dict()
    (folder / "cache.json").unlink()
    (folder / "plan.json").write_text(json.dumps(plan))
    (folder / ".tmp-000002.tar").write_bytes(b"part")
    cut = folder / shard_name(0)
    cut.write_bytes(cut.read_bytes()[:1536])
    cache(config, manifest, accelerator)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("megabytes", [1, 2, 256])
def test_the_command_that_a_refusal_names_makes_the_cache_that_is_wanted(run, accelerator, megabytes):  # noqa: F811
    config, manifest = run
    folder = config.run_dir / "cache"
    shutil.rmtree(folder)
    config = replace(config, cache=replace(config.cache, shard_megabytes=megabytes, augmented=0))
    cache(config, manifest, accelerator)
    changed = replace(config, cache=replace(config.cache, dtype="uint8"))
    with pytest.raises(InputError, match="to change it: ") as refusal:
        cache(changed, manifest, accelerator)
    words = shlex.split(str(refusal.value).partition("to change it: python scripts/cache.py ")[2])
    assert ("--shard_megabytes" in words) == (megabytes != 256)
    cache_command(words)
    cache(changed, manifest, accelerator)


def test_shards_of_which_nobody_knows_what_made_them_are_not_kept(run):
    config, manifest = run
    folder = config.run_dir / "cache"
    wanted = FeatureCache(folder).identity
    images = manifest.images.assign(content=content_of(manifest))
    assert is_whole_shard(folder, 0, wanted)
    (folder / "cache.json").unlink()
    forms = extract.cache.storage_forms(wanted, wanted.map_shape)
    begin(folder, wanted, images, forms, Log(folder, speaks=False))
    assert not list(folder.glob("*.tar"))
