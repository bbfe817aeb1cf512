"""From what a trial of stage two took to what the full run will take."""

from dataclasses import dataclass
from pathlib import Path

from extract.dry_run import start_command
from extract.observe import bytes_text
from extract.trial_estimate import disk_lines, seconds_text
from fusion.config import FusionConfig


@dataclass(frozen=True)
class Training:
    """What training one of the two models took; an item is a group, or an image for the re-trained head."""

    step_s: float
    """Seconds from the end of one optimizer step to the end of the next."""

    predict_s: float
    """Seconds to predict an item."""

    checkpoint_bytes: int
    """Bytes of ``best/``, ``last/`` and ``previous/``."""


@dataclass(frozen=True)
class Measured:
    """What a trial of stage two took."""

    fusion: Training
    single: Training | None
    """The re-trained head, if there is one."""

    head_s: float
    """Seconds in which the head of stage one predicts an image for the baselines."""

    peak_bytes: int
    """CUDA: most memory allocated; CPU: the process's peak."""


@dataclass(frozen=True)
class Counts:
    """Size of the full run, per split; of train, what an epoch visits, repeated ones counted."""

    groups: dict[str, int]
    images: dict[str, int]


def training_seconds(config: FusionConfig, training: Training, items: dict[str, int]) -> float:
    """All epochs with their validation, then the predictions for val and test."""
    steps = config.epochs * num_steps(config, items)
    predictions = config.epochs * items["val"] + items["val"] + items["test"]
    return steps * training.step_s + predictions * training.predict_s


def num_steps(config: FusionConfig, items: dict[str, int]) -> int:
    """Optimizer steps of an epoch."""
    return -(-items["train"] // config.batch_size)


def baseline_seconds(measured: Measured, counts: Counts) -> float:
    """Predictions of stage one's head for val and test, made by one process."""
    return measured.head_s * (counts.images["val"] + counts.images["test"])


def report(config: FusionConfig, measured: Measured, counts: Counts, source: Path) -> list[str]:
    """Measured and estimated numbers, a warning if the disk is too small, and the next command.

    Args:
        source: The run folder, or the trial of stage one, whose cache was used.
    """
    trainings = [("fusion", measured.fusion, counts.groups, "groups")]
    if measured.single is not None:
        trainings.append(("re-trained head", measured.single, counts.images, "images"))
    rows = [["measured on the trial", ""]]
    for name, training, items, unit in trainings:
        size = min(config.batch_size, items["train"])
        rows.append([f"{name}: a training step of {size} {unit}", seconds_text(training.step_s)])
        rows.append([f"{name}: predicting one of the {unit}", seconds_text(training.predict_s)])
    rows.append(["stage one's head, an image", seconds_text(measured.head_s)])
    rows.append(["peak memory of a process", f"about {bytes_text(measured.peak_bytes)}"])
    rows += [["", ""], ["the full run", ""]]
    for name, training, items, _ in trainings:
        steps = config.epochs * num_steps(config, items)
        rows.append([f"{name}: {steps:,} steps, predictions", seconds_text(training_seconds(config, training, items))])
    baselines = baseline_seconds(measured, counts)
    total = baselines + sum(training_seconds(config, training, items) for _, training, items, _ in trainings)
    disk = sum(training.checkpoint_bytes for _, training, _, _ in trainings)
    rows.append(["predictions of stage one's head", seconds_text(baselines)])
    rows.append(["together, without the bootstrap", seconds_text(total)])
    rows.append(["disk for checkpoints", f"about {bytes_text(disk)}"])
    first = ["" if source == config.run_dir else "stage two needs the full cache: run extract.py without --trial first"]
    lines = disk_lines(rows, disk, config.run_dir, "choose a smaller model.width")
    return [*lines, *filter(None, first), f"next: {start_command('train_fusion.py', config.run_dir)}"]
