"""Images through workers: whatever goes wrong in one ends the run with a line, not with a hang or a traceback."""

import os
import signal
import tempfile

import numpy as np
import pytest
import torch

from data.errors import InputError
from data.images import ImageError
from data.transforms import Preprocessing
from extract.config import ExtractConfig
from extract.images import MAX_TEMPORARY, ImageDataset, load_batches, plain_requests
from fusion.doctor.disk import check_temporary_folder
from tests.make_data import make_manifest, write_images


@pytest.fixture
def dataset(tmp_path):
    manifest = make_manifest(tmp_path / "images", num_studies=6)
    write_images(manifest)
    return ImageDataset(manifest, Preprocessing(size=16))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_from_any_number_of_workers(dataset, workers):
    rows = np.array([7, 0, 3, 9, 1])
    batches = list(load_batches(dataset, plain_requests(rows, 2), workers))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat(batches), torch.stack([dataset[(int(row), 0)] for row in rows]))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_is_named_in_one_line_and_the_batches_before_it_come(dataset, workers):
    path = dataset.manifest.image_path(5)
    path.write_bytes(path.read_bytes()[:40])
    batches = load_batches(dataset, plain_requests(np.arange(8), 2), workers)
    assert len(next(batches)) == len(next(batches)) == 2
    with pytest.raises(ImageError, match=path.name) as error:
        next(batches)
    assert "\n" not in str(error.value)


class Deadly(ImageDataset):
    def __getitem__(self, request):
        if request[0] == 3:
            os.kill(os.getpid(), signal.SIGKILL)  # what the kernel does when memory runs out
        return super().__getitem__(request)


def test_a_worker_that_the_system_kills_ends_the_run_with_one_line(dataset):
    deadly = Deadly(dataset.manifest, dataset.image)
    with pytest.raises(InputError, match=r"an image worker ended .* lower num_workers or batch_size"):
        list(load_batches(deadly, plain_requests(np.arange(8), 2), 2))


@pytest.mark.parametrize(("length", "fits"), [(MAX_TEMPORARY, True), (MAX_TEMPORARY + 1, False)])
def test_a_temporary_folder_with_too_long_a_name_is_refused_where_workers_would_wait_for_ever(
    dataset, tmp_path, monkeypatch, length, fits
):
    folder = "/tmp/" + "x" * (length - 5)
    os.mkdir(folder)
    try:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        if fits:
            assert len(list(load_batches(dataset, plain_requests(np.arange(4), 2), 1))) == 2
        else:
            with pytest.raises(InputError, match=r"TMPDIR: .*num_workers to 0"):
                load_batches(dataset, plain_requests(np.arange(4), 2), 1)
        assert len(list(load_batches(dataset, plain_requests(np.arange(4), 2), 0))) == 2
        config = ExtractConfig(num_workers=1)
        assert check_temporary_folder(config).status == ("ok" if fits else "fail")
    finally:
        os.rmdir(folder)
