"""``--dry_run`` of stage one: build what training builds, run its first step, show all of it, keep nothing.

Axes, as printed: **B** images, **H W** size of the map, **D** its features, **C** classes.
"""

import shlex
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
from accelerate import Accelerator

from data.demo import DEMO_RUN, ensure_manifest
from data.errors import InputError
from data.image_shards import refuse_unfit
from data.manifest import SPLITS, Manifest, read_manifest
from data.runs import Log
from data.shards import bytes_per_image
from data.views import VIEWS
from extract.config import ExtractConfig
from extract.distillation import Taught, ask_teacher
from extract.estimate import pooled
from extract.observe import FirstStep, aligned, bytes_text, measure_parts, observe_step, part_lines, step_lines
from extract.options import OptimizerConfig
from extract.phases import for_training
from extract.resume import StopSignal, TrainingState
from extract.train import build_state, train_one_epoch, training_batches

PARTS = {"backbone": "BHWD", "head": "BC"}
"""Parts of the model in the order of the forward pass, with the axes of what they return."""


def dry_run(config: ExtractConfig, accelerator: Accelerator) -> None:
    """Show data, model, first training step and cache size; writes ``dry_run_images.jpg`` and nothing else.

    All processes take the step together, the main one prints.

    Raises:
        InputError: whatever training would raise until its first step is done.
    """
    require_manifest(config.run_dir)
    manifest = read_manifest(config.run_dir / "manifest.csv")
    manifest.require_splits()
    refuse_unfit(manifest.root, manifest.images["path"], config.image.size, config.image.resize)
    manifest = without_rejected(manifest, config.run_dir)
    train_set = for_training(manifest, config.train_on).of_split("train")
    # compiling takes minutes and changes nothing that is shown; a step with all weights is the one that costs most
    config = replace(config, compile=False, freeze_backbone_epochs=frozen_throughout(config))
    state = build_state(config, len(manifest.classes), accelerator)
    picture = config.run_dir / "dry_run_images.jpg"
    step = first_step(config, train_set, state, picture, first_lesson(config, manifest, train_set, accelerator))
    if not accelerator.is_main_process:
        return
    steps = len(training_batches(config, train_set, epoch=0))
    lines = ["dry run of stage one: trains nothing, keeps nothing", "", *data_lines(manifest)]
    lines += [epochs_line(len(manifest.classes), config.epochs, steps, config.batch_size, "images", accelerator)]
    cost = measure_parts(state.plain_model, step.inputs, PARTS)
    lines += ["", *part_lines(state.plain_model, cost, PARTS, "image")]
    lines += ["", *step_lines(step, config.optimizer, "reading and drawing it, no workers", accelerator)]
    _, H, W, D = cost.shapes["backbone"]
    shape, variants = pooled((H, W, D), config.cache.pool), len(config.cache.variants)
    cache = len(manifest) * bytes_per_image(shape, config.cache.dtype, variants)
    form = f"{variants} x " * (variants > 1) + " x ".join(map(str, shape)) + f" {config.cache.dtype}"
    lines += ["", f"cache: {len(manifest):,} maps of {form}, {bytes_text(cache)}"]
    lines += [f"free disk: {bytes_text(shutil.disk_usage(config.run_dir).free)}"]
    lines += [f"first inputs of the network: {picture}", f"start it: {start_command('extract.py', config.run_dir)}"]
    print("\n".join(lines))


def frozen_throughout(config: ExtractConfig) -> int:
    """1 where the backbone is frozen in all epochs, so in the only one of a rehearsal too; else 0."""
    return int(config.freeze_backbone_epochs >= config.epochs)


def require_manifest(run_dir: Path) -> None:
    """Check that a run has its manifest; here even the demo's is not made on the spot.

    Raises:
        InputError: there is none; says how to make it.
    """
    path = run_dir / "manifest.csv"
    if run_dir == DEMO_RUN and not path.exists():
        raise InputError(
            f"{path}: no manifest; the demo's is made with: python scripts/prepare.py phantom --out {path}"
        )
    ensure_manifest(run_dir)


