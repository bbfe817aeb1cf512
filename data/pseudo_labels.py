"""Self-training: an external set in the teacher's classes, its unknown labels filled in, joined with one's own set.

The rule is CheXFusion's (Kim, arXiv 2308.03968): where a label is unknown, the teacher's probability stands in for it,
neither sharpened nor cut at a threshold; known labels stay. It differs in three points. The images of a study share the
mean of their probabilities, since a study has one label. A joint label such as Nodule/Mass is not copied to both
findings (`finding_given_any`). And only the train split is ever filled.

Axes: **N** images, **C** classes, **K** findings of a joint label.
"""

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32

from data.archives import ARCHIVES, archives_of, patient_names
from data.errors import InputError
from data.join import one_below_the_other
from data.manifest import MANIFEST_COLUMNS, Manifest

DIGITS = 4
"""Decimals of a pseudo-label: no teacher is more precise, and the table stays readable."""

LOWEST, HIGHEST = 10.0**-DIGITS, 1 - 10.0**-DIGITS
"""A pseudo-label is never exactly 0 or 1, so that it stays distinguishable from a label that somebody gave."""


@dataclass(frozen=True, eq=False)
class ExternalSet:
    """An external set whose label columns are the teacher's classes.

    `joint` holds, for each joint label, the column numbers of its findings and its values (N,), NaN where unknown.
    """

    manifest: Manifest
    joint: list[tuple[list[int], np.ndarray]]


def in_classes_of(
    external: Manifest,
    classes: tuple[str, ...],
    rename: Mapping[str, str] | None = None,
    joint: Mapping[str, Sequence[str]] | None = None,
    drop: Sequence[str] = (),
) -> ExternalSet:
    """Match an external set's classes with the teacher's by name; what it does not annotate becomes unknown.

    A class that the teacher does not know is refused unless it is listed in `drop`: a label under another spelling
    would otherwise be thrown away in silence and replaced by a guess.

    Args:
        classes: The teacher's.
        rename: External name to the teacher's name.
        joint: External name of a label that says "at least one of these", to the teacher's names of the findings.
            Where it is 0, all of them are 0. If the teacher knows a class of that very name, the label serves it too.
        drop: External names to leave out.

    Raises:
        InputError: a class without counterpart, a name that the external set or the teacher does not have, two columns
            for one class, a finding that is known both alone and jointly.
    """
    rename, joint = rename or {}, joint or {}
    _check_own_names(external.classes, {"rename": rename, "joint": joint, "drop": drop})
    _check_joint(classes, joint)
    labels = np.full((len(external), len(classes)), np.nan, dtype=np.float32)
    for name, target in _targets(external.classes, classes, rename, joint, drop).items():
        labels[:, classes.index(target)] = external.labels[:, external.classes.index(name)]
    found = []
    for name, findings in joint.items():
        columns = [classes.index(finding) for finding in findings]
        given = external.labels[:, external.classes.index(name)]
        _refuse_known_twice(external.images, labels[:, columns], given, name)
        labels[np.flatnonzero(given == 0)[:, None], columns] = 0
        found.append((columns, given))
    return ExternalSet(Manifest(external.images, labels, classes, external.root), found)


