"""``--trial`` of stage two: two batches through everything, then the time and disk that the full run will take.

The trial is a real run in a folder of its own, ``<run_dir>/trial/<name>``, with a small manifest and links to the cache
and the backbone: those of the run if its cache is finished, else those that a trial of stage one left.
"""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from data.cache import FeatureCache
from data.groups import group_images
from data.lock import locked
from data.manifest import SPLITS, Manifest, read_manifest, write_manifest
from data.order import epoch_batches
from data.runs import Log
from data.sampling import SamplerConfig, epoch_length
from data.submission import write_submission
from extract.observe import peak_memory
from extract.trial import NUM_BATCHES, empty, first_of_several_patients, folder_bytes, step_seconds, timed
from fusion.config import FusionConfig
from fusion.grouping import GroupSet, cached_manifest, make_groups, single_images
from fusion.inference import predict_groups
from fusion.stage_one import stage_one_logits
from fusion.train import build_state, refuse_trained_patients, run
from fusion.trial_estimate import Counts, Measured, Training, report

FEW_REPLICATES = 10


def trial(config: FusionConfig, resolved_yaml: str, accelerator: Accelerator) -> None:
    """Run all of stage two on two training batches and a batch of val and test, then print an estimate.

    Raises:
        InputError: whatever a real run would raise on these groups, or on the whole template.
    """
    source = config.run_dir
    if not (source / "cache" / "cache.json").exists() and (source / "trial" / "cache" / "cache.json").exists():
        source = config.run_dir / "trial"
    full = read_manifest(config.run_dir / "manifest.csv")
    cache = FeatureCache(source / "cache")
    manifest = cached_manifest(read_manifest(source / "manifest.csv"), cache)
    manifest.require_splits()
    refuse_trained_patients(manifest, cache)
    counts = count(full, config)
    folder, main = config.run_dir / "trial" / config.name, accelerator.is_main_process
    with locked(folder) if main else nullcontext():
        if main:
            prepare(folder, source, trial_manifest(config, manifest, cache))
            check_template(config, full, folder)
        accelerator.wait_for_everyone()
        log = Log(folder, main)
    small = trial_config(config, folder)
    peak_memory(reset=True)
    run(small, resolved_yaml, last_words=False)  # takes the folder's lock for itself
    peak = peak_memory()
    measured = measure(small, cache, peak, accelerator)
    for line in ["", *report(config, measured, counts, source)]:
        log(line)


def prepare(folder: Path, source: Path, manifest: Manifest) -> None:
    """Make the folder a run folder after stage one, without copying anything large."""
    empty(folder)
    write_manifest(manifest, folder / "manifest.csv")
    for name in ("cache", "stage_one"):
        (folder / name).symlink_to((source / name).resolve(), target_is_directory=True)


def trial_manifest(config: FusionConfig, manifest: Manifest, cache: FeatureCache) -> Manifest:
    """All images of the first two training batches, and of up to a batch of groups of val and of test."""
    chosen: list[str] = []
    for split in SPLITS:
        part = manifest.of_split(split)
        groups = make_groups(part, cache, config.grouping)
        if split == "train":
            numbers = np.concatenate(epoch_batches(len(groups), config.batch_size, config.seed, epoch=0)[:NUM_BATCHES])
        else:
            numbers = first_of_several_patients(groups.patient_ids, config.batch_size)
        chosen += part.images["image_id"].iloc[np.concatenate([groups.rows[n] for n in numbers])].tolist()
    return manifest.select(manifest.images["image_id"].isin(chosen).to_numpy(dtype=bool))


def trial_config(config: FusionConfig, folder: Path) -> FusionConfig:
    """The same choices for one epoch in the trial's folder, each group once; the submission has the table's rows."""
    return replace(
        config,
        run_dir=folder,
        epochs=1,
        patience=0,
        average_from=min(config.average_from, 1),
        resume=None,
        trial=False,
        sampler=SamplerConfig(),
        template=None,
        test_table=None,
        truth_dir=None,
        bootstrap_replicates=min(config.bootstrap_replicates, FEW_REPLICATES),
    )


def check_template(config: FusionConfig, full: Manifest, folder: Path) -> None:
    """Fill in the challenge's template for all test images, which a trial cannot predict, with 0.5.

    Raises:
        InputError: as at the end of the full run, if template, test table and manifest do not fit.
    """
    if config.template is None:
        return
    test_set = full.of_split("test")
    values = np.full((len(test_set), len(full.classes)), 0.5, dtype=np.float32)
    ids = test_set.images[["image_id", "study_id", "patient_id"]]
    write_submission(
        (ids, values, full.classes), config.template, folder / "template_filled_in.csv", None, config.test_table
    )


def measure(config: FusionConfig, cache: FeatureCache, peak_bytes: int, accelerator: Accelerator) -> Measured:
    """What the trial took, as far as its metrics say it; the rest once more with a watch.

    Args:
        config: Of the trial, which is finished.
    """
    manifest = read_manifest(config.run_dir / "manifest.csv")
    sets = {split: make_groups(manifest.of_split(split), cache, config.grouping) for split in ("train", "val")}
    fusion = measure_training(config, sets, cache, accelerator, "")
    single = None
    if config.retrain_single:
        singles = {split: single_images(groups) for split, groups in sets.items()}
        single = measure_training(config, singles, cache, accelerator, "single_image")
    head_s, _ = timed(lambda: stage_one_logits(config.run_dir, sets["val"], cache))
    return Measured(fusion, single, head_s / int(sets["val"].num_views.sum()), peak_bytes)


def measure_training(
    config: FusionConfig, sets: dict[str, GroupSet], cache: FeatureCache, accelerator: Accelerator, subfolder: str
) -> Training:
    """One of the trial's two models: its recorded step, and a prediction from its checkpoint."""
    stage_dir = config.run_dir / config.name / subfolder
    state = build_state(config, cache, sets["val"].labels.shape[1], accelerator)
    state.resume(stage_dir)
    predict_s, _ = timed(lambda: predict_groups(config, sets["val"], cache, state.evaluated_model, accelerator))
    num_steps = len(epoch_batches(len(sets["train"]), config.batch_size, config.seed, epoch=0))
    return Training(
        step_s=step_seconds(stage_dir, num_steps),
        predict_s=predict_s / len(sets["val"]),
        checkpoint_bytes=sum(folder_bytes(stage_dir / name) for name in ("best", "last", "previous")),
    )


def count(full: Manifest, config: FusionConfig) -> Counts:
    """Groups and images of each split of the whole manifest; of train, those that an epoch visits."""
    groups, images = {}, {}
    for split in SPLITS:
        part = full.of_split(split)
        found = group_images(part, config.grouping.by, config.grouping.study_labels)
        groups[split], images[split] = len(found.ids), len(part)
        if split == "train":
            views = [len(rows) for rows in found.rows]
            sources = part.images["source"].iloc[[rows[0] for rows in found.rows]].tolist()
            groups[split] = epoch_length(config.sampler, found.labels, sources)
            every, owners = np.repeat(found.labels, views, axis=0), np.repeat(sources, views).tolist()
            images[split] = epoch_length(config.sampler, every, owners)
    return Counts(groups, images)
