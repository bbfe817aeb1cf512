"""Stage two, from cached maps to submission: train, compare with baselines, write predictions.

G groups of a batch, V views, C classes. Batches are global: the same groups share a step on any number of processes.
"""

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from data.cache import FeatureCache
from data.config import default_values, parse_config
from data.errors import InputError
from data.lock import locked
from data.manifest import Manifest, read_manifest
from data.order import Draws, derive_seed, rank_share
from data.runs import Log, keep_config, run_command
from data.sampling import epoch_draws
from data.shards import patient_hash
from data.summary import groups_of, summary
from extract.cache import keep_training_data
from extract.checkpoint import Content
from extract.engine import finish_epoch, make_accelerator, make_state, sigmoid
from extract.losses import class_statistics, multilabel_loss
from extract.resume import StopSignal, TrainingState
from extract.step import seed_step, take_step
from fusion.config import FusionConfig, JointConfig
from fusion.grouping import GroupSet, cached_manifest, make_groups, single_images, training_views
from fusion.inference import forward, predict_finally, predict_groups
from fusion.passes import Pass, make_passes, maps_of
from fusion.pooled_mlp import mlp_logits
from fusion.published import build_model
from fusion.results import say_next, write_results

DEMO = Path(__file__).parent / "configs" / "demo.yaml"


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run stage two."""
    config, resolved_yaml = parse_config(FusionConfig, DEMO, argv)
    run_command(lambda: run(config, resolved_yaml), config.run_dir)


def run(config: FusionConfig, resolved_yaml: str, last_words: bool = True) -> None:
    """Stage two as a whole; what is finished already is recognised and kept.

    Args:
        last_words: End with the next command.
    """
    accelerator = make_accelerator(config)
    if config.dry_run or config.trial:
        return rehearse(config, resolved_yaml, accelerator)
    with locked(config.run_dir) if accelerator.is_main_process else nullcontext():
        log = Log(config.run_dir, accelerator.is_main_process)
        log.start("stage two", accelerator.num_processes, accelerator.device.type)
        cache = FeatureCache(config.cache_dir or config.run_dir / "cache")
        manifest = cached_manifest(read_manifest(config.run_dir / "manifest.csv"), cache)
        manifest.require_splits()
        refuse_trained_patients(manifest, cache)
        if accelerator.is_main_process:
            keep_config(config.stage_dir, resolved_yaml, default_values(FusionConfig), later="joint")
        accelerator.wait_for_everyone()
        sets = {
            split: make_groups(manifest.of_split(split), cache, config.grouping) for split in ("train", "val", "test")
        }
        stage_two = stage_two_alone(config)
        logits = {"fusion": train_and_predict(stage_two, resolved_yaml, sets, manifest, cache, accelerator, log)}
        if config.retrain_single:
            singles = {split: single_images(groups) for split, groups in sets.items()}
            logits["single"] = train_and_predict(
                stage_two, resolved_yaml, singles, manifest, cache, accelerator, log, "single_image"
            )
        if accelerator.is_main_process and config.pooled_mlp:
            logits["mlp"] = mlp_logits(stage_two, sets, manifest, cache, log)
        if accelerator.is_main_process and not (config.joint.run and (config.stage_dir / "metrics.json").exists()):
            write_results(stage_two, manifest, cache, sets, logits, log)
            if last_words and not config.joint.run:
                say_next(config, log)
        accelerator.wait_for_everyone()
        if config.joint.run:
            from fusion.joint import run_joint  # it imports this module

            run_joint(config, resolved_yaml, sets, manifest, cache, logits, accelerator, log)


def stage_two_alone(config: FusionConfig) -> FusionConfig:
    """The same without the joint phase, which is what `resume` speaks of if there is one."""
    return replace(config, joint=JointConfig(), resume=None) if config.joint.run else config


def rehearse(config: FusionConfig, resolved_yaml: str, accelerator: Accelerator) -> None:
    """Look at what training would do, or try it on two batches."""
    from fusion.dry_run import dry_run  # both import this module
    from fusion.trial import trial

    if config.dry_run:
        dry_run(config, accelerator)
    else:
        trial(config, resolved_yaml, accelerator)


def refuse_trained_patients(manifest: Manifest, cache: FeatureCache) -> None:
    """Refuse to validate or test on maps of a backbone that was trained on their patient.

    Raises:
        InputError: names the first such patient.
    """
    trained = set(cache.record["trained_patients"])
    held_out = manifest.images.loc[manifest.images["split"] != "train", ["patient_id", "image_id"]]
    pairs = {(patient, cache.index.fold[cache.ordinal[image]]) for patient, image in held_out.itertuples(index=False)}
    weights = cache.identity.weights
    seen = sorted({patient for patient, fold in pairs if patient_hash(patient, weights[fold]) in trained})
    if seen:
        raise InputError(
            f"manifest.csv: {len(seen)} patients of val or test were in the backbone's training set, first {seen[0]};"
            " the split changed since extract.py ran: rerun it in a new run_dir"
        )


def train_and_predict(
    config: FusionConfig,
    resolved_yaml: str,
    sets: dict[str, GroupSet],
    manifest: Manifest,
    cache: FeatureCache,
    accelerator: Accelerator,
    log: Log,
    subfolder: str = "",
) -> dict[str, Float[np.ndarray, "G C"]]:
    """Train one model and return the logits of its best epoch for the groups of val and test."""
    stage_dir = config.run_dir / config.name / subfolder
    state = build_state(config, cache, len(manifest.classes), accelerator)
    what = f"{config.name}/{subfolder}" if subfolder else config.name
    if state.resume(stage_dir, config.resume if not subfolder else None):
        log(f"{what}: {state.progress.epoch} of {config.epochs} epochs are done already")
    else:
        log(f"{what}: {len(sets['train'])} training and {len(sets['val'])} validation groups")
    if accelerator.is_main_process:
        keep_training_data(stage_dir, manifest.of_split("train"), manifest.of_split("val"), finished=False)
    accelerator.wait_for_everyone()
    model_files: dict[str, Content] = {
        "config.yaml": resolved_yaml,
        "classes.json": {"classes": list(manifest.classes)},
        "preprocessing.json": cache.identity.preprocessing,
    }
    groups, stop = groups_of(manifest.of_split("train")), StopSignal(log)
    while not state.progress.finished(config):
        started = time.monotonic()
        with stop.deferred():
            train_one_epoch(config, sets["train"], cache, state, stop, stage_dir, model_files, log)
            state.save(stage_dir, model_files)
            stop.leave_if_asked(accelerator, log)
            state.end_epoch(config.average_from)
        logits = predict_groups(config, sets["val"], cache, state.evaluated_model, accelerator)
        scores = summary(sigmoid(logits), sets["val"].labels, manifest.classes, groups)
        with stop.deferred():
            finish_epoch(state, config, scores, stage_dir, model_files, log, time.monotonic() - started)
            stop.leave_if_asked(accelerator, log)
    state.load_best(stage_dir)
    return predict_finally(config, sets, cache, state.plain_model, accelerator, log)


def build_state(config: FusionConfig, cache: FeatureCache, num_classes: int, accelerator: Accelerator) -> TrainingState:
    """Model, optimizer and average at their seeded start."""
    torch.manual_seed(derive_seed("weights", config.seed) % 2**32)
    model = build_model(config.model, cache.identity.map_shape, num_classes).to(accelerator.device)
    return make_state(model, config, accelerator)


def train_one_epoch(
    config: FusionConfig,
    groups: GroupSet,
    cache: FeatureCache,
    state: TrainingState,
    stop: StopSignal,
    stage_dir: Path,
    model_files: dict[str, Content],
    log: Log,
) -> None:
    """The optimizer steps of one epoch, from where the state stands to its end, or to the step after a stop signal."""
    accelerator, progress, epoch = state.accelerator, state.progress, state.progress.epoch
    batches = training_batches(config, groups, epoch)
    statistics = class_statistics(groups.labels).to(accelerator.device)

    def sub_loss(one: Pass, stored: Tensor, counts: bool, num_known: int) -> Tensor:
        targets = torch.from_numpy(groups.labels[one.groups]).to(accelerator.device)
        if not counts:
            targets = torch.full_like(targets, float("nan"))
        logits = forward(state.model, one, stored, cache.identity, accelerator)
        return multilabel_loss(logits, targets, statistics, config.loss, epoch / config.epochs) / num_known

    state.model.train()
    todo = batches[progress.step :]
    plans = plan_steps(config, groups, todo, epoch, len(cache.identity.variants), accelerator)
    steps = cache.stream(plans, accelerator.device, config.num_workers)
    for batch, ((passes, counts), stored) in zip(log.progress(todo, f"epoch {epoch + 1}"), steps, strict=True):
        seed_step(config.seed, epoch, progress.step, accelerator.process_index)
        known = ~np.isnan(groups.labels[batch.items])  # every process knows the global batch
        num_known = max(1, int(known.sum()))
        parts = zip(passes, stored.split([len(one) for one in passes]), strict=True)
        losses = [partial(sub_loss, one, part, counts, num_known) for one, part in parts]
        total_step, names = epoch * len(batches) + progress.step, [groups.ids[number] for number in batch.items]
        take_step(state, losses, config.optimizer, total_step, config.epochs * len(batches), names)
        progress.step += 1
        if stop.agreed(accelerator):
            return
        if config.save_steps and progress.step % config.save_steps == 0:
            state.save(stage_dir, model_files)


def training_batches(config: FusionConfig, groups: GroupSet, epoch: int) -> list[Draws]:
    """The global batches of an epoch."""
    return epoch_draws(config.sampler, groups.labels, groups.sources, config.batch_size, config.seed, epoch)


def plan_steps(
    config: FusionConfig,
    groups: GroupSet,
    batches: list[Draws],
    epoch: int,
    num_variants: int,
    accelerator: Accelerator,
) -> Iterator[tuple[tuple[list[Pass], bool], np.ndarray, np.ndarray]]:
    """Per step, this process's passes and whether they count; and the maps to read for them.

    A process without a share runs one group of the batch at weight 0, so that all processes meet in every step.
    """
    for batch in batches:
        share = rank_share(batch, accelerator.process_index, accelerator.num_processes, groups.num_views[batch.items])
        draws = share if len(share) else batch[:1]
        views = [
            training_views(groups, n, config.grouping, config.model.num_slots, config.seed, epoch, num_variants, copy)
            for n, copy in zip(draws.items.tolist(), draws.copies.tolist(), strict=True)
        ]
        passes = list(make_passes(config.model, draws.items, views, config.max_views_per_forward))
        yield (passes, bool(len(share))), *maps_of(passes)
