"""A published model folder is the model it came from, tells nothing about patients, and is whole or refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from data.errors import InputError
from data.files import sha256_file
from data.manifest import read_manifest
from data.shards import patient_hash
from extract.checkpoint import load_json
from extract.teacher import load_teacher
from fusion.folder_check import BESIDE
from fusion.model_folder import assemble
from fusion.predict import load_model
from tests.launch import ROOT, run
from tests.make_trained import QUICK, images_of_test, make_trained

OFFLINE = shutil.which("unshare") and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("folder") / "run"
    make_trained(run_dir, "--cache.flip", "true", num_studies=25)
    run("fusion", run_dir, *QUICK, "--evaluation.augment", "true")
    run("fusion", run_dir, *QUICK, "--joint", "--joint.epochs", "1", "--joint.num_workers", "0")
    return run_dir


@pytest.fixture(scope="module")
def published(run_dir):
    """Not to be changed."""
    assemble(run_dir / "fusion", run_dir.parent / "published")
    return run_dir.parent / "published"


@pytest.fixture
def copy(published, tmp_path):
    return Path(shutil.copytree(published, tmp_path / "copy"))


def seal(folder):
    """Make digests.json fit again, as whoever alters a folder on purpose would."""
    for place in (folder / "backbone", folder):
        names = sorted(load_json(place / "digests.json"))
        (place / "digests.json").write_text(json.dumps({name: sha256_file(place / name) for name in names}))


def change(path, **values):
    path.write_text(json.dumps(load_json(path) | values))


@pytest.mark.parametrize("name", ["fusion", "fusion/joint"])
def test_a_published_model_says_what_the_run_says(run_dir, tmp_path, name):
    images = [one for one in images_of_test(run_dir) if one.study_id == "s023"]
    paths, views = [one.path for one in images], [one.view for one in images]
    assemble(run_dir / name, tmp_path / "published")
    ours, theirs = load_model(run_dir / name), load_model(tmp_path / "published")
    assert ours.parts.joint == theirs.parts.joint == ("joint" in name)
    assert ours.parts.variants == theirs.parts.variants
    one, other = ours.predict_study(paths, views), theirs.predict_study(paths, views)
    np.testing.assert_array_equal(one.logits, other.logits)
    np.testing.assert_array_equal(one.shares(), other.shares())
    assert one.table().equals(other.table())


def test_test_time_averages_travel_with_the_model(published):
    assert load_model(published).parts.variants == ("plain", "flip")


def test_the_backbone_in_it_is_a_stage_one_model_folder(published, run_dir):
    teacher = load_teacher(published / "backbone")
    assert teacher.weights_sha256 == load_teacher(run_dir / "stage_one").weights_sha256
    assert teacher.trained_patients is None


def test_nothing_in_it_tells_of_patients_or_of_the_machine(published, run_dir):
    manifest = read_manifest(run_dir / "manifest.csv")
    weights = load_json(published / "config.json")["maps"]["weights_sha256"]
    patients = sorted(set(manifest.images["patient_id"]))
    words = [str(run_dir), str(Path.home()), os.uname().nodename, "run_dir", "cache_dir", *patients]
    words += [*manifest.images["image_id"], *(patient_hash(patient, weights) for patient in patients)]
    for path in published.rglob("*"):
        content = path.read_bytes() if path.is_file() and path.suffix != ".png" else b""
        if path.suffix == ".safetensors":  # its text; any two letters occur in numbers
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        assert not [word for word in words if word.encode() in content], path


@pytest.mark.skipif(not OFFLINE, reason="unshare -rn does not work here, so the network cannot be blocked")
def test_a_copy_elsewhere_works_without_a_network(published, tmp_path):
    elsewhere = Path(shutil.copytree(published, tmp_path / "other machine" / "model"))
    code = (
        "import sys; from fusion.predict import load_model; model = load_model(sys.argv[1], 'cpu');"
        "print(model.predict([sys.argv[1] + '/example']).iloc[0, 2])"
    )
    command = ["unshare", "-rn", sys.executable, "-c", code, str(elsewhere)]
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr


# refusals ------------------------------------------------------------------------------------------------------------


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip_last_bit(f / "model.safetensors"), r"model\.safetensors: damaged"),
        (lambda f: flip_last_bit(f / "backbone" / "model.safetensors"), r"backbone/model\.safetensors: damaged"),
        (lambda f: flip_last_bit(f / "example" / "lateral.png"), r"example/lateral\.png: damaged"),
        (lambda f: (f / "metrics.json").unlink(), r"metrics\.json: missing"),
        (lambda f: (f / "backbone" / "classes.json").unlink(), r"backbone/classes\.json: missing"),
        (lambda f: (f / "model.bin").write_bytes(b""), r"model\.bin: unexpected in a model folder"),
        (lambda f: (f / "example" / "third.png").write_bytes(b""), r"third\.png: unexpected in a model folder"),
        (lambda f: change(f / "digests.json", **{"../x": "0"}), r"lists '\.\./x', which no model folder has"),
        (lambda f: (f / "LICENSE").symlink_to("/etc/hostname"), r"LICENSE: a link that leads out"),
        (lambda f: (f / "more").symlink_to(f / "example"), r"more: a link that leads out"),
    ],
)
def test_a_missing_unexpected_or_altered_file_is_named(copy, damage, message):
    damage(copy)
    with pytest.raises(InputError, match=message):
        load_model(copy)


def hub_backbone(folder):
    tree = yaml.safe_load((folder / "backbone" / "config.yaml").read_text())
    tree["backbone"]["name"] = "hf-hub:somebody/model"
    (folder / "backbone" / "config.yaml").write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda f: change(f / "config.json", extra=1), r"config\.json: wanted the keys .*found .*extra"),
        (lambda f: change(f / "config.json", maps={}), r"maps: wanted the keys"),
        (lambda f: change(f / "classes.json", classes=["Edema", "Edema", "Hernia"]), r"occurs twice"),
        (lambda f: change(f / "classes.json", classes=["Edema", "Hernia"]), r"no_view|weight"),
        (hub_backbone, r"backbone\.name must be a name of timm's own models, found 'hf-hub"),
        (lambda f: change(f / "preprocessing.json", intensity="equalize"), r"preprocessing is not the fusion"),
        (
            lambda f: change(f / "example/expected.json", images={"frontal.png": "AP", "lateral.png": "PA", "x": "AP"}),
            r"images: wanted the keys frontal\.png, lateral\.png, found",
        ),
    ],
)
def test_what_was_altered_and_sealed_again_is_found_by_what_it_says(copy, alter, message):
    alter(copy)
    seal(copy)
    with pytest.raises(InputError, match=message):
        load_model(copy)


def test_an_example_that_comes_out_otherwise_is_told_by_class_and_numbers(copy):
    expected = load_json(copy / "example" / "expected.json")
    found = expected["logits"]["Nodule"]
    change(copy / "example" / "expected.json", logits=expected["logits"] | {"Nodule": found + 1})
    seal(copy)
    with pytest.raises(InputError, match=rf"'Nodule', wanted logit {found + 1:.3f}, found {found:.3f}"):
        load_model(copy)


def test_what_people_read_may_lie_beside_it(copy):
    for name in BESIDE:
        (copy / name).write_text("words")
    assert load_model(copy).classes == ("Edema", "Nodule", "Hernia")


def test_assembling_overwrites_nothing_and_leaves_nothing_half_done(published, run_dir, tmp_path):
    with pytest.raises(InputError, match="published: is there already"):
        assemble(run_dir / "fusion", published)
    with pytest.raises(InputError, match="wanted the result folder of a run"):
        assemble(run_dir / "cache", tmp_path / "new")
    assert not list(tmp_path.iterdir())


# the Hub -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(published, tmp_path, monkeypatch):
    """The Hub's cache as its library lays it out: names that are links to contents kept apart."""
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot, asked = repository / "snapshots" / "0123", []
    (repository / "blobs").mkdir(parents=True)
    for number, path in enumerate(path for path in published.rglob("*") if path.is_file()):
        target = snapshot / path.relative_to(published)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, repository / "blobs" / str(number))
        target.symlink_to(os.path.relpath(repository / "blobs" / str(number), target.parent))

    def download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    monkeypatch.chdir(tmp_path)
    return snapshot, asked


def test_a_hub_id_fetches_weights_json_and_yaml_alone(hub):
    snapshot, asked = hub
    assert load_model("owner/name").classes == ("Edema", "Nodule", "Hernia")
    ((name, patterns),) = asked
    assert name == "owner/name"
    assert {Path(pattern).suffix for pattern in patterns} == {".safetensors", ".json", ".yaml", ".png"}
    assert not [pattern for pattern in patterns if "*" in pattern]
    fetched = {str(path.relative_to(snapshot)) for path in snapshot.rglob("*") if not path.is_dir()}
    assert fetched <= set(patterns)


def test_a_hub_snapshot_whose_links_leave_its_cache_is_refused(hub, tmp_path):
    snapshot, _ = hub
    shutil.copy(snapshot / "metrics.json", tmp_path / "outside.json")
    (snapshot / "metrics.json").unlink()
    (snapshot / "metrics.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(InputError, match=r"metrics\.json: a link that leads out"):
        load_model("owner/name")


def test_what_the_hub_does_not_give_is_told_in_one_line(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise OSError("no\nroute")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"owner/name: no such folder, and not fetched from the Hub \(no route\)"):
        load_model("owner/name")
