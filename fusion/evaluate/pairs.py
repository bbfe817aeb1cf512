"""Two prediction tables brought to the same images, classes and order.

N rows, C classes.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.manifest import Manifest
from fusion.evaluate.report import UNITS, Thresholds
from fusion.evaluate.rows import Evaluated, Rows
from fusion.evaluate.source import Source


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two: what is called, what it says, and its own thresholds."""

    name: str
    evaluated: Evaluated
    thresholds: Thresholds | None


def short_names(first: Path, second: Path) -> tuple[str, str]:
    """The last parts of two paths, as many as it takes to tell them apart; no home folder is shown.

    Raises:
        InputError: They are the same path.
    """
    a, b = (path.resolve().with_suffix("").parts for path in (first, second))
    if a == b:
        raise InputError(f"--compare {first} {second}: the same predictions twice")
    for count in range(1, max(len(a), len(b)) + 1):
        if a[-count:] != b[-count:]:
            return "/".join(a[-count:]), "/".join(b[-count:])
    raise AssertionError("unequal tuples differ in some suffix")


def same_labels(manifests: list[Manifest], sources: tuple[Source, Source]) -> None:
    """Both manifests must say the same of the images that both know."""
    if manifests[0].digest == manifests[1].digest:
        return
    places = [{name: row for row, name in enumerate(manifest.images["image_id"])} for manifest in manifests]
    shared = [name for name in manifests[0].classes if name in manifests[1].classes]
    columns = [[manifest.classes.index(name) for name in shared] for manifest in manifests]
    common = [name for name in places[0] if name in places[1]]
    rows = [[place[name] for name in common] for place in places]
    labels = [manifests[i].labels[rows[i]][:, columns[i]] for i in range(2)]
    ids = [manifests[i].images[["study_id", "patient_id", "split"]].iloc[rows[i]].to_numpy() for i in range(2)]
    differ = ((labels[0] != labels[1]) & ~(np.isnan(labels[0]) & np.isnan(labels[1]))).any(axis=1)
    differ |= (ids[0] != ids[1]).any(axis=1)
    if differ.any():
        raise InputError(
            f"{sources[0].manifest} and {sources[1].manifest} say different things of {differ.sum()} images, first"
            f" {common[int(np.argmax(differ))]!r} (labels, study, patient or split); name one for both: --manifest"
        )


def in_common(first: Side, second: Side) -> tuple[Side, Side]:
    """Both sides on the classes, images and groups that both have."""
    classes = tuple(name for name in first.evaluated.classes if name in second.evaluated.classes)
    if not classes:
        raise InputError(f"{first.name} and {second.name} have no class in common")
    sides = [_of_classes(side, classes) for side in (first, second)]
    for unit in UNITS:
        ids = [getattr(side.evaluated, unit).ids for side in sides]
        common = set(ids[0]) & set(ids[1])
        if not common:
            raise InputError(f"{first.name} and {second.name} have no {unit} in common; compare one split of one set")
        for i, side in enumerate(sides):
            rows = _select(getattr(side.evaluated, unit), [n for n, name in enumerate(ids[i]) if name in common])
            sides[i] = replace(side, evaluated=replace(side.evaluated, **{unit: rows}))
        left, right = (getattr(side.evaluated, unit) for side in sides)
        if left.ids != right.ids:  # manifests of other order
            place = {name: n for n, name in enumerate(right.ids)}
            right = _select(right, [place[name] for name in left.ids])
            sides[1] = replace(sides[1], evaluated=replace(sides[1].evaluated, **{unit: right}))
    return sides[0], sides[1]


def _of_classes(side: Side, classes: tuple[str, ...]) -> Side:
    columns = [side.evaluated.classes.index(name) for name in classes]
    units = {}
    for unit in UNITS:
        rows: Rows = getattr(side.evaluated, unit)
        units[unit] = replace(
            rows,
            probabilities=rows.probabilities[:, columns],
            calibrated=None if rows.calibrated is None else rows.calibrated[:, columns],
            targets=rows.targets[:, columns],
        )
    thresholds = side.thresholds and {unit: values[columns] for unit, values in side.thresholds.items()}
    return Side(side.name, replace(side.evaluated, classes=classes, **units), thresholds)


def _select(rows: Rows, numbers: list[int]) -> Rows:
    return Rows(
        ids=[rows.ids[n] for n in numbers],
        probabilities=rows.probabilities[numbers],
        calibrated=None if rows.calibrated is None else rows.calibrated[numbers],
        targets=rows.targets[numbers],
        patient_ids=[rows.patient_ids[n] for n in numbers],
        views=[rows.views[n] for n in numbers],
        factors={name: values[numbers] for name, values in rows.factors.items()},
    )
