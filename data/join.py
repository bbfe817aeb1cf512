"""Several data sets in one manifest and one label space, unknown where a set does not annotate.

Ids mean the same within an archive (`data.archives`) and nothing between two: there, ids that happen to be alike get
the archive's name in front. Within one, the same image in two sets (VinDr-CXR and VinBigData; ChestX-ray14 and RSNA;
MIMIC-CXR and CXR-LT) becomes one row: the first set's, with the first known label of each class. A patient keeps one
split.

Axes: **N** rows, **M** images, **C** classes.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.archives import ARCHIVES, archives_of, patient_names
from data.errors import InputError
from data.groups import group_images
from data.label_maps import SPACES
from data.manifest import MANIFEST_COLUMNS, SPLITS, Manifest, check_manifest
from data.relabel import counterparts, relabel, space_of

IDS = ("image_id", "study_id", "patient_id")

log = logging.getLogger(__name__)


def join(
    manifests: Sequence[Manifest], names: Sequence[str], space: str, overlap: Literal["refuse", "drop"] = "refuse"
) -> Manifest:
    """One manifest of all rows, in the classes of a label space.

    Args:
        manifests: In the order in which they count: of an image in two, the first one's row and labels stay.
        names: What to call each in messages, such as its path.
        space: Of `data.label_maps.SPACES`.
        overlap: What to do with a patient who has other splits in other manifests: refuse, or keep only those rows that
            are furthest from training (test, else val).

    Raises:
        InputError: Classes of no known space, a study whose images differ, a source that nothing tells apart, a patient
            in two splits, an image of two patients.
    """
    if space not in SPACES:
        raise InputError(f"'{space}' is no label space; there are {', '.join(SPACES)}")
    labels = np.concatenate([_in_space(manifest, name, space) for manifest, name in zip(manifests, names, strict=True)])
    root, table = one_below_the_other(manifests, names)
    keep = _one_split(table, overlap)
    table, labels = _one_row_per_image(table[keep].reset_index(drop=True), labels[keep])
    rejected = tuple((_below(root, m, path), reason) for m in manifests for path, reason in m.rejected)
    joined = Manifest(table[list(MANIFEST_COLUMNS)], labels, SPACES[space], root, tuple(dict.fromkeys(rejected)))
    check_manifest(joined, "the joined manifest")
    return joined


def one_below_the_other(manifests: Sequence[Manifest], names: Sequence[str]) -> tuple[Path, pd.DataFrame]:
    """The folder that holds all images, and all rows with paths below it, and `set` and `archive`, ids told apart.

    Args:
        names: What to call each manifest; the column `set`.

    Raises:
        InputError: A source of no known archive in two manifests.
    """
    root = Path(os.path.commonpath([os.path.realpath(manifest.root) for manifest in manifests]))
    parts = [
        _rebased(root, manifest).assign(set=name, archive=archives_of(manifest.images["source"]))
        for manifest, name in zip(manifests, names, strict=True)
    ]
    table = pd.concat(parts, ignore_index=True)
    _refuse_unknown_twice(table)
    return root, _apart(table)


def _rebased(root: Path, manifest: Manifest) -> pd.DataFrame:
    """A manifest's images with their paths below another folder, which holds its own."""
    if os.path.realpath(manifest.root) == os.path.realpath(root):
        return manifest.images
    paths = [_below(root, manifest, path) for path in manifest.images["path"]]
    return manifest.images.assign(path=pd.array(paths, dtype="str"))[list(MANIFEST_COLUMNS)]


def _below(root: Path, manifest: Manifest, path: str) -> str:
    prefix = os.path.relpath(os.path.realpath(manifest.root), os.path.realpath(root))
    return path if prefix == "." else f"{prefix}/{path}"


