"""The command for caches: what it tells, what it makes, and that going on, replacing and refusing are safe."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import data.cache_convert
import data.cache_rewrite
from data.cache import FeatureCache
from data.cache_convert import coding_error, convert, convert_in_place
from data.cache_merge import merge
from data.cache_tools import describe, main
from data.cache_verify import verify
from data.errors import InputError
from data.shards import CacheIdentity, patient_hash, shard_name
from data.storage import encode_maps, pool_maps
from tests.make_data import make_cache, make_manifest
from tests.test_shards import ODD_IDS, RECORD, identity, maps_of, write
from tests.test_shards_damage import flip

SHAPE = (5, 3, 70)
ROOT = Path(__file__).resolve().parents[1]


def sparse_cache(folder: Path, **changes) -> FeatureCache:
    """Maps as after a ReLU, most of them zero."""
    ident = identity(map_shape=(9, 9, 64), **changes)
    maps = [maps_of(ident, variant=variant) for variant in range(len(ident.variants))]
    sparse = [torch.from_numpy(np.where(m > 1.3, m, np.float16(0))) for m in maps]
    return write(folder, ident, payloads=[encode_maps(m, ident.dtype).numpy() for m in sparse])


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("0*.tar")}


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_a_converted_cache_has_the_bytes_of_one_written_in_that_form(tmp_path, dtype, pool):
    if (dtype, pool) == ("float16", 1):
        return
    source = write(tmp_path / "source", identity(map_shape=SHAPE, variants=("plain", "flip")))
    converted = convert(tmp_path / "source", tmp_path / "target", dtype=dtype, pool=pool, shard_megabytes=1)
    shape = (3, 2, 70) if pool == 2 else SHAPE
    assert converted == replace(
        source.identity, dtype=dtype, pool=pool, map_shape=shape, images_per_shard=converted.images_per_shard
    )
    maps = [torch.from_numpy(maps_of(source.identity, variant=variant)) for variant in (0, 1)]
    pooled = [pool_maps(m) if pool == 2 else m for m in maps]
    write(tmp_path / "direct", converted, payloads=[encode_maps(m, dtype).numpy() for m in pooled])
    assert shards_of(tmp_path / "target") == shards_of(tmp_path / "direct")
    assert not verify(tmp_path / "target")
    record = FeatureCache(tmp_path / "target").record
    assert record["rewritten_from"] == [source.record["digest"]]
    assert {key: record[key] for key in RECORD} == RECORD
    assert list(FeatureCache(tmp_path / "target").ordinal) == ODD_IDS


@pytest.mark.parametrize("pool", [1, 2])
def test_the_error_of_uint8_that_convert_tells_is_that_of_the_maps(tmp_path, pool, capsys):
    write(tmp_path / "source", identity(map_shape=SHAPE))
    options = ["convert", str(tmp_path / "source"), "--target"]
    main([*options, str(tmp_path / "exact"), "--pool", "2"])
    main([*options, str(tmp_path / "coded"), "--dtype", "uint8", "--pool", str(pool)])
    exact = FeatureCache(tmp_path / ("exact" if pool == 2 else "source"))
    exact, coded = (c.read(np.arange(len(ODD_IDS))).astype(float) for c in (exact, FeatureCache(tmp_path / "coded")))
    error = np.sqrt(np.square(coded - exact).mean() / np.square(exact).mean())
    assert f"uint8 is off by {error:.2%} (" in capsys.readouterr().out
    with pytest.raises(InputError, match="coded already"):
        coding_error(tmp_path / "coded")


@pytest.mark.parametrize("dtype", ["float16", "uint8"])
def test_zstd_gives_the_same_maps_from_fewer_bytes_and_back_the_same_shards(tmp_path, dtype):
    source = sparse_cache(tmp_path / "source", dtype=dtype, variants=("plain", "flip"))
    convert(tmp_path / "source", tmp_path / "zstd", compression="zstd")
    packed = FeatureCache(tmp_path / "zstd")
    order = np.random.default_rng(0).permutation(10)
    for variant in (0, 1):
        np.testing.assert_array_equal(packed.read(order, variant), source.read(order, variant))
    streamed = [s.clone() for _, s in packed.stream([(0, order, np.zeros(10, dtype=int))] * 4)]
    for stored in streamed:
        assert torch.equal(stored, source.read_stored(order, np.zeros(10, dtype=int)))
    sizes = [sum(shard["bytes"] for shard in cache.record["shards"]) for cache in (packed, source)]
    assert sizes[0] < 0.7 * sizes[1]
    assert not verify(tmp_path / "zstd")
    listed = subprocess.run(
        ["tar", "tf", tmp_path / "zstd" / shard_name(0)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed[:3] == ["000000000.features.npy.zst", "000000000.flip.npy.zst", "000000000.json"]
    convert(tmp_path / "zstd", tmp_path / "plain", compression="none")
    convert(tmp_path / "source", tmp_path / "again", compression="zstd")
    assert shards_of(tmp_path / "again") == shards_of(tmp_path / "zstd")
    np.testing.assert_array_equal(FeatureCache(tmp_path / "plain").read(order), source.read(order))


def test_damage_to_compressed_maps_is_caught_before_they_are_decompressed(tmp_path):
    sparse_cache(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "zstd", compression="zstd")
    cache = FeatureCache(tmp_path / "zstd")
    flip(cache.folder / shard_name(0), int(cache.index.offset[3, 0]) + 20)
    with pytest.raises(InputError, match=r"000000.tar: the map of image 'with a space ' is damaged"):
        cache.read(np.arange(10))
    assert "'with a space ' (plain)" in verify(cache.folder)[0]


def test_zstd_is_refused_with_the_ratio_where_it_does_not_pay(tmp_path):
    write(tmp_path / "source", identity(map_shape=SHAPE))
    with pytest.raises(InputError, match=r"zstd leaves 9\d% of these maps' bytes, and pays at 90% at most"):
        convert(tmp_path / "source", tmp_path / "zstd", compression="zstd")
    assert not (tmp_path / "zstd").exists()


def test_what_cannot_be_converted_is_refused(tmp_path):
    write(tmp_path / "uint8", identity(dtype="uint8"))
    write(tmp_path / "pooled", identity(pool=2))
    for source, options, words in (
        ("uint8", {"dtype": "float16"}, "their float16 values are gone"),
        ("uint8", {"pool": 2}, "their float16 values are gone"),
        ("uint8", {"dtype": "uint8"}, "it has this form already"),
        ("uint8", {}, "it has this form already"),
        ("pooled", {"pool": 2}, "pooled already"),
        ("nothing", {"pool": 2}, "no finished feature cache here"),
    ):
        with pytest.raises(InputError, match=words):
            convert(tmp_path / source, tmp_path / "target", **options)
    assert not (tmp_path / "target").exists()


class Killed(BaseException):
    pass


def die_at(monkeypatch, module, name, call):
    """Let the `call`-th call of a function end the process."""
    real, calls = getattr(module, name), []

    def dying(*arguments, **options):
        calls.append(0)
        if len(calls) == call:
            raise Killed
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, dying)


@pytest.mark.parametrize("call", [1, 3, 6, 10])
def test_a_killed_conversion_goes_on_to_the_same_bytes(tmp_path, monkeypatch, call):
    source = tmp_path / "source"
    write(source, identity(map_shape=(40, 40, 70)))
    options = {"dtype": "uint8", "shard_megabytes": 1}
    convert(source, tmp_path / "whole", **options)
    assert len(shards_of(tmp_path / "whole")) > 1
    with monkeypatch.context() as patch:
        die_at(patch, data.cache_rewrite, "stored", call)
        with pytest.raises(Killed):
            convert(source, tmp_path / "target", **options)
    with pytest.raises(InputError, match="no finished feature cache"):
        FeatureCache(tmp_path / "target")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "target").glob("0*.tar")}
    convert(source, tmp_path / "target", **options)
    assert bytes_of(tmp_path / "target") == bytes_of(tmp_path / "whole")
    assert all((tmp_path / "target" / name).stat().st_mtime_ns == when for name, when in kept.items())
    convert(source, tmp_path / "target", **options)  # once more changes nothing
    assert bytes_of(tmp_path / "target") == bytes_of(tmp_path / "whole")


def test_a_target_that_holds_anything_else_is_left_alone(tmp_path):
    write(tmp_path / "source", identity(map_shape=SHAPE))
    write(tmp_path / "other", seed=3)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    for target in ("other", "notes", "source"):
        before = bytes_of(tmp_path / target)
        with pytest.raises(InputError, match=r"holds another cache, or other files .*; name a new folder"):
            convert(tmp_path / "source", tmp_path / target, dtype="uint8")
        assert {k: v for k, v in bytes_of(tmp_path / target).items() if k != ".lock"} == before


@pytest.mark.parametrize(("module", "name"), [("os", "rename"), ("shutil", "rmtree")])
@pytest.mark.parametrize("call", [1, 2])
def test_a_cache_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, module, name, call):
    folder = tmp_path / "cache"
    source = write(folder, identity(map_shape=SHAPE))
    maps = source.read(np.arange(10))
    if (name, call) != ("rmtree", 2):
        with monkeypatch.context() as patch:
            die_at(patch, getattr(data.cache_convert, module), name, call)
            with pytest.raises(Killed):
                convert_in_place(folder, dtype="uint8")
    identity_now = convert_in_place(folder, dtype="uint8")
    assert identity_now.dtype == "uint8"
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]
    assert not verify(folder)
    np.testing.assert_allclose(FeatureCache(folder).read(np.arange(10)), maps, atol=0.02)


def halves(tmp_path, manifest, **options):
    """One cache of all images, and two of disjoint patients."""
    patients = manifest.images["patient_id"].to_numpy(dtype=str)
    some = np.isin(patients, np.unique(patients)[::3])
    whole = make_cache(tmp_path / "whole", manifest, **options)
    parts = []
    for number, rows in enumerate((some, ~some)):
        order = np.array([whole.ordinal[i] for i in manifest.images["image_id"][rows]])
        order.sort()
        parts.append((f"part{number}", order))
    return whole, parts


def test_disjoint_caches_are_joined_to_the_cache_of_all_their_images(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=23)
    whole, parts = halves(tmp_path, manifest, variants=("plain", "flip"))
    index = whole.index
    for name, order in parts:
        ids = {key: getattr(index, key)[order].tolist() for key in ("image_id", "study_id", "patient_id", "content")}
        payloads = [whole.read_stored(order, np.full(len(order), v)).numpy().copy() for v in (0, 1)]
        write(tmp_path / name, replace(whole.identity, num_images=len(order)), payloads=payloads, ids=ids)
    counts = merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "joined")
    assert counts == {str(tmp_path / name): len(order) for name, order in parts}
    joined = FeatureCache(tmp_path / "joined")
    assert list(joined.ordinal) == list(whole.ordinal)
    for variant in (0, 1):
        everything = np.arange(whole.identity.num_images)
        np.testing.assert_array_equal(joined.read(everything, variant), whole.read(everything, variant))
    assert not verify(tmp_path / "joined")
    with pytest.raises(InputError, match=r"image 'i\d+\.\d' is in .*part1 and .*joined"):
        merge([tmp_path / "part1", tmp_path / "joined"], tmp_path / "no")
    with pytest.raises(InputError, match="at least two caches"):
        merge([tmp_path / "part1"], tmp_path / "no")


def fold_caches(tmp_path, manifest, k=3):
    """Caches of k backbones, each trained on the train patients of all folds but its own."""
    trained = sorted(set(manifest.images.loc[manifest.images["split"] == "train", "patient_id"]))
    folders = []
    for fold in range(k):
        seen = [patient for number, patient in enumerate(trained) if number % k != fold]
        folders.append(tmp_path / f"fold{fold}")
        make_cache(folders[-1], manifest, weights=f"{fold + 10:02x}", trained=seen, seed=fold)
    return folders, {patient: number % k for number, patient in enumerate(trained)}


def test_an_out_of_fold_map_comes_from_the_backbone_that_did_not_see_the_patient(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=40)
    folders, fold_of = fold_caches(tmp_path, manifest)
    counts = merge(folders, tmp_path / "oof")
    cache, sources = FeatureCache(tmp_path / "oof"), [FeatureCache(folder) for folder in folders]
    assert sum(counts.values()) == len(manifest)
    assert min(counts.values()) > 0
    assert cache.identity.fold_weights == tuple(source.identity.weights_sha256 for source in sources)
    assert cache.identity.weights_sha256 == sources[0].identity.weights_sha256
    trained = set(cache.record["trained_patients"])
    for n, patient in enumerate(cache.index.patient_id.tolist()):
        fold = fold_of.get(patient, 0)  # val and test: the first
        assert cache.index.fold[n] == fold
        np.testing.assert_array_equal(cache.read(np.array([n])), sources[fold].read(np.array([n])))
        assert patient_hash(patient, cache.identity.weights[fold]) not in trained
        if patient in fold_of:
            assert sum(patient_hash(patient, weights) in trained for weights in cache.identity.weights) == 2
    assert not verify(tmp_path / "oof")
    assert any("out of fold" in line and "from backbone 2" in line for line in describe(tmp_path / "oof"))
    convert(tmp_path / "oof", tmp_path / "uint8", dtype="uint8")
    np.testing.assert_array_equal(FeatureCache(tmp_path / "uint8").index.fold, cache.index.fold)
    with pytest.raises(InputError, match="is an out-of-fold cache already"):
        merge([tmp_path / "oof", folders[1]], tmp_path / "no")


def test_folds_that_do_not_fit_are_refused(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=40)
    folders, _ = fold_caches(tmp_path, manifest)
    everybody = sorted(set(manifest.images["patient_id"]))
    make_cache(tmp_path / "all", manifest, weights="ee", trained=everybody)
    make_cache(tmp_path / "all too", manifest, weights="ef", trained=everybody)
    with pytest.raises(InputError, match=rf"{len(everybody)} patients were in the training set of all 2 backbones"):
        merge([tmp_path / "all", tmp_path / "all too"], tmp_path / "no")
    make_cache(tmp_path / "uint8", manifest, weights="ef", dtype="uint8")
    with pytest.raises(InputError, match=r'dtype is "uint8", in .*fold0 "float16"; only caches that agree'):
        merge([folders[0], tmp_path / "uint8"], tmp_path / "no")
    few = make_manifest(tmp_path, num_studies=12)
    make_cache(tmp_path / "few", few, weights="ef")
    write_images_digest(tmp_path / "few", "00" * 32)
    with pytest.raises(InputError, match="holds other images than"):
        merge([folders[0], tmp_path / "few"], tmp_path / "no")
    assert not (tmp_path / "no").exists()


def write_images_digest(folder, digest):
    """As if other images had been cached."""
    from data.cache import record_digest

    record = json.loads((folder / "cache.json").read_text())
    record["identity"]["images_sha256"] = digest
    (folder / "cache.json").write_text(json.dumps(record | {"digest": record_digest(record)}))


def test_info_tells_identity_provenance_and_bytes(tmp_path, capsys):
    cache = write(tmp_path / "cache", identity(variants=("plain", "flip"), dtype="uint8"))
    main(["info", str(tmp_path / "cache")])
    out = capsys.readouterr().out
    total = sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar"))
    for words in (
        "10 of 5 studies of 1 patients",
        "2 x 3 x 5 uint8; plain, flip",
        f"{total:,} in 3 shards, {total / 10:,.0f} per image",
        "made up, weights abababababab",
        cache.record["digest"][:12],
        "size 9",
        "torch 9",
        "Edema, Hernia",
    ):
        assert words in out


def test_the_command_prints_every_fault_and_leaves_with_status_1(tmp_path, capsys):
    write(tmp_path / "cache").close()
    main(["verify", str(tmp_path / "cache")])
    assert capsys.readouterr().out == f"{tmp_path / 'cache'}: whole\n"
    flip(tmp_path / "cache" / shard_name(0), 2000)
    (tmp_path / "cache" / shard_name(2)).unlink()
    with pytest.raises(SystemExit) as exit:
        main(["verify", str(tmp_path / "cache")])
    assert exit.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["fault", "fault", "error"]
    assert "2 faults" in lines[-1]


@pytest.mark.slow
def test_the_script_converts_and_merges_from_another_folder(tmp_path):
    manifest = make_manifest(tmp_path, num_studies=9)
    fold_caches(tmp_path, manifest, k=2)

    def command(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / "scripts" / "cache.py"), *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    done = command("convert", "fold0", "--target", "small", "--dtype", "uint8", "--pool", "2")
    assert done.returncode == 0, done.stderr
    assert "2 x 1 x 5 uint8, pooled 2 x 2; plain" in done.stdout
    assert "next: accelerate launch train_fusion.py --cache_dir small" in done.stdout
    done = command("merge", "fold0", "fold1", "--target", "oof")
    assert done.returncode == 0, done.stderr
    assert "images from fold1" in done.stdout
    done = command("convert", "fold0", "--dtype", "uint8")
    assert (done.returncode, done.stderr) == (1, "error: convert: name either --target FOLDER or --replace\n")
    done = command("convert", "fold0", "--replace", "--dtype", "uint8")
    assert done.returncode == 0, done.stderr
    assert isinstance(FeatureCache(tmp_path / "fold0").identity, CacheIdentity)
