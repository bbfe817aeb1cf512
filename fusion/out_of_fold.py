"""Join k trained folds: out-of-fold predictions of train and val, averaged predictions of test, scores, submission.

Two cautions that the numbers do not show. Each fold's held-out part also chose its epoch, so out-of-fold scores are a
little kind, as every validation score here is. And they pool k models, whose scales differ: the folds' own validation
scores stand beside the pooled one.

Axes: **N** images, **G** groups, **C** classes.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from data.bootstrap import patient_bootstrap
from data.config import flatten, parse_config, to_dict
from data.errors import InputError
from data.files import atomic_write
from data.folds import find_folds
from data.groups import group_images
from data.lock import locked
from data.manifest import Manifest, read_manifest
from data.metrics import mean_defined, per_class
from data.out_of_fold import OutOfFold, read_folds, refuse_unfinished
from data.predictions import write_predictions
from data.runs import HARMLESS_KEYS, Log
from data.spans import or_none
from data.summary import groups_of, summary
from extract.engine import sigmoid
from fusion.config import FusionConfig
from fusion.results import submit
from fusion.scoring import interval, number, span

GroupBy = Literal["study", "patient"]
Unit = tuple[np.ndarray, np.ndarray, list[str]]
"""Probabilities, labels and patient ids of the rows of one unit: images or groups."""

MODEL = "folds"


def join_folds(run_dir: Path, name: str = "fusion", template: Path | None = None, out: Path | None = None) -> None:
    """Write `run_dir/name/` from the folds' folders of that name; run again, it writes the same.

    `metrics.json` is the last file to appear.

    Args:
        template: The challenge's sample submission; without one, as in stage two.
        out: Another folder to write.

    Raises:
        InputError: A fold is not finished, or the folds do not fit together (`data.out_of_fold`).
    """
    folders = find_folds(run_dir)
    refuse_unfinished(folders, name)
    config, notes = common_config(folders, name)
    out_dir = out or run_dir / name
    if any((out_dir / training).exists() for training in ("config.yaml", "last", "best")):
        raise InputError(f"{out_dir}: holds a training run; choose another folder with --out {run_dir / name}_folds")
    whole = read_manifest(run_dir / "manifest.csv")
    with locked(run_dir):
        joined, log = read_folds(whole, folders, name, config.grouping.by), Log(run_dir, speaks=True)
        config = replace(config, run_dir=run_dir, template=template or config.template)
        write_joined(config, whole, joined, [*notes, *joined.notes], out_dir, log)
        log(f"next: upload {out_dir / 'submission.zip'}; look at {out_dir / 'predictions_oof.csv'}")


def write_joined(
    config: FusionConfig, whole: Manifest, joined: OutOfFold, notes: list[str], out_dir: Path, log: Log
) -> None:
    """Write all files of a join, `metrics.json` last, and print the scores."""
    (out_dir / "metrics.json").unlink(missing_ok=True)  # of a former join: it would vouch for half a new one
    mean = joined.test_logits.mean(axis=0, dtype=np.float64).astype(np.float32)
    write_values(out_dir, "oof", joined.images, joined.logits, config)
    write_values(out_dir, "test", joined.test, mean, config)
    submit(config, out_dir, log)
    report = {"notes": notes} | score(joined, mean, whole, config)
    atomic_write(out_dir / "metrics.json", json.dumps(report, indent=1, allow_nan=False))
    for line in [*(f"note: {note}" for note in notes), *table_lines(report, config)]:
        log(line)


def common_config(folders: list[Path], name: str) -> tuple[FusionConfig, list[str]]:
    """Stage two's configuration, read from the first fold, and how the others differ from it.

    Raises:
        InputError: The folds do not fuse the same groups.
    """
    configs = [parse_config(FusionConfig, folder / name / "config.yaml", [])[0] for folder in folders]
    first, notes = flatten(to_dict(configs[0])), []
    for folder, config in zip(folders, configs, strict=True):
        values = flatten(to_dict(config))
        different = [key for key in first if key not in HARMLESS_KEYS and values[key] != first[key]]
        said = ", ".join(f"{key}={values[key]!r} (fold_0: {first[key]!r})" for key in different)
        if "grouping.by" in different:
            raise InputError(f"{folder / name / 'config.yaml'}: {said}; the folds must fuse the same groups")
        if different:
            notes.append(f"{folder.name} was trained with {said}")
    return configs[0], notes


def units(images: Manifest, logits: Float[np.ndarray, "N C"], by: GroupBy) -> dict[str, Unit]:
    """Images and groups, each with probabilities, labels and patients; an image carries its group's label.

    The sigmoid is taken once per group and spread, so that equal logits stay equal probabilities.
    """
    groups = group_images(images, by, "any")  # training has refused already what "same" refuses
    owner = np.empty(len(images), dtype=int)
    owner[np.concatenate(groups.rows)] = np.repeat(np.arange(len(groups.ids)), [len(rows) for rows in groups.rows])
    probabilities = sigmoid(logits[[rows[0] for rows in groups.rows]])
    return {
        "images": (probabilities[owner], groups.labels[owner], images.images["patient_id"].tolist()),
        "groups": (probabilities, groups.labels, groups.patient_ids),
    }


def write_values(
    out_dir: Path, what: str, images: Manifest, logits: Float[np.ndarray, "N C"], config: FusionConfig
) -> None:
    """Write `logits_<what>.csv` and `predictions_<what>.csv`."""
    probabilities, _, _ = units(images, logits, config.grouping.by)["images"]
    write_predictions(out_dir / f"logits_{what}.csv", images.images, logits, images.classes)
    write_predictions(out_dir / f"predictions_{what}.csv", images.images, probabilities, images.classes)


def score(joined: OutOfFold, mean: Float[np.ndarray, "N C"], whole: Manifest, config: FusionConfig) -> dict[str, Any]:
    """Everything that `metrics.json` says.

    Args:
        mean: Averaged logits of the test images.
        whole: The manifest that was split; its train and val images decide head, medium and tail.
    """
    by, bands = config.grouping.by, groups_of(whole.select((whole.images["split"] != "test").to_numpy(dtype=bool)))
    parts = {"out_of_fold": units(joined.images, joined.logits, by)}
    if not np.isnan(joined.test.labels).all():
        parts["test"] = units(joined.test, mean, by)
    report: dict[str, Any] = {"folds": len(joined.test_logits), "fold_validation": []}
    for fold in range(report["folds"]):
        held_out = joined.fold == fold
        own = units(joined.images.select(held_out), joined.logits[held_out], by)
        values = {unit: mean_defined(per_class(*rows[:2]).ap) for unit, rows in own.items()}
        report["fold_validation"].append(
            {unit: {"rows": len(own[unit][2]), "mAP": or_none(v)} for unit, v in values.items()}
        )
    for part, rows in parts.items():
        report[part] = {unit: score_unit(*rows[unit], whole.classes, bands, config) for unit in rows}
    return report


def score_unit(
    probabilities: Float[np.ndarray, "G C"],
    labels: Float[np.ndarray, "G C"],
    patient_ids: list[str],
    classes: Sequence[str],
    bands: dict[str, str],
    config: FusionConfig,
) -> dict[str, Any]:
    """Scores of one unit, with intervals of mAP (all classes, head, medium, tail) and of every class's AP."""
    report = summary(probabilities, labels, classes, bands)
    result = patient_bootstrap(
        {MODEL: probabilities}, labels, patient_ids, replicates=config.bootstrap_replicates, seed=config.seed
    )
    report["interval"] = interval(result.interval(MODEL))
    for band in ("head", "medium", "tail"):
        columns = [c for c, name in enumerate(classes) if bands[name] == band]
        report[f"interval_{band}"] = interval(result.interval(MODEL, columns))
    for name, value in zip(classes, result.class_intervals(MODEL), strict=True):
        report["per_class"][name]["interval"] = interval(value)
    return report


