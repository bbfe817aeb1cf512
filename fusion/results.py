"""What stage two leaves behind: predictions, submission, and the table of fusion against its baselines.

All methods are scored on identical rows, in two units: image rows (the challenge's) and groups. Intervals come from
one patient bootstrap, so differences are paired. G groups, N images, C classes.
"""

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from data.cache import FeatureCache
from data.files import atomic_write
from data.manifest import Manifest, read_manifest
from data.predictions import write_predictions
from data.runs import Log
from data.submission import write_submission
from data.tables import read_table, write_table
from extract.engine import sigmoid
from fusion.baselines import BASELINES, baseline_groups
from fusion.ceilings import fusion_ceiling, perception_ceiling, read_visibility
from fusion.config import FusionConfig
from fusion.evaluation import gate_logits, gate_normal
from fusion.grouping import GroupSet
from fusion.scoring import Scores, group_map, keep_scores, score, table_lines
from fusion.stage_one import stage_one_logits

Logits = dict[str, np.ndarray]
"""Values per split, groups or images by classes."""


def write_results(
    config: FusionConfig,
    manifest: Manifest,
    cache: FeatureCache,
    sets: dict[str, GroupSet],
    logits: dict[str, Logits],
    log: Log,
) -> None:
    """Write everything that follows from the logits, and print the table.

    Args:
        manifest: The cached images.
        logits: "fusion" and, if trained, "mlp": logits of each split's groups; "single", if trained: of each split's
            single images; "frozen", after the joint phase: of the fusion model it started from, for one more row of the
            table.
    """
    out_dir = config.result_dir
    full = read_manifest(config.run_dir / "manifest.csv")
    fused = {
        split: gate_logits(values, manifest.classes, config.evaluation) for split, values in logits["fusion"].items()
    }
    for split in ("val", "test"):
        write_split(config, out_dir, split, full.of_split(split), sets[split], fused[split], log)
    images = single_image_logits(config, sets, cache, logits)

    def gate(probabilities: Float[np.ndarray, "N C"]) -> Float[np.ndarray, "N C"]:
        return gate_normal(probabilities, manifest.classes, config.evaluation)

    def baseline(name: str, source: str, split: str) -> Float[np.ndarray, "G C"]:
        return gate(baseline_groups(name, sigmoid(images[source][split]), sets[split]))

    source = max(images, key=lambda source: group_map(baseline("mean", source, "val"), sets["val"]))
    on_val = {name: baseline(name, source, "val") for name in BASELINES}
    scores: Scores = {name: baseline(name, source, "test") for name in BASELINES}
    if "mlp" in logits:
        on_val["mlp"], scores["mlp"] = (gate(sigmoid(logits["mlp"][split])) for split in ("val", "test"))
    best = max(on_val, key=lambda name: group_map(on_val[name], sets["val"]))
    if config.evaluation.normal_gate != "off":
        plain = {name: baseline_groups(name, sigmoid(images[source]["val"]), sets["val"]) for name in BASELINES}
        for line in gate_lines(config, plain | {"fusion": sigmoid(logits["fusion"]["val"])}, sets["val"], gate):
            log(line)
    if "frozen" in logits:
        scores["frozen"] = gate(sigmoid(logits["frozen"]["test"]))
    scores["fusion"] = sigmoid(fused["test"])
    rules = add_ceilings(config, manifest, sets, images[source], scores)
    single = gate(sigmoid(images[source]["test"]))
    keep_scores(out_dir / "scores_test.npz", sets["test"], scores, single)
    report = score(config, manifest, sets["test"], scores, single, best)
    report |= {"baseline_head": source, "best_baseline_on_validation": best, "fusion_ceiling_rules": rules}
    report["evaluation"] = asdict(config.evaluation)
    atomic_write(out_dir / "metrics.json", json.dumps(report, indent=1))
    lines = table_lines(report, config)
    atomic_write(out_dir / "table.txt", "\n".join(lines) + "\n")
    for line in lines:
        log(line)
    submit(config, out_dir, log)


def single_image_logits(
    config: FusionConfig, sets: dict[str, GroupSet], cache: FeatureCache, logits: dict[str, Logits]
) -> dict[str, Logits]:
    """Per head, the logits of the single images of val and test in manifest order, averaged over the same maps."""
    variants = len(cache.identity.variants) if config.evaluation.augment else 1
    splits = logits["fusion"]
    images = {
        "stage-one head": {split: stage_one_logits(config.run_dir, sets[split], cache, variants) for split in splits}
    }
    if "single" in logits:
        images["re-trained head"] = {split: in_row_order(logits["single"][split], sets[split]) for split in splits}
    return images


