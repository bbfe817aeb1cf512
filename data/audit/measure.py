"""How well, how fast and in how much memory near-duplicates are found: the numbers of docs/audit.md.

Copies are planted into a real set; the least score is chosen on one half of the copies (and of the other pairs that
look alike) and judged on the other half. Speed is measured on made-up thumbnails: blends of two real ones each.

Axes: **N** images, **S** side of a thumbnail, **K** pairs.
"""

import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from jsonargparse import ArgumentParser, Namespace
from torch.nn import functional as F

from data.audit.alignment import align
from data.audit.candidates import find_candidates
from data.audit.duplicates import LOOKS_ALIKE, SAME_PICTURE, find_copies
from data.audit.planting import KINDS, SOURCE, plant
from data.audit.sides import Collection, join
from data.audit.thumbnails import SIDE, equalised, read_thumbnails
from data.manifest import Manifest, read_manifest
from data.order import derive_seed
from data.runs import run_command

ANY_SCORE = 1e-6


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line: `recall` or `speed`; prints one JSON line last."""
    parser = ArgumentParser(prog="measure_audit.py", description="Measure the search for near-duplicates.")
    subcommands = parser.add_subcommands(required=True)
    for name, help_text in (("recall", "plant copies and look for them"), ("speed", "time made-up thumbnails")):
        part = ArgumentParser(description=help_text)
        part.add_argument("--manifest", type=Path, required=True, help="real images to copy or blend")
        if name == "recall":
            part.add_argument("--out", type=Path, required=True, help="folder for the copies")
            part.add_argument("--per_kind", type=int, default=50, help="copies of each kind")
        else:
            part.add_argument("--images", type=int, default=100_000, help="thumbnails to make up")
        part.add_argument("--seed", type=int, default=0, help="of all draws")
        subcommands.add_subcommand(name, part, help=help_text)
    options = parser.parse_args(argv)
    measure = {"recall": _recall, "speed": _speed}[options.subcommand]
    run_command(lambda: print(json.dumps(measure(options[options.subcommand]))))


def measure_recall(manifest: Manifest, out_dir: Path, num_per_kind: int, seed: int) -> dict:
    """Plant copies, choose the least score on one half, report recall by kind and precision on the other.

    Every other pair that was found counts as wrong; natural duplicates must be ruled out by eye.
    """
    planted = plant(manifest, out_dir, num_per_kind, seed)
    table = join([Collection("real", manifest), Collection(SOURCE, planted)])
    files = [Path(file) for file in table["file"]]
    copies = find_copies(read_thumbnails(files), files, ANY_SCORE)
    place = {name: number for number, name in enumerate(planted.images["image_id"])}
    scores, ours = {kind: np.zeros(num_per_kind) for kind in KINDS}, []
    for copy in copies:
        one, other = sorted((table["image_id"].iat[copy.first], table["image_id"].iat[copy.second]), key=len)
        original, _, kind = other.rpartition(".")
        if other in place and original == one:
            scores[kind][place[other] % num_per_kind] = copy.score
        else:
            ours.append((copy.score, derive_seed("half", one, other) % 2 == 0))
    others = np.array([score for score, _ in ours])
    in_first = np.array([first for _, first in ours], dtype=bool)
    return _judge(scores, others, in_first) | {"seed": seed, "images": len(manifest), "highest_other": max(others)}


def best_score(positive: Float[np.ndarray, "K"], negative: Float[np.ndarray, "K2"]) -> float:
    """The least score with the best F1; the middle where a range of scores is as good."""
    values = np.unique(np.concatenate([positive, negative, [0.0, 1.0]]))
    middles = (values[1:] + values[:-1]) / 2
    hits = (positive[None] >= middles[:, None]).sum(1)
    f1 = 2 * hits / (hits + (negative[None] >= middles[:, None]).sum(1) + len(positive))
    best = np.flatnonzero(f1 == f1.max())
    return float((values[best[0]] + values[best[-1] + 1]) / 2)


def _judge(scores: dict[str, np.ndarray], others: np.ndarray, in_first: Bool[np.ndarray, "K"]) -> dict:
    chosen = best_score(np.concatenate([values[::2] for values in scores.values()]), others[in_first])
    result: dict = {"chosen_on_first_half": round(chosen, 4)}
    for name, least in (("chosen", chosen), ("default", SAME_PICTURE)):
        found = {kind: values[1::2] >= least for kind, values in scores.items()}
        hits, wrong = sum(int(each.sum()) for each in found.values()), int((others[~in_first] >= least).sum())
        result[name] = {
            **{f"recall_{kind}": float(each.mean()) for kind, each in found.items()},
            "recall": hits / sum(map(len, found.values())),
            "precision": hits / max(1, hits + wrong),
        }
    return result | {"lowest": {kind: np.sort(values)[:3].round(3).tolist() for kind, values in scores.items()}}


def blends(pixels: UInt8[np.ndarray, "N S S"], count: int, seed: int) -> UInt8[np.ndarray, "K S S"]:
    """Thumbnails that look like radiographs, no two alike: two real ones, each shifted and scaled, mixed."""
    rng = np.random.default_rng(derive_seed("blends", seed))
    made = np.empty((count, SIDE, SIDE), dtype=np.uint8)
    for start in range(0, count, 500):
        number = min(500, count - start)
        parts = [_shifted(pixels[rng.integers(0, len(pixels), number)], rng) for _ in range(2)]
        share = rng.uniform(0.3, 0.7, (number, 1, 1)).astype(np.float32)
        mixed = share * parts[0] + (1 - share) * parts[1]
        made[start : start + number] = [equalised(image) for image in mixed]
    return made


def _shifted(pixels: UInt8[np.ndarray, "N S S"], rng: np.random.Generator) -> Float[np.ndarray, "N S S"]:
    scale, shift = rng.uniform(0.85, 1.0, (2, len(pixels))), rng.uniform(-0.1, 0.1, (2, len(pixels)))
    theta = np.zeros((len(pixels), 2, 3), dtype=np.float32)
    theta[:, 0, 0], theta[:, 1, 1], theta[:, :, 2] = scale[0], scale[1], shift.T
    images = torch.from_numpy(pixels.astype(np.float32))[:, None]
    places = F.affine_grid(torch.from_numpy(theta), list(images.shape), align_corners=False)
    return F.grid_sample(images, places, padding_mode="reflection", align_corners=False)[:, 0].numpy()


def measure_speed(pixels: UInt8[np.ndarray, "N S S"], count: int, seed: int) -> dict:
    """Search `count` made-up thumbnails, 200 of them cropped copies of others; seconds, processor time and memory."""
    made = blends(pixels, count, seed)
    num_copies = min(200, count // 10)
    rng = np.random.default_rng(derive_seed("speed", seed))
    for number in range(num_copies):  # the last ones become crops of the first ones
        top, left = rng.integers(0, SIDE // 8, 2)
        height, width = rng.integers(SIDE * 4 // 5, SIDE * 7 // 8 + 1, 2)
        crop = torch.from_numpy(made[number, top : top + height, left : left + width].astype(np.float32))
        crop = F.interpolate(crop[None, None], (SIDE, SIDE), mode="bilinear")[0, 0].numpy()
        made[count - num_copies + number] = equalised(crop)
    timer, processor = time.monotonic(), time.process_time()
    pairs = find_candidates(made)
    searched = time.process_time()
    score = align(made, pairs).score
    wanted = {(number, count - num_copies + number) for number in range(num_copies)}
    low, high = np.minimum(pairs.first, pairs.second), np.maximum(pairs.first, pairs.second)
    candidates = set(zip(low.tolist(), high.tolist(), strict=True))
    alike = score >= LOOKS_ALIKE
    found = set(zip(low[alike].tolist(), high[alike].tolist(), strict=True))
    return {
        "images": count,
        "seconds": round(time.monotonic() - timer),
        "processor_seconds": round(time.process_time() - processor),
        "of_that_search": round(searched - processor),
        "candidates": len(pairs.first),
        "to_confirm": int(alike.sum()),
        "crops_among_candidates": len(wanted & candidates) / num_copies,
        "crops_to_confirm": len(wanted & found) / num_copies,
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
    }


def _recall(options: Namespace) -> dict:
    return measure_recall(read_manifest(options.manifest), options.out, options.per_kind, options.seed)


def _speed(options: Namespace) -> dict:
    manifest = read_manifest(options.manifest)
    thumbnails = read_thumbnails([manifest.image_path(row) for row in range(len(manifest))])
    return measure_speed(thumbnails.pixels[[not reason for reason in thumbnails.reasons]], options.images, options.seed)
