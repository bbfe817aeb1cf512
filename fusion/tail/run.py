"""The command `scripts/tail.py`: tail classifiers on a run's cache, tuned on val, compared on test.

Groups are those of the run's stage two. Predictions are those of the mixture that starts from fusion, or, without a
fusion run, from the mean over a group's views of the single-image probabilities of stage one.

G groups, C classes.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from jsonargparse import ArgumentParser

from data.bootstrap import patient_bootstrap
from data.cache import FeatureCache
from data.config import parse_config
from data.errors import InputError
from data.files import atomic_write
from data.intervals import BootstrapResult
from data.lock import locked
from data.manifest import Manifest, read_manifest
from data.predictions import read_predictions, write_predictions
from data.runs import Log, run_command
from data.summary import groups_of
from extract.engine import sigmoid
from extract.heads.linear import LinearHead
from fusion.baselines import baseline_groups
from fusion.config import FusionConfig, GroupingConfig
from fusion.grouping import GroupSet, cached_manifest, make_groups
from fusion.results import rows_of_groups
from fusion.scoring import interval, span
from fusion.stage_one import load_head, stage_one_logits
from fusion.tail.choose import Bands, bands_of
from fusion.tail.features import pooled_groups
from fusion.tail.methods import LinearHeadLogits, TailData, TailResult, run_methods
from fusion.train import refuse_trained_patients


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="tail.py", description="Classifiers for rare classes, from cached features.")
    parser.add_argument("--run_dir", type=Path, required=True, help="a run with a finished cache")
    parser.add_argument("--cache_dir", type=Path | None, default=None, help="feature cache (default: RUN_DIR/cache)")
    parser.add_argument("--name", type=str, default="fusion", help="stage two's folder in the run, if there is one")
    parser.add_argument("--out", type=Path | None, default=None, help="folder to write (default: RUN_DIR/tail)")
    parser.add_argument("--replicates", type=int, default=1000, help="patient bootstrap replicates behind intervals")
    options = vars(parser.parse_args(argv))
    run_command(lambda: run_tail(**options))


def run_tail(
    run_dir: Path,
    cache_dir: Path | None = None,
    name: str = "fusion",
    out: Path | None = None,
    replicates: int = 1000,
) -> None:
    """Write `predictions_{val,test}.csv`, `table.txt` and, last, `metrics.json`; run again, it writes the same.

    Raises:
        InputError: No finished cache, maps of several backbones, or fusion predictions that do not fit the manifest.
    """
    out_dir = out or run_dir / "tail"
    with locked(run_dir):
        log, loaded = Log(run_dir, speaks=True), load(run_dir, cache_dir, name)
        result = run_methods(loaded.data, loaded.head)
        result.seconds["pooling maps"] = loaded.pooling_seconds
        (out_dir / "metrics.json").unlink(missing_ok=True)
        final = list(result.scores)[-1]
        for split in ("val", "test"):
            full, groups = loaded.full.of_split(split), loaded.sets[split]
            images, rows = rows_of_groups(full, groups, loaded.by, split, log)
            write_predictions(
                out_dir / f"predictions_{split}.csv", images, result.scores[final][split][rows], full.classes
            )
        report = tail_report(loaded, result, final, replicates)
        lines = table_lines(report)
        atomic_write(out_dir / "table.txt", "\n".join(lines) + "\n")
        atomic_write(out_dir / "metrics.json", json.dumps(report, indent=1))
        for line in [*lines, f"next: look at {out_dir / 'table.txt'}; predictions are those of {final!r}"]:
            log(line)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A run, read."""

    full: Manifest
    """All images, unreadable ones too."""
    sets: dict[str, GroupSet]
    by: str
    data: TailData
    head: LinearHeadLogits | None
    pooling_seconds: float