def gate_lines(
    config: FusionConfig, scores: Scores, val: GroupSet, gate: Callable[[np.ndarray], np.ndarray]
) -> list[str]:
    """What the normal gate does to each method on validation."""
    changes = [
        f"{name} {group_map(values, val):.3f} -> {group_map(gate(values), val):.3f}" for name, values in scores.items()
    ]
    what = f"{config.evaluation.normal_gate} gate by {config.evaluation.normal_class!r}"
    return [f"{what}, validation mAP: {', '.join(changes)}"]


def say_next(config: FusionConfig, log: Log) -> None:
    """The last lines of stage two: where the result is, and the next command."""
    out_dir = config.run_dir / config.name
    log(f"upload {out_dir / 'submission.zip'}")
    if config.grouping.by == "study":
        options = f"--config {out_dir / 'config.yaml'} --grouping.by patient --name {config.name}_patient"
        log(f"or fuse by patient: accelerate launch train_fusion.py {options}")
    log(f"next: python scripts/report.py {shlex.quote(str(config.run_dir if config.name == 'fusion' else out_dir))}")


def in_row_order(values: Float[np.ndarray, "N C"], groups: GroupSet) -> Float[np.ndarray, "N C"]:
    """Single-image logits in manifest order; they come group by group."""
    ordered = np.empty_like(values)
    ordered[np.concatenate(groups.rows)] = values
    return ordered


def write_split(
    config: FusionConfig,
    out_dir: Path,
    split: str,
    full: Manifest,
    groups: GroupSet,
    logits: Float[np.ndarray, "G C"],
    log: Log,
) -> None:
    """Write ``logits_<split>.csv`` and ``predictions_<split>.csv``: a row per image, its group's values.

    Args:
        full: All images of the split, unreadable ones too.
    """
    images, rows = rows_of_groups(full, groups, config.grouping.by, split, log)
    write_predictions(out_dir / f"logits_{split}.csv", images, logits[rows], full.classes)
    # Once per group, then spread: a vectorised sigmoid may differ in the last bit between places of an array.
    write_predictions(out_dir / f"predictions_{split}.csv", images, sigmoid(logits)[rows], full.classes)


def rows_of_groups(full: Manifest, groups: GroupSet, by: str, split: str, log: Log) -> tuple[pd.DataFrame, list[int]]:
    """The images that have a prediction, and the number of each one's group.

    An unreadable image gets the prediction of the other images of its group; without any it is left out and counted.

    Args:
        full: All images of the split, unreadable ones too.
    """
    number = {group_id: g for g, group_id in enumerate(groups.ids)}
    owners = [number.get(group_id) for group_id in full.images[f"{by}_id"]]
    predicted = np.array([owner is not None for owner in owners])
    if not predicted.all():
        log(f"{split}: {(~predicted).sum()} images have no readable image in their group and no prediction")
    return full.select(predicted).images, [owner for owner in owners if owner is not None]


def add_ceilings(
    config: FusionConfig, manifest: Manifest, sets: dict[str, GroupSet], images: Logits, scores: Scores
) -> dict[str, str]:
    """Add the ceilings F and P of a phantom, if its truth is there, to the scores of the test groups.

    Returns:
        The rule that F chose for each class; nothing without a phantom.
    """
    truth_dir = config.truth_dir or config.run_dir / "phantom" / "truth"
    if not truth_dir.is_dir() or config.grouping.by != "study":
        return {}
    visibility = read_visibility(truth_dir, manifest.classes)
    scores["ceiling F"], rules = fusion_ceiling(sets["val"], images["val"], sets["test"], images["test"], visibility)
    scores["ceiling P"] = perception_ceiling(truth_dir, sets["test"], manifest.classes)
    return rules


def submit(config: FusionConfig, out_dir: Path, log: Log) -> None:
    """Write ``submission.csv`` and ``submission.zip`` in the form of the challenge's template."""
    template = config.template or config.run_dir / "phantom" / "cxr-lt-2023" / "sample_submission.csv"
    predictions = out_dir / "predictions_test.csv"
    if config.template is None and not template.is_file():
        template = own_template(out_dir, predictions)
    report = write_submission(
        predictions,
        template,
        out_dir / "submission.csv",
        out_dir / "submission.zip",
        config.test_table,
        one_per_study=True,
    )
    log(
        f"submission: {report.rows} rows x {len(report.columns)} columns as in {template}: {out_dir / 'submission.csv'}"
    )


def own_template(out_dir: Path, predictions: Path) -> Path:
    """A template with image_id and all classes, for a data set without a challenge."""
    table = read_table(predictions)
    path = out_dir / "template.csv"
    write_table(path, table.drop(columns=["study_id", "patient_id"]))
    return path
