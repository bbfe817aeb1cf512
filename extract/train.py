"""Stage one, from images to shards: check the images, train on single images, cache the feature maps.

B images of a batch, C classes. Batches are global: the same images share a step on any number of processes.
"""

import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from jaxtyping import Float
from torch import Tensor, nn

from data.config import default_values, parse_config
from data.demo import ensure_manifest
from data.image_shards import refuse_unfit
from data.lock import locked
from data.manifest import Manifest, read_manifest
from data.order import Draws, derive_seed, rank_share
from data.plots import plot_batch
from data.runs import Log, keep_config, run_command, write_environment
from data.sampling import epoch_draws
from data.scan import scan_images
from data.summary import groups_of, summary
from extract.backbone import ImageClassifier
from extract.cache import keep_training_data, write_cache
from extract.checkpoint import Content
from extract.config import ExtractConfig
from extract.distillation import Taught, ask_teacher
from extract.engine import finish_epoch, gather_rows, make_accelerator, make_state, sigmoid
from extract.foreign import is_imported
from extract.images import ImageDataset, augmented_requests, load_batches, on_device, plain_requests
from extract.losses import class_statistics, multilabel_loss
from extract.losses.distillation import Lesson
from extract.phases import for_training, former_patients, refuse_former_patients
from extract.resume import StopSignal, TrainingState
from extract.step import seed_step, take_step

DEMO = Path(__file__).parent / "configs" / "demo.yaml"


def main(argv: list[str] | None = None) -> None:
    """Parse the command line and run stage one."""
    config, resolved_yaml = parse_config(ExtractConfig, DEMO, argv)
    run_command(lambda: run(config, resolved_yaml), config.run_dir)


def run(config: ExtractConfig, resolved_yaml: str) -> None:
    """Stage one as a whole; what is finished already is recognised and kept."""
    accelerator = make_accelerator(config)
    if config.dry_run or config.trial:
        return rehearse(config, resolved_yaml, accelerator)
    with locked(config.run_dir) if accelerator.is_main_process else nullcontext():
        log = Log(config.run_dir, accelerator.is_main_process)
        log.start("stage one", accelerator.num_processes, accelerator.device.type)
        if accelerator.is_main_process:
            ensure_manifest(config.run_dir)
            keep_config(config.run_dir / "stage_one", resolved_yaml, default_values(ExtractConfig))
            write_environment(config.run_dir, accelerator.device.type)
        accelerator.wait_for_everyone()
        manifest, content = readable_images(config, accelerator, log)
        train(config, resolved_yaml, manifest, accelerator, log)
        write_cache(config, manifest, content, accelerator, log)
        log(f"next: accelerate launch train_fusion.py --run_dir {config.run_dir}")


def rehearse(config: ExtractConfig, resolved_yaml: str, accelerator: Accelerator) -> None:
    """Look at what training would do, or try it on two batches."""
    from extract.dry_run import dry_run  # both import this module
    from extract.trial import trial

    if config.dry_run:
        dry_run(config, accelerator)
    else:
        trial(config, resolved_yaml, accelerator)


def readable_images(config: ExtractConfig, accelerator: Accelerator, log: Log) -> tuple[Manifest, list[str]]:
    """The manifest without its unreadable images, and the content digest of each image left.

    The main process opens every file once (when run again, only changed ones) and tells the others, so that all agree.
    """
    manifest = read_manifest(config.run_dir / "manifest.csv")
    manifest.require_splits()
    refuse_unfit(manifest.root, manifest.images["path"], config.image.size, config.image.resize)
    workers, found = max(1, config.num_workers), None
    if accelerator.is_main_process:
        found = scan_images(manifest, config.run_dir, workers=workers, max_rejected=config.max_rejected)
    (scan,) = broadcast_object_list([found])
    if not scan.readable.all():
        log(f"{(~scan.readable).sum()} of {len(manifest)} images cannot be read: see {config.run_dir / 'rejected.csv'}")
    rows = np.flatnonzero(scan.readable)
    return manifest.select(rows), [scan.content[row] for row in rows]


def train(config: ExtractConfig, resolved_yaml: str, manifest: Manifest, accelerator: Accelerator, log: Log) -> None:
    """Train the image classifier; leaves the model folder ``stage_one/best/`` and the resume folder ``last/``."""
    stage_dir = config.run_dir / "stage_one"
    if is_imported(stage_dir, manifest.classes):
        log(
            "stage one: imported weights, nothing to train; who they were trained on is unknown, test patients included"
        )
        return
    used = for_training(manifest, config.train_on)
    train_set, val_set = used.of_split("train"), used.of_split("val")
    state = build_state(config, len(manifest.classes), accelerator)
    if state.resume(stage_dir, config.resume):
        log(f"stage one: {state.progress.epoch} of {config.epochs} epochs are done already")
    else:
        log(f"stage one: {config.backbone.name}, {len(train_set)} training and {len(val_set)} validation images")
    former, taught, teacher = former_patients(config.backbone.pretrained), None, config.distillation.teacher
    refuse_former_patients(former, manifest)
    if teacher is not None and not state.progress.finished(config):
        taught = ask_teacher(config, teacher, manifest, train_set, accelerator, log)
        former |= taught.patients
    if accelerator.is_main_process:
        keep_training_data(stage_dir, train_set, val_set, state.progress.finished(config), former)
    accelerator.wait_for_everyone()
    model_files: dict[str, Content] = {
        "config.yaml": resolved_yaml,
        "classes.json": {"classes": list(manifest.classes)},
        "preprocessing.json": config.image.to_dict(),
    }
    groups, stop = groups_of(train_set), StopSignal(log)
    while not state.progress.finished(config):
        started = time.monotonic()
        with stop.deferred():
            train_one_epoch(config, train_set, state, stop, stage_dir, model_files, log, taught)
            state.save(stage_dir, model_files)
            stop.leave_if_asked(accelerator, log)
            state.end_epoch(config.average_from)
        logits = predict_images(config, val_set, state.evaluated_model, accelerator)
        scores = summary(sigmoid(logits), val_set.labels, val_set.classes, groups)
        with stop.deferred():
            finish_epoch(state, config, scores, stage_dir, model_files, log, time.monotonic() - started)
            stop.leave_if_asked(accelerator, log)