def without_rejected(manifest: Manifest, run_dir: Path) -> Manifest:
    """The images that an earlier scan, if there was one, did not reject: the order of training depends on them."""
    path = run_dir / "rejected.csv"
    if not path.exists():
        return manifest
    rejected = pd.read_csv(path, dtype=str, keep_default_na=False)["path"]  # mostly without rows
    return manifest.select(~manifest.images["path"].isin(rejected).to_numpy(dtype=bool))


def first_lesson(
    config: ExtractConfig, manifest: Manifest, train_set: Manifest, accelerator: Accelerator
) -> Taught | None:
    """What the teacher, if there is one, says of the first batch; of the others, which are not asked for, nothing."""
    if config.distillation.teacher is None:
        return None
    rows = np.unique(training_batches(config, train_set, epoch=0)[0].items)
    log = Log(config.run_dir, speaks=False)
    taught = ask_teacher(config, config.distillation.teacher, manifest, train_set.select(rows), accelerator, log)
    probabilities = np.full_like(train_set.labels, np.nan)
    probabilities[rows] = taught.probabilities
    return replace(taught, probabilities=probabilities)


def first_step(
    config: ExtractConfig, train_set: Manifest, state: TrainingState, picture: Path, taught: Taught | None
) -> FirstStep:
    """Let the training loop itself take its first step; what it draws of its first batch becomes `picture`."""
    watched = replace(config, num_workers=0, save_steps=0, optimizer=without_clipping(config.optimizer))
    log = Log(config.run_dir, speaks=False)
    with TemporaryDirectory() as folder:
        stage_dir = Path(folder)
        step = observe_step(
            state, lambda: train_one_epoch(watched, train_set, state, stop_after_one(), stage_dir, {}, log, taught)
        )
        if state.accelerator.is_main_process:
            shutil.copy(stage_dir / "batch_0.jpg", picture)
    return step


def without_clipping(config: OptimizerConfig) -> OptimizerConfig:
    """So that the gradient is seen as it came."""
    return replace(config, clip_norm=0.0, clip_agc=0.0)


def stop_after_one() -> StopSignal:
    """As if a user had asked to stop: a training loop ends after its first step."""
    stop = StopSignal()
    stop.received = signal.SIGTERM
    return stop


def data_lines(manifest: Manifest) -> list[str]:
    """Counts of each split."""
    rows = [["data", "images", "studies", "patients", *VIEWS]]
    for split in SPLITS:
        images = manifest.of_split(split).images
        views = [(images["view"] == view).sum() for view in VIEWS]
        counts = [len(images), images["study_id"].nunique(), images["patient_id"].nunique(), *views]
        rows.append([split, *(f"{count:,}" for count in counts)])
    return aligned(rows, left=1)


def epochs_line(num_classes: int, epochs: int, steps: int, size: int, items: str, accelerator: Accelerator) -> str:
    """How much training there will be."""
    where = f"{accelerator.num_processes} x {accelerator.device.type}"
    total = epochs * steps
    return (
        f"{num_classes} classes; {epochs} epochs of {steps} steps of up to {size} {items}: {total:,} in all on {where}"
    )


def start_command(script: str, run_dir: Path) -> str:
    """The command line that was given, without what made it a dry run or a trial."""
    words = sys.argv[1:] if Path(sys.argv[0]).name == script else ["--run_dir", str(run_dir)]
    kept: list[str] = []
    after_flag = False
    for word in words:
        is_flag = word.split("=")[0] in ("--dry_run", "--trial")
        if not is_flag and not (after_flag and word.lower() in ("true", "false", "yes", "no")):
            kept.append(word)
        after_flag = is_flag and "=" not in word
    return shlex.join(["accelerate", "launch", script, *kept])
