"""Batches on their way to shards: the buffers that hold them, and the thread that writes them.

Axes: **B** images of a batch, **K** decoded pictures per image, **S** input side.
"""

import queue
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from data.files import name_file, sha256_file
from data.shards import CacheIdentity, ShardWriter


@dataclass(frozen=True)
class Image:
    """What a shard says of an image, and where its pixels are."""

    path: Path
    ids: dict[str, str]  # image_id, study_id, patient_id, content


@dataclass(frozen=True)
class Batch:
    """Consecutive images of one shard."""

    shard: int
    ordinals: range
    ends_shard: bool


def plan_batches(shards: Iterable[int], identity: CacheIdentity, batch_size: int) -> list[Batch]:
    """The batches of some shards; none straddles a shard."""
    return [
        Batch(shard, ordinals[start : start + batch_size], start + batch_size >= len(ordinals))
        for shard in shards
        for ordinals in [identity.ordinals_of(shard)]
        for start in range(0, len(ordinals), batch_size)
    ]


class Slot:
    """Reused host buffers of one batch: pictures in, stored maps out; pinned where there is a GPU."""

    def __init__(self, batch_size: int, num_pictures: int, identity: CacheIdentity, device: torch.device) -> None:
        size, pinned = identity.preprocessing["size"], device.type == "cuda"
        dtype = torch.float16 if identity.dtype == "float16" else torch.uint8
        self.batch = Batch(0, range(0), False)
        self.pictures = torch.empty(batch_size, num_pictures, 1, size, size, pin_memory=pinned)
        shape = (len(identity.variants), batch_size, *identity.payload_shape)
        self.payloads = torch.empty(shape, dtype=dtype, pin_memory=pinned)
        self.copied = torch.cuda.Event() if pinned else None

    def wait(self) -> None:
        """Until the maps are on the host; the pictures have been read by then, too."""
        if self.copied is not None:
            self.copied.synchronize()


class Writer:
    """A thread that writes filled slots to their shards and hands the slots back empty."""

    def __init__(self, folder: Path, identity: CacheIdentity, images: list[Image], slots: list[Slot]) -> None:
        self.folder, self.identity, self.images = folder, identity, images
        self.sha256: dict[int, str] = {}
        self._empty: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._filled: queue.SimpleQueue[Slot | None] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._aborted = False
        for slot in slots:
            self._empty.put(slot)
        self._thread = threading.Thread(target=self._run, name="shard writer", daemon=True)
        self._thread.start()

    def take(self) -> Slot:
        """An empty slot, as soon as there is one."""
        slot = self._empty.get()
        if slot is None:
            assert self._error is not None
            raise self._error
        return slot

    def put(self, slot: Slot) -> None:
        """Give a filled slot to the thread."""
        self._filled.put(slot)

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            BaseException: what ended the thread before.
        """
        self._filled.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def abort(self) -> None:
        """End the thread before the next image; an unfinished shard is removed."""
        self._aborted = True
        self._filled.put(None)
        self._thread.join()

    def _run(self) -> None:
        shard: ShardWriter | None = None
        try:
            while (slot := self._filled.get()) is not None and not self._aborted:
                slot.wait()
                shard = shard or ShardWriter(self.folder, slot.batch.shard, self.identity)
                self._write(shard, slot)
                if slot.batch.ends_shard and not self._aborted:
                    shard.close()
                    self.sha256[slot.batch.shard] = sha256_file(shard.path)  # from memory still, and beside the device
                    shard = None
                self._empty.put(slot)
        except BaseException as error:
            if shard is not None:
                name_file(error, shard.path)
            self._error = error
            self._empty.put(None)  # wakes the calling thread
        finally:
            if shard is not None:
                shard.discard()

    def _write(self, shard: ShardWriter, slot: Slot) -> None:
        arrays = slot.payloads.numpy()
        for n, ordinal in enumerate(slot.batch.ordinals):
            if self._aborted:
                return
            shard.write(ordinal, list(arrays[:, n]), self.images[ordinal].ids)
