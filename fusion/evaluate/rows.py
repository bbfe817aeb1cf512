"""What is scored: predictions joined to the manifest by image id, as image rows and as groups.

The order of rows in a prediction table plays no part: everything is put into the manifest's order first, so tables
that another number of processes wrote give the same numbers to the bit.

N images, G groups, C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int

from data.errors import InputError
from data.groups import Groups, group_images
from data.manifest import SPLITS, Manifest
from data.predictions import read_predictions
from data.predictions_join import rows_in_manifest
from fusion.evaluate.source import Fitted
from fusion.evaluate.strata import About, group_factors, image_factors
from fusion.result_folder import GroupBy


@dataclass(frozen=True, eq=False)
class Rows:
    """The cases of one unit, images or groups, that have a prediction."""

    ids: list[str]
    probabilities: Float32[np.ndarray, "N C"]
    calibrated: Float32[np.ndarray, "N C"] | None
    """The same, calibrated; None without a calibration."""
    targets: Float32[np.ndarray, "N C"]
    patient_ids: list[str]
    views: list[str]
    """Of each row, such as "PA" for an image and "PA, LATERAL" for a group."""
    factors: dict[str, np.ndarray]
    """Factor, such as "view", to each row's value of it."""

    def __len__(self) -> int:
        return len(self.ids)


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
    fitted: Fitted | None
    """What was used of the model's calibration and thresholds."""


def read_evaluated(
    predictions: Path,
    manifest: Manifest,
    by: GroupBy,
    about: About | None = None,
    only: "Template | None" = None,
    fitted: Fitted | None = None,
) -> Evaluated:
    """Join a prediction table to the manifest's rows of the same splits.

    A group's probability is its images' one, or their mean where they differ (single-image models). A group keeps the
    label and the number of views that the manifest gives it, also where an image of it has no prediction.

    Args:
        about: Sex and age per image.
        only: The images and classes of a challenge; every one of them must be predicted.
        fitted: Put aside where other than test images are predicted: it may have been fitted on those.

    Raises:
        InputError: An image that the manifest does not know or that belongs to another study there, no common class,
            a value outside [0, 1], a calibration of other classes; what `read_predictions` and `group_images` refuse.
    """
    ids, values, predicted = read_predictions(predictions)
    _check_range(values, predictions)
    places = rows_in_manifest(ids, manifest, predictions)
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
    fitted = fitted if splits == ("test",) else None
    calibrated = fitted.calibrated(values, predicted, predictions) if fitted else None
    calibrated = None if calibrated is None else calibrated[:, columns]
    images, groups = _both_units(subset, values[:, columns], calibrated, number, by, about)
    unscored = () if only else tuple(sorted(set(predicted) ^ set(manifest.classes)))
    return Evaluated(names, images, groups, splits, 0 if only else int((number < 0).sum()), unscored, fitted)


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
    subset: Manifest,
    values: Float32[np.ndarray, "K C"],
    calibrated: Float32[np.ndarray, "K C"] | None,
    number: Int[np.ndarray, "N"],
    by: GroupBy,
    about: About | None,
) -> tuple[Rows, Rows]:
    groups = group_images(subset, by)
    group_of = groups.of_rows
    has = number >= 0
    factors = image_factors(subset.images, group_of, about)
    views = subset.images["view"]
    images = Rows(
        ids=subset.images["image_id"][has].tolist(),
        probabilities=values[number[has]],
        calibrated=None if calibrated is None else calibrated[number[has]],
        targets=subset.labels[has],
        patient_ids=subset.images["patient_id"][has].tolist(),
        views=views[has].tolist(),
        factors={name: column[has] for name, column in factors.items()},
    )
    return images, _group_rows(groups, images, group_of[has], views.to_numpy(dtype=object), factors)


def _group_rows(
    groups: Groups,
    images: Rows,
    group_of: Int[np.ndarray, "N"],
    views: np.ndarray,
    factors: dict[str, np.ndarray],
) -> Rows:
    """Rows of the groups that have a predicted image; `group_of` is each such image's."""
    chosen = np.unique(group_of)
    of_groups = group_factors(groups.rows, views, factors)
    return Rows(
        ids=[groups.ids[g] for g in chosen],
        probabilities=_of_groups(images.probabilities, group_of),
        calibrated=None if images.calibrated is None else _of_groups(images.calibrated, group_of),
        targets=groups.labels[chosen],
        patient_ids=[groups.patient_ids[g] for g in chosen],
        views=[", ".join(views[groups.rows[g]]) for g in chosen],
        factors={name: column[chosen] for name, column in of_groups.items()},
    )


def _of_groups(values: Float32[np.ndarray, "N C"], group_of: Int[np.ndarray, "N"]) -> Float32[np.ndarray, "G C"]:
    """The one probability of a group's images, to the bit, or their mean."""
    order = np.argsort(group_of, kind="stable")
    starts = np.unique(group_of[order], return_index=True)[1]
    ordered = values[order]
    low, high = np.minimum.reduceat(ordered, starts), np.maximum.reduceat(ordered, starts)
    mean = np.add.reduceat(ordered.astype(np.float64), starts) / np.diff(starts, append=len(order))[:, None]
    return np.where(low == high, low, mean).astype(np.float32)


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
