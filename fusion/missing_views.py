"""What a missing view costs: finished models on test groups from which views were taken away.

Nothing is trained and nothing chosen. In every condition, all methods are scored on the same groups and the same views,
and each of them against itself with all views of these groups, so that the loss is not one of easier or harder groups.
A group takes part where something is taken from it: "frontal only" and "lateral only" speak of the groups that have
both. Intervals come from one patient bootstrap per condition; several runs (seeds) of the same data are averaged.

Axes: **G** groups, **V** views, **C** classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from jaxtyping import Bool, Float, Int
from torch import nn

from data.bootstrap import patient_bootstrap
from data.cache import FeatureCache
from data.config import parse_config
from data.errors import InputError
from data.manifest import Manifest, read_manifest
from data.order import derive_seed
from data.seeds import mean_over_seeds, seed_differences
from extract.checkpoint import check_folder, load_classes, load_json, load_tensors, load_weights
from extract.engine import make_accelerator, sigmoid
from fusion.baselines import BASELINES, baseline_groups
from fusion.ceilings import KIND_OF
from fusion.config import FusionConfig
from fusion.evaluation import average_logits, evaluation_passes, gate_normal
from fusion.grouping import GroupSet, cached_manifest, make_groups, single_images
from fusion.inference import predict_groups
from fusion.pooled_mlp import FOLDER as MLP_FOLDER
from fusion.pooled_mlp import PooledMLP, load_mlp, predict_mlp
from fusion.published import build_model
from fusion.results import in_row_order
from fusion.scoring import interval
from fusion.stage_one import stage_one_logits
from fusion.train import refuse_trained_patients

DRAWS = 3
"""Fixed draws behind "at random"; average precision is averaged over them."""
AT_MOST = (1, 2, 3)
Keep = list[np.ndarray]
"""Per group, which of its views stay (bool)."""


@dataclass(frozen=True, eq=False)
class Condition:
    """Groups, and which of their views are left; several ways where views are drawn."""

    name: str
    numbers: Int[np.ndarray, "g"]
    """The groups that take part."""
    ways: list[Keep]
    """Each has an entry for every group of the set, taking part or not."""


def conditions(groups: GroupSet) -> list[Condition]:
    """All that are reported, but those with groups of fewer than two patients. A pure function of ids and views."""
    kinds = [KIND_OF[types] for types in groups.view_types]
    everything: Keep = [np.ones(len(kind), dtype=bool) for kind in kinds]
    count, every = groups.num_views, np.arange(len(groups))
    both = np.array([{"frontal", "lateral"} <= set(kind) for kind in kinds], dtype=bool)
    found = [Condition("all views", every, [everything])]
    found += [
        Condition(f"{kind} only", every[both], [[of_group == kind for of_group in kinds]])
        for kind in ("frontal", "lateral")
    ]
    found += [
        Condition(
            "one at random" if most == 1 else f"{most} at random",
            every[count > most],
            [[drawn_views(groups, g, most, draw) for g in range(len(groups))] for draw in range(DRAWS)],
        )
        for most in AT_MOST
    ]
    last = AT_MOST[-1] + 1
    strata = {f"groups of {n}": count == n for n in range(1, last)} | {f"groups of {last} or more": count >= last}
    found += [Condition(name, every[chosen], [everything]) for name, chosen in strata.items()]
    patients = np.array(groups.patient_ids)
    return [condition for condition in found if len(np.unique(patients[condition.numbers])) > 1]


def drawn_views(groups: GroupSet, number: int, most: int, draw: int) -> Bool[np.ndarray, "V"]:
    """`most` views of a group, or all it has; a function of the group's id and the draw, whatever else is there.

    A larger `most` adds views to those of a smaller one.
    """
    count = len(groups.rows[number])
    order = np.random.default_rng(derive_seed("missing views", draw, groups.ids[number])).permutation(count)
    return np.isin(np.arange(count), order[:most])


def reduced(groups: GroupSet, numbers: Int[np.ndarray, "g"], keep: Keep) -> GroupSet:
    """Some of the groups with some of their views, each at least one; labels and order stay.

    The views' `rows` stay numbers into the whole split, so its single-image predictions serve every condition.
    """
    assert all(keep[g].any() for g in numbers), "a group without any view has no prediction"

    def some(parts: list[np.ndarray]) -> list[np.ndarray]:
        return [parts[g][keep[g]] for g in numbers]

    return GroupSet(
        ids=[groups.ids[g] for g in numbers],
        patient_ids=[groups.patient_ids[g] for g in numbers],
        labels=groups.labels[numbers],
        rows=some(groups.rows),
        ordinals=some(groups.ordinals),
        view_types=some(groups.view_types),
        sources=[groups.sources[g] for g in numbers],
    )


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A finished stage two, ready to predict any groups of its test split."""

    config: FusionConfig
    cache: FeatureCache
    test: GroupSet
    classes: tuple[str, ...]
    model: nn.Module
    mlp: PooledMLP | None
    images: Float[np.ndarray, "N C"]
    """Logits of the single images of the test split, in manifest order, from the head that the run's table compares."""
    accelerator: Accelerator

    def predict(self, groups: GroupSet) -> dict[str, Float[np.ndarray, "G C"]]:
        """Probabilities of every method, as the run's own table has them where all views are there."""
        model, config = self.model, self.config
        logits = {"fusion": averaged(config, groups, self.cache, model, self.accelerator)}
        if self.mlp is not None:
            logits["mlp"] = predict_mlp(config, self.mlp, groups, self.cache)
        found = {name: baseline_groups(name, sigmoid(self.images), groups) for name in BASELINES}
        found |= {name: sigmoid(values) for name, values in logits.items()}
        return {name: gate_normal(values, self.classes, config.evaluation) for name, values in found.items()}


