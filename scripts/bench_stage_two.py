"""A training step of stage two from cached maps, against running the frozen backbone in every step.

    python scripts/bench_stage_two.py [--quick] [--out]

The same images, groups of 1 to 4 views as in CXR-LT, ConvNeXt-T with random weights, no augmentation, CPU time of one
thread (files lie in the page cache). The fusion model is the one of fusion/configs/cxr_lt_2023.yaml: a 3x3 convolution
of stride 2 leaves 16 tokens per view at 224 px and 64 at 512 px. Each way decodes or reads, runs forward and backward,
and steps AdamW:

- recompute: as published. RGB decoded by Pillow, stacked to 4 views per study, float32 backbone on the real ones, and
  the published fusion module on 4 views, padding included.
- efficient recompute: grey decoded by our reader, bfloat16 backbone, our packed fusion model.
- cached: float16 maps read (each checked, nothing read ahead), our packed fusion model: one forward pass per step.
- the last two again with the fusion model in bfloat16 too, as the recipe's mixed_precision has it.
- cheap, at 512 px: as cached, with token_stride 4 as in fusion/configs/cxr_lt_2023_cheap.yaml: 16 tokens per view.
- pooled, at 512 px: from a cache pooled 2 x 2, whose 8 x 8 positions are the 64 tokens per view; no convolution.

The ways are interleaved; a ratio is that of one round's times, the median over rounds. Then the fusion model learns 20
steps from the cache and 20 from recomputed maps (float32), from the same start: the losses' largest difference says
that it is the same training. At 1024 px nothing is measured: what an H200 would do is printed as arithmetic.
"""

import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import _bench
import _root  # noqa: F401
import numpy as np
import torch
from _stage_two import MEAN, NUM_CLASSES, STD, Work, cached, make_work, recomputed
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from extract.heads import HeadConfig
from fusion.model import FusionModel, ModelConfig
from fusion.published import MAX_VIEWS, PublishedFusion

HEAD = HeadConfig(kind="ml_decoder", width=768, num_heads=8, dropout=0.0)
LR = 1e-4


def config_of(kind: Literal["fusion", "published"], stride: Literal[1, 2, 4]) -> ModelConfig:
    """The published sizes."""
    sizes = {"width": 768, "depth": 2, "num_heads": 8, "feed_forward": 2048}
    return ModelConfig(kind=kind, token_stride=stride, dropout=0.0, head=HEAD, **sizes)


class Packed:
    """Our fusion model and its optimizer; a step takes the maps from wherever `source` finds them."""

    def __init__(
        self,
        work: Work,
        source: Callable[[np.ndarray], Tensor],
        stride: Literal[1, 2, 4] = 2,
        pool: int = 1,
        bf16: bool = False,
    ) -> None:
        self.work, self.source, self.bf16 = work, source, bf16
        torch.manual_seed(0)
        self.model = FusionModel(config_of("fusion", stride), work.caches[pool].identity.map_shape, NUM_CLASSES)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)

    def step(self, step: int) -> float:
        """One training step; its loss."""
        one = self.work.one_pass(step)
        maps = self.source(one.ordinals)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(maps, one.view_types, one.slots, one.buckets).float()
        loss = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(self.work.groups.labels[one.groups]))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())


