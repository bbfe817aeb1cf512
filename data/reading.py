"""Reading maps out of shards: positioned reads straight into reused buffers, every map checked.

What costs time when small files are many is not the disk but fresh memory, copies and processes: a loader of worker
processes reaches a tenth of this one's rate on the same shards (scripts/bench_cache.py). Here a few threads read,
each into a buffer of its own that is used again and again (page-locked when a GPU is to copy from it), so that
nothing is allocated, collated or sent between processes, and any order of images costs the same. Maps leave in their
stored form, to be decoded where they are used.

Axes: **n** maps of a batch, **m** = n - 1 places between them.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from imagecodecs import zstd_decode
from jaxtyping import Bool, Int, Shaped
from torch import Tensor
from xxhash import xxh3_64_intdigest

from data.errors import InputError
from data.shard_index import CacheIndex
from data.shards import PLAIN, REMAKE, CacheIdentity, npy_header, shard_name
from data.storage import payload_bytes

Item = TypeVar("Item")
MAX_GAP = 8192  # bytes between two maps that are read and thrown away rather than skipped by a second read
MAX_RUN = 512 * 1024  # bytes per read: beyond it a map would have left the processor's cache before it is checked
MAX_OPEN = 64  # shards held open by one buffer; the usual limit of a process is 1024
TORCH_DTYPES = {"float16": torch.float16, "uint8": torch.uint8}


class BatchBuffer:
    """Memory for one batch of maps, used again for the next, and the shards it was read from; for one thread at a time.

    Args:
        pinned: Page-locked memory, from which a GPU copies by itself.
        checked: Compare every map with its checksum; only a bench has a reason not to.
    """

    def __init__(
        self, folder: Path, identity: CacheIdentity, index: CacheIndex, pinned: bool = False, checked: bool = True
    ) -> None:
        self.folder, self.identity, self.index = folder, identity, index
        self.pinned, self.checked = pinned, checked
        self.nbytes = payload_bytes(identity.map_shape, identity.dtype)
        self.memory = torch.empty(0, dtype=torch.uint8)
        self.line: list[memoryview] = []
        """The places of maps and, after each, the room for what lies between it and the next in a shard."""
        self.gaps = np.empty(0, dtype=np.int64)
        self.copied: torch.cuda.Event | None = None
        self._gap = memoryview(bytearray(MAX_GAP))
        self._files: dict[int, int] = {}

    def read(self, ordinals: Int[np.ndarray, "n"], variants: Int[np.ndarray, "n"]) -> Shaped[Tensor, "n ..."]:
        """Read maps in the order given, in their stored form; what was read before is overwritten.

        Raises:
            InputError: a map's bytes do not match its checksum; the message names shard and image.
        """
        if self.copied is not None:
            self.copied.synchronize()  # a GPU may still be copying the former batch out of this memory
        self._make_room(len(ordinals))
        if self.identity.compression == "none":
            self._read_runs(ordinals, variants)
        else:
            self._read_compressed(ordinals, variants)
        used = self.memory[: len(ordinals) * self.nbytes].view(TORCH_DTYPES[self.identity.dtype])
        return used.view(len(ordinals), *self.identity.payload_shape)

    def _make_room(self, count: int) -> None:
        if 2 * count > len(self.line):
            count += count // 4  # batches differ in views: rather once too much than a little more each time
            size = count * self.nbytes
            if self.pinned:
                self.memory = torch.empty(size, dtype=torch.uint8, pin_memory=True)
            else:  # NumPy asks for huge pages: 6 % less time for maps of 1.5 MB
                self.memory = torch.from_numpy(np.empty(size, dtype=np.uint8))
            whole = memoryview(self.memory.numpy())
            places = [whole[i * self.nbytes : (i + 1) * self.nbytes] for i in range(count)]
            self.line = [part for place in places for part in (place, self._gap)]
            self.gaps = np.full(count, MAX_GAP)

    def _read_runs(self, ordinals: Int[np.ndarray, "n"], variants: Int[np.ndarray, "n"]) -> None:
        """Maps that lie one behind the other come in with one read, the headers between them going nowhere."""
        shards, offsets = self.index.shard[ordinals], self.index.offset[ordinals, variants]
        gaps = offsets[1:] - offsets[:-1] - self.nbytes
        follows = (shards[1:] == shards[:-1]) & (gaps >= 0) & (gaps <= MAX_GAP)
        self._set_gaps(np.where(follows, gaps, 0))
        shard, offset, line = shards.tolist(), offsets.tolist(), self.line
        checksum = self.index.checksum[ordinals, variants].tolist()
        for start, end in _runs(follows, len(ordinals), max(1, MAX_RUN // (self.nbytes + MAX_GAP))):
            wanted = offset[end - 1] + self.nbytes - offset[start]
            missing = wanted - os.preadv(self._file(shard[start]), line[2 * start : 2 * end - 1], offset[start])
            if self.checked:
                for n in range(start, end):
                    if xxh3_64_intdigest(line[2 * n]) != checksum[n]:
                        raise self._damaged(int(ordinals[n]), int(variants[n]))
            if missing:  # although what memory held before may have passed
                raise self._damaged(int(ordinals[end - 1]), int(variants[end - 1]))

    def _set_gaps(self, gaps: Int[np.ndarray, "m"]) -> None:
        """Make room between the maps' places for what lies between the maps; nearly always it is the same."""
        for n in np.flatnonzero(gaps != self.gaps[: len(gaps)]).tolist():
            self.line[2 * n + 1] = self._gap[: int(gaps[n])]
        self.gaps[: len(gaps)] = gaps

    def _read_compressed(self, ordinals: Int[np.ndarray, "n"], variants: Int[np.ndarray, "n"]) -> None:
        header = len(npy_header(self.identity.payload_shape, self.identity.dtype))
        npy = bytearray(header + self.nbytes)
        for place, ordinal, variant in zip(self.line[::2], ordinals.tolist(), variants.tolist(), strict=False):
            where = (int(column[ordinal, variant]) for column in (self.index.offset, self.index.nbytes))
            offset, size = where
            content = os.pread(self._file(int(self.index.shard[ordinal])), size, offset)
            if self.checked and xxh3_64_intdigest(content) != int(self.index.checksum[ordinal, variant]):
                raise self._damaged(ordinal, variant)
            zstd_decode(content, out=npy)
            place[:] = memoryview(npy)[header:]

    def _file(self, shard: int) -> int:
        file = self._files.get(shard)
        if file is None:
            if len(self._files) >= MAX_OPEN:
                os.close(self._files.pop(next(iter(self._files))))
            file = self._files[shard] = os.open(self.folder / shard_name(shard), os.O_RDONLY)
        return file

    def _damaged(self, ordinal: int, variant: int) -> InputError:
        name = self.identity.variants[variant]
        return InputError(
            f"{self.folder / shard_name(int(self.index.shard[ordinal]))}: the {'' if name == PLAIN else name + ' '}map"
            f" of image {str(self.index.image_id[ordinal])!r} is damaged (checksum differs); delete this shard and"
            f" {REMAKE}"
        )

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the shards."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()


