"""A trained stage two, read back from its run folder: model, groups and cache, ready to ask."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.cache import FeatureCache
from data.config import parse_config
from data.errors import InputError
from data.manifest import Manifest, read_manifest
from data.transforms import Preprocessing
from extract.checkpoint import check_folder, load_classes, load_json, load_tensors, load_weights
from fusion.config import FusionConfig
from fusion.grouping import GroupSet, cached_manifest, evaluation_views, make_groups
from fusion.model import FusionModel


@dataclass(frozen=True, eq=False)
class TrainedFusion:
    """The best model of a run and what it can be asked about; the model is in evaluation mode, on the CPU."""

    config: FusionConfig
    model: FusionModel
    manifest: Manifest
    """The images that the cache holds."""
    cache: FeatureCache
    preprocessing: Preprocessing
    """How images became the backbone's input; says where a map's cells lie in an image."""

    def groups_of_split(self, split: str) -> tuple[Manifest, GroupSet]:
        """The images of a split, and its groups, whose rows count within it."""
        part = self.manifest.of_split(split)
        return part, make_groups(part, self.cache, self.config.grouping)

    def inputs(
        self, groups: GroupSet, number: int
    ) -> tuple[Float[Tensor, "1 V H W D"], Int[Tensor, "1 V"], Int[Tensor, "1 V"]]:
        """One group as the model is asked at test time: plain maps in canonical order, view types, slots."""
        views = evaluation_views(
            groups, number, self.config.model.num_slots, hide_types=self.config.grouping.hide_types
        )
        maps = torch.from_numpy(self.cache.read(views.ordinals)).to(torch.get_default_dtype())
        return maps[None], torch.from_numpy(views.view_types)[None], torch.from_numpy(np.asarray(views.slots))[None]


def load_trained(run_dir: Path, name: str = "fusion", cache_dir: Path | None = None) -> TrainedFusion:
    """Read a finished stage two.

    Args:
        name: Its folder in the run.
        cache_dir: Another cache of the same images and backbone than the one it was trained on.

    Raises:
        InputError: no finished model or cache, or they do not belong together.
    """
    best = run_dir / name / "best"
    if not best.is_dir():
        raise InputError(f"{best}: no trained fusion model here; run train_fusion.py --run_dir {run_dir} first")
    check_folder(best)
    config, _ = parse_config(FusionConfig, best / "config.yaml", [])
    cache = FeatureCache(cache_dir or config.cache_dir or run_dir / "cache")
    manifest = cached_manifest(read_manifest(run_dir / "manifest.csv"), cache)
    if (classes := load_classes(best)) != manifest.classes:
        raise InputError(f"{best}: has {len(classes)} classes, other ones than manifest.csv; rerun train_fusion.py")
    model = FusionModel(config.model, cache.identity.map_shape, len(classes)).eval()
    load_weights(model, load_tensors(best / "model.safetensors"), str(best))
    return TrainedFusion(
        config, model, manifest, cache, Preprocessing.from_dict(load_json(best / "preprocessing.json"))
    )
