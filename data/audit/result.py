"""Everything an audit found, and what of it is a leak."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from data.audit.appearance import Flag, flag_images
from data.audit.counts import Counts, count
from data.audit.duplicates import SAME_PICTURE, Copy, find_copies, groups_of
from data.audit.sides import Collection, Overlap, SharedIds, one_table, overlaps, shared_ids
from data.audit.thumbnails import Thumbnails, read_thumbnails
from data.errors import InputError


@dataclass(frozen=True, eq=False)
class Audit:
    """What was found; rows are those of `table`, which has a line for each image of each manifest."""

    collections: list[Collection]
    table: pd.DataFrame
    counts: dict[str, Counts]
    patients: list[Overlap]
    images: list[Overlap]
    shared: list[SharedIds]
    copies: list[Copy]
    leaking_copies: list[Copy]
    leaking_pictures: int
    flags: list[Flag]
    notes: list[str]
    least_score: float
    num_compared: int

    @property
    def num_leaks(self) -> int:
        """Patients, images and pictures on two sides."""
        return self.leaking_patients + self.leaking_images + self.leaking_pictures

    @property
    def leaking_patients(self) -> int:
        """Patients on two sides."""
        return sum(overlap.leaks for overlap in self.patients)

    @property
    def leaking_images(self) -> int:
        """Image ids on two sides."""
        return sum(overlap.leaks for overlap in self.images)

    @property
    def verdict(self) -> str:
        """One sentence of what leaks."""
        if not self.num_leaks:
            return "no leak found"
        numbers = {
            "patient": self.leaking_patients,
            "image id": self.leaking_images,
            "picture": self.leaking_pictures,
        }
        return ", ".join(counted(number, what) for what, number in numbers.items() if number) + " on two sides"


def counted(number: int, what: str) -> str:
    """ "1 patient", "2,000 patients"."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def audit(
    collections: list[Collection], least_score: float = SAME_PICTURE, workers: int = 1, progress: bool = True
) -> Audit:
    """Look through manifests together.

    Args:
        least_score: Of a near-duplicate, in (0, 1].
        workers: Threads that read images.

    Raises:
        InputError: No image can be read, or a score out of range.
    """
    if not 0 < least_score <= 1:
        raise InputError(f"--least_score must be above 0 and at most 1, got {least_score}")
    table = one_table(collections)
    thumbnails = _read_once(table, workers, progress)
    if all(thumbnails.reasons):
        raise InputError(
            f"{table['file'].iat[0]}: {thumbnails.reasons[0]}; not one image can be read: is the root right?"
        )
    copies = find_copies(thumbnails, [Path(file) for file in table["file"]], least_score, workers, progress)
    flags, notes = flag_images(thumbnails, table["view"].tolist())
    groups = pd.Series(groups_of(copies, len(table)))
    sides = table["side"].groupby(groups).nunique()
    return Audit(
        collections=collections,
        table=table,
        counts={collection.name: count(collection.manifest) for collection in collections},
        patients=overlaps(table, "patient_id"),
        images=overlaps(table, "image_id"),
        shared=[*shared_ids(table, "patient_id"), *shared_ids(table, "image_id")],
        copies=copies,
        leaking_copies=[copy for copy in copies if sides[groups[copy.first]] > 1],
        leaking_pictures=int((sides > 1).sum()),
        flags=flags,
        notes=notes,
        least_score=least_score,
        num_compared=len(table) - sum(map(bool, thumbnails.reasons)),
    )


def _read_once(table: pd.DataFrame, workers: int, progress: bool) -> Thumbnails:
    """Thumbnails of all rows; a file named by several rows is read once."""
    numbers, files = pd.factorize(table["file"])
    once = read_thumbnails([Path(file) for file in files], workers, progress)
    if len(files) == len(table):
        return once
    content, reasons = ([values[number] for number in numbers] for values in (once.content, once.reasons))
    return Thumbnails(once.pixels[numbers], once.contrast[numbers], content, reasons)
