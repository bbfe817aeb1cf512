"""What is scored: predictions joined to the manifest by image id, as image rows and as groups.

The order of rows in a prediction table plays no part: everything is put into the manifest's order first, so tables
that another number of processes wrote give the same numbers to the bit.

N images, G groups, C classes.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float, Float32, Int

from data.errors import InputError
from data.groups import Groups, group_images
from data.manifest import SPLITS, Manifest
from data.predictions import read_predictions
from fusion.evaluate.strata import About, group_factors, image_factors

By = Literal["study", "patient"]


@dataclass(frozen=True, eq=False)
class Rows:
    """The cases of one unit, images or groups, that have a prediction."""

    ids: list[str]
    probabilities: Float32[np.ndarray, "N C"]
    targets: Float32[np.ndarray, "N C"]
    patient_ids: list[str]
    views: list[str]
    """Of each row, such as "PA" for an image and "PA, LATERAL" for a group."""
    factors: dict[str, np.ndarray]
    """Factor, such as "view", to each row's value of it."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Source:
    """Where predictions lie and what belongs to them."""

    path: Path
    predictions: Path
    validation: Path | None
    """Predictions of the validation split, from which thresholds may be chosen; None where there are none."""
    manifest: Path
    by: By


@dataclass(frozen=True, eq=False)
class Evaluated:
    """Both units of one prediction table."""

    classes: tuple[str, ...]
    images: Rows
    groups: Rows
    splits: tuple[str, ...]
    """Splits that the predicted images belong to."""
    missing: int
    """Images of these splits without a prediction."""
    unscored: tuple[str, ...]
    """Classes that are predicted or labelled, but not both."""


def find_source(path: Path, split: str, manifest: Path | None, validation: Path | None, by: By | None) -> Source:
    """The files behind what a user names: a folder of stage two (or a copy of it), or one prediction table.

    Args:
        split: Which table of a folder.
        manifest: Instead of `manifest.csv` in the run folder, the one that holds the folder.
        validation: Instead of `predictions_val.csv` beside the predictions.
        by: Groups, instead of what `config.yaml` beside the predictions says, or else studies.

    Raises:
        InputError: There is no such table or manifest.
    """
    folder = path if path.is_dir() else path.parent
    predictions = path / f"predictions_{split}.csv" if path.is_dir() else path
    if not predictions.is_file():
        raise InputError(f"{predictions}: no such prediction table; name a folder of train_fusion.py or a CSV")
    beside = folder / "predictions_val.csv"
    if validation is None and beside.is_file() and beside != predictions:
        validation = beside
    found = manifest or folder.parent / "manifest.csv"
    if not found.is_file():
        raise InputError(f"{found}: no such manifest; say where it is: --manifest runs/x/manifest.csv")
    return Source(path, predictions, validation, found, by or _grouping(folder))


def read_evaluated(
    predictions: Path, manifest: Manifest, by: By, about: About | None = None, only: "Template | None" = None
) -> Evaluated:
    """Join a prediction table to the manifest's rows of the same splits.

    A group's probability is its images' one, or their mean where they differ (single-image models). A group keeps the
    label and the number of views that the manifest gives it, also where an image of it has no prediction.

    Args:
        about: Sex and age per image.
        only: The images and classes of a challenge; every one of them must be predicted.

    Raises:
        InputError: An image that the manifest does not know or that belongs to another study there, no common class,
            a value outside [0, 1]; what `read_predictions` and `group_images` refuse.
    """
    ids, values, predicted = read_predictions(predictions)
    _check_range(values, predictions)
    places = _places(ids, manifest, predictions)
    splits = tuple(split for split in SPLITS if split in set(manifest.images["split"].iloc[places]))
    wanted = manifest.images["split"].isin(splits).to_numpy(dtype=bool)
    number = np.full(len(manifest), -1)
    number[places] = np.arange(len(places))
    subset, number = manifest.select(wanted), number[wanted]
    if only is not None:
        number = only.restrict(subset, number, predictions)
    names = tuple(name for name in manifest.classes if name in predicted and (only is None or name in only.classes))
    _check_classes(names, predicted, only, predictions)
    columns, kept = [predicted.index(name) for name in names], [manifest.classes.index(name) for name in names]
    subset = Manifest(subset.images, subset.labels[:, kept], names, subset.root)
    images, groups = _both_units(subset, values[:, columns], number, by, about)
    unscored = () if only else tuple(sorted(set(predicted) ^ set(manifest.classes)))
    return Evaluated(names, images, groups, splits, 0 if only else int((number < 0).sum()), unscored)


