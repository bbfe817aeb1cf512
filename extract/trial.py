"""``--trial`` of stage one: two batches through everything, then the time and disk that the full run will take.

All happens in ``<run_dir>/trial``, by the functions of a real run on a small manifest of the user's own images; nothing
of it is read by a later run, except by a trial of stage two.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator

from data.config import default_values
from data.lock import locked
from data.manifest import Manifest, read_manifest, write_manifest
from data.order import epoch_batches, first_visits
from data.runs import Log, keep_config, read_metrics
from data.sampling import SamplerConfig, epoch_length
from extract.cache import load_best, write_cache
from extract.config import ExtractConfig
from extract.dry_run import frozen_throughout, require_manifest
from extract.images import ImageDataset, augmented_requests
from extract.observe import peak_memory
from extract.phases import for_training
from extract.train import predict_images, readable_images, train
from extract.trial_estimate import Measured, make_estimate, report

Result = TypeVar("Result")
NUM_BATCHES = 2
DECODED = 16
"""Images decoded one after the other, to see how fast a worker is."""


def trial(config: ExtractConfig, resolved_yaml: str, accelerator: Accelerator) -> None:
    """Run all of stage one on two training batches and a batch of val and test, then print an estimate.

    Raises:
        InputError: whatever a real run would raise on these images.
    """
    require_manifest(config.run_dir)
    full = read_manifest(config.run_dir / "manifest.csv")
    full.require_splits()
    used = for_training(full, config.train_on)
    train_set, num_val = used.of_split("train"), len(used.of_split("val"))
    num_train = epoch_length(config.sampler, train_set.labels, train_set.images["source"].tolist())
    folder, main = config.run_dir / "trial", accelerator.is_main_process
    with locked(folder) if main else nullcontext():
        if main:
            empty(folder)
            write_manifest(trial_manifest(config, used), folder / "manifest.csv")
            keep_config(folder / "stage_one", resolved_yaml, default_values(ExtractConfig))
        accelerator.wait_for_everyone()
        log = Log(folder, main)
        log.start("trial of stage one", accelerator.num_processes, accelerator.device.type)
        measured = measure(trial_config(config, folder), resolved_yaml, accelerator, log)
        estimate = make_estimate(config, measured, len(full), num_train, num_val, accelerator.num_processes)
        for line in ["", *report(config, measured, estimate, num_train)]:
            log(line)


def empty(folder: Path) -> None:
    """Remove what a former trial left, but not the lock that this one holds."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif not path.name.startswith(".lock"):
            path.unlink()


def trial_manifest(config: ExtractConfig, full: Manifest) -> Manifest:
    """The first two training batches, and up to a batch for caching of val and of test, in the order of the table."""
    splits = full.images["split"].to_numpy(dtype=str)
    train_rows = np.flatnonzero(splits == "train")
    batches = epoch_batches(len(train_rows), config.batch_size, config.seed, epoch=0)[:NUM_BATCHES]
    chosen = [train_rows[np.concatenate(batches)]]
    for split in ("val", "test"):
        rows = np.flatnonzero(splits == split)
        patients = full.images["patient_id"].iloc[rows].tolist()
        chosen.append(rows[first_of_several_patients(patients, config.cache.batch_size)])
    return full.select(np.sort(np.concatenate(chosen)))


def first_of_several_patients(patient_ids: list[str], count: int) -> np.ndarray:
    """Numbers of the first `count` items, at least two, at most half of them of one patient.

    Intervals need two patients, and one patient may have more images than a batch holds.
    """
    nth_of_patient = pd.Series(patient_ids).groupby(patient_ids).cumcount().to_numpy()
    return np.flatnonzero(nth_of_patient < max(1, count // 2))[: max(2, count)]


def trial_config(config: ExtractConfig, folder: Path) -> ExtractConfig:
    """The same choices for one epoch in the trial's folder, each image once: two batches need not hold all sources."""
    return replace(
        config,
        run_dir=folder,
        epochs=1,
        patience=0,
        average_from=min(config.average_from, 1),
        resume=None,
        trial=False,
        freeze_backbone_epochs=frozen_throughout(config),  # otherwise its later, costlier epochs
        sampler=SamplerConfig(),
    )


def measure(config: ExtractConfig, resolved_yaml: str, accelerator: Accelerator, log: Log) -> Measured:
    """Scan, train, resume, cache and predict as a real run does, with a watch.

    Args:
        config: Of the trial: its own folder, one epoch.
    """
    full = read_manifest(config.run_dir / "manifest.csv")
    scan_s, (manifest, content) = timed(lambda: readable_images(config, accelerator, log))
    manifest.require_splits()
    peak_memory(reset=True)
    train(config, resolved_yaml, manifest, accelerator, log)
    peak = peak_memory()
    accelerator.free_memory()
    train(config, resolved_yaml, manifest, accelerator, log)  # finds its checkpoint, loads it, has nothing left to do
    cache_s, _ = timed(lambda: write_cache(config, manifest, content, accelerator, log))
    again_s, _ = timed(lambda: write_cache(config, manifest, content, accelerator, log))  # all but the maps
    model, _ = load_best(config, manifest)
    num_shards = len(list((config.run_dir / "cache").glob("*.tar")))
    val_set, stage_dir = manifest.of_split("val"), config.run_dir / "stage_one"
    model.to(accelerator.device)
    val_s, _ = timed(lambda: predict_images(config, val_set, model, accelerator))
    num_train = len(manifest.of_split("train"))
    num_steps = len(epoch_batches(num_train, config.batch_size, config.seed, epoch=0))
    return Measured(
        scan_s=scan_s / len(full),
        decode_s=decode_seconds(config, manifest.of_split("train")),
        step_s=step_seconds(stage_dir, num_steps),
        val_s=val_s / len(val_set),
        cache_s=max(0.0, cache_s - again_s) * min(accelerator.num_processes, num_shards) / len(manifest),
        map_bytes=sum(path.stat().st_size for path in (config.run_dir / "cache").glob("*.tar")) / len(manifest),
        checkpoint_bytes=sum(folder_bytes(stage_dir / name) for name in ("best", "last", "previous")),
        peak_bytes=peak,
    )


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds that a call took, and what it returned."""
    began = time.monotonic()
    result = run()
    return time.monotonic() - began, result


def decode_seconds(config: ExtractConfig, train_set: Manifest) -> float:
    """Seconds per training image in one process with one thread: what a worker needs."""
    dataset = ImageDataset(train_set, config.image, config.augmentation)
    requests = augmented_requests(first_visits(np.arange(min(DECODED, len(train_set)))), config.seed, epoch=0)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        dataset[requests[0]]  # the first one loads what later ones find loaded
        seconds, _ = timed(lambda: [dataset[request] for request in requests])
    finally:
        torch.set_num_threads(num_threads)
    return seconds / len(requests)


def step_seconds(stage_dir: Path, num_steps: int) -> float:
    """Seconds of a step as the run recorded them; of a single step, which has none before it, the whole epoch's."""
    row = read_metrics(stage_dir)[-1]
    return row["step_seconds"] if row["step_seconds"] is not None else row["seconds"] / num_steps


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
