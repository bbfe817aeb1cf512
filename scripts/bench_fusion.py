"""What packing and 64 tokens per view save in the fusion module, in CPU time and in FLOPs, at the sizes of CheXFusion.

    python scripts/bench_fusion.py [--quick] [--out]

Maps of 32 x 32 x 768, 26 classes, width 768, 2 layers, 8 heads; numbers of views as in CXR-LT 2023 (155,823 studies,
the 96 with more than four views as four, for the other modules take no more). Ours: packed by number of views, 256
tokens per view. Padded: the same weights in torch's layers, padded to four views and masked. Published: the released
wiring (fusion/published.py) with keys and values of every token. Cheap: ours with 64 tokens per view. Forward is
without gradients; a step is forward and backward, without the optimizer, which costs all alike. CPU time of one
thread, modules interleaved on the same batch, medians over batches; ratios above 1 mean that the first is cheaper.
"""

import time
from collections import defaultdict
from collections.abc import Callable

import _bench
import _root  # noqa: F401
import numpy as np
import torch
from _reference_fusion import PaddedFusion
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from extract.heads import HeadConfig
from fusion.grouping import Bucket, Views, make_passes, slots_in_order
from fusion.model import FusionModel, ModelConfig
from fusion.published import PublishedFusion

STUDIES = {1: 69_478, 2: 71_298, 3: 13_529, 4: 1_422 + 96}
"""Studies of CXR-LT 2023 by number of images."""
NUM_CLASSES, SIZE, WIDTH = 26, 32, 768
Figures = defaultdict[tuple[str, str], list[float]]
"""By module and by what was measured; one for each batch."""


def config_of(kind: str) -> ModelConfig:
    """The published sizes; padded has ours."""
    head = HeadConfig(width=WIDTH, num_heads=8)
    stride = 4 if kind == "cheap" else 2
    wiring = "published" if kind == "published" else "fusion"
    return ModelConfig(kind=wiring, width=WIDTH, depth=2, num_heads=8, token_stride=stride, head=head)


def build(size: int) -> dict[str, nn.Module]:
    """The four modules."""
    torch.manual_seed(0)
    map_shape = (size, size, WIDTH)
    packed, cheap = (FusionModel(config_of(kind), map_shape, NUM_CLASSES) for kind in ("packed", "cheap"))
    published = PublishedFusion(config_of("published"), map_shape, NUM_CLASSES)
    published.head.attention.absorbing_pays = lambda *_: False  # as released
    return {"packed": packed, "padded": PaddedFusion(packed), "published": published, "cheap": cheap}


def draw(num_groups: int, rng: np.random.Generator) -> list[Views]:
    """Views of some groups, each with a map of its own."""
    shares = np.array([*STUDIES.values()]) / sum(STUDIES.values())
    counts = rng.choice([*STUDIES], size=num_groups, p=shares)
    ends = counts.cumsum()
    zeros = [np.zeros(count, dtype=int) for count in counts]
    return [
        Views(np.arange(end - n, end), zero, slots_in_order(n, 16), zero)
        for n, end, zero in zip(counts, ends, zeros, strict=True)
    ]


def passes(kind: str, views: list[Views], bank: Tensor) -> list[tuple[Bucket, tuple[Tensor, Tensor, Tensor]]]:
    """A module's forward passes over the groups; gathering maps is not timed, a reader does it."""
    config = config_of("published" if kind == "padded" else kind)  # padded in the same way
    buckets = make_passes(config, np.arange(len(views)), views)
    return [(b, (bank[torch.from_numpy(b.ordinals)], b.view_types, b.slots)) for b in buckets]


def forward(model: nn.Module, inputs: list) -> Tensor:
    """Logits of all groups, in their order."""
    model.eval()
    with torch.no_grad():
        logits = [model(*arguments) for _, arguments in inputs]
    order = torch.from_numpy(np.concatenate([bucket.groups for bucket, _ in inputs]))
    return torch.cat(logits)[order.argsort()]


def step(model: nn.Module, inputs: list) -> None:
    """Forward and backward in training mode, pass by pass as in training."""
    model.train()
    model.zero_grad()
    for _, arguments in inputs:
        model(*arguments).square().sum().backward()


def seconds(work: Callable, *arguments: object) -> float:
    """CPU time of one call."""
    started = time.process_time()
    work(*arguments)
    return time.process_time() - started


def flops(model: nn.Module, inputs: list) -> int:
    """Of a forward pass in training mode, where no fused layer hides them."""
    model.train()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for _, arguments in inputs:
            model(*arguments)
    return counter.get_total_flops()


def measure(size: int, num_groups: int, num_batches: int) -> tuple[Figures, list[float], list[float]]:
    """CPU seconds and FLOPs of each module on each batch but the first; differences from padding; views per group."""
    models, rng, figures = build(size), np.random.default_rng(0), Figures(list)
    differences, num_views = [], []
    for number in range(num_batches):
        views = draw(num_groups, rng)
        bank = torch.randn(sum(len(part.ordinals) for part in views), size, size, WIDTH)
        inputs = {kind: passes(kind, views, bank) for kind in models}
        for kind, model in models.items():
            taken = {what.__name__: seconds(what, model, inputs[kind]) for what in (forward, step)}
            if number:  # the first is for warming up
                for what, figure in (taken | {"flops": flops(model, inputs[kind])}).items():
                    figures[kind, what].append(figure)
        packed, padded = (forward(models[kind], inputs[kind]) for kind in ("packed", "padded"))
        differences.append(float((packed - padded).abs().max()))
        num_views.append(len(bank) / num_groups)
    return figures, differences, num_views


def main() -> None:
    """Measure and report."""
    options = _bench.parse_options(__doc__)
    torch.set_num_threads(1)
    size, num_groups, num_batches = (16, 4, 3) if options.quick else (SIZE, 16, 5)
    figures, differences, num_views = measure(size, num_groups, num_batches)

    def ratio(what: str, first: str, second: str) -> float:
        return round(float(np.median(np.array(figures[second, what]) / np.array(figures[first, what]))), 3)

    numbers = {
        f"{w}_vs_{o}": ratio(w, "packed", o) for o in ("padded", "published") for w in ("forward", "step", "flops")
    }
    numbers |= {f"cheap_{what}_vs_packed": ratio(what, "cheap", "packed") for what in ("forward", "step", "flops")}
    numbers["max_abs_difference"] = max(differences)
    for kind in ("packed", "padded", "published", "cheap"):
        each = {what: float(np.median(figures[kind, what])) / num_groups for what in ("forward", "step", "flops")}
        numbers |= {f"{kind}_{what}_s": round(each[what], 4) for what in ("forward", "step")}
        numbers[f"{kind}_gflop"] = round(each["flops"] / 1e9, 2)
        print(
            f"{kind:>9}: {numbers[f'{kind}_gflop']:6.2f} GFLOP, forward {each['forward']:.3f} s,"
            f" step {each['step']:.3f} s per group"
        )
    numbers |= {"groups": num_groups, "map_size": size, "mean_views": round(float(np.mean(num_views)), 2)}
    _bench.report("fusion", numbers, options)


if __name__ == "__main__":
    main()