def load_run(run_dir: Path, name: str = "fusion", cache_dir: Path | None = None) -> FinishedRun:
    """Read a finished run.

    Raises:
        InputError: stage two is not finished or damaged, no finished cache, or a test patient that the backbone knows.
    """
    folder = run_dir / name
    if not (folder / "metrics.json").exists():
        raise InputError(f"{folder / 'metrics.json'}: no finished stage two here; run train_fusion.py first")
    check_folder(folder / "best")
    config = replace(parse_config(FusionConfig, folder / "best" / "config.yaml", [])[0], run_dir=run_dir, name=name)
    cache = FeatureCache(cache_dir or config.cache_dir or run_dir / "cache")
    manifest = cached_manifest(read_manifest(run_dir / "manifest.csv"), cache)
    refuse_trained_patients(manifest, cache)
    classes, accelerator = manifest.classes, make_accelerator(config)
    test = make_groups(manifest.of_split("test"), cache, config.grouping)
    mlp = load_mlp(folder / MLP_FOLDER, cache, len(classes)) if (folder / MLP_FOLDER).is_dir() else None
    if load_json(folder / "metrics.json").get("baseline_head") == "re-trained head":
        single = load_model(folder / "single_image" / "best", config, cache, manifest, accelerator)
        images = in_row_order(averaged(config, single_images(test), cache, single, accelerator), test)
    else:
        variants = len(cache.identity.variants) if config.evaluation.augment else 1
        images = stage_one_logits(run_dir, test, cache, variants)
    model = load_model(folder / "best", config, cache, manifest, accelerator)
    return FinishedRun(config, cache, test, classes, model, mlp, images, accelerator)


def load_model(
    folder: Path, config: FusionConfig, cache: FeatureCache, manifest: Manifest, accelerator: Accelerator
) -> nn.Module:
    """A model folder's fusion module.

    Raises:
        InputError: the folder is damaged, or its classes are not the manifest's.
    """
    check_folder(folder)
    if load_classes(folder) != manifest.classes:
        raise InputError(f"{folder / 'classes.json'}: its classes are not those of manifest.csv")
    model = build_model(config.model, cache.identity.map_shape, len(manifest.classes))
    load_weights(model, load_tensors(folder / "model.safetensors"), str(folder))
    return model.to(accelerator.device).eval()


