"""What decides whether cached work is kept: the identity of the maps, and the patients that the backbone saw."""

import json
from dataclasses import replace

import numpy as np
import pytest

from data.errors import InputError
from data.manifest import Manifest
from data.runs import Log
from data.shards import shard_name
from extract.cache import begin, is_complete, is_shard, keep_training_data, patient_hash, provenance, refuse_new_split
from tests.make_data import make_manifest
from tests.test_shards import identity, write


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


@pytest.mark.parametrize("field", ["backbone", "weights_sha256", "images_sha256", "preprocessing", "classes"])
def test_a_cache_of_another_identity_is_refused_naming_the_field(tmp_path, field):
    write(tmp_path).close()
    assert is_complete(tmp_path, identity())
    changed: dict = {"preprocessing": {"size": 10}, "classes": ("Edema",)}
    other = replace(identity(), **{field: changed.get(field, "ff" * 32)})
    with pytest.raises(InputError, match=rf"another {field} .*delete the folder and rerun extract\.py"):
        is_complete(tmp_path, other)
    (tmp_path / "cache.json").unlink()
    (tmp_path / "plan.json").write_text(json.dumps(identity().to_dict()))
    with pytest.raises(InputError, match=f"another {field} "):
        begin(tmp_path, other, Log(tmp_path, speaks=False))


def test_whole_shards_of_the_same_plan_are_kept_and_damaged_ones_made_anew(tmp_path):
    write(tmp_path).close()
    (tmp_path / "cache.json").unlink()
    (tmp_path / "plan.json").write_text(json.dumps(identity().to_dict()))
    (tmp_path / ".tmp-000002.tar").write_bytes(b"part")
    cut = tmp_path / shard_name(1)
    cut.write_bytes(cut.read_bytes()[:1536])
    begin(tmp_path, identity(), Log(tmp_path, speaks=False))
    assert [is_shard(tmp_path, n, identity()) for n in range(3)] == [True, False, True]
    assert not cut.exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_shards_of_which_nobody_knows_what_made_them_are_not_kept(tmp_path):
    write(tmp_path).close()
    (tmp_path / "cache.json").unlink()
    begin(tmp_path, identity(weights="ee"), Log(tmp_path, speaks=False))
    assert not any(is_shard(tmp_path, n, identity(weights="ee")) for n in range(3))