def load(run_dir: Path, cache_dir: Path | None = None, name: str = "fusion") -> Loaded:
    """Read a run: groups, pooled features, and the probabilities to start from; errors as in `run_tail`."""
    cache, full = FeatureCache(cache_dir or run_dir / "cache"), read_manifest(run_dir / "manifest.csv")
    manifest = cached_manifest(full, cache)
    manifest.require_splits()
    refuse_trained_patients(manifest, cache)
    config_file = run_dir / name / "config.yaml"
    grouping = parse_config(FusionConfig, config_file, [])[0].grouping if config_file.exists() else GroupingConfig()
    parts = {split: manifest.of_split(split) for split in ("train", "val", "test")}
    sets = {split: make_groups(part, cache, grouping) for split, part in parts.items()}
    held_out = {split: sets[split] for split in ("val", "test")}
    logits = {split: stage_one_logits(run_dir, groups, cache) for split, groups in held_out.items()}
    bases = {"mean": {s: baseline_groups("mean", sigmoid(logits[s]), groups) for s, groups in held_out.items()}}
    if (run_dir / name / "predictions_test.csv").exists():
        bases["fusion"] = {
            split: fusion_probabilities(run_dir / name / f"predictions_{split}.csv", parts[split], groups)
            for split, groups in held_out.items()
        }
    started = time.monotonic()
    features = {split: pooled_groups(cache, groups) for split, groups in sets.items()}
    seconds = round(time.monotonic() - started, 2)
    bands = bands_of(groups_of(parts["train"]), manifest.classes)
    train = features.pop("train")
    data = TailData(train, sets["train"].labels, features, sets["val"].labels, bands, bases)
    return Loaded(full, sets, grouping.by, data, linear_head(run_dir, cache, logits, held_out), seconds)


def linear_head(
    run_dir: Path, cache: FeatureCache, logits: dict[str, np.ndarray], sets: dict[str, GroupSet]
) -> LinearHeadLogits | None:
    """Stage one's head and what it says, if it is linear."""
    head = load_head(run_dir, cache)
    if not isinstance(head, LinearHead):
        return None
    weights, bias = head.classifier.weight.detach().numpy(), head.classifier.bias.detach().numpy()
    return LinearHeadLogits(logits, weights, bias, sets)


def fusion_probabilities(path: Path, manifest: Manifest, groups: GroupSet) -> Float[np.ndarray, "G C"]:
    """Stage two's predictions, a row per group; its table has a row per image.

    Raises:
        InputError: It has other classes, or lacks a group.
    """
    ids, values, classes = read_predictions(path)
    if classes != manifest.classes:
        raise InputError(f"{path}: its classes are not those of manifest.csv; rerun train_fusion.py")
    row_of = {image_id: row for row, image_id in enumerate(ids["image_id"])}
    firsts = [manifest.images["image_id"].iat[rows[0]] for rows in groups.rows]
    if missing := [image_id for image_id in firsts if image_id not in row_of]:
        raise InputError(
            f"{path}: image {missing[0]} has no prediction ({len(missing)} such groups); rerun train_fusion.py"
        )
    return values[[row_of[image_id] for image_id in firsts]]


def compared_with(methods: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs whose difference is reported: everything with the mean baseline, a mixture with its own base too."""
    pairs = [(name, "mean") for name in methods if name != "mean"]
    return [*pairs, *((name, "fusion") for name in methods if name == "fusion + tail")]


def band_columns(bands: Bands) -> dict[str, list[int] | None]:
    """Columns of all classes together and of each band."""
    return {"all": None, **bands}


def tail_report(loaded: Loaded, result: TailResult, final: str, replicates: int) -> dict[str, Any]:
    """Everything that `metrics.json` says of the test groups."""
    test = loaded.sets["test"]
    scores = {name: values["test"] for name, values in result.scores.items()}
    bootstrap = patient_bootstrap(scores, test.labels, test.patient_ids, replicates=replicates)
    columns = band_columns(loaded.data.bands)
    return {
        "groups": len(test),
        "by": loaded.by,
        "predictions": final,
        "methods": {name: {b: interval(bootstrap.interval(name, c)) for b, c in columns.items()} for name in scores},
        "differences": differences(bootstrap, columns, compared_with(list(scores))),
        "chosen_on_validation": {
            name: {band: repr(setting) for band, setting in chosen.items()} for name, chosen in result.chosen.items()
        },
        "seconds": result.seconds,
    }


def differences(
    bootstrap: BootstrapResult, columns: dict[str, list[int] | None], pairs: Sequence[tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    """Paired differences of mean AP, over all classes and in each band."""
    return {
        f"{a} - {b}": {band: interval(bootstrap.difference(a, b, c)) for band, c in columns.items()} for a, b in pairs
    }


def table_lines(report: dict[str, Any]) -> list[str]:
    """The comparison as text."""
    lines = [
        f"Test split, {report['groups']} groups ({report['by']}); mean AP over the classes of each band [95 % interval"
        " by patient bootstrap]; settings chosen on validation.",
        f"{'method':<24}" + "".join(f"{band:>26}" for band in ("all", "head", "medium", "tail")),
    ]
    for kind, sign in (("methods", ""), ("differences", "+")):
        for name, values in report[kind].items():
            lines.append(f"{name:<24}" + "".join(f"{span(value, sign):>26}" for value in values.values()))
    lines.append(f"seconds: {', '.join(f'{name} {spent:.1f}' for name, spent in report['seconds'].items())}")
    return lines
