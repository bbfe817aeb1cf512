"""From image files to shards with nothing waiting: decoding before, and writing behind, the forward pass.

A few batches of reused host buffers go round. Decoding threads fill one, the calling thread runs the backbone over it
and encodes the maps on the device, and one writer thread checks, serialises and writes them while the next batch runs.
A batch lies within one shard, its pixels depend on its images alone, and a shard is one process's work: so the bytes
are those of a serial loop, for any number of threads, workers and processes.

An exception in any thread ends the run at once, in the calling thread, naming the image; nothing waits for ever.

Axes: **B** images of a batch, **K** decoded pictures per image, **S** input side, **H W D** stored maps.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from jaxtyping import Float, Shaped
from torch import Tensor

from data.images import read_scaled
from data.order import derive_seed
from data.runs import Log
from data.shards import PLAIN, CacheIdentity
from data.storage import encode_maps, pool_maps
from data.transforms import Augmentation, Preprocessing
from extract.backbone import Backbone
from extract.config import FLIP
from extract.estimate import Rate
from extract.writer import Batch, Image, Slot, Writer

NUM_SLOTS = 3
"""Batches in memory: one being decoded, one on the device, one being written."""


@dataclass(frozen=True)
class Pictures:
    """What is made of each file before it reaches the backbone."""

    preprocessing: Preprocessing
    augmentation: Augmentation
    num_augmented: int
    seed: int

    def decode(self, image: Image, out: Float[Tensor, "K 1 S S"]) -> None:
        """Write the resized image, then its augmented versions, to `out`.

        An augmentation's seed follows from the run's, the file's content and its own number: neither the order of
        images nor their ids matter.
        """
        try:
            resized = self.preprocessing.resized(*read_scaled(image.path, self.preprocessing.size))
            out[0] = resized
            for k in range(1, self.num_augmented + 1):
                out[k] = self.augmentation(resized, derive_seed("cache", self.seed, image.ids["content"], k))
        except Exception as error:
            error.add_note(f"while decoding image {image.ids['image_id']!r}")
            raise


@torch.inference_mode()
def encode_batch(
    slot: Slot, backbone: Backbone, preprocessing: Preprocessing, identity: CacheIdentity, accelerator: Accelerator
) -> None:
    """Run the backbone over a slot's pictures and store the encoded maps in the slot."""
    B = len(slot.batch.ordinals)
    pictures = slot.pictures[:B].to(accelerator.device, non_blocking=True)
    for variant, payload in zip(identity.variants, slot.payloads, strict=True):
        stored = stored_maps(pictures, variant, backbone, preprocessing, identity, accelerator.autocast)
        payload[:B].copy_(stored, non_blocking=True)
    if slot.copied is not None:
        slot.copied.record()


def stored_maps(
    pictures: Float[Tensor, "B K 1 S S"],
    variant: str,
    backbone: Backbone,
    preprocessing: Preprocessing,
    identity: CacheIdentity,
    autocast: Callable[[], AbstractContextManager],
) -> Shaped[Tensor, "B ..."]:
    """The stored form of one variant's maps, on the device of the pictures.

    Args:
        autocast: Under which the backbone runs.
    """
    picture = pictures[:, 0 if variant in (PLAIN, FLIP) else int(variant.removeprefix("augmented_"))]
    pixels = preprocessing.normalised(picture.flip(-1) if variant == FLIP else picture)
    with autocast():
        maps = backbone(pixels.contiguous(memory_format=torch.channels_last)).float()
    return encode_maps(pool_maps(maps) if identity.pool == 2 else maps, identity.dtype)


def extract_shards(
    folder: Path,
    batches: list[Batch],
    images: list[Image],
    pictures: Pictures,
    backbone: Backbone,
    identity: CacheIdentity,
    accelerator: Accelerator,
    num_workers: int,
    log: Log,
) -> dict[int, str]:
    """Write the shards of `batches`; SHA-256 by shard number.

    Args:
        num_workers: Decoding threads; 0 means one.

    Raises:
        ImageError: a file that cannot be decoded.
        InputError: a map that float16 cannot hold.
        OSError: the disk takes no more.
    """
    if not batches:
        return {}
    largest = max(len(batch.ordinals) for batch in batches)
    num_slots = min(NUM_SLOTS, len(batches))
    slots = [Slot(largest, 1 + pictures.num_augmented, identity, accelerator.device) for _ in range(num_slots)]
    backbone.eval().to(accelerator.device).to(memory_format=torch.channels_last)  # up to a third faster, never slower
    rate = Rate(sum(len(batch.ordinals) for batch in batches), log)
    writer = Writer(folder, identity, images, slots)
    try:
        with decoding_threads(num_workers) as pool:
            decoded = decoded_slots(pool, writer, batches, images, pictures)
            for slot in log.progress(decoded, "caching", total=len(batches)):
                encode_batch(slot, backbone, pictures.preprocessing, identity, accelerator)
                rate.add(len(slot.batch.ordinals))
                writer.put(slot)
        writer.finish()
    except BaseException:
        writer.abort()
        raise
    return writer.sha256


def decoded_slots(
    pool: ThreadPoolExecutor, writer: Writer, batches: list[Batch], images: list[Image], pictures: Pictures
) -> Iterator[Slot]:
    """Slots with their pictures, in order; while one is used, the next is being decoded."""
    ahead: deque[tuple[Slot, list[Future]]] = deque()
    for batch in batches:
        slot = writer.take()
        slot.batch = batch
        jobs = [
            pool.submit(pictures.decode, images[n], out) for n, out in zip(batch.ordinals, slot.pictures, strict=False)
        ]
        ahead.append((slot, jobs))
        if len(ahead) == NUM_SLOTS - 1:
            yield finished(*ahead.popleft())
    while ahead:
        yield finished(*ahead.popleft())


def finished(slot: Slot, jobs: list[Future]) -> Slot:
    """The slot, once all its pictures are there."""
    for job in jobs:
        job.result()
    return slot


@contextmanager
def decoding_threads(num_workers: int) -> Generator[ThreadPoolExecutor]:
    """Threads that use one core each; those that have not begun an image when the block is left never do."""
    num_threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(max(1, num_workers), "decoder", initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)  # threads started later inherit the last number set anywhere
