"""Simulated test studies of the demo run, for whoever has no X-ray at hand. Real patients are never offered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.errors import InputError
from data.groups import group_images
from data.images import ImageError
from data.manifest import read_manifest
from data.metrics import hard_labels
from fusion.app.pictures import thumbnail
from fusion.app.similar import SIMULATED
from fusion.app.uploads import Upload

MOST = 3
NO_FINDING = "No Finding"


@dataclass(frozen=True)
class Example:
    """A study that can be tried with one click."""

    title: str
    pictures: tuple[str, ...]
    """Its first two views, small, as data URIs."""
    uploads: tuple[Upload, ...]
    views: tuple[str, ...]
    truth: tuple[str, ...]
    """Findings that were put into the simulated chest."""


def example_of(examples: Sequence[Example], number: object) -> Example:
    """The example that a browser asks for.

    Raises:
        InputError: There is no such example.
    """
    if not isinstance(number, int) or not 0 <= number < len(examples):
        raise InputError("There is no such example.")
    return examples[number]


def example_studies(run_dir: Path) -> list[Example]:
    """Up to `MOST` simulated test studies with a frontal and a lateral view; none of a run on patients.

    Taken evenly from the split, among those with two or more findings: a different one each, and the same ones always.
    """
    if not (run_dir / "manifest.csv").is_file():
        return []
    try:
        part = read_manifest(run_dir / "manifest.csv").of_split("test")
    except InputError:
        return []
    if not len(part) or (part.images["source"] != SIMULATED).any():
        return []
    groups = group_images(part, "study")
    _, positive = hard_labels(groups.labels)
    findings = [tuple(n for n, there in zip(part.classes, row, strict=True) if there) for row in positive]
    views = [tuple(part.images["view"].iloc[rows]) for rows in groups.rows]
    usable = [g for g in range(len(groups.ids)) if len(findings[g]) > 1 and {"LATERAL"} < set(views[g])]
    chosen = np.unique(np.linspace(0, len(usable) - 1, min(MOST, len(usable))).astype(int)) if usable else []
    examples = []
    for at in chosen:
        g = usable[int(at)]
        files = [part.image_path(int(row)) for row in groups.rows[g]]
        try:
            pictures = tuple(thumbnail(path) for path in files[:2])
        except ImageError:  # the images were moved or deleted since
            continue
        uploads = tuple(Upload(path, f"simulated {v + 1}{path.suffix}") for v, path in enumerate(files))
        title = f"Study {len(examples) + 1}"
        examples.append(Example(title, pictures, uploads, views[g], findings[g]))
    return examples
