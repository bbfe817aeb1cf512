"""Resident memory while an epoch is read from a cache larger than 4 GB: it must not grow with what has been read.

    python scripts/prove_flat_memory.py [--epochs 2]

2,750 made-up maps of 32 x 32 x 768 (4.3 GB of float16) are written, then read in a random order of groups in batches of
32 groups, as stage two does, and the process's resident memory is told at every tenth of an epoch. Pages that the
system keeps of files are not the process's memory and are not counted in it. Status 1 if the memory at any tenth
exceeds that after the first by more than 5 percent.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import _root  # noqa: F401
import numpy as np
from bench_cache import make_cache, shuffled_by_group

MAP_SHAPE, NUM_IMAGES, BATCH = (32, 32, 768), 2750, 56


def resident_megabytes() -> float:
    """Anonymous and locked memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024


def read_epochs(folder: Path, epochs: int) -> list[float]:
    """Megabytes at each tenth of each epoch."""
    cache = make_cache(folder / "cache", MAP_SHAPE, NUM_IMAGES)
    total = sum(shard["bytes"] for shard in cache.record["shards"])
    print(f"{total / 1e9:.2f} GB in {len(cache.record['shards'])} shards")
    order = np.concatenate([shuffled_by_group(NUM_IMAGES) for _ in range(epochs)])
    parts = np.split(order, np.arange(BATCH, len(order), BATCH))
    requests = ((n, part, np.zeros_like(part)) for n, part in enumerate(parts))
    tenths, found = {round(len(parts) * k / (10 * epochs)) - 1 for k in range(1, 10 * epochs + 1)}, []
    for n, _ in cache.stream(requests):
        if n in tenths:
            found.append(resident_megabytes())
            print(f"{(n + 1) / len(parts) * epochs:5.1f} epochs  {found[-1]:8.1f} MB", flush=True)
    return found


def main() -> None:
    """Write, read, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    with tempfile.TemporaryDirectory() as folder:
        found = read_epochs(Path(folder), parser.parse_args().epochs)
    print(f"after the first tenth {found[0]:.1f} MB, at most {max(found):.1f} MB")
    sys.exit(max(found) > 1.05 * found[0])


if __name__ == "__main__":
    main()