class Recompute:
    """The published step, with the published module (fusion/published.py) and keys and values of every token."""

    def __init__(self, work: Work) -> None:
        self.work = work
        torch.manual_seed(0)
        self.model = PublishedFusion(config_of("published", 2), work.caches[1].identity.map_shape, NUM_CLASSES)
        self.model.head.attention.absorbing_pays = lambda *_: False  # as released
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)

    def step(self, step: int) -> None:
        """Decode into a stack of 4 views per study, run the backbone on the real ones, train the fusion module."""
        numbers = self.work.batch(step)
        pixels, slots = self.decode(numbers)
        present = slots >= 0
        with torch.no_grad():
            real = self.work.backbone(pixels[present].contiguous(memory_format=torch.channels_last))
        maps = real.new_zeros(*slots.shape, *real.shape[1:])
        maps[present] = real
        logits = self.model(maps, torch.zeros_like(slots), slots)
        F.binary_cross_entropy_with_logits(logits, torch.from_numpy(self.work.groups.labels[numbers])).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def decode(self, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
        """Pixels (G, 4, 3, h, w) of some studies and slots (G, 4), -1 where there is no view."""
        size = self.work.size
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        pixels = torch.zeros(len(numbers), MAX_VIEWS, 3, size, size)
        slots = torch.full((len(numbers), MAX_VIEWS), -1)
        for group, number in enumerate(numbers):
            for view, ordinal in enumerate(self.work.groups.ordinals[number]):
                with Image.open(self.work.paths[ordinal]) as image:
                    rgb = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
                pixels[group, view], slots[group, view] = (rgb.float() / 255 - mean) / std, view
        return pixels, slots


def ways_of(work: Work) -> dict[str, Callable[[int], object]]:
    """A step of each way."""
    ways: dict[str, Callable[[int], object]] = {
        "recompute": Recompute(work).step,
        "efficient recompute": Packed(work, partial(recomputed, work, bf16=True)).step,
        "cached": Packed(work, partial(cached, work, 1)).step,
        "efficient recompute bf16": Packed(work, partial(recomputed, work, bf16=True), bf16=True).step,
        "cached bf16": Packed(work, partial(cached, work, 1), bf16=True).step,
    }
    if 2 in work.caches:
        ways["cheap"] = Packed(work, partial(cached, work, 1), stride=4).step
        ways["pooled"] = Packed(work, partial(cached, work, 2), stride=1, pool=2).step
    return ways


def measure(work: Work, rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each way's step, a value per round; a first round warms up."""
    ways = ways_of(work)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for step in range(rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way(step)
            seconds[name].append(time.process_time() - started)
    return {name: np.array(values[1:]) for name, values in seconds.items()}


def loss_difference(work: Work, steps: int) -> float:
    """Largest difference between the losses of training from the cache and from recomputed maps."""
    sides = [Packed(work, partial(cached, work, 1)), Packed(work, partial(recomputed, work, bf16=False))]
    losses = np.array([[side.step(step) for side in sides] for step in range(steps)])
    print(f"{work.size} px, loss of {steps} steps: {losses[0, 0]:.4f} to {losses[-1, 0]:.4f}")
    return float(np.abs(losses[:, 0] - losses[:, 1]).max())


def ratios(size: int, seconds: dict[str, np.ndarray]) -> dict[str, float]:
    """Medians over rounds; prints a table."""
    numbers = {}
    for name, values in seconds.items():
        against = " ".join(f"{np.median(other / values):6.2f} x {way}" for way, other in seconds.items())
        print(f"{size} px  {name:<25}{np.median(values):8.3f} s per step  {against}")
        numbers[f"{name.replace(' ', '_')}_seconds_{size}"] = round(float(np.median(values)), 4)
    for way in ("recompute", "efficient recompute"):
        key = f"step_{size}_vs_{way.replace(' ', '_')}"
        numbers[key] = round(float(np.median(seconds[way] / seconds["cached"])), 2)
    both = seconds["efficient recompute bf16"] / seconds["cached bf16"]
    numbers[f"step_{size}_vs_efficient_recompute_bf16"] = round(float(np.median(both)), 2)
    for way in seconds.keys() & {"cheap", "pooled"}:
        numbers[f"{way}_step_{size}_vs_recompute"] = round(float(np.median(seconds["recompute"] / seconds[way])), 2)
    return numbers


def h200_lines() -> list[str]:
    """An epoch of MIMIC-CXR at 1024 px with ConvNeXt-S on one H200: assumptions in, arithmetic out."""
    images, studies, cores = 377_000, 228_000, 16
    slow, fast = 2977 * 2.0 / 20.9, 3998 * 4.5 / 20.9  # images/s of an RTX 4090 at 224 px; H200 2.0 to 4.5 times that
    backbone = [images / rate / 60 for rate in (slow, fast)]
    host = images * 0.165 / cores / 60  # s per image measured on one core: decode, float32, pad to 4, stack
    read, fusion = 593 / 7.0, 3 * 16.2e9 * studies / 300e12  # GB at 7 GB/s; forward and backward at 300 TFLOP/s
    cache = max(read, fusion)
    return [
        "arithmetic, not measured: one epoch of MIMIC-CXR (377,000 images, 228,000 studies) at 1024 px on an H200",
        f"  frozen ConvNeXt-S in every step, {fast:.0f} to {slow:.0f} images/s:"
        f" {backbone[1]:.0f} to {backbone[0]:.0f} min",
        f"  the published input pipeline, 165 ms per image on {cores} cores: {host:.0f} min",
        f"  cached: read 593 GB at 7 GB/s in {read:.0f} s, beside it fusion, 3 x 16.2 GFLOP per study at 300 TFLOP/s,"
        f" in {fusion:.0f} s: {cache:.0f} s",
        f"  ratio: {backbone[1] * 60 / cache:.0f} to {backbone[0] * 60 / cache:.0f} against the backbone alone,"
        f" {host * 60 / cache:.0f} against the published pipeline",
    ]


def main() -> None:
    """Both sizes, then the agreement of losses and the arithmetic."""
    options = _bench.parse_options(__doc__)
    torch.set_num_threads(1)
    sizes = {224: (4, 1), 512: (1, 2)} if options.quick else {224: (8, 10), 512: (8, 5)}  # batch, different batches
    rounds = {224: 2, 512: 1} if options.quick else {224: 9, 512: 5}
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size, (batch_size, num_batches) in sizes.items():
            work = make_work(Path(folder) / str(size), size, batch_size, num_batches)
            numbers |= ratios(size, measure(work, rounds[size]))
            if size == 224 or not options.quick:
                numbers[f"max_loss_difference_{size}"] = loss_difference(work, 3 if options.quick else 20)
    print("\n".join(h200_lines()))
    _bench.report("stage_two", numbers | {"load": round(os.getloadavg()[0], 2)}, options)


if __name__ == "__main__":
    main()
