"""Images prepared once are what stage one would have made of the originals, whatever was interrupted on the way."""

import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
import simplejpeg
import torch
import webdataset

import data.plots
import data.prepared_shards
from data import golden
from data.cache import FeatureCache
from data.errors import InputError
from data.image_shards import find_member, refuse_unfit
from data.images import read_image
from data.manifest import Manifest, read_manifest, write_manifest
from data.prepare import main
from data.prepared_images import prepare
from data.tables import read_table
from data.transforms import Augmentation, Preprocessing
from extract.images import ImageDataset
from tests import launch
from tests.make_data import make_manifest

ROOT = Path(__file__).resolve().parents[1]
SIZE = 24


def picture(rng: np.random.Generator, height: int, width: int, top: int = 255) -> np.ndarray:
    """A gradient with noise over all levels up to `top`."""
    slope = np.linspace(0, 0.8, height)[:, None] + rng.uniform(0, 0.2, (height, width))
    return (slope * top).astype(np.uint8 if top < 256 else np.uint16)


def write_files(manifest: Manifest) -> None:
    """Files of every format, size and depth, in turn."""
    rng = np.random.default_rng(0)
    manifest.root.mkdir(parents=True)
    for row in range(len(manifest)):
        pixels = picture(rng, 40 + row, 61 - row, 65535 if row % 4 == 1 else 255)
        if row % 4 == 2:
            content = simplejpeg.encode_jpeg(pixels[..., None], colorspace="GRAY")
        else:
            content = golden._dicom() if row % 4 == 3 else imagecodecs.png_encode(pixels)
        manifest.image_path(row).write_bytes(content)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A manifest of 19 images of ten studies, its rows in no order."""
    manifest = make_manifest(tmp_path / "full" / "images", num_studies=10)
    write_files(manifest)
    manifest = manifest.select(np.random.default_rng(1).permutation(len(manifest)))
    write_manifest(manifest, tmp_path / "full" / "manifest.csv")
    return tmp_path / "full" / "manifest.csv"


@pytest.fixture(autouse=True)
def _small_and_fast(monkeypatch, request):
    monkeypatch.setattr(data.prepared_shards, "IMAGES_PER_SHARD", 5)
    if request.function is not test_the_command_ends_with_the_next_one_and_shows_what_it_made:
        monkeypatch.setattr(data.plots, "plot_contact_sheet", lambda *_: None)  # takes longer than all the rest


def prepared(source: Path, name: str = "small", **options) -> Manifest:
    """Prepare and keep the manifest, as the command does; read back."""
    out = source.parent.parent / name / "manifest.csv"
    manifest = prepare(source, out.parent / "images", **{"size": SIZE, "workers": 1} | options)
    write_manifest(manifest, out)
    return read_manifest(out)


def contents(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def samples(shard: Path) -> list[bytes]:
    """The JSON of each image of a shard."""
    with tarfile.open(shard) as tar:
        return [tar.extractfile(member).read() for member in tar if member.name.endswith(".json")]


def stamps(folder: Path) -> dict[str, tuple]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("0*")}


@pytest.mark.parametrize("resize", ["stretch", "fit"])
def test_network_inputs_are_those_of_the_originals_up_to_rounding(source, resize):
    originals, image = read_manifest(source), Preprocessing(size=SIZE, resize=resize, mean=(0.4,), std=(0.2,))
    wanted = ImageDataset(originals, image)
    for form, bound in (("png", 0.5 / 255), ("png16", 0.5 / 65535), ("jpeg", 0.06)):
        manifest = prepared(source, f"{resize}_{form}", resize=resize, form=form)
        for name in ("image_id", "study_id", "patient_id", "view", "split", "source"):
            assert manifest.images[name].tolist() == originals.images[name].tolist()  # in the same order, too
        np.testing.assert_array_equal(manifest.labels, originals.labels)
        found = ImageDataset(manifest, image)
        for row in range(len(manifest)):
            difference = (found[(row, 0)] - wanted[(row, 0)]).numpy() * 0.2
            assert np.abs(difference).max() <= bound + 2e-7
            assert form != "jpeg" or np.sqrt(np.mean(difference**2)) < 0.015


def test_a_smaller_input_may_be_made_of_the_same_shards(source):
    originals, manifest = read_manifest(source), prepared(source)
    small = Preprocessing(size=16, mean=(0.0,), std=(1.0,))
    found, wanted = ImageDataset(manifest, small), ImageDataset(originals, small)
    for row in range(len(manifest)):
        assert float((found[(row, 0)] - wanted[(row, 0)]).square().mean().sqrt()) < 0.03
    out = source.parent.parent / "smaller" / "images"
    again = prepare(source.parent.parent / "small" / "manifest.csv", out, size=16, workers=1)  # from shards to shards
    for row in range(len(again)):
        difference = ImageDataset(again, small)[(row, 0)] - found[(row, 0)]
        assert float(difference.abs().max()) <= 0.5 / 255 + 2e-7
    with pytest.raises(InputError, match="prepared at 24 pixels, size 25 is wanted"):
        prepare(source.parent.parent / "small" / "manifest.csv", out, size=25, workers=1)


def test_any_number_of_workers_gives_the_same_bytes_and_leaves_the_originals_alone(source, tmp_path):
    before = contents(source.parent), {path: path.stat().st_mtime_ns for path in source.parent.rglob("*")}
    for workers in (1, 2):
        prepared(source, f"by_{workers}", workers=workers)
    assert contents(tmp_path / "by_1") == contents(tmp_path / "by_2")
    assert before == (contents(source.parent), {path: path.stat().st_mtime_ns for path in source.parent.rglob("*")})


def test_patients_and_studies_lie_side_by_side_in_plain_webdataset_shards(source, tmp_path):
    manifest = prepared(source)
    shards = sorted(map(str, (tmp_path / "small" / "images").glob("*.tar")))
    assert len(shards) == 3
    samples = list(webdataset.WebDataset(shards, shardshuffle=False, empty_check=False))
    ids = [json.loads(sample["json"]) for sample in samples]
    order = [(own["patient_id"], own["study_id"], own["image_id"]) for own in ids]
    assert order == sorted(order)
    assert len(set(order)) == len(manifest) == 19
    assert [sample["__key__"] for sample in samples] == [f"{n:09d}" for n in range(19)]
    homes = {(own["patient_id"], sample["__url__"]) for own, sample in zip(ids, samples, strict=True)}
    assert len(homes) == len({patient for patient, _ in homes})  # no patient in two shards
    for own, sample in zip(ids, samples, strict=True):
        row = manifest.images["image_id"].tolist().index(own["image_id"])
        member = find_member(manifest.image_path(row))
        assert member.read() == sample["png"]
        assert member.checksum == own["xxh3"]
    with tarfile.open(shards[0]) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_the_command_ends_with_the_next_one_and_shows_what_it_made(source, tmp_path, capsys):
    out = tmp_path / "small" / "manifest.csv"
    main(["images", f"--manifest={source}", f"--out={out}", f"--size={SIZE}", "--form=jpeg", "--workers=2"])
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert f"{out.parent}/images: 19 images in 3 shards, 0.00 GB" in lines
    assert lines[-1] == f"next: accelerate launch extract.py --run_dir {out.parent}"
    assert "19/19" in printed.err.rpartition("\r")[2]
    assert len(read_manifest(out)) == 19
    assert np.ptp(read_image(out.parent / "contact_sheet.jpg")) > 0.9
    with pytest.raises(SystemExit):
        main(["images", f"--manifest={source}", f"--out={source}"])
    assert capsys.readouterr().err.startswith("error: --out: ")


class Stopped(BaseException):
    """What a kill looks like from inside."""


@pytest.mark.parametrize(
    ("owner", "name", "after"),
    [("TarWriter", "write", 15), (None, "_find_images", 1), (None, "atomic_write", 1), (None, "sync_folder", 2)],
)
def test_a_run_stopped_anywhere_goes_on_to_the_same_bytes_and_writes_no_finished_shard_again(
    source, tmp_path, monkeypatch, owner, name, after
):
    prepared(source, "whole")
    where = getattr(data.prepared_shards, owner) if owner else data.prepared_shards
    real, calls = getattr(where, name), []

    def stopping(*arguments, **options):
        calls.append(0)
        if len(calls) > after:
            raise Stopped
        return real(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(where, name, stopping)
        with pytest.raises(Stopped):
            prepared(source)
    folder = tmp_path / "small" / "images"
    assert not (tmp_path / "small" / "manifest.csv").exists()
    finished = {path.stem for path in folder.glob("0*.json")}
    assert finished
    assert len(finished) < 3
    (folder / ".tmp-000002.tar").write_bytes(b"half")  # what a kill, unlike an exception, leaves
    before = {key: value for key, value in stamps(folder).items() if key[:6] in finished}
    prepared(source)
    assert contents(tmp_path / "small") == contents(tmp_path / "whole")
    assert before.items() <= stamps(folder).items()


KILLING = """
import os, signal, sys
from pathlib import Path
import data.prepared_shards as shards
from data.prepare import main

