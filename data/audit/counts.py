"""What a manifest holds: views per study, what is missing, labels and which of them come together.

Axes: **N** images, **C** classes.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from data.manifest import SPLITS, Manifest, describe

FRONTAL = ("PA", "AP")


@dataclass(frozen=True, eq=False)
class Counts:
    """Numbers of one manifest.

    `splits` maps each split to `data.manifest.describe`; `study_sizes` the number of images to the number of studies;
    `missing` a fault of studies or images to all their ids; `together[a, b]` counts images positive in both classes.
    """

    splits: dict[str, dict[str, Any]]
    study_sizes: dict[int, int]
    patients_with_several_images: int
    patients_with_several_studies: int
    missing: dict[str, list[str]]
    together: Int64[np.ndarray, "C C"]
    classes: tuple[str, ...]


def count(manifest: Manifest) -> Counts:
    """Count everything in one manifest."""
    images = manifest.images
    sizes, numbers = np.unique(images.groupby("study_id").size().to_numpy(), return_counts=True)
    per_patient = images.groupby("patient_id")["study_id"].agg(["size", "nunique"])
    positive = (manifest.labels == 1).astype(np.int64)
    return Counts(
        splits={split: describe(manifest.of_split(split)) for split in SPLITS},
        study_sizes=dict(zip(sizes.tolist(), numbers.tolist(), strict=True)),
        patients_with_several_images=int((per_patient["size"] > 1).sum()),
        patients_with_several_studies=int((per_patient["nunique"] > 1).sum()),
        missing=missing(manifest),
        together=positive.T @ positive,
        classes=manifest.classes,
    )


def missing(manifest: Manifest) -> dict[str, list[str]]:
    """Ids of studies without a frontal or a lateral view, of images without a known view or any known label."""
    images = manifest.images
    views = pd.DataFrame(
        {
            "frontal": images["view"].isin(FRONTAL),
            "lateral": images["view"] == "LATERAL",
            "unknown": images["view"] == "UNKNOWN",
        }
    ).groupby(images["study_id"], sort=True)
    has = views.any()
    unlabelled = np.isnan(manifest.labels).all(axis=1)
    return {
        "studies without a frontal view": has.index[~has["frontal"] & ~has["unknown"]].tolist(),
        "studies whose only possible frontal has no known view": has.index[~has["frontal"] & has["unknown"]].tolist(),
        "studies without a lateral view": has.index[~has["lateral"]].tolist(),
        "images of unknown view": images["image_id"][images["view"] == "UNKNOWN"].tolist(),
        "images without a single known label": images["image_id"][unlabelled].tolist(),
    }


def pairs_of_classes(counts: Counts, most: int = 15) -> list[tuple[str, str, int, float]]:
    """The class pairs that occur together most: names, images, and that number over the number expected by chance."""
    together, N = counts.together, sum(split["images"] for split in counts.splits.values())
    single = np.diagonal(together)
    rows = [
        (counts.classes[a], counts.classes[b], int(together[a, b]), float(together[a, b] * N / (single[a] * single[b])))
        for a, b in zip(*np.nonzero(np.triu(together, 1)), strict=True)
    ]
    return sorted(rows, key=lambda row: (-row[2], row[0], row[1]))[:most]


def absent_classes(counts: Counts) -> dict[str, list[str]]:
    """Classes without a positive in a split that has images."""
    return {
        split: [name for name, positives in numbers["positives"].items() if not positives]
        for split, numbers in counts.splits.items()
        if numbers["images"]
    }
