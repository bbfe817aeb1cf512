"""Several caches as one: joined, where they hold different images, or out of fold, where backbones differ."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np

from data.cache import FeatureCache
from data.cache_rewrite import IDS, MEBIBYTES, Picks, kept_record, write_picks
from data.errors import InputError
from data.shards import images_per_shard, patient_hash

FREE_IN_MERGE = {"images_sha256", "num_images", "images_per_shard", "weights_sha256"}


def merge(sources: list[Path], target: Path, shard_megabytes: int = MEBIBYTES) -> dict[str, int]:
    """Write several caches as one; images taken from each source.

    Caches of one backbone must hold different images, and are joined. Caches of k backbones must hold the same images,
    and become an out-of-fold cache: each image's maps come from the first of the backbones that was not trained on its
    patient. So an image of val or test, on which none was trained, comes from the first.

    Raises:
        InputError: the sources differ in anything else, or an image is in two of them or in none.
    """
    if len(sources) < 2:
        raise InputError(f"merge: at least two caches are wanted, got {len(sources)}")
    caches = [FeatureCache(source) for source in sources]
    folds = len({cache.identity.weights for cache in caches}) > 1
    for cache in caches:
        if folds and cache.identity.fold_weights:
            raise InputError(f"{cache.folder}: is an out-of-fold cache already; merge the caches it was made from")
    refuse_unlike(caches, FREE_IN_MERGE if folds else FREE_IN_MERGE - {"weights_sha256"})
    picks = pick_folds(caches) if folds else pick_joined(caches)
    first = caches[0].identity
    identity = replace(
        first,
        images_sha256=images_digest(picks),
        num_images=len(picks.cache),
        images_per_shard=images_per_shard(first.map_shape, first.dtype, len(first.variants), shard_megabytes),
        fold_weights=tuple(cache.identity.weights_sha256 for cache in caches) if folds else first.fold_weights,
    )
    joined_folds = [int(caches[c].index.fold[n]) for c, n in zip(picks.cache, picks.ordinal, strict=True)]
    trained = {patient for cache in caches for patient in cache.record["trained_patients"]}
    extra = kept_record(caches[0].record) | {"trained_patients": sorted(trained)}
    write_picks(target, identity, picks, picks.cache if folds else np.array(joined_folds), extra)
    counts = Counter(picks.cache.tolist())
    return {str(source): counts[number] for number, source in enumerate(sources)}


def refuse_unlike(caches: list[FeatureCache], free: set[str]) -> None:
    """Refuse caches that differ in more than they may.

    Raises:
        InputError: names the field, both caches and both values.
    """
    first = caches[0]
    for other in caches[1:]:
        values = other.identity.to_dict()
        for key, wanted in first.identity.to_dict().items():
            if key not in free and values[key] != wanted:
                raise InputError(
                    f"{other.folder}: {key} is {json.dumps(values[key])[:80]}, in {first.folder}"
                    f" {json.dumps(wanted)[:80]}; only caches that agree can be merged"
                )


def pick_joined(caches: list[FeatureCache]) -> Picks:
    """All images of all caches, in the order of one extraction.

    Raises:
        InputError: an image is in two of them.
    """
    rows = [
        (*(str(getattr(cache.index, name)[n]) for name in IDS), number, n)
        for number, cache in enumerate(caches)
        for n in range(cache.identity.num_images)
    ]
    where: dict[str, int] = {}
    for *_, image_id, number, _ in rows:
        if image_id in where:
            folders = f"{caches[where[image_id]].folder} and {caches[number].folder}"
            raise InputError(f"merge: image {image_id!r} is in {folders}; caches of one backbone must not overlap")
        where[image_id] = number
    rows.sort()
    return Picks(caches, np.array([row[-2] for row in rows]), np.array([row[-1] for row in rows]))


def pick_folds(caches: list[FeatureCache]) -> Picks:
    """For each image the first cache whose backbone was not trained on its patient.

    Raises:
        InputError: the caches hold different images, or every backbone was trained on some patient.
    """
    first = caches[0]
    for cache in caches:
        if cache.identity.images_sha256 != first.identity.images_sha256:
            raise InputError(
                f"{cache.folder}: holds other images than {first.folder}; the backbones of an out-of-fold cache must"
                " have seen the same manifest"
            )
    trained = [set(cache.record["trained_patients"]) for cache in caches]
    fold_of: dict[str, int] = {}
    for patient in map(str, np.unique(first.index.patient_id)):
        hashes = [patient_hash(patient, cache.identity.weights_sha256) for cache in caches]
        fold_of[patient] = next((n for n, value in enumerate(hashes) if value not in trained[n]), len(caches))
    seen = [patient for patient, fold in fold_of.items() if fold == len(caches)]
    if seen:
        raise InputError(
            f"merge: {len(seen)} patients were in the training set of all {len(caches)} backbones, first {seen[0]};"
            " train each backbone without the patients of one fold"
        )
    folds = np.array([fold_of[patient] for patient in first.index.patient_id.tolist()])
    return Picks(caches, folds, np.arange(len(folds)))


def images_digest(picks: Picks) -> str:
    """The identity's `images_sha256`, as extraction of these images would compute it."""
    digest = hashlib.sha256()
    for n in range(len(picks.cache)):
        ids = picks.ids(n)
        digest.update(("\t".join(ids[name] for name in (*reversed(IDS), "content")) + "\n").encode())
    return digest.hexdigest()
