"""What a cache will cost is said before it is made, and what the disk cannot hold is not begun."""

import shutil
import tarfile
from collections import namedtuple
from dataclasses import replace

import pytest

from data.errors import InputError
from data.runs import Log
from data.shards import ShardWriter, bytes_per_image, shard_name
from data.storage import encode_maps
from extract.estimate import MEASURED_SECONDS, Rate, check_disk, forms_table, pooled, storage_forms
from tests.test_extraction import identity_of

Usage = namedtuple("Usage", "total used free")
WHOLE = (7, 5, 96)


def identity(count: int = 1000, **form):
    made = identity_of(range(count), **form)
    return replace(made, map_shape=pooled(WHOLE, made.pool))


def test_pooling_counts_the_last_row_and_column_of_odd_sides():
    assert pooled(WHOLE, 1) == WHOLE
    assert pooled(WHOLE, 2) == (4, 3, 96)


@pytest.mark.parametrize(
    "form", [{}, {"dtype": "uint8"}, {"pool": 2}, {"dtype": "uint8", "variants": ("plain", "flip")}]
)
def test_all_forms_are_offered_with_their_bytes_and_the_chosen_one_is_starred(form):
    wanted = identity(**form)
    forms = storage_forms(wanted, WHOLE)
    assert [(f.pool, f.dtype, f.map_shape) for f in forms] == [
        (1, "float16", WHOLE),
        (1, "uint8", WHOLE),
        (2, "float16", (4, 3, 96)),
        (2, "uint8", (4, 3, 96)),
    ]
    K = len(wanted.variants)
    assert [f.total_bytes for f in forms] == [1000 * bytes_per_image(f.map_shape, f.dtype, K) for f in forms]
    lines = forms_table(wanted, forms).splitlines()
    assert len(lines) == 5
    (starred,) = [line for line in lines if line.startswith(" * ")]
    assert f"--cache.dtype {wanted.dtype} --cache.pool {wanted.pool}" in starred
    assert "x".join(map(str, wanted.map_shape)) in starred


def test_the_estimate_is_what_a_shard_takes(tmp_path):
    import torch

    wanted = identity(7, dtype="uint8", variants=("plain", "flip"))
    writer = ShardWriter(tmp_path, 0, wanted)
    maps = torch.randn(2, *WHOLE)
    for n in range(7):
        ids = {"image_id": f"i{n}", "study_id": "s", "patient_id": "p", "content": "0" * 16}
        writer.write(n, list(encode_maps(maps, "uint8").numpy()), ids)
    writer.close()
    estimate = storage_forms(wanted, WHOLE)[1].total_bytes
    padding = (tmp_path / shard_name(0)).stat().st_size - estimate
    assert 0 <= padding <= tarfile.RECORDSIZE


def test_a_cache_that_does_not_fit_is_refused_with_the_forms_that_do(tmp_path, monkeypatch):
    wanted = identity()
    forms = storage_forms(wanted, WHOLE)

    def free(number):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, number))

    free(forms[0].total_bytes)
    check_disk(tmp_path, wanted, forms, num_done=0)
    free(forms[0].total_bytes - 1)
    with pytest.raises(InputError, match=r"the maps need 0.01 GB.* choose a form that fits: ") as refusal:
        check_disk(tmp_path, wanted, forms, num_done=0)
    assert all(form.options in str(refusal.value) for form in forms[1:])
    assert forms[0].options not in str(refusal.value)
    check_disk(tmp_path, wanted, forms, num_done=1)  # what is there already needs no room
    free(forms[2].total_bytes)
    with pytest.raises(InputError) as refusal:
        check_disk(tmp_path, wanted, forms, num_done=0)
    assert [form.options in str(refusal.value) for form in forms] == [False, False, True, True]
    free(5)
    with pytest.raises(InputError, match="no form of this cache fits"):
        check_disk(tmp_path, wanted, forms, num_done=0)


def test_the_time_left_is_told_once_after_the_first_batches(tmp_path, monkeypatch, capsys):
    clock = [100.0]
    monkeypatch.setattr("extract.estimate.time.monotonic", lambda: clock[0])
    rate = Rate(100_000, Log(tmp_path, speaks=True))
    for seconds in (0.0, 7.0, MEASURED_SECONDS - 7, 9.0):
        clock[0] += seconds
        rate.add(50)
    assert capsys.readouterr().out.splitlines() == ["cache: 5.0 images per second and process, about 333 minutes left"]