@dataclass(frozen=True)
class Template:
    """A challenge's sample file: exactly these images and classes are scored."""

    path: Path
    image_ids: frozenset[str]
    classes: tuple[str, ...]

    def restrict(self, images: Manifest, number: Int[np.ndarray, "N"], predictions: Path) -> Int[np.ndarray, "N"]:
        """Row of the prediction table of each image, -1 for images outside the template.

        Raises:
            InputError: An image of the template has no prediction or no label.
        """
        inside = images.images["image_id"].isin(self.image_ids).to_numpy(dtype=bool)
        found = set(images.images["image_id"][inside & (number >= 0)])
        if lacking := sorted(self.image_ids - found):
            raise InputError(
                f"{predictions}: {len(lacking)} images of {self.path} have no prediction here or no label in the"
                f" manifest, first {lacking[0]!r}; a challenge scores all of them"
            )
        return np.where(inside, number, -1)


def _both_units(
    subset: Manifest, values: Float32[np.ndarray, "K C"], number: Int[np.ndarray, "N"], by: By, about: About | None
) -> tuple[Rows, Rows]:
    groups = group_images(subset, by)
    group_of = np.empty(len(subset), dtype=int)
    group_of[np.concatenate(groups.rows)] = np.repeat(np.arange(len(groups.ids)), [len(r) for r in groups.rows])
    has = number >= 0
    factors = image_factors(subset.images, group_of, about)
    views = subset.images["view"]
    images = Rows(
        ids=subset.images["image_id"][has].tolist(),
        probabilities=values[number[has]],
        targets=subset.labels[has],
        patient_ids=subset.images["patient_id"][has].tolist(),
        views=views[has].tolist(),
        factors={name: column[has] for name, column in factors.items()},
    )
    return images, _group_rows(groups, images.probabilities, group_of[has], views.to_numpy(dtype=object), factors)


def _group_rows(
    groups: Groups,
    probabilities: Float32[np.ndarray, "N C"],
    group_of: Int[np.ndarray, "N"],
    views: np.ndarray,
    factors: dict[str, np.ndarray],
) -> Rows:
    """Rows of the groups that have a predicted image; `probabilities` and `group_of` are those of such images."""
    order = np.argsort(group_of, kind="stable")
    chosen, starts = np.unique(group_of[order], return_index=True)
    sorted_values = probabilities[order]
    low, high = np.minimum.reduceat(sorted_values, starts), np.maximum.reduceat(sorted_values, starts)
    sums = np.add.reduceat(sorted_values.astype(np.float64), starts)
    mean = sums / np.diff(starts, append=len(order))[:, None]
    of_groups = group_factors(groups.rows, views, factors)
    return Rows(
        ids=[groups.ids[g] for g in chosen],
        probabilities=np.where(low == high, low, mean).astype(np.float32),
        targets=groups.labels[chosen],
        patient_ids=[groups.patient_ids[g] for g in chosen],
        views=[", ".join(views[groups.rows[g]]) for g in chosen],
        factors={name: column[chosen] for name, column in of_groups.items()},
    )


def _places(ids: pd.DataFrame, manifest: Manifest, predictions: Path) -> Int[np.ndarray, "K"]:
    """Row of the manifest of each predicted image."""
    known = {image_id: row for row, image_id in enumerate(manifest.images["image_id"])}
    places = np.array([known.get(image_id, -1) for image_id in ids["image_id"]])
    if (places < 0).any():
        row = int(np.argmax(places < 0))
        raise InputError(
            f"{predictions}, row {row + 2}: image_id {ids['image_id'].iloc[row]!r} is not in the manifest"
            f" ({(places < 0).sum()} such images); name the manifest that these predictions were made from"
        )
    for name in ("study_id", "patient_id"):
        wrong = ids[name].to_numpy() != manifest.images[name].iloc[places].to_numpy()
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(
                f"{predictions}, row {row + 2}: {name} of image {ids['image_id'].iloc[row]!r} is"
                f" {ids[name].iloc[row]!r}, in the manifest {manifest.images[name].iloc[places[row]]!r}"
            )
    return places


def _check_range(values: Float[np.ndarray, "K C"], predictions: Path) -> None:
    if values.min() < 0 or values.max() > 1:
        raise InputError(
            f"{predictions}: wanted probabilities in [0, 1], found {values.min():.6g} to {values.max():.6g};"
            " logits_<split>.csv holds logits, predictions_<split>.csv probabilities"
        )


def _check_classes(
    names: tuple[str, ...], predicted: tuple[str, ...], only: Template | None, predictions: Path
) -> None:
    if not names:
        raise InputError(f"{predictions}: none of its classes ({', '.join(predicted[:5])}) is in the manifest")
    if only is not None and (lacking := [name for name in only.classes if name not in names]):
        raise InputError(
            f"{only.path}: class {lacking[0]!r} is not both predicted and labelled ({len(lacking)} such classes)"
        )


def _grouping(folder: Path) -> By:
    """What stage two fused, from its configuration; studies without one."""
    path = folder / "config.yaml"
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    section = tree.get("grouping") if isinstance(tree, dict) else None
    return "patient" if isinstance(section, dict) and section.get("by") == "patient" else "study"