if __name__ == "__main__":
    real, calls = shards.TarWriter.write, []
    def killing(*arguments):
        calls.append(0)
        if len(calls) > 17:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    shards.TarWriter.write, shards.IMAGES_PER_SHARD = killing, 5
    main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_command_leaves_no_process_and_goes_on_to_the_same_bytes(source, tmp_path):
    prepared(source, "whole")
    script, out = tmp_path / "killing.py", tmp_path / "small" / "manifest.csv"
    script.write_text(KILLING)
    words = ["images", f"--manifest={source}", f"--out={out}", f"--size={SIZE}", "--workers=2"]
    killed = subprocess.Popen(
        [sys.executable, str(script), *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    status, _, errors = launch.finish(killed)  # waits for the last holder of its output: server and workers, too
    assert status == -signal.SIGKILL, errors
    assert (out.parent / "images" / "000000.json").exists()
    assert (out.parent / "images" / ".tmp-000001.tar").exists()
    assert not out.exists()
    prepared(source)
    assert contents(tmp_path / "small") == contents(tmp_path / "whole")


@contextmanager
def files_of_at_most(nbytes: int) -> Iterator[None]:
    """The kernel refuses to write more to a file of this process: as on a full disk, in another error's words."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_gives_its_room_back_and_the_run_goes_on(source, tmp_path, capsys):
    prepared(source, "whole")
    capsys.readouterr()
    words = [f"--manifest={source}", f"--out={tmp_path}/small/manifest.csv", f"--size={SIZE}", "--workers=1"]
    with files_of_at_most(10_240), pytest.raises(SystemExit) as end:
        main(["images", *words])
    assert end.value.code == 1
    folder, (*progress, line) = tmp_path / "small" / "images", capsys.readouterr().err.splitlines()
    assert line == f"error: {folder}/000000.tar: File too large; run the same command again"
    assert all(text.startswith("preparing images") for text in "".join(progress).split("\r") if text.strip())
    assert {path.name for path in folder.glob("[!.]*")} == {"prepared.json"}
    assert not list(folder.glob(".tmp-*"))
    main(["images", *words])
    assert contents(tmp_path / "small") == contents(tmp_path / "whole")


def test_bad_images_are_named_with_a_reason_and_the_others_kept(source, tmp_path):
    originals = replace(read_manifest(source), rejected=(("gone.png", "was never there"),))
    write_manifest(originals, source)
    bad = {2: "cut PNG", 7: "does not exist", 11: "out of the image folder", 13: "blank in 8 bits"}
    paths = originals.images["path"].tolist()
    (tmp_path / "outside.png").write_bytes(originals.image_path(0).read_bytes())
    kept = originals.image_path(2).read_bytes()
    originals.image_path(2).write_bytes(imagecodecs.png_encode(picture(np.random.default_rng(0), 50, 40))[:-30])
    originals.image_path(7).unlink()
    originals.image_path(11).unlink()
    originals.image_path(11).symlink_to(tmp_path / "outside.png")
    faint = picture(np.random.default_rng(0), 50, 40, 65535) // 1024 + 300  # 1.2 to 1.4 levels of 8 bits
    originals.image_path(13).write_bytes(imagecodecs.png_encode(faint))
    with pytest.raises(InputError, match=r"4 of 19 images .*max_rejected.*rejected\.csv"):
        prepared(source)
    folder = tmp_path / "small" / "images"
    before = stamps(folder)
    manifest = prepared(source, max_rejected=0.3)
    assert stamps(folder) == before
    table = read_table(folder.parent / "rejected.csv")
    first, *others = zip(table["path"], table["reason"], strict=True)
    assert (first,) == originals.rejected  # what the source had left out
    assert {path for path, _ in others} == {paths[row] for row in bad}
    assert manifest.rejected == (first, *others)
    for path, reason in others:
        assert bad[paths.index(path)] in reason
        assert str(tmp_path) not in reason
    left = originals.images["image_id"].drop(index=list(bad)).tolist()
    assert manifest.images["image_id"].tolist() == left
    for row in range(len(manifest)):
        assert read_image(manifest.image_path(row)).shape == (SIZE, SIZE)
    originals.image_path(2).write_bytes(kept)  # mended: its shard alone is made again
    assert len(prepared(source, max_rejected=0.3)) == len(manifest) + 1
    assert sum(value != before[key] for key, value in stamps(folder).items()) == 2
    assert len(prepared(source, "other", form="png16", max_rejected=0.3)) == len(manifest) + 2  # 16 bits hold the faint


def test_16_bits_keep_what_8_bits_lose(source, capsys):
    rng, originals = np.random.default_rng(3), read_manifest(source)
    deep = picture(rng, SIZE, SIZE, 4095)  # 12 bits of 16, as PadChest has
    originals.image_path(4).write_bytes(imagecodecs.png_encode(deep))
    manifest = prepared(source, "deep", form="png16")
    np.testing.assert_array_equal(read_image(manifest.image_path(4)), deep / np.float32(65535))
    assert len(np.unique(read_image(manifest.image_path(4)))) > 256
    assert "--form png16" not in capsys.readouterr().out
    manifest = prepared(source, "flat")
    levels = [len(np.unique(read_image(manifest.image_path(row)))) for row in range(len(manifest))]
    assert levels[4] <= 17
    assert f"8 bits leave {sum(n < 64 for n in levels)} images fewer than 64 grey levels" in capsys.readouterr().out
    assert 0 < sum(n < 64 for n in levels) < len(levels)


def test_a_fit_image_is_stored_without_its_border(source):
    originals, manifest = read_manifest(source), prepared(source, resize="fit")
    for row in range(len(manifest)):
        inner = Preprocessing(size=SIZE, resize="fit").inner_size(*read_image(originals.image_path(row)).shape)
        assert read_image(manifest.image_path(row)).shape == inner


@pytest.mark.slow
def test_stage_one_trains_from_shards_as_from_files(tmp_path, capsys):
    originals = make_manifest(tmp_path / "full" / "images", num_studies=15)
    originals.root.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for row in range(len(originals)):  # 8 bits at the network's size: nothing is lost
        originals.image_path(row).write_bytes(imagecodecs.png_encode(picture(rng, 64, 64)))
    originals.images["split"] = pd.array(
        [("train", "val", "test")[int(patient[1:]) % 3] for patient in originals.images["patient_id"]], dtype="str"
    )
    write_manifest(originals, tmp_path / "full" / "manifest.csv")
    manifest = prepared(tmp_path / "full" / "manifest.csv", size=64)
    launch.run("extract", tmp_path / "small")
    assert FeatureCache(tmp_path / "small" / "cache").identity.num_images == len(originals)
    assert not len(pd.read_csv(tmp_path / "small" / "rejected.csv"))
    image = Preprocessing(size=64)
    inputs = [ImageDataset(each, image, Augmentation(rotate=9.0)) for each in (originals, manifest)]
    for row in range(len(originals)):  # what it trained on, in the order of the originals' manifest
        assert torch.equal(inputs[0][(row, row)], inputs[1][(row, row)])
    write_manifest(manifest, tmp_path / "larger" / "manifest.csv")
    for rehearsal in ([], ["--dry_run"]):
        with pytest.raises(SystemExit):
            launch.run("extract", tmp_path / "larger", "--image.size=128", *rehearsal)
        assert "prepared at 64 pixels, size 128 is wanted" in capsys.readouterr().err


def test_images_prepared_smaller_or_in_other_proportions_are_refused(source, tmp_path):
    manifest = prepared(source)
    paths = manifest.images["path"]
    refuse_unfit(manifest.root, paths, SIZE - 1, "stretch")
    refuse_unfit(manifest.root, ["some/file.png", "other.tar"], 1024, "fit")
    with pytest.raises(InputError, match=r"small/images: .* at 24 pixels, size 25 is wanted; .*--size 25"):
        refuse_unfit(manifest.root, paths, SIZE + 1, "stretch")
    with pytest.raises(InputError, match=r"with resize stretch, fit is wanted; .*--resize fit"):
        refuse_unfit(manifest.root, paths, SIZE, "fit")
    for content in ("", "{}", "[1]", '{"size": 3}', '{"size": {}}'):
        (tmp_path / "small" / "images" / "prepared.json").write_text(content)
        with pytest.raises(InputError, match=r"prepared\.json: missing or damaged"):
            refuse_unfit(manifest.root, paths, SIZE, "stretch")


def test_a_folder_keeps_to_its_options_and_takes_no_others(source, tmp_path):
    prepared(source)
    with pytest.raises(InputError, match=r"begun with size 24, now it is 32; choose another --out, or delete"):
        prepared(source, size=32)
    with pytest.raises(InputError, match="begun with form png, now it is jpeg"):
        prepared(source, form="jpeg")
    with pytest.raises(InputError, match="folder of the originals' own manifest"):
        prepared(source, "full")
    (tmp_path / "taken" / "images").mkdir(parents=True)
    (tmp_path / "taken" / "images" / "mine.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"holds other files, first mine\.png"):
        prepared(source, "taken")
    with pytest.raises(InputError, match="--workers must be at least 1"):
        prepared(source, workers=0)
    with pytest.raises(InputError, match="size must be a whole number"):
        prepared(source, "none", size=0)


def test_new_labels_are_taken_over_without_decoding_and_fewer_patients_leave_no_shard_behind(
    source, tmp_path, monkeypatch
):
    prepared(source)
    originals, folder = read_manifest(source), tmp_path / "small" / "images"
    before = stamps(folder)
    monkeypatch.setattr(data.prepared_shards, "reencode", lambda *_: pytest.fail("decoded again"))
    write_manifest(Manifest(originals.images, 1 - originals.labels, originals.classes, originals.root), source)
    np.testing.assert_array_equal(prepared(source).labels, 1 - originals.labels)
    assert stamps(folder) == before
    first = (folder / "000000.json").read_bytes()
    patients = [json.loads(text)["patient_id"] for text in samples(folder / "000000.tar")]
    write_manifest(originals.select(originals.images["patient_id"].isin(patients).to_numpy(dtype=bool)), source)
    assert len(prepared(source)) == len(patients)
    assert set(stamps(folder).items()) < set(before.items())
    assert {path.name for path in folder.glob("0*")} == {"000000.tar", "000000.json"}
    assert (folder / "000000.json").read_bytes() == first
    write_manifest(originals.select((originals.images["patient_id"] != patients[0]).to_numpy(dtype=bool)), source)
    with pytest.raises(pytest.fail.Exception, match="decoded again"):  # every image lies in another place
        prepared(source)
