"""What a report is made from: a finished run's files, each read once; what is not there stays None with its reason.

Axes: **G** groups, **C** classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from data.config import read_yaml
from data.errors import InputError
from data.manifest import Manifest, read_manifest
from data.strict_json import read_json
from data.summary import groups_of
from extract.engine import sigmoid
from fusion.result_folder import GroupBy, group_by_of
from fusion.saved import read_saved
from fusion.scoring import load_scores
from fusion.trained import TrainedFusion, load_trained

RESULT = "fusion"
AGAIN = "run train_fusion.py to its end first"


@dataclass(frozen=True, eq=False)
class Scored:
    """Groups of the judged split with the probabilities of every method."""

    ids: list[str]
    patient_ids: list[str]
    labels: Float[np.ndarray, "G C"]
    methods: dict[str, Float[np.ndarray, "G C"]]
    """ "fusion" always; the baselines where the run kept its scores."""


@dataclass(frozen=True, eq=False)
class Run:
    """A finished result folder and the run around it."""

    folder: Path
    """`runs/x/fusion`, with metrics.json."""
    run_dir: Path
    """`runs/x`, with manifest.csv."""
    label: str
    """What tables call it."""
    by: GroupBy
    units: dict[str, dict[str, Any]]
    """Of metrics.json: "images" and "groups", each with rows, methods and paired differences."""
    record: dict[str, Any]
    """All of metrics.json."""
    manifest: Manifest

    @property
    def split(self) -> str:
        """What the numbers are of: "test", or "out-of-fold" where folds were joined and test has no labels."""
        return "out-of-fold" if "folds" in self.record and "test" not in self.record else "test"

    @property
    def group_name(self) -> str:
        """ "studies" or "patients"."""
        return "studies" if self.by == "study" else "patients"

    @property
    def best_baseline(self) -> str | None:
        """The baseline chosen on validation; None where there are none."""
        return self.record.get("best_baseline_on_validation")

    @cached_property
    def bands(self) -> dict[str, str]:
        """Head, medium or tail of every class, by its training images."""
        return groups_of(self.manifest.of_split("train"))

    @cached_property
    def config(self) -> dict[str, Any]:
        """Stage two's resolved options; empty where they are not kept."""
        return yaml_tree(self.folder / "config.yaml")

    @cached_property
    def scored(self) -> Scored:
        """The judged groups.

        Raises:
            InputError: The predictions are not those of this manifest.
        """
        kept = self.folder / "scores_test.npz"
        if self.split == "test" and kept.is_file():
            arrays = load_scores(kept)
            methods = {k.removeprefix("groups/"): v for k, v in arrays.items() if k.startswith("groups/")}
            return Scored(arrays["group_id"].tolist(), arrays["patient_id"].tolist(), arrays["labels"], methods)
        kind, splits = ("test", ("test",)) if self.split == "test" else ("oof", ("train", "val"))
        saved = read_saved(self.folder / f"logits_{kind}.csv", self.manifest, splits, self.by)
        groups = saved.groups
        return Scored(groups.ids, groups.patient_ids, groups.labels, {"fusion": sigmoid(saved.group_logits)})

    @cached_property
    def trained(self) -> TrainedFusion | str:
        """The model with its cache, ready to ask; or, in a sentence, why it is not."""
        if self.folder.name == "joint" or not (self.folder / "best").is_dir():
            return "They need one model that reads cached maps; this result comes from images or from several models."
        try:
            return load_trained(self.run_dir, self.folder.name)
        except InputError as error:
            return (
                f"They need the feature cache: {error}. Make it with: accelerate launch extract.py --run_dir"
                f" {self.run_dir} (with its configuration), then write the report again."
            )


def open_runs(paths: Sequence[Path]) -> list[Run]:
    """Open runs and name them apart; errors as in `open_run`."""
    runs = [open_run(path) for path in paths]
    names = [run.label for run in runs]
    labels = [run.label if names.count(run.label) == 1 else f"{run.run_dir.parent.name}/{run.label}" for run in runs]
    if len(set(labels)) < len(labels):
        labels = [str(run.folder) for run in runs]
    if len(set(labels)) < len(labels):
        raise InputError(f"{max(labels, key=labels.count)}: named twice; give each run once")
    return [
        Run(run.folder, run.run_dir, label, run.by, run.units, run.record, run.manifest)
        for run, label in zip(runs, labels, strict=True)
    ]


def open_run(path: Path) -> Run:
    """Open a run (its result is `fusion/`) or one of its result folders.

    Raises:
        InputError: It is neither, or it is not finished.
    """
    folder = path if (path / "metrics.json").is_file() else path / RESULT
    if not (folder / "metrics.json").is_file():
        said = f"{path}: no finished run here, {folder / 'metrics.json'} is missing"
        raise InputError(f"{said}; name a run folder such as runs/demo, and {AGAIN}")
    record = read_json(folder / "metrics.json", AGAIN)
    units = units_of(record)
    run_dir = next((parent for parent in folder.resolve().parents if (parent / "manifest.csv").is_file()), None)
    if units is None or run_dir is None:
        what = "holds no scores of a finished stage two" if units is None else "no manifest.csv in the folders above it"
        raise InputError(f"{folder / 'metrics.json'}: {what}; name a run folder such as runs/demo, and {AGAIN}")
    label = run_dir.name if folder.name == RESULT else f"{run_dir.name}/{folder.resolve().relative_to(run_dir)}"
    run_dir = next((parent for parent in folder.parents if (parent / "manifest.csv").is_file()), run_dir)
    return Run(folder, run_dir, label, group_by_of(folder), units, record, read_manifest(run_dir / "manifest.csv"))


def units_of(record: dict[str, Any]) -> dict[str, dict[str, Any]] | None:
    """Scores in both units, of stage two's metrics.json or of joined folds'; None for any other file."""
    found = record if "images" in record else record.get("test") or record.get("out_of_fold") or {}
    if not all(isinstance(found.get(unit), dict) for unit in ("images", "groups")):
        return None
    units = {unit: found[unit] for unit in ("images", "groups")}
    if "folds" in record:  # one model per fold and no baselines
        units = {unit: {"rows": p["rows"], "methods": {"fusion": p}, "differences": {}} for unit, p in units.items()}
    if any("fusion" not in part.get("methods", {}) for part in units.values()):
        return None
    return units


def yaml_tree(path: Path) -> dict[str, Any]:
    """A YAML mapping; empty where there is none."""
    tree = read_yaml(path) if path.is_file() else None
    return tree if isinstance(tree, dict) else {}
