"""From cached images to groups of views: canonical order at test time, dropped views and shuffled slots in training.

G groups, V views, C classes.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from data.cache import FeatureCache
from data.errors import InputError
from data.groups import group_images
from data.manifest import Manifest
from data.order import derive_seed, visit_seed
from data.views import VIEWS
from fusion.config import GroupingConfig
from fusion.passes import Views

UNKNOWN = VIEWS.index("UNKNOWN")


@dataclass(frozen=True, eq=False)
class GroupSet:
    """The groups of a split, views in canonical order: by view type, then by the content of the image file.

    Renaming or reordering files changes nothing in it.
    """

    ids: list[str]
    patient_ids: list[str]
    labels: Float[np.ndarray, "G C"]
    rows: list[np.ndarray]
    """Manifest rows of each group's views."""
    ordinals: list[np.ndarray]
    """Their maps in the cache."""
    view_types: list[np.ndarray]
    """Numbers into `VIEWS`."""
    sources: list[str]
    """Where each group comes from: the manifest's `source` of its first view."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_views(self) -> Int[np.ndarray, "G"]:
        """Views of each group."""
        return np.array([len(rows) for rows in self.rows], dtype=int)


def make_groups(manifest: Manifest, cache: FeatureCache, config: GroupingConfig) -> GroupSet:
    """Group the images of a (part of a) manifest that are in the cache.

    Raises:
        InputError: images of a study with different labels.
    """
    groups = group_images(manifest, config.by, config.study_labels)
    ordinal = np.array([cache.ordinal[image_id] for image_id in manifest.images["image_id"]], dtype=int)
    types = np.array([VIEWS.index(view) for view in manifest.images["view"]], dtype=int)
    content = cache.index.content[ordinal]
    rows = [members[np.lexsort([content[members], types[members]])] for members in groups.rows]
    source = manifest.images["source"].to_numpy(dtype=str)
    return GroupSet(
        ids=groups.ids,
        patient_ids=groups.patient_ids,
        labels=groups.labels,
        rows=rows,
        ordinals=[ordinal[r] for r in rows],
        view_types=[types[r] for r in rows],
        sources=[str(source[r[0]]) for r in rows],
    )


def single_images(groups: GroupSet) -> GroupSet:
    """Each view as a group of its own, with its group's labels."""
    owner = np.repeat(np.arange(len(groups)), groups.num_views)

    def apart(parts: list[np.ndarray]) -> list[np.ndarray]:
        return list(np.concatenate(parts)[:, None]) if parts else []

    return GroupSet(
        ids=[f"{groups.ids[g]}/{row[0]}" for g, row in zip(owner, apart(groups.rows), strict=True)],
        patient_ids=[groups.patient_ids[g] for g in owner],
        labels=groups.labels[owner],
        rows=apart(groups.rows),
        ordinals=apart(groups.ordinals),
        view_types=apart(groups.view_types),
        sources=[groups.sources[g] for g in owner],
    )


def cached_manifest(manifest: Manifest, cache: FeatureCache) -> Manifest:
    """The images of a manifest that the cache holds; checks that cache and manifest speak of the same ones.

    Raises:
        InputError: an image sits in another study or patient than when it was cached; most images are not cached.
    """
    known = np.array([image_id in cache.ordinal for image_id in manifest.images["image_id"]])
    kept = manifest.select(known)
    ordinals = np.array([cache.ordinal[image_id] for image_id in kept.images["image_id"]], dtype=int)
    for name in ("study_id", "patient_id"):
        differs = kept.images[name].to_numpy(dtype=str) != getattr(cache.index, name)[ordinals]
        if differs.any():
            row = int(np.argmax(differs))
            raise InputError(
                f"manifest.csv: image {kept.images['image_id'].iat[row]} has {name} {kept.images[name].iat[row]}, the"
                f" cache was made with {getattr(cache.index, name)[ordinals[row]]}; rerun extract.py"
            )
    if not len(kept):
        raise InputError(f"{cache.folder}: none of the manifest's images is in this cache; rerun extract.py")
    return kept


def slots_in_order(num_views: int, num_slots: int) -> Int[np.ndarray, "V"]:
    """Slots at test time: the first ones, in rounds where there are more views than slots."""
    return np.arange(num_views) % num_slots


def fixed_slots(num_views: int, num_slots: int, draw: int) -> Int[np.ndarray, "V"]:
    """The slots of one of the fixed draws at test time, alike for all groups of a size; draw 0 is the plain order."""
    if draw == 0:
        return slots_in_order(num_views, num_slots)
    return shuffled_slots(num_views, num_slots, np.random.default_rng(derive_seed("test slots", draw, num_views)))


def shuffled_slots(num_views: int, num_slots: int, rng: np.random.Generator) -> Int[np.ndarray, "V"]:
    """Slots in training: drawn without replacement, in rounds where there are more views than slots."""
    rounds = [rng.permutation(num_slots) for _ in range(-(-num_views // num_slots))]
    return np.concatenate(rounds)[:num_views]


def training_views(
    groups: GroupSet,
    number: int,
    config: GroupingConfig,
    num_slots: int,
    seed: int,
    epoch: int,
    num_variants: int = 1,
    copy: int = 0,
) -> Views:
    """One group at one visit, a pure function of (seed, epoch, group, which visit of the epoch)."""
    rng = np.random.default_rng(visit_seed("views", seed, epoch, groups.ids[number], copy))
    num_views = len(groups.ordinals[number])
    keep = rng.random(num_views) >= config.view_dropout
    keep[rng.integers(num_views)] |= not keep.any()
    hidden = (rng.random(num_views) < config.type_dropout) | config.hide_types
    types = np.where(hidden, UNKNOWN, groups.view_types[number])
    if config.max_views and keep.sum() > config.max_views:
        kept = rng.choice(np.flatnonzero(keep), config.max_views, replace=False)
        keep = np.isin(np.arange(num_views), kept)
    count = int(keep.sum())
    slots = shuffled_slots(count, num_slots, rng) if config.shuffle else slots_in_order(count, num_slots)
    variants = rng.integers(num_variants if config.draw_variants else 1, size=len(slots))
    return Views(groups.ordinals[number][keep], types[keep], slots, variants)


def evaluation_views(
    groups: GroupSet, number: int, num_slots: int, variant: int = 0, draw: int = 0, hide_types: bool = False
) -> Views:
    """One group at test time: all views in canonical order, of each the same variant (0: the plain map)."""
    ordinals, types = groups.ordinals[number], groups.view_types[number]
    slots = fixed_slots(len(ordinals), num_slots, draw)
    return Views(
        ordinals, np.full_like(types, UNKNOWN) if hide_types else types, slots, np.full_like(ordinals, variant)
    )
