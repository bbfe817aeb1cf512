"""For compare_memorised.py: stage one's head on images it has and has not seen; k backbones' maps in one space.

N images, C classes, D features of a map.
"""

from pathlib import Path

import _root  # noqa: F401
import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from data.bootstrap import patient_bootstrap
from data.cache import FeatureCache
from data.cache_rewrite import Picks, kept_record, write_picks
from data.folds import find_folds
from data.intervals import BootstrapResult
from data.manifest import Manifest, read_manifest
from fusion.config import GroupingConfig
from fusion.grouping import make_groups
from fusion.stage_one import stage_one_logits

LARGEST = 65504.0
"""Of float16."""


def head_logits(run_dir: Path, images: Manifest) -> Float[np.ndarray, "N C"]:
    """What the head of a run's stage one makes of its cached maps."""
    cache = FeatureCache(run_dir / "cache")
    return stage_one_logits(run_dir, make_groups(images, cache, GroupingConfig()), cache)


def memorisation_gap(run_dir: Path, replicates: int = 1000) -> dict[str, list[float]]:
    """mAP over image rows of stage one's head, each with its 95 % interval; the folds are `run_dir`'s folders fold_i.

    "train", "val", "test": the full backbone. "train out of fold": the same training images, each by the backbone of
    the fold that holds its patient out, all values pooled. "test by folds": mean of the folds' mAPs. Differences within
    a split are paired; between splits, whose patients are other people, both sides are resampled independently.
    """
    manifest, folds = read_manifest(run_dir / "manifest.csv"), find_folds(run_dir)
    parts = {split: manifest.of_split(split) for split in ("train", "val", "test")}
    scores = {split: {"full": head_logits(run_dir, part)} for split, part in parts.items()}
    scores["train"]["out of fold"] = out_of_fold_logits(folds, parts["train"])
    for number, fold in enumerate(folds):
        scores["test"][f"fold {number}"] = head_logits(fold, parts["test"])
    defined = np.all([(part.labels > 0.5).any(axis=0) for part in parts.values()], axis=0)
    results = {
        split: patient_bootstrap(
            scores[split],
            np.where(defined, part.labels, 0).astype(np.float32),  # a class without a positive is left out
            part.images["patient_id"].tolist(),
            replicates=replicates,
            seed=seed,
        )
        for seed, (split, part) in enumerate(parts.items())
    }
    train, val, test = results.values()
    by_folds = [f"fold {number}" for number in range(len(folds))]
    return {
        "train": difference(train, ["full"]),
        "val": difference(val, ["full"]),
        "test": difference(test, ["full"]),
        "train minus val": difference(train, ["full"], val, ["full"]),
        "train minus test": difference(train, ["full"], test, ["full"]),
        "train out of fold": difference(train, ["out of fold"]),
        "test by folds": difference(test, by_folds),
        "train minus train out of fold": difference(train, ["full"], train, ["out of fold"]),
        "train out of fold minus test by folds": difference(train, ["out of fold"], test, by_folds),
    }


def difference(
    first: BootstrapResult, names: list[str], second: BootstrapResult | None = None, others: list[str] | None = None
) -> list[float]:
    """Mean mAP of some methods, minus that of others if given: estimate and the ends of its 95 % interval.

    Results of one bootstrap share their draws, so their difference is paired.
    """
    estimate = np.mean([first.estimate(name) for name in names])
    values = np.mean([first.macro(name) for name in names], axis=0)
    if second is not None and others is not None:
        estimate = estimate - np.mean([second.estimate(name) for name in others])
        values = values - np.mean([second.macro(name) for name in others], axis=0)
    low, high = np.nanquantile(values, [0.025, 0.975])
    return [round(float(value), 4) for value in (estimate, low, high)]


