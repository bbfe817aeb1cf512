"""The last phase of stage two, ``--joint``: backbone and fusion model learn together, from images.

Up to here the backbone was trained on single images and then frozen in the cache. Now its last stages, or all of it, go
on learning through the fusion model's loss, so that a view's map may serve what the other views show. Groups, batches,
slots and loss are those of stage two, the schedule is short and its own (`fusion.config.JointConfig`). Every step runs
the backbone, forward and backward, on every image, so an epoch costs many times one from the cache.

N images of a forward pass (all views of its groups), G groups, V views, C classes.
"""

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from data.cache import FeatureCache
from data.config import default_values
from data.manifest import Manifest
from data.order import derive_seed
from data.runs import Log, keep_config
from data.summary import groups_of, summary
from extract.cache import keep_training_data
from extract.checkpoint import Content, save_folder
from extract.config import ExtractConfig
from extract.engine import finish_epoch, gather_rows, make_state, sigmoid
from extract.images import ImageDataset, Request, load_batches, on_device
from extract.losses import class_statistics, multilabel_loss
from extract.resume import StopSignal, TrainingState
from extract.step import seed_step, take_step
from fusion.config import FusionConfig
from fusion.evaluation import average_logits, evaluation_passes
from fusion.grouping import GroupSet, evaluation_views
from fusion.joint_model import JointModel
from fusion.joint_start import keep_start, load_start, refuse_leaks_and_changes
from fusion.passes import Pass, make_passes
from fusion.results import Logits, write_results
from fusion.scoring import group_map
from fusion.train import plan_steps, training_batches

DONE = 1.0
"""Share of stage two that is finished, for losses that change towards its end."""


@dataclass(frozen=True, eq=False)
class Phase:
    """What training and prediction need to know."""

    config: FusionConfig
    """Stage two's, with this phase's schedule and seed."""
    stage_one: ExtractConfig
    """How images become network inputs."""
    sets: dict[str, GroupSet]
    images: dict[str, Manifest]
    """Of each split; `GroupSet.rows` are rows of it."""
    accelerator: Accelerator

    def requests(self, split: str, one: Pass, *visit: int) -> list[Request]:
        """The images of a pass, group by group, with the seeds of their augmentation.

        Args:
            visit: Epoch and step in training.
        """
        groups = self.sets[split]
        row_of = {o: r for g in one.groups for o, r in zip(groups.ordinals[g], groups.rows[g], strict=True)}
        rows = [int(row_of[ordinal]) for ordinal in one.ordinals]
        return [(row, derive_seed("augment", self.config.seed, *visit, row)) for row in rows]

    def forward(self, model: nn.Module, one: Pass, pixels: Tensor) -> Float[Tensor, "G C"]:
        """Logits of the groups of a pass."""
        device = self.accelerator.device
        images = on_device(pixels, self.stage_one, self.accelerator)
        with self.accelerator.autocast():
            return model(images, one.view_types.to(device), one.slots.to(device), one.buckets)


def phase_config(config: FusionConfig) -> FusionConfig:
    """Stage two's configuration with the joint phase's schedule, and draws of its own."""
    joint = config.joint
    return replace(
        config,
        seed=derive_seed("joint", config.seed),
        epochs=joint.epochs,
        optimizer=replace(config.optimizer, lr=joint.lr),
        average_from=0,
        max_views_per_forward=joint.max_views_per_forward,
    )


def run_joint(
    config: FusionConfig,
    resolved_yaml: str,
    sets: dict[str, GroupSet],
    manifest: Manifest,
    cache: FeatureCache,
    logits: dict[str, Logits],
    accelerator: Accelerator,
    log: Log,
) -> None:
    """Train, predict val and test from images, and write ``joint/`` in stage two's folder.

    Args:
        manifest: The cached images.
        logits: Of stage two, which is finished.
    """
    stage_dir = config.result_dir
    model, stage_one, digests = load_start(config, manifest, cache)
    former = refuse_leaks_and_changes(config, manifest, cache, stage_one, accelerator, log)
    images = {split: manifest.of_split(split) for split in sets}
    if accelerator.is_main_process:
        keep_config(stage_dir, resolved_yaml, default_values(FusionConfig))
        keep_training_data(stage_dir, images["train"], images["val"], finished=False, former=former)
        keep_start(stage_dir, digests)
    accelerator.wait_for_everyone()
    phase = Phase(phase_config(config), stage_one, sets, images, accelerator)
    model_files: dict[str, Content] = {
        "config.yaml": resolved_yaml,
        "stage_one.yaml": (config.run_dir / "stage_one" / "best" / "config.yaml").read_text(encoding="utf-8"),
        "classes.json": {"classes": list(manifest.classes)},
        "preprocessing.json": stage_one.image.to_dict(),
    }
    state = build_state(phase, model)
    train(phase, state, stage_dir, model_files, logits["fusion"]["val"], log)
    final = {split: predict_finally(phase, split, state.plain_model) for split in ("val", "test")}
    if accelerator.is_main_process:
        write_results(config, manifest, cache, sets, logits | {"frozen": logits["fusion"], "fusion": final}, log)
        log(f"next: compare {stage_dir / 'table.txt'} with {config.stage_dir / 'table.txt'}")
    accelerator.wait_for_everyone()


def build_state(phase: Phase, model: JointModel) -> TrainingState:
    """Model, optimizer and average at their start."""
    config, stage_one = phase.config, phase.stage_one
    model = model.to(phase.accelerator.device, torch.get_default_dtype())
    if stage_one.channels_last:
        model = model.to(memory_format=torch.channels_last)
    learns = any(weight.requires_grad for weight in model.backbone.parameters())
    return make_state(model, config, phase.accelerator, backbone_lr=config.joint.backbone_lr if learns else 1.0)


