"""Who is on which side: the manifests of an audit in one table, and the patients and images that are on two sides.

Sides are what a model learns from (train, and every image of a pretraining set), val and test. Patient and image ids
compare only where one archive gave them out: "17" of one hospital is not "17" of another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import pandas as pd

from data.archives import archives_of, patient_names
from data.manifest import Manifest

LEARNED = "train"


@dataclass(frozen=True)
class Collection:
    """A manifest as the audit sees it."""

    name: str
    manifest: Manifest
    role: Literal["data", "pretraining"] = "data"


class Overlap(NamedTuple):
    """A patient or an image that occurs in several places; `places` are "<set>: <split>" with numbers of images."""

    archive: str
    name: str
    places: dict[str, int]
    leaks: bool


class SharedIds(NamedTuple):
    """Ids that two archives have in common, perhaps by chance."""

    kind: str
    first: str
    second: str
    examples: list[str]
    count: int


def one_table(collections: Sequence[Collection]) -> pd.DataFrame:
    """One row per image of all manifests: the manifests' columns, `set`, `side`, `archive`, `place` and `file`."""
    parts = []
    for collection in collections:
        images = collection.manifest.images
        archives = archives_of(images["source"])
        learned = collection.role == "pretraining"
        place = collection.name + ": " + (images["split"] if not learned else "pretraining")
        columns = {
            "set": collection.name,
            "side": images["split"] if not learned else LEARNED,
            "archive": archives,
            "patient_id": patient_names(images["patient_id"], archives),
            "place": place,
            "file": [str(collection.manifest.root / path) for path in images["path"]],
        }
        parts.append(images.assign(**columns))
    return pd.concat(parts, ignore_index=True)


def overlaps(table: pd.DataFrame, column: str) -> list[Overlap]:
    """Ids that are in more than one place, those on two sides first.

    Args:
        column: "patient_id" or "image_id".
    """
    counts = table.value_counts(["archive", column, "place", "side"], sort=False).rename("images").reset_index()
    repeated = counts[counts.duplicated(["archive", column], keep=False)]
    found = [
        Overlap(
            archive, name, dict(zip(rows["place"], rows["images"].tolist(), strict=True)), rows["side"].nunique() > 1
        )
        for (archive, name), rows in repeated.groupby(["archive", column], sort=True)
    ]
    return sorted(found, key=lambda overlap: not overlap.leaks)


def shared_ids(table: pd.DataFrame, column: str) -> list[SharedIds]:
    """Ids that occur in two archives; whether they mean the same, nobody can tell from the tables."""
    ids = {str(name): set(rows[column]) for name, rows in table.groupby("archive", sort=True)}
    names = list(ids)
    found = []
    for number, first in enumerate(names):
        for second in names[number + 1 :]:
            if both := sorted(ids[first] & ids[second]):
                found.append(SharedIds(column, first, second, both[:5], len(both)))
    return found
