"""The README's table of what a cache costs: bytes per image in each storage form, and time per 100,000 images.

    python scripts/cache_costs.py [--out]

Bytes are computed from the map's shape, tar headers and padding included. FLOPs of the forward pass are counted by
torch. CPU hours are measured: CPU time of one thread of this machine for a forward pass of random pictures, float32,
median of three (decoding hides behind it, see bench_extract.py). GPU minutes are arithmetic: FLOPs at 100 TFLOP/s,
which a GPU must sustain for them to come true.
"""

import argparse
import time
from typing import Any

import _root  # noqa: F401
import numpy as np
import torch
from _experiment import keep
from torch.utils.flop_counter import FlopCounterMode

from data.shards import bytes_per_image
from data.storage import Storage
from extract.backbone import Backbone, BackboneConfig
from extract.estimate import pooled

MODELS = (
    ("ConvNeXt-T", "convnext_tiny", 224),
    ("DenseNet121", "densenet121", 224),
    ("ConvNeXt-T", "convnext_tiny", 512),
    ("ConvNeXtV2-B", "convnextv2_base", 512),
    ("ConvNeXt-S", "convnext_small", 1024),
    ("DINOv2-B/14", "vit_base_patch14_dinov2", 518),
)
FORMS: tuple[tuple[Storage, int], ...] = (("float16", 1), ("uint8", 1), ("float16", 2), ("uint8", 2))
IMAGES, MIMIC_CXR_JPG, GPU_FLOPS = 100_000, 377_110, 1e14


def cost(name: str, size: int) -> dict[str, Any]:
    """Map shape, bytes, FLOPs and time of one backbone."""
    model = Backbone(BackboneConfig(name=name), 3).eval()
    image = torch.rand(1, 3, size, size)
    with torch.inference_mode():
        with FlopCounterMode(display=False) as counter:
            shape = tuple(model(image).shape[1:])
        seconds = []
        for _ in range(3):
            start = time.process_time()
            model(image)
            seconds.append(time.process_time() - start)
    flops = counter.get_total_flops()
    return {
        "map": shape,
        "bytes": [bytes_per_image(pooled(shape, pool), dtype, 1) for dtype, pool in FORMS],
        "gflop": round(flops / 1e9, 1),
        "cpu_hours": round(float(np.median(seconds)) * IMAGES / 3600, 1),
        "gpu_minutes": round(flops * IMAGES / GPU_FLOPS / 60, 2),
    }


def main() -> None:
    """One line of the README's table for each backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", action="store_true", help="keep the result under scripts/results/")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = {}
    for label, name, size in MODELS:
        row = rows[f"{label}, {size} px"] = cost(name, size)
        forms = [f"{n / 1e3:.0f} kB, {n * MIMIC_CXR_JPG / 1e9:.0f} GB" for n in row["bytes"]]
        hours = f"{row['gflop']} | {row['cpu_hours']:.1f} h | {row['gpu_hours']:.2f} h"
        print(
            f"| {label}, {size} px | {' x '.join(map(str, row['map']))} | {' | '.join(forms)} | {hours} |", flush=True
        )
    if options.out:
        keep("cache_costs", {"images": IMAGES, "rows": rows})


if __name__ == "__main__":
    main()
