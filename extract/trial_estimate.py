"""From what a trial of stage one took to what the full run will take."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from extract.config import ExtractConfig
from extract.dry_run import start_command
from extract.observe import aligned, bytes_text


@dataclass(frozen=True)
class Measured:
    """What a trial of stage one took. Seconds are of the clock on the wall, all processes at work."""

    scan_s: float
    """Seconds to check an image."""

    decode_s: float
    """Seconds in which one worker reads, decodes and augments an image."""

    step_s: float
    """Seconds from the end of one optimizer step to the end of the next."""

    val_s: float
    """Seconds to predict an image, reading included."""

    cache_s: float
    """Seconds in which one process reads an image, runs it and writes its map."""

    map_bytes: float
    """Bytes of a map in its shard."""

    checkpoint_bytes: int
    """Bytes of ``best/``, ``last/`` and ``previous/``."""

    peak_bytes: int
    """CUDA: most memory allocated in training; CPU: the process's peak, workers not included."""


@dataclass(frozen=True)
class Estimate:
    """What the full run will take."""

    num_steps: int
    """Optimizer steps of all epochs."""

    scan_s: float
    train_s: float
    """All epochs with their validation."""

    cache_s: float
    cache_bytes: float
    checkpoint_bytes: int

    @property
    def total_s(self) -> float:
        """Seconds of everything."""
        return self.scan_s + self.train_s + self.cache_s

    @property
    def total_bytes(self) -> float:
        """Bytes of everything."""
        return self.cache_bytes + self.checkpoint_bytes


def make_estimate(
    config: ExtractConfig, measured: Measured, num_images: int, num_train: int, num_val: int, num_processes: int
) -> Estimate:
    """Scale what two batches took to the full run.

    Two batches come from workers that had nothing else to do. In a long run a step takes as long as the slower of
    network and workers, which have one image after the other to decode.

    Args:
        num_train: Training images that an epoch visits, repeated ones counted.
    """
    workers = min(config.num_workers, os.cpu_count() or 1)
    steps = config.epochs * -(-num_train // config.batch_size)
    step_s, val_s = measured.step_s, measured.val_s
    if workers:
        step_s = max(step_s, measured.decode_s * config.batch_size / num_processes / workers)
        decode_s = measured.decode_s / num_processes  # a single batch was read before it ran; later these overlap
        val_s = max(val_s - decode_s, decode_s / workers)
    num_shards = -(-num_images * measured.map_bytes // (config.cache.shard_megabytes * 2**20))
    return Estimate(
        num_steps=steps,
        scan_s=measured.scan_s * num_images,
        train_s=steps * step_s + config.epochs * num_val * val_s,
        cache_s=measured.cache_s * num_images / max(1, min(num_processes, num_shards)),
        cache_bytes=measured.map_bytes * num_images,
        checkpoint_bytes=measured.checkpoint_bytes,
    )


def report(config: ExtractConfig, measured: Measured, estimate: Estimate, num_train: int) -> list[str]:
    """Measured and estimated numbers, a warning if the disk is too small, and the next command."""
    run_dir = config.run_dir
    rows = [
        ["measured on the trial", ""],
        ["checking an image", seconds_text(measured.scan_s)],
        ["decoding an image in a worker", seconds_text(measured.decode_s)],
        [f"a training step of {min(config.batch_size, num_train)} images", seconds_text(measured.step_s)],
        ["validating an image", seconds_text(measured.val_s)],
        ["caching an image", seconds_text(measured.cache_s)],
        ["peak memory of a process", f"about {bytes_text(measured.peak_bytes)}"],
        ["", ""],
        ["the full run", ""],
        ["checking all images", seconds_text(estimate.scan_s)],
        [f"training and validating, {estimate.num_steps:,} steps", seconds_text(estimate.train_s)],
        ["caching all maps", seconds_text(estimate.cache_s)],
        ["together", seconds_text(estimate.total_s)],
        ["disk for the cache", f"about {bytes_text(estimate.cache_bytes)}"],
        ["disk for checkpoints", f"about {bytes_text(estimate.checkpoint_bytes)}"],
    ]
    remedy = "lower image.size (the cache shrinks with its square)"
    two = f"accelerate launch train_fusion.py --run_dir {run_dir} --trial"
    return [
        *disk_lines(rows, estimate.total_bytes, run_dir, remedy),
        f"try stage two on this trial: {two}",
        f"next: {start_command('extract.py', run_dir)}",
    ]


def disk_lines(rows: list[list[str]], wanted: int | float, run_dir: Path, remedy: str) -> list[str]:
    """The rows with the free disk below them, aligned, and a warning if it does not suffice."""
    free = shutil.disk_usage(run_dir).free
    lines = aligned([*rows, ["free disk", bytes_text(free)]], left=2)
    if wanted > free:
        where = f"{bytes_text(wanted)} wanted, {bytes_text(free)} free"
        lines.append(f"warning: {run_dir}: {where}; make room, choose another run_dir, or {remedy}")
    return lines


def seconds_text(seconds: int | float) -> str:
    """A duration for people: ``about 3.2 h``."""
    for unit, size in (("days", 172800), ("h", 5400), ("min", 120)):
        if seconds >= size:
            return f"about {seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.3g} {unit}"
    return f"about {seconds:.3g} s" if seconds >= 1 else f"about {seconds * 1000:.3g} ms"
