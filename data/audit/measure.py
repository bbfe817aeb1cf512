"""How well, how fast and in how much memory near-duplicates are found: the numbers of docs/audit.md.

Copies are planted into a real set; the least score is chosen on one half of the copies (and of the other pairs that
look alike) and judged on the other half. Speed is measured on made-up thumbnails: blends of two real ones each.

Axes: **N** images, **S** side of a thumbnail, **K** pairs.
"""

import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from jsonargparse import ArgumentParser, Namespace

from data.audit.alignment import align
from data.audit.candidates import find_candidates
from data.audit.duplicates import LOOKS_ALIKE, SAME_PICTURE, find_copies
from data.audit.planting import KINDS, SOURCE, blends, plant
from data.audit.scale import cropped, measure_scale
from data.audit.sides import Collection, one_table
from data.audit.thumbnails import equalised, read_thumbnails
from data.manifest import Manifest, read_manifest
from data.order import derive_seed
from data.runs import run_command

ANY_SCORE = 1e-6


def main(argv: Sequence[str] | None = None, keep: Callable[[str, dict], None] = lambda name, numbers: None) -> None:
    """Run the command line: `recall`, `speed` or `scale`; prints one JSON line last.

    Args:
        keep: What is done with a result under `--out`: its name and numbers.
    """
    parser = ArgumentParser(prog="measure_audit.py", description="Measure the search for near-duplicates.")
    subcommands = parser.add_subcommands(required=True)
    for name, (_, help_text) in MEASURES.items():
        part = ArgumentParser(description=help_text)
        part.add_argument("--manifest", type=Path, required=True, help="real images to copy or blend")
        if name != "speed":
            part.add_argument("--folder", type=Path, required=True, help="where pictures are written")
        if name == "recall":
            part.add_argument("--per_kind", type=int, default=50, help="copies of each kind")
        else:
            part.add_argument("--images", type=int, default=100_000, help="how many to make up")
        part.add_argument("--seed", type=int, default=0, help="of all draws")
        part.add_argument("--out", action="store_true", help="keep the result under scripts/results/")
        subcommands.add_subcommand(name, part, help=help_text)
    options = parser.parse_args(argv)
    run_command(lambda: _run(options.subcommand, options[options.subcommand], keep))


def measure_recall(manifest: Manifest, out_dir: Path, num_per_kind: int, seed: int) -> dict:
    """Plant copies, choose the least score on one half, report recall by kind and precision on the other.

    Every other pair that was found counts as wrong; natural duplicates must be ruled out by eye.
    """
    planted = plant(manifest, out_dir, num_per_kind, seed)
    table = one_table([Collection("real", manifest), Collection(SOURCE, planted)])
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


def measure_speed(pixels: UInt8[np.ndarray, "N S S"], count: int, seed: int) -> dict:
    """Search `count` made-up thumbnails, 200 of them cropped copies of others; seconds, processor time and memory."""
    made = blends(pixels, count, seed)
    num_copies = min(200, count // 10)
    rng = np.random.default_rng(derive_seed("speed", seed))
    for number in range(num_copies):  # the last ones become crops of the first ones
        made[count - num_copies + number] = equalised(cropped(made[number], rng))
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
    return measure_recall(read_manifest(options.manifest), options.folder, options.per_kind, options.seed)


def _speed(options: Namespace) -> dict:
    return measure_speed(_thumbnails(options.manifest), options.images, options.seed)


def _scale(options: Namespace) -> dict:
    return measure_scale(_thumbnails(options.manifest), options.folder, options.images, options.seed)


def _thumbnails(path: Path) -> UInt8[np.ndarray, "N S S"]:
    """Those of a manifest's images that can be read."""
    manifest = read_manifest(path)
    thumbnails = read_thumbnails([manifest.image_path(row) for row in range(len(manifest))])
    return thumbnails.pixels[[not reason for reason in thumbnails.reasons]]


MEASURES: dict[str, tuple[Callable[[Namespace], dict], str]] = {
    "recall": (_recall, "plant copies and look for them"),
    "speed": (_speed, "time the search among made-up thumbnails"),
    "scale": (_scale, "time the whole command on made-up pictures"),
}


def _run(name: str, options: Namespace, keep: Callable[[str, dict], None]) -> None:
    numbers = MEASURES[name][0](options)
    if options.out:
        keep(name, numbers)
    print(json.dumps(numbers))