def out_of_fold_logits(folds: list[Path], images: Manifest) -> Float[np.ndarray, "N C"]:
    """Each image's logits by the head whose backbone has not seen its patient."""
    logits = np.full((len(images), len(images.classes)), np.nan, dtype=np.float32)
    for fold in folds:
        unseen = images.images["image_id"].isin(read_manifest(fold / "manifest.csv").of_split("val").images["image_id"])
        rows = np.flatnonzero(unseen)
        logits[rows] = head_logits(fold, images.select(rows))
    assert not np.isnan(logits).any(), "every image is held out by one fold"
    return logits


class AlignedCache(FeatureCache):
    """An out-of-fold cache in one feature space: the maps of its f-th source times matrix f, the first's unchanged."""

    def __init__(self, folder: Path, matrices: list[Float[Tensor, "D+1 D"]]) -> None:
        super().__init__(folder)
        assert self.identity.dtype == "float16", "coded values are not decoded to be coded again"
        self.matrices = matrices

    def read_stored(self, ordinals: Int[np.ndarray, "n"], variants: Int[np.ndarray, "n"]) -> Shaped[Tensor, "n ..."]:
        """The maps after their fold's linear map."""
        stored = super().read_stored(ordinals, variants).clone()
        for n, fold in enumerate(self.index.fold[ordinals]):
            if fold > 0:
                aligned = with_ones(stored[n].float()) @ self.matrices[fold - 1]
                stored[n] = aligned.clamp(-LARGEST, LARGEST).half()
        return stored


def with_ones(maps: Float[Tensor, "*shape D"]) -> Float[Tensor, "*shape D+1"]:
    """A constant feature beside the others, for the intercept."""
    return torch.cat([maps, torch.ones(*maps.shape[:-1], 1)], dim=-1)


def paired_tokens(run_dir: Path, fold: Path, images: Manifest) -> tuple[Float[Tensor, "n D+1"], Float[Tensor, "n D"]]:
    """Every position of these images' maps, by a fold's backbone and by the full one."""
    both = []
    for folder in (fold, run_dir):
        cache = FeatureCache(folder / "cache")
        maps = cache.read(np.array([cache.ordinal[image] for image in images.images["image_id"]]))
        both.append(torch.from_numpy(maps).float().flatten(0, 2))
    return with_ones(both[0]), both[1]


def align(run_dir: Path, merged: Path, target: Path) -> dict[str, list[float]]:
    """Write `merged` with every fold's maps carried into the full backbone's space.

    Least squares over positions of the validation images that the fold holds out: neither backbone was trained on
    them, so nothing memorised gets into the matrix, and no label does.

    Returns:
        R2 by fold on the test images, which had no part in the fit: of the maps as they are, and of the aligned ones.
    """
    manifest = read_manifest(run_dir / "manifest.csv")
    val, test, matrices = manifest.of_split("val"), manifest.of_split("test"), []
    r2: dict[str, list[float]] = {"as they are": [], "aligned": []}
    for fold in find_folds(run_dir):
        held_out = read_manifest(fold / "manifest.csv").of_split("val").images["image_id"]
        unseen = val.select(np.flatnonzero(val.images["image_id"].isin(held_out)))
        matrices.append(torch.linalg.lstsq(*paired_tokens(run_dir, fold, unseen)).solution)
        tokens, wanted = paired_tokens(run_dir, fold, test)
        r2["as they are"].append(explained(tokens[:, :-1], wanted))
        r2["aligned"].append(explained(tokens @ matrices[-1], wanted))
    if not (target / "cache.json").exists():
        source = AlignedCache(merged, matrices)
        N = source.identity.num_images
        picks = Picks([source], np.zeros(N, dtype=int), np.arange(N))
        write_picks(target, source.identity, picks, source.index.fold, kept_record(source.record))
    return r2


def explained(found: Float[Tensor, "n D"], wanted: Float[Tensor, "n D"]) -> float:
    """Share of the variance about each feature's mean, all features together; negative where the mean does better."""
    left = (found - wanted).square().sum() / (wanted - wanted.mean(dim=0)).square().sum()
    return round(1 - float(left), 3)
