"""Single bits flipped, pages zeroed, ends cut off: every one must be named by what checks a cache or a checkpoint."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from data.cache_verify import verify
from data.errors import InputError
from extract.checkpoint import check_folder, save_folder
from tests.faults.commands import tiny_manifest
from tests.make_data import make_cache


def whole_cache(base: Path) -> tuple[Path, Callable[[Path], list[str]]]:
    """A cache of two shards, and what names its faults."""
    make_cache(base / "cache", tiny_manifest(base)).close()
    return base / "cache", verify


def whole_checkpoint(base: Path) -> tuple[Path, Callable[[Path], list[str]]]:
    """A checkpoint of four files, and what names its faults."""
    tensors = {"w": torch.arange(300.0).view(20, 15), "step": torch.tensor(7)}
    files: dict = {"model.safetensors": tensors, "state.json": {"epoch": 3}, "config.yaml": "epochs: 5\n"}
    save_folder(base / "last", files | {"classes.json": {"classes": ["Edema", "Mass"]}})

    def faults(folder: Path) -> list[str]:
        try:
            check_folder(folder)
        except InputError as error:
            return [str(error)]
        return []

    return base / "last", faults


WHOLE = {"cache": whole_cache, "checkpoint": whole_checkpoint}
DERIVED = ("index.npz",)  # rebuilt from the shards; a reader that takes it compares it with cache.json


def damages(content: bytes, flips: int, page: int, rng: random.Random) -> Iterator[tuple[str, bytes]]:
    """Flipped bits, zeroed pages, and cuts at the start of each page and one byte beside it."""
    for _ in range(flips):
        bit = rng.randrange(8 * len(content))
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        yield "flip", bytes(changed)
    for start in range(0, len(content), page):
        zeroed = content[:start] + bytes(len(content[start : start + page])) + content[start + page :]
        if zeroed != content:
            yield "zeroed page", zeroed
        for end in {start - 1, start, start + 1}:
            if 0 <= end < len(content):
                yield "cut", content[:end]


def damage_everything(kind: str, base: Path, flips: int, page: int = 512, seed: int = 0) -> dict[str, int]:
    """How often each kind of damage was done to the files of a folder; each must be named with its file.

    Args:
        kind: "cache" or "checkpoint".
        flips: Single bits of all files together.
        page: Bytes that are zeroed at once.
    """
    folder, faults = WHOLE[kind](base)
    assert not faults(folder)
    rng, counts = random.Random(f"{kind} {seed}"), {"flip": 0, "zeroed page": 0, "cut": 0}
    files = [path for path in sorted(folder.iterdir()) if path.name not in DERIVED]
    for path in files:
        content = path.read_bytes()
        for what, changed in damages(content, flips // len(files), page, rng):
            path.write_bytes(changed)
            assert any(path.name in line for line in faults(folder)), f"{path.name}: a {what} is not noticed"
            counts[what] += 1
        path.write_bytes(content)
    assert not faults(folder)
    return counts
