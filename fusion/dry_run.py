"""``--dry_run`` of stage two: build what training builds, run its first step, show all of it, keep nothing.

Axes, as printed: **G** groups, **N** views of all groups of a pass, **H W** size of a map, **E** features inside, **P**
tokens of all groups (of the published module **T** of each), **C** classes.
"""

import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from matplotlib.figure import Figure

from data.cache import FeatureCache
from data.manifest import read_manifest
from data.plots import save_figure
from data.runs import Log
from data.storage import decode_maps
from data.views import VIEWS
from extract.dry_run import data_lines, epochs_line, start_command, stop_after_one, without_clipping
from extract.observe import FirstStep, aligned, bytes_text, measure_parts, observe_step, part_lines, step_lines
from extract.resume import TrainingState
from fusion.config import FusionConfig
from fusion.grouping import GroupSet, cached_manifest, make_groups
from fusion.train import build_state, plan_steps, refuse_trained_patients, train_one_epoch, training_batches

MOST_ROWS, MOST_COLUMNS = 6, 8
"""Groups and views in the picture."""


def dry_run(config: FusionConfig, accelerator: Accelerator) -> None:
    """Show groups, model and first training step; writes ``dry_run_groups.jpg`` and nothing else.

    All processes take the step together, the main one prints.

    Raises:
        InputError: whatever training would raise until its first step is done.
    """
    cache = FeatureCache(config.cache_dir or config.run_dir / "cache")
    manifest = cached_manifest(read_manifest(config.run_dir / "manifest.csv"), cache)
    manifest.require_splits()
    refuse_trained_patients(manifest, cache)
    sets = {split: make_groups(manifest.of_split(split), cache, config.grouping) for split in ("train", "val", "test")}
    config = replace(config, compile=False)  # compiling takes minutes and changes nothing that is shown
    state = build_state(config, cache, len(manifest.classes), accelerator)
    step = first_step(config, sets["train"], cache, state)
    if not accelerator.is_main_process:
        return
    picture = config.run_dir / "dry_run_groups.jpg"
    plot_groups(first_groups(config, sets["train"], cache, accelerator), sets["train"], manifest.classes, picture)
    steps = len(training_batches(config, sets["train"], epoch=0))
    lines = ["dry run of stage two: trains nothing, keeps nothing", "", *data_lines(manifest), *group_lines(sets)]
    lines += [epochs_line(len(manifest.classes), config.epochs, steps, config.batch_size, "groups", accelerator)]
    parts = parts_of(config)
    lines += ["", *part_lines(state.plain_model, measure_parts(state.plain_model, step.inputs, parts), parts, "group")]
    lines += [views_line(step), "", *step_lines(step, config.optimizer, "reading its maps", accelerator)]
    lines += ["", f"free disk: {bytes_text(shutil.disk_usage(config.run_dir).free)}"]
    lines += [f"first groups: {picture}", f"start it: {start_command('train_fusion.py', config.run_dir)}"]
    print("\n".join(lines))


def parts_of(config: FusionConfig) -> dict[str, str]:
    """Parts of the model in the order of the forward pass, with the axes of what they return."""
    axes = "GTE" if config.model.kind == "published" else "PE"
    blocks = {f"blocks.{number}": axes for number in range(config.model.depth)}
    return {"project": "NHWE", **blocks, "head": "GC"}


def first_step(config: FusionConfig, groups: GroupSet, cache: FeatureCache, state: TrainingState) -> FirstStep:
    """Let the training loop itself take its first step."""
    watched = replace(config, save_steps=0, optimizer=without_clipping(config.optimizer))
    stage_dir, log = config.run_dir / config.name, Log(config.run_dir, speaks=False)  # neither is written to
    return observe_step(
        state, lambda: train_one_epoch(watched, groups, cache, state, stop_after_one(), stage_dir, {}, log)
    )


def group_lines(sets: dict[str, GroupSet]) -> list[str]:
    """Groups of each split, and how many views they have."""
    rows = [["groups", "number", "patients", "mean views", "most views", "with one view"]]
    for split, groups in sets.items():
        views = groups.num_views
        counts = [f"{len(groups):,}", f"{len(set(groups.patient_ids)):,}", f"{views.mean():.2f}", f"{views.max():,}"]
        rows.append([split, *counts, f"{(views == 1).sum():,}"])
    return aligned(rows, left=1)


def views_line(step: FirstStep) -> str:
    """What the step's forward passes consisted of."""
    passes = [" + ".join(f"{groups} x {views}" for groups, views in buckets) for *_, buckets in step.inputs]
    return f"forward passes of the first step (groups x views): {', '.join(passes)}; FLOPs are their mean"


View = tuple[int, str, Float[np.ndarray, "H W"]]
"""Slot, view type, and mean absolute activation of the map."""


def first_groups(
    config: FusionConfig, groups: GroupSet, cache: FeatureCache, accelerator: Accelerator
) -> dict[int, list[View]]:
    """The first groups of the first batch, as training sees them: number in the set, and views by slot."""
    batch = training_batches(config, groups, epoch=0)[0]
    plans = plan_steps(config, groups, [batch], 0, len(cache.identity.variants), accelerator)
    ((passes, _), stored), *_ = cache.stream(plans, torch.device("cpu"), 1)
    views: dict[int, list[View]] = {}
    for one, part in zip(passes, stored.split([len(one) for one in passes]), strict=True):
        maps = decode_maps(part, cache.identity.dtype, cache.identity.map_shape)
        pictures = maps.float().abs().mean(dim=-1).numpy()
        for number, own in one.spans():
            slots, types = one.slots[own].tolist(), [VIEWS[t] for t in one.view_types[own].tolist()]
            views[number] = sorted(zip(slots, types, pictures[own], strict=True), key=lambda view: view[0])
    shown = [number for number in batch.items.tolist() if number in views]
    return {number: views[number] for number in shown[:MOST_ROWS]}


def plot_groups(shown: dict[int, list[View]], groups: GroupSet, classes: tuple[str, ...], path: Path) -> None:
    """Draw a row per group: its positive classes, then its views, bright where the map is active."""
    columns = min(MOST_COLUMNS, max(len(views) for views in shown.values()))
    figure = Figure(figsize=(2.2 + 1.7 * columns, 0.3 + 1.9 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), columns + 1, squeeze=False, width_ratios=[1.3, *[1] * columns])
    for axis in axes.ravel():
        axis.axis("off")
    brightest = max(float(picture.max()) for views in shown.values() for _, _, picture in views)
    for row, (number, views) in zip(axes, shown.items(), strict=True):
        positive = [name for name, y in zip(classes, groups.labels[number], strict=True) if y > 0.5]
        count = f"views: {len(views)} of {groups.num_views[number]}"
        label = textwrap.wrap(", ".join(positive) or "no positive class", 22)
        row[0].text(0, 0.5, "\n".join([count, *label[:6]]), va="center", fontsize=8, transform=row[0].transAxes)
        for axis, (slot, view, picture) in zip(row[1:], views, strict=False):  # more views than columns: the first ones
            axis.imshow(picture, cmap="inferno", vmin=0, vmax=brightest)
            axis.set_title(f"slot {slot}: {view}", fontsize=8)
    figure.suptitle("mean absolute activation; views and types may be dropped, as in training", fontsize=9)
    save_figure(figure, path, dpi=110)