def build_state(config: ExtractConfig, num_classes: int, accelerator: Accelerator) -> TrainingState:
    """Model, optimizer and average at their seeded start."""
    torch.manual_seed(derive_seed("weights", config.seed) % 2**32)
    model = ImageClassifier(config.backbone, config.head, config.image.channels, num_classes).to(accelerator.device)
    if config.channels_last:
        model = model.to(memory_format=torch.channels_last)
    return make_state(model, config, accelerator, config.layer_decay, config.backbone_lr)


def train_one_epoch(
    config: ExtractConfig,
    train_set: Manifest,
    state: TrainingState,
    stop: StopSignal,
    stage_dir: Path,
    model_files: dict[str, Content],
    log: Log,
    taught: Taught | None = None,
) -> None:
    """The optimizer steps of one epoch, from where the state stands to its end, or to the step after a stop signal."""
    accelerator, progress = state.accelerator, state.progress
    epoch, rank = progress.epoch, accelerator.process_index
    batches = training_batches(config, train_set, epoch)
    plan = [sub_batches(batch, rank, accelerator.num_processes, config) for batch in batches[progress.step :]]
    requests = [augmented_requests(draws, config.seed, epoch) for parts in plan for draws, _ in parts]
    images = load_batches(ImageDataset(train_set, config.image, config.augmentation), requests, config.num_workers)
    statistics = class_statistics(train_set.labels).to(accelerator.device)

    def sub_loss(rows: np.ndarray, counts: bool, num_known: int, lesson: Lesson | None) -> Tensor:
        pixels = on_device(next(images), config, accelerator)
        if accelerator.is_main_process and epoch == progress.step == 0:
            plot_batch(pixels, train_set.select(rows), stage_dir / "batch_0.jpg")
        targets = torch.from_numpy(train_set.labels[rows]).to(accelerator.device)
        if not counts:
            targets = torch.full_like(targets, float("nan"))
        with accelerator.autocast():
            logits = state.model(pixels)
        loss = multilabel_loss(logits, targets, statistics, config.loss, epoch / config.epochs) / num_known
        return loss if lesson is None else lesson.mix(loss, logits, rows, counts)

    optimizer, first_epoch, num_epochs = config.phase(epoch)
    model, frozen = state.plain_model, epoch < config.freeze_backbone_epochs
    assert isinstance(model, ImageClassifier)
    model.backbone_frozen = frozen
    state.model.train()
    for batch, parts in zip(log.progress(batches[progress.step :], f"epoch {epoch + 1}"), plan, strict=True):
        seed_step(config.seed, epoch, progress.step, rank)
        known = ~np.isnan(train_set.labels[batch.items])  # every process knows the global batch
        num_known = max(1, int(known.sum()))
        lesson = Lesson(taught.probabilities, batch.items, config.distillation) if taught else None
        losses = [partial(sub_loss, draws.items, counts, num_known, lesson) for draws, counts in parts]
        names = train_set.images["image_id"].iloc[batch.items].tolist()
        total_step, total_steps = (epoch - first_epoch) * len(batches) + progress.step, num_epochs * len(batches)
        take_step(state, losses, optimizer, total_step, total_steps, names, frozen)
        progress.step += 1
        if stop.agreed(accelerator):
            return
        if config.save_steps and progress.step % config.save_steps == 0:
            state.save(stage_dir, model_files)


def training_batches(config: ExtractConfig, train_set: Manifest, epoch: int) -> list[Draws]:
    """The global batches of an epoch."""
    sources = train_set.images["source"].tolist()
    return epoch_draws(config.sampler, train_set.labels, sources, config.batch_size, config.seed, epoch)


def sub_batches(batch: Draws, rank: int, num_processes: int, config: ExtractConfig) -> list[tuple[Draws, bool]]:
    """This process's parts of a global batch, and whether they count.

    A process without a share runs one image of the batch at weight 0, so that all processes meet in every step.
    """
    share = rank_share(batch, rank, num_processes)
    if not len(share):
        return [(batch[:1], False)]
    size = config.micro_batch_size or len(share)
    return [(share[i : i + size], True) for i in range(0, len(share), size)]


def predict_images(
    config: ExtractConfig, images: Manifest, model: nn.Module, accelerator: Accelerator
) -> Float[np.ndarray, "N C"]:
    """Logits of all images, on every process, in manifest order."""
    rows = np.arange(len(images))[accelerator.process_index :: accelerator.num_processes]
    requests = plain_requests(rows, config.cache.batch_size)
    loader = load_batches(ImageDataset(images, config.image), requests, config.num_workers)
    model.eval()
    with torch.inference_mode(), accelerator.autocast():
        logits = [model(on_device(pixels, config, accelerator)).float().cpu() for pixels in loader]
    own = torch.cat(logits) if logits else torch.empty(0, len(images.classes))
    return gather_rows(accelerator, rows, own, len(images))