def averaged(
    config: FusionConfig, groups: GroupSet, cache: FeatureCache, model: nn.Module, accelerator: Accelerator
) -> Float[np.ndarray, "G C"]:
    """Logits over the test-time passes that the run was evaluated with."""
    passes = evaluation_passes(config.evaluation, len(cache.identity.variants))
    return average_logits([predict_groups(config, groups, cache, model, accelerator, *one) for one in passes])


def compare_missing(runs: Sequence[FinishedRun], replicates: int = 1000) -> dict[str, Any]:
    """Every condition's scores: mean over runs and draws, intervals by patient.

    Raises:
        InputError: the runs have other test groups, labels or classes.
    """
    first = runs[0].test
    for run in runs[1:]:
        same = run.test.ids == first.ids and run.classes == runs[0].classes
        if not same or not np.array_equal(run.test.labels, first.labels, equal_nan=True):
            raise InputError(f"{run.config.run_dir}: its test groups, labels or classes are not those of the first run")
        if any(not np.array_equal(a, b) for a, b in zip(run.test.view_types, first.view_types, strict=True)):
            raise InputError(f"{run.config.run_dir}: its test groups have other views than those of the first run")
    whole = [run.predict(run.test) for run in runs]
    found = {condition.name: score_condition(runs, whole, condition, replicates) for condition in conditions(first)}
    return {"runs": len(runs), "draws": DRAWS, "by": runs[0].config.grouping.by, "conditions": found}


def score_condition(
    runs: Sequence[FinishedRun], whole: list[dict[str, np.ndarray]], condition: Condition, replicates: int
) -> dict[str, Any]:
    """One condition: each method's mAP, that with all views, their difference, and fusion's lead over each baseline.

    Args:
        whole: Per run, the probabilities of all groups with all views.
    """
    scores, labels = {}, runs[0].test.labels[condition.numbers]
    complete = all(keep[g].all() for keep in condition.ways for g in condition.numbers)
    for r, run in enumerate(runs):
        for draw, keep in enumerate(condition.ways):
            parts = reduced(run.test, condition.numbers, keep)
            values = {m: v[condition.numbers] for m, v in whole[r].items()} if complete else run.predict(parts)
            scores |= {f"{method}/{r}/{draw}": probabilities for method, probabilities in values.items()}
        scores |= {f"{method}, all views/{r}": v[condition.numbers] for method, v in whole[r].items()}
    methods = [m for m in ("fusion", "mlp", *BASELINES) if all(m in values for values in whole)]
    pairs = [(r, d) for r in range(len(runs)) for d in range(len(condition.ways))]
    runs_of = {m: [f"{m}/{r}/{d}" for r, d in pairs] for m in methods}
    runs_of |= {f"{m}, all views": [f"{m}, all views/{r}" for r, _ in pairs] for m in methods}
    patients = [runs[0].test.patient_ids[g] for g in condition.numbers]
    result = patient_bootstrap(scores, labels, patients, replicates=replicates)
    means = mean_over_seeds(result, runs_of)
    report: dict[str, Any] = {
        "groups": len(condition.numbers),
        "views": float(np.mean([keep[g].sum() for keep in condition.ways for g in condition.numbers])),
        "methods": {m: {"mAP": interval(means.interval(m))} for m in methods},
        "fusion_minus": {m: interval(means.difference("fusion", m)) for m in methods if m != "fusion"},
    }
    for method in methods if not complete else ():
        own: dict[str, Any] = report["methods"][method]
        own["all_views"] = interval(means.interval(f"{method}, all views"))
        own["minus_all_views"] = interval(means.difference(method, f"{method}, all views"))
        own["by_run_and_draw"] = seed_differences(result, runs_of[method], runs_of[f"{method}, all views"])
    return report
