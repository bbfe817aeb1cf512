"""Predictions that were saved, beside the labels of their manifest: what calibration, ensembles and reports start from.

Axes: **N** images, **G** groups, **C** classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int64

from data.ensemble import bounded_logit
from data.errors import InputError
from data.groups import Groups, group_images
from data.manifest import Manifest
from data.predictions import read_predictions, write_predictions
from data.predictions_join import rows_in_manifest
from extract.engine import sigmoid
from fusion.result_folder import GroupBy


@dataclass(frozen=True, eq=False)
class Saved:
    """One file's predictions, rows in the order of the manifest, columns in the order of its classes."""

    path: Path
    images: Manifest
    logits: Float32[np.ndarray, "N C"]
    by: GroupBy
    notes: tuple[str, ...]
    """What had to be put in order to read it."""

    @cached_property
    def groups(self) -> Groups:
        """The groups of the images, in the order of the manifest."""
        return group_images(self.images, self.by, "any")  # training has refused already what "same" refuses

    @property
    def owner(self) -> Int64[np.ndarray, "N"]:
        """The number of each image's group."""
        return self.groups.of_rows

    @property
    def group_logits(self) -> Float32[np.ndarray, "G C"]:
        """One row per group: its images share their prediction."""
        return self.logits[[rows[0] for rows in self.groups.rows]]

    @property
    def labelled(self) -> bool:
        """Whether any label is known."""
        return not np.isnan(self.images.labels).all()


def read_saved(path: Path, manifest: Manifest, splits: Sequence[str], by: GroupBy) -> Saved:
    """Read a predictions file and join it to its manifest by image_id and class name, never by position.

    Args:
        splits: Whose images the file may hold.
        by: The group whose images share a prediction.

    Raises:
        InputError: Classes or images that the manifest does not have, an image of another split, another study or
            patient, images of one group that do not share their prediction.
    """
    ids, values, classes = read_predictions(path)
    notes = []
    if set(classes) != set(manifest.classes):
        odd = sorted(set(classes) ^ set(manifest.classes))[0]
        raise InputError(
            f"{path}: has {len(classes)} classes, manifest.csv {len(manifest.classes)}; {odd!r} is in one only"
        )
    if classes != manifest.classes:
        notes.append(f"{path}: classes in another order than manifest.csv, aligned by name")
        values = values[:, [classes.index(name) for name in manifest.classes]]
    rows = rows_in_manifest(ids, manifest, path)
    if (np.diff(rows) < 0).any():
        notes.append(f"{path}: rows in another order than manifest.csv, aligned by image_id")
    order = np.argsort(rows)
    part = manifest.select(rows[order])
    strange = ~part.images["split"].isin(list(splits)).to_numpy(dtype=bool)
    if strange.any():
        image, split = part.images[["image_id", "split"]].iloc[int(np.argmax(strange))]
        raise InputError(
            f"{path}: image_id {image!r} is of split '{split}', wanted {' or '.join(splits)} alone; the splits changed"
            " since it was predicted, or it is another split's file"
        )
    saved = Saved(path, part, as_logits(path, values[order]), by, tuple(notes))
    if not np.array_equal(saved.group_logits[saved.owner], saved.logits):
        raise InputError(f"{path}: images of one {by} have different predictions; was it predicted by another group?")
    return saved


def write_saved(folder: Path, what: str, saved: Saved, logits: Float[np.ndarray, "G C"]) -> None:
    """Write `logits_<what>.csv` and `predictions_<what>.csv` of new logits of the groups: a row per image."""
    classes = saved.images.classes
    write_predictions(folder / f"logits_{what}.csv", saved.images.images, logits[saved.owner], classes)
    write_predictions(folder / f"predictions_{what}.csv", saved.images.images, sigmoid(logits)[saved.owner], classes)


def as_logits(path: Path, values: Float32[np.ndarray, "N C"]) -> Float32[np.ndarray, "N C"]:
    """By the file's name, as everywhere: `logits_...` holds logits, any other probabilities.

    A probability that float32 has rounded to 0 or 1 becomes the logit of the last one before it.
    """
    if path.name.startswith("logits"):
        return values
    if values.min() < 0 or values.max() > 1:
        raise InputError(
            f"{path}: wanted probabilities in 0..1, found {values.min():.6g} to {values.max():.6g}; a file of logits is"
            " called logits_<split>.csv"
        )
    return bounded_logit(values.astype(np.float64)).astype(np.float32)