def train(
    phase: Phase,
    state: TrainingState,
    stage_dir: Path,
    model_files: dict[str, Content],
    cached: Float[np.ndarray, "G C"],
    log: Log,
) -> None:
    """Train to the end of the phase and put the best weights into the model; the start counts as epoch 0.

    Args:
        cached: Logits of the validation groups before this phase, from the cache.
    """
    config, accelerator, val = phase.config, phase.accelerator, phase.sets["val"]
    classes, bands, stop = phase.images["val"].classes, groups_of(phase.images["train"]), StopSignal(log)

    def validate() -> dict:
        return summary(sigmoid(predict_groups(phase, "val", state.evaluated_model)), val.labels, classes, bands)

    if state.resume(stage_dir, config.resume):
        log(f"{config.name}/joint: {state.progress.epoch} of {config.epochs} epochs are done already")
    else:
        scores = validate()
        state.progress.best_score = scores["mAP"] or 0.0
        if accelerator.is_main_process:
            weights = {"model.safetensors": state.evaluated_model.state_dict(), "metrics.json": {"val": scores}}
            save_folder(stage_dir / "best", model_files | weights)
        accelerator.wait_for_everyone()
        log(
            f"{config.name}/joint: start, from images: validation mAP {state.progress.best_score:.4f}; from the cache:"
            f" {group_map(sigmoid(cached), val):.4f}"
        )
    while not state.progress.finished(config):
        started = time.monotonic()
        with stop.deferred():
            train_one_epoch(phase, state, stop, stage_dir, model_files, log)
            state.save(stage_dir, model_files)
            stop.leave_if_asked(accelerator, log)
        scores = validate()
        with stop.deferred():
            finish_epoch(state, config, scores, stage_dir, model_files, log, time.monotonic() - started)
            stop.leave_if_asked(accelerator, log)
    state.load_best(stage_dir)


def train_one_epoch(
    phase: Phase,
    state: TrainingState,
    stop: StopSignal,
    stage_dir: Path,
    model_files: dict[str, Content],
    log: Log,
) -> None:
    """The optimizer steps of one epoch, from where the state stands to its end, or to the step after a stop signal."""
    config, groups, accelerator = phase.config, phase.sets["train"], phase.accelerator
    progress, epoch = state.progress, state.progress.epoch
    batches = training_batches(config, groups, epoch)
    todo = batches[progress.step :]
    plans = [plan for plan, *_ in plan_steps(config, groups, todo, epoch, 1, accelerator)]
    requests = [
        phase.requests("train", one, epoch, step)
        for step, (passes, _) in enumerate(plans, progress.step)
        for one in passes
    ]
    augmentation = phase.stage_one.augmentation if config.joint.augment else None
    dataset = ImageDataset(phase.images["train"], phase.stage_one.image, augmentation)
    images = load_batches(dataset, requests, config.joint.num_workers)
    statistics = class_statistics(groups.labels).to(accelerator.device)

    def sub_loss(one: Pass, counts: bool, num_known: int) -> Tensor:
        targets = torch.from_numpy(groups.labels[one.groups]).to(accelerator.device)
        if not counts:
            targets = torch.full_like(targets, float("nan"))
        logits = phase.forward(state.model, one, next(images))
        return multilabel_loss(logits, targets, statistics, config.loss, DONE) / num_known

    state.model.train()
    for batch, (passes, counts) in zip(log.progress(todo, f"epoch {epoch + 1}"), plans, strict=True):
        seed_step(config.seed, epoch, progress.step, accelerator.process_index)
        known = ~np.isnan(groups.labels[batch.items])  # every process knows the global batch
        losses = [partial(sub_loss, one, counts, max(1, int(known.sum()))) for one in passes]
        total_step, names = epoch * len(batches) + progress.step, [groups.ids[number] for number in batch.items]
        take_step(state, losses, config.optimizer, total_step, config.epochs * len(batches), names)
        progress.step += 1
        if stop.agreed(accelerator):
            return
        if config.save_steps and progress.step % config.save_steps == 0:
            state.save(stage_dir, model_files)


@torch.inference_mode()
def predict_groups(phase: Phase, split: str, model: nn.Module, draw: int = 0) -> Float[np.ndarray, "G C"]:
    """Logits of all groups of a split with all their views, from images, on every process.

    Args:
        draw: Which of the fixed assignments to slots.
    """
    config, groups, accelerator = phase.config, phase.sets[split], phase.accelerator
    own = np.arange(len(groups))[accelerator.process_index :: accelerator.num_processes]
    num_slots, hide_types = config.model.num_slots, config.grouping.hide_types
    views = [evaluation_views(groups, int(number), num_slots, draw=draw, hide_types=hide_types) for number in own]
    passes = list(make_passes(config.model, own, views, config.max_views_per_forward or 4 * config.batch_size))
    requests = [phase.requests(split, one) for one in passes]
    dataset = ImageDataset(phase.images[split], phase.stage_one.image)
    images = load_batches(dataset, requests, config.joint.num_workers)
    model.eval()
    logits = [phase.forward(model, one, next(images)).float().cpu() for one in passes]
    numbers = np.concatenate([one.groups for one in passes]) if passes else own
    values = torch.cat(logits) if logits else torch.empty(0, groups.labels.shape[1])
    return gather_rows(accelerator, numbers, values, len(groups))


def predict_finally(phase: Phase, split: str, model: nn.Module) -> Float[np.ndarray, "G C"]:
    """Logits of a split, averaged over the slot draws that the configuration asks for."""
    draws = [draw for _, draw in evaluation_passes(phase.config.evaluation, 1)]
    return average_logits([predict_groups(phase, split, model, draw) for draw in draws])
