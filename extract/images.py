"""Images of a manifest, decoded and preprocessed in workers, in an order that the caller decides."""

import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.errors import InputError
from data.images import read_scaled
from data.manifest import Manifest
from data.order import Draws, visit_seed
from data.transforms import Augmentation, Preprocessing
from data.workers import told_in_one_line
from extract.config import ExtractConfig

SECONDS_TO_SAVE = 25
"""What a training process gets between SIGTERM and the end of its workers."""

MAX_TEMPORARY = 107 - len("/pymp-12345678/listener-12345678")
"""Longest name of a temporary folder: a socket's whole name has at most 107 bytes on Linux."""

Request = tuple[int, int]
"""A manifest row and the seed of its augmentation; the seed is ignored where nothing is augmented."""


class ImageDataset(Dataset):
    """Row number and seed in, network input out. An image that cannot be read raises `ImageError`, naming it."""

    def __init__(self, manifest: Manifest, image: Preprocessing, augmentation: Augmentation | None = None) -> None:
        self.manifest, self.image, self.augmentation = manifest, image, augmentation

    def __getitem__(self, index: Request) -> Tensor:
        row, seed = index
        resized = self.image.resized(*read_scaled(self.manifest.image_path(row), self.image.size))
        if self.augmentation is not None:
            resized = self.augmentation(resized, seed)
        return self.image.normalised(resized)

    def __getitems__(self, requests: list[Request]) -> Tensor | InputError:
        """A batch, or the first image's error as a value: raised in a worker, it would come as a page of traceback."""
        try:
            return torch.stack([self[request] for request in requests])
        except InputError as error:
            return error


def load_batches(dataset: ImageDataset, batches: Iterable[list[Request]], num_workers: int) -> Iterator[Tensor]:
    """Stacks of images for lists of requests, in order, read ahead by `num_workers` processes.

    The loader gets its generator from us, so that it leaves torch's global random state alone.

    Raises:
        InputError: an image that cannot be read, or a worker that the system killed.
    """
    if num_workers and not sockets_fit():
        raise InputError(
            f"TMPDIR: the temporary folder's name is longer than {MAX_TEMPORARY} characters, which leaves no room for"
            " the sockets of image workers; export TMPDIR=/tmp, or set num_workers to 0"
        )
    loader = DataLoader(
        dataset,
        batch_sampler=list(batches),
        num_workers=num_workers,
        collate_fn=_as_it_is,
        generator=torch.Generator().manual_seed(0),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_start_worker if num_workers else None,
    )
    return _checked(iter(loader))  # iter() starts the workers now, not when the first batch is wanted


def sockets_fit() -> bool:
    """Whether the temporary folder's name leaves room for a socket's."""
    return len(os.fsencode(tempfile.gettempdir())) <= MAX_TEMPORARY


def _as_it_is(batch: Any) -> Any:
    return batch


def _checked(batches: Iterator[Tensor | InputError]) -> Iterator[Tensor]:
    for batch in told_in_one_line(batches, "lower num_workers or batch_size"):
        if isinstance(batch, InputError):
            raise batch
        yield batch


def _start_worker(_: int) -> None:
    """One thread, for the training process needs the cores; and slow to obey signals that a scheduler sends to all.

    The training process decides when to stop, and its workers end with it. A worker that ignored SIGTERM for ever
    would keep a training process that failed from ending: it terminates its workers and waits for them.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(SECONDS_TO_SAVE))


def plain_requests(rows: np.ndarray, batch_size: int) -> list[list[Request]]:
    """Rows in order, in batches, nothing augmented."""
    return [[(int(row), 0) for row in rows[i : i + batch_size]] for i in range(0, len(rows), batch_size)]


def augmented_requests(draws: Draws, seed: int, epoch: int) -> list[Request]:
    """Rows with their augmentation seeds of this epoch; a row's second visit is augmented differently."""
    pairs = zip(draws.items.tolist(), draws.copies.tolist(), strict=True)
    return [(row, visit_seed("augment", seed, epoch, row, copy)) for row, copy in pairs]


def on_device(pixels: Tensor, config: ExtractConfig, accelerator: Accelerator) -> Tensor:
    """Network inputs where, and in the memory order in which, the model wants them."""
    memory_format = torch.channels_last if config.channels_last else torch.preserve_format
    return pixels.to(accelerator.device, torch.get_default_dtype(), non_blocking=True, memory_format=memory_format)
