"""The training studies nearest to a study, by pooled features of the same backbone, and what they were labelled with.

Features are whitened first: without it a few directions that vary most decide who is near (`fusion.tail.features`).
Nobody's images or ids are shown, except those of simulated patients.

Axes: **M** training groups, **V** views, **H W** map size, **D** map features, **E** features after whitening.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32
from torch import Tensor

from data.cache import FeatureCache
from data.errors import InputError
from data.images import ImageError
from data.manifest import Manifest, read_manifest
from data.metrics import hard_labels
from data.views import VIEWS
from fusion.app.pictures import thumbnail
from fusion.grouping import GroupSet, cached_manifest, make_groups
from fusion.model_parts import ModelParts
from fusion.tail.features import Projection, pool_maps, pooled_groups, whitening
from fusion.tail.methods import COMPONENTS
from fusion.tail.neighbours import unit_length

MOST = 5
SIMULATED = "phantom"
"""`source` of the only patients whose images may be shown."""


@dataclass(frozen=True)
class Neighbour:
    """A training study as it is shown."""

    rank: int
    similarity: float
    """Cosine of the whitened features, -1 to 1."""
    views: tuple[str, ...]
    labels: tuple[str, ...]
    """Classes that are labelled present."""
    pictures: tuple[str, ...]
    """Data URIs; of simulated patients only."""


class SimilarStudies:
    """The training groups of a run, indexed once; asked by many sessions at a time."""

    def __init__(self, part: Manifest, groups: GroupSet, features: Float[np.ndarray, "M D"], by: str) -> None:
        import faiss  # brings an OpenMP of its own: load it only where it is used

        self.part, self.groups, self.by = part, groups, by
        self._project: Projection = whitening(features, COMPONENTS)
        rows = unit_length(self._project(features))
        self._index = faiss.IndexFlatIP(rows.shape[1])
        self._index.add(rows)

    def __len__(self) -> int:
        return len(self.groups)

    def nearest(self, maps: Float[Tensor, "V H W D"]) -> list[Neighbour]:
        """The nearest training groups of a study, nearest first."""
        query = unit_length(self._project(study_features(maps)[None]))
        similarities, numbers = self._index.search(query, min(MOST, len(self)))
        return [
            self._neighbour(rank, float(similarity), int(number))
            for rank, (similarity, number) in enumerate(zip(similarities[0], numbers[0], strict=True), 1)
        ]

    def _neighbour(self, rank: int, similarity: float, number: int) -> Neighbour:
        _, positive = hard_labels(self.groups.labels[number][None])
        labels = tuple(name for name, there in zip(self.part.classes, positive[0], strict=True) if there)
        views = tuple(VIEWS[t] for t in self.groups.view_types[number])
        return Neighbour(rank, similarity, views, labels, self._pictures(number))

    def _pictures(self, number: int) -> tuple[str, ...]:
        rows = [int(row) for row in self.groups.rows[number]]
        if any(self.part.images["source"].iat[row] != SIMULATED for row in rows):
            return ()
        try:
            return tuple(thumbnail(self.part.image_path(row)) for row in rows)
        except ImageError:  # moved or deleted since: labels are enough
            return ()


def load_similar(run_dir: Path, parts: ModelParts) -> SimilarStudies:
    """Pool the training maps of a run's cache.

    Raises:
        InputError: Another backbone or another form of maps than the model's, or no training images.
    """
    cache = FeatureCache(run_dir / "cache")
    made, wanted = cache.identity, parts.identity
    same = all(
        getattr(made, key) == getattr(wanted, key) for key in ("weights_sha256", "preprocessing", "map_shape", "pool")
    )
    if parts.joint or not same:
        raise InputError(
            f"--index {run_dir}: its cache was not made by the model's own backbone, so their features do not compare;"
            " give the run that the model was trained in"
        )
    part = cached_manifest(read_manifest(run_dir / "manifest.csv"), cache).of_split("train")
    if not len(part):
        raise InputError(f"--index {run_dir}: no training images in its cache")
    groups = make_groups(part, cache, parts.config.grouping)
    return SimilarStudies(part, groups, pooled_groups(cache, groups), parts.config.grouping.by)


def study_features(maps: Float[Tensor, "V H W D"]) -> Float32[np.ndarray, "E"]:
    """Pooled as `pooled_groups` pools cached maps."""
    return pool_maps(maps.float().cpu().numpy()).mean(axis=0)