def _in_space(manifest: Manifest, name: str, space: str) -> Float32[np.ndarray, "N C"]:
    """A manifest's labels in the classes of the space; says what becomes known and what is lost."""
    try:
        group_images(manifest, "study")
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    own = space if set(manifest.classes) == set(SPACES[space]) else space_of(manifest.classes, name)
    labels = relabel(manifest.labels, manifest.classes, own, space)
    used = {source for both in counterparts(own, space).values() for source in (*both.makes_1, *both.makes_0)}
    unused = [source for source in manifest.classes if source not in used] if own != space else []
    unknown = [target for target, column in zip(SPACES[space], labels.T, strict=True) if np.isnan(column).all()]
    log.warning(
        "%s: classes of %s; unknown throughout: %s; not used: %s",
        *(
            name,
            own,
            ", ".join(unknown) or "none",
            ", ".join(unused[:20]) + (", ..." if len(unused) > 20 else "") or "none",
        ),
    )
    return labels


def _refuse_unknown_twice(table: pd.DataFrame) -> None:
    """Refuse a source of no known archive in two sets: whether its ids mean the same, nobody can tell."""
    for source, rows in table[~table["archive"].isin(list(ARCHIVES))].groupby("source"):
        sets = rows["set"].unique()
        if len(sets) > 1:
            raise InputError(
                f"{sets[0]} and {sets[1]} both have the source '{source}', so nothing tells whether their patients are"
                " the same; prepare one of them with another --source"
            )


def _apart(table: pd.DataFrame) -> pd.DataFrame:
    """With ids that mean the same only if they are the same."""
    table = table.assign(patient_id=patient_names(table["patient_id"], table["archive"]))
    taken: dict[str, set[str]] = {name: set() for name in IDS}
    for archive in table["archive"].unique():
        rows = table["archive"] == archive
        if any(not taken[name].isdisjoint(table.loc[rows, name]) for name in IDS):
            log.warning("ids of %s are alike those of another archive and get '%s:' in front", archive, archive)
            for name in IDS:
                table.loc[rows, name] = f"{archive}:" + table.loc[rows, name]
        for name in IDS:
            taken[name].update(table.loc[rows, name])
    return table


def _one_split(table: pd.DataFrame, overlap: str) -> np.ndarray:
    """(N,) bool: rows of patients in the split that is furthest from training."""
    rank = table["split"].map({split: place for place, split in enumerate(SPLITS)})
    behind = (rank < rank.groupby(table["patient_id"]).transform("max")).to_numpy(dtype=bool)
    if not behind.any():
        return ~behind
    patients = table["patient_id"][behind].unique()
    places = table[table["patient_id"] == patients[0]].drop_duplicates(["set", "split"])
    where = " and ".join(f"in {split} of {name}" for name, split in zip(places["set"], places["split"], strict=True))
    if overlap == "refuse":
        raise InputError(
            f"{len(patients)} patients are in several splits, first {patients[0]} ({where}); --overlap drop leaves"
            f" their {behind.sum()} rows nearest to training out"
        )
    log.warning(
        "%d rows of %d patients left out, also in a later split, first %s", behind.sum(), len(patients), patients[0]
    )
    return ~behind


def _one_row_per_image(
    table: pd.DataFrame, labels: Float32[np.ndarray, "N C"]
) -> tuple[pd.DataFrame, Float32[np.ndarray, "M C"]]:
    """The first row of each of M images; the images of a study share the first known label of each class."""
    again = table["image_id"].duplicated().to_numpy(dtype=bool)
    if not again.any():
        return table, labels
    first = table[~again].set_index("image_id")
    owner = table["image_id"].map(first["patient_id"])
    if (owner != table["patient_id"]).any():
        row = int(np.argmax(owner != table["patient_id"]))
        image_id, name = table["image_id"].iat[row], table["set"].iat[row]
        raise InputError(
            f"{name}: image {image_id} is of patient {table['patient_id'].iat[row]}, elsewhere of {owner.iat[row]}"
        )
    study = table["image_id"].map(first["study_id"])
    known = pd.DataFrame(labels).groupby(study.to_numpy(), sort=False).transform("first").to_numpy(dtype=np.float32)
    differ = (~np.isnan(labels) & (labels != known)).sum()
    log.warning(
        "%d images are in several sets, one row each; %d labels are another set's word against an earlier one's, which"
        " stays",
        *(len(table) - len(first), differ),
    )
    return table[~again].reset_index(drop=True), known[~again]
