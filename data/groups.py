"""From images to groups: the images that are fused into one prediction, and the label they share.

A group is a study (one examination; the challenges' labels belong to it) or all images of a patient.

Axes: **N** images, **G** groups, **C** classes.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from data.errors import InputError
from data.manifest import Manifest


@dataclass(frozen=True, eq=False)
class Groups:
    """Groups in the order in which they first appear in the manifest.

    `rows` are row numbers into the manifest, ascending; `labels` in [0, 1] with NaN for unknown; `conflicts` counts
    the (group, class) pairs whose known labels differ.
    """

    ids: list[str]
    rows: list[np.ndarray]
    labels: Float32[np.ndarray, "G C"]
    patient_ids: list[str]
    conflicts: int

    @cached_property
    def of_rows(self) -> Int64[np.ndarray, "N"]:
        """The number of each row's group."""
        numbers = np.empty(sum(map(len, self.rows)), dtype=np.int64)
        for number, rows in enumerate(self.rows):
            numbers[rows] = number
        return numbers


def group_images(
    manifest: Manifest, group_by: Literal["study", "patient"], study_labels: Literal["same", "any"] = "same"
) -> Groups:
    """Group a manifest's images by study or by patient.

    A group's label is the largest known label of its images: 1 if any is 1, 0 if all known ones are 0, unknown if none
    is known. For a patient this is a rule across examinations. The images of a study must agree to begin with, unknown
    included, unless `study_labels` is "any", for sources that label single images.

    Raises:
        InputError: A study whose images carry different labels, named with the class.
    """
    assert group_by in ("study", "patient"), group_by
    assert study_labels in ("same", "any"), study_labels
    codes, ids = pd.factorize(manifest.images[f"{group_by}_id"])
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    if len(starts) == 0:
        return Groups([], [], manifest.labels[:0], [], 0)
    labels = manifest.labels[order]
    largest, smallest = np.fmax.reduceat(labels, starts), np.fmin.reduceat(labels, starts)  # both pass over NaN
    differ = largest > smallest
    if group_by == "study" and study_labels == "same":
        known = ~np.isnan(labels)
        partly = np.logical_or.reduceat(known, starts) & ~np.logical_and.reduceat(known, starts)
        _refuse_differences(manifest, list(ids), differ | partly)
    return Groups(
        ids=list(ids),
        rows=[order[start:end] for start, end in pairwise([*starts.tolist(), len(order)])],
        labels=largest,
        patient_ids=manifest.images["patient_id"].iloc[order[starts]].tolist(),
        conflicts=int(differ.sum()),
    )


def _refuse_differences(manifest: Manifest, ids: list[str], differ: np.ndarray) -> None:
    if not differ.any():
        return
    group, column = np.argwhere(differ)[0]
    rows = np.flatnonzero(manifest.images["study_id"] == ids[group])
    values = sorted({"unknown" if np.isnan(v) else f"{v:g}" for v in manifest.labels[rows, column].tolist()})
    raise InputError(
        f"{differ.any(axis=1).sum()} studies hold images with different labels, first study_id {ids[group]} in"
        f" '{manifest.classes[column]}' ({' and '.join(values)}); if single images were labelled, use study_labels any"
    )