def table_lines(report: dict[str, Any], config: FusionConfig) -> list[str]:
    """The scores as text."""
    groups = "studies" if config.grouping.by == "study" else "patients"
    lines = [
        f"{report['folds']} folds; mAP [95 % interval by patient bootstrap]; test is the mean of the folds' logits",
        f"{'':<24}{'rows':>8}{'mAP':>22}{'head':>8}{'medium':>8}{'tail':>8}{'AUROC':>8}",
    ]
    for part, title in (("out_of_fold", "out-of-fold"), ("test", "test")):
        for unit, unit_title in (("images", "image rows"), ("groups", groups)):
            if part in report:
                values = report[part][unit]
                bands = "".join(f"{number(values[key]):>8}" for key in ("mAP_head", "mAP_medium", "mAP_tail", "mAUROC"))
                label = f"{title}, {unit_title}"
                lines.append(f"{label:<24}{values['rows']:>8,}{span(values['interval']):>22}{bands}")
    own = [number(fold["groups"]["mAP"]) for fold in report["fold_validation"]]
    lines.append(f"each fold's own validation mAP, {groups}: {', '.join(own)}")
    absent = report["out_of_fold"]["images"]["absent"]
    if absent:
        lines.append(f"without a positive in train and val, and left out of every mean: {', '.join(absent)}")
    if "test" not in report:
        lines.append("test labels are unknown: test is predicted, not scored")
    return lines