def _runs(follows: Bool[np.ndarray, "m"], count: int, longest: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each stretch of maps to be read at once."""
    ends = [*(np.flatnonzero(~follows) + 1).tolist(), count]
    for first, last in pairwise([0, *ends]):
        for start in range(first, last, longest):
            yield start, min(start + longest, last)


def read_ahead(
    requests: Iterable[tuple[Item, np.ndarray, np.ndarray]],
    buffers: list[BatchBuffer],
    device: torch.device,
) -> Iterator[tuple[Item, Shaped[Tensor, "n ..."]]]:
    """Read batch after batch with one thread fewer than there are buffers, ahead of whoever uses them.

    A batch on the CPU lies in its buffer and holds until the next one is asked for; for a GPU it is a copy.

    Args:
        requests: What the maps are for (handed through), their ordinals, their variants.
    """
    free, pending = deque(buffers), deque()
    pool = ThreadPoolExecutor(len(buffers) - 1, thread_name_prefix="maps")
    try:
        for item, ordinals, variants in requests:
            buffer = free.popleft()
            pending.append((item, buffer, pool.submit(buffer.read, ordinals, variants)))
            if not free:
                yield from _hand_out(pending, free, device)
        while pending:
            yield from _hand_out(pending, free, device)
    finally:
        pool.shutdown(cancel_futures=True)
        for buffer in buffers:
            buffer.close()


def _hand_out(
    pending: deque[tuple[Item, BatchBuffer, Future]], free: deque[BatchBuffer], device: torch.device
) -> Iterator[tuple[Item, Tensor]]:
    """Yield the oldest batch; afterwards its buffer is free."""
    item, buffer, future = pending.popleft()
    maps = future.result()
    if device.type == "cuda":
        maps = maps.to(device, non_blocking=True)
        buffer.copied = torch.cuda.Event()
        buffer.copied.record()
    yield item, maps
    free.append(buffer)