def finding_given_any(probabilities: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    """Probability of each finding when at least one of them is present and they are independent.

    P(i | any) = p_i / (1 - prod_k (1 - p_k)), computed from logarithms: exact for small p, where the limit of equal p
    is 1 / K. For Nodule/Mass: P(nodule | nodule or mass) = p / (1 - (1 - p)(1 - q)).
    """
    p = probabilities.astype(np.float64)
    with np.errstate(divide="ignore"):  # p = 1: logarithm -inf, P(any) = 1
        some = -np.expm1(np.log1p(-p).sum(axis=1, keepdims=True))
    return np.divide(p, some, out=np.full_like(p, 1 / p.shape[1]), where=some > 0)


def study_means(probabilities: Float32[np.ndarray, "N C"], study_ids: Sequence[str]) -> Float[np.ndarray, "N C"]:
    """Each image's study's mean over its images with a prediction; NaN for images without one."""
    _, study = np.unique(np.asarray(study_ids, dtype=object), return_inverse=True)
    predicted = ~np.isnan(probabilities).any(axis=1)
    sums = np.zeros((study.max(initial=-1) + 1, probabilities.shape[1]))
    np.add.at(sums, study[predicted], probabilities[predicted].astype(np.float64))
    counts = np.bincount(study[predicted], minlength=len(sums))
    means = (sums / np.maximum(counts, 1)[:, None])[study]
    means[~predicted] = np.nan
    return means


def fill_unknown(external: ExternalSet, probabilities: Float32[np.ndarray, "N C"]) -> Manifest:
    """Put the teacher's probabilities in place of unknown labels of the train split; known labels keep their bits.

    Where a joint label has the value j > 0, each of its findings gets j * `finding_given_any`.

    Args:
        probabilities: NaN rows for images without a prediction: their unknown labels stay unknown.
    """
    manifest = external.manifest
    soft = study_means(probabilities, manifest.images["study_id"].tolist())
    for columns, given in external.joint:
        rows = np.flatnonzero(given > 0)  # not where it is unknown
        soft[rows[:, None], columns] = given[rows, None] * finding_given_any(soft[rows[:, None], columns])
    soft = np.round(soft, DIGITS).clip(LOWEST, HIGHEST).astype(np.float32)
    fill = np.isnan(manifest.labels) & (manifest.images["split"] == "train").to_numpy(dtype=bool)[:, None]
    return Manifest(manifest.images, np.where(fill, soft, manifest.labels), manifest.classes, manifest.root)


def join_manifests(own: Manifest, external: Manifest) -> Manifest:
    """All rows of one's own set, then the external training rows; of the external set nothing else is used.

    The image folder becomes the deepest one that holds both, and paths grow accordingly.

    Ids mean the same within an archive only, as in `data.join`: an external id that is alike by chance gets its
    archive's name in front. Where an archive is not known, a patient's id that is to be scored is refused all the same.

    Raises:
        InputError: other classes, a source in both sets that nothing tells apart, an image in both, or an external
            training patient in one's own val or test.
    """
    if set(own.classes) != set(external.classes):
        unequal = sorted(set(own.classes) ^ set(external.classes))
        raise InputError(f"the manifest to join has other classes than the teacher: {', '.join(unequal)}")
    external = external.of_split("train")
    root, table = one_below_the_other([own, external], ["the manifest to join", "the external one"])
    _refuse_shared_patients(own.images, external.images)
    _refuse_shared_images(table[: len(own)], table[len(own) :])
    order = [external.classes.index(name) for name in own.classes]
    labels = np.concatenate([own.labels, external.labels[:, order]])
    return Manifest(table[list(MANIFEST_COLUMNS)], labels, own.classes, root)


def refuse_same_content(manifest: Manifest, content: Sequence[str]) -> None:
    """Refuse to train on a file whose twin, byte for byte, is to be scored, whatever the two are called.

    Args:
        content: Digest of each image file, "" where it cannot be read.

    Raises:
        InputError: names the first such pair.
    """
    splits, ids = manifest.images["split"].tolist(), manifest.images["image_id"].tolist()
    held_out = {digest: i for i, digest in enumerate(content) if digest and splits[i] != "train"}
    twins = [(i, held_out[digest]) for i, digest in enumerate(content) if splits[i] == "train" and digest in held_out]
    if twins:
        train, other = twins[0]
        raise InputError(
            f"{len(twins)} training images are byte for byte an image of val or test, first {ids[train]} ="
            f" {ids[other]} ({splits[other]}); leave these images out of the external manifest"
        )


def label_counts(before: Manifest, after: Manifest) -> dict[str, dict[str, int]]:
    """Of the training images, per class: labels that were known, that were filled in, and that are still unknown."""
    train = (before.images["split"] == "train").to_numpy(dtype=bool)
    known, unknown = ~np.isnan(before.labels[train]), np.isnan(after.labels[train])
    counts = {"known": known, "filled": ~known & ~unknown, "unknown": unknown}
    return {
        name: {kind: int(mask[:, column].sum()) for kind, mask in counts.items()}
        for column, name in enumerate(before.classes)
    }


def _targets(
    names: Sequence[str],
    classes: Sequence[str],
    rename: Mapping[str, str],
    joint: Mapping[str, Sequence[str]],
    drop: Sequence[str],
) -> dict[str, str]:
    """The teacher's class of each external column that has one."""
    targets = {name: rename.get(name, name) for name in names if name not in drop}
    for name, target in targets.items():
        if target not in classes and name not in joint:
            close = difflib.get_close_matches(target, classes, n=1)
            hint = f" (close to '{close[0]}')" if close else ""
            raise InputError(
                f"class '{name}' of the external set is none of the teacher's{hint}: give its name there with"
                " --rename, or leave it out with --drop"
            )
    targets = {name: target for name, target in targets.items() if target in classes}
    twice = [target for target, count in Counter(targets.values()).items() if count > 1]
    if twice:
        found = ", ".join(f"'{name}'" for name, target in targets.items() if target == twice[0])
        raise InputError(f"class '{twice[0]}' of the teacher has more than one external column: {found}; --drop one")
    return targets


def _check_own_names(names: Sequence[str], options: Mapping[str, Sequence[str] | Mapping[str, object]]) -> None:
    for option, given in options.items():
        unknown = [name for name in given if name not in names]
        if unknown:
            raise InputError(f"--{option}: the external set has no class '{unknown[0]}'; it has {', '.join(names)}")


def _check_joint(classes: Sequence[str], joint: Mapping[str, Sequence[str]]) -> None:
    for name, findings in joint.items():
        unknown = [finding for finding in findings if finding not in classes]
        if unknown:
            raise InputError(f"--joint {name}: the teacher has no class '{unknown[0]}'")
        if len(findings) < 2:
            raise InputError(f"--joint {name}: wanted at least two findings, got {list(findings)}; or use --rename")
    twice = [f for f, count in Counter(f for findings in joint.values() for f in findings).items() if count > 1]
    if twice:
        raise InputError(f"--joint: '{twice[0]}' is named more than once")


def _refuse_known_twice(images: pd.DataFrame, alone: np.ndarray, given: np.ndarray, name: str) -> None:
    twice = ~np.isnan(given) & ~np.isnan(alone).all(axis=1)
    if twice.any():
        row = int(np.argmax(twice))
        raise InputError(
            f"--joint {name}: image {images['image_id'].iat[row]} has this label and one of its findings' own"
            f" ({twice.sum()} such images); leave one of the columns out with --drop"
        )


def _refuse_shared_patients(own: pd.DataFrame, external: pd.DataFrame) -> None:
    both = [
        pd.DataFrame({"archive": archives, "patient_id": patient_names(images["patient_id"], archives)})
        for images in (own[own["split"] != "train"], external)
        for archives in [archives_of(images["source"])]
    ]
    pairs = both[0].drop_duplicates().merge(both[1].drop_duplicates(), on="patient_id")
    apart = pairs["archive_x"] != pairs["archive_y"]
    apart &= pairs["archive_x"].isin(list(ARCHIVES)) & pairs["archive_y"].isin(list(ARCHIVES))
    leaks = sorted(set(pairs["patient_id"][~apart]))
    if leaks:
        raise InputError(
            f"{len(leaks)} patients of the external train split are in val or test of the manifest to join, first"
            f" {leaks[0]}; leave their images out, or, if the ids are alike by chance, give one set's a prefix"
        )


def _refuse_shared_images(own: pd.DataFrame, external: pd.DataFrame) -> None:
    both = sorted(set(external["image_id"]) & set(own["image_id"]))
    if both:
        raise InputError(
            f"{len(both)} images of the external train split are in the manifest to join, first {both[0]}; leave them"
            " out, or make one row of each with prepare.py join"
        )
