"""Logits of groups from cached maps: a pass, a split, a split averaged over test-time passes.

G groups, V views, C classes.
"""

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from data.cache import FeatureCache
from data.runs import Log
from data.shards import CacheIdentity
from data.storage import decode_maps
from extract.engine import gather_rows, sigmoid
from fusion.config import FusionConfig
from fusion.evaluation import average_logits, evaluation_passes
from fusion.grouping import GroupSet, evaluation_views
from fusion.passes import Pass, make_passes, maps_of
from fusion.scoring import group_map


def forward(
    model: nn.Module, one: Pass, stored: Tensor, identity: CacheIdentity, accelerator: Accelerator
) -> Float[Tensor, "G C"]:
    """Logits of the groups of a pass; maps travel in their stored form and are decoded and widened on the device."""
    device = accelerator.device
    maps = decode_maps(stored, identity.dtype, identity.map_shape).to(next(model.parameters()).dtype)
    with accelerator.autocast():
        return model(maps, one.view_types.to(device), one.slots.to(device), one.buckets)


@torch.inference_mode()
def predict_groups(
    config: FusionConfig,
    groups: GroupSet,
    cache: FeatureCache,
    model: nn.Module,
    accelerator: Accelerator,
    variant: int = 0,
    draw: int = 0,
) -> Float[np.ndarray, "G C"]:
    """Logits of all groups with all their views, on every process, in the order of the set.

    Args:
        variant: Which of an image's cached maps.
        draw: Which of the fixed assignments to slots.
    """
    own = np.arange(len(groups))[accelerator.process_index :: accelerator.num_processes]
    num_slots, hide_types = config.model.num_slots, config.grouping.hide_types
    views = [evaluation_views(groups, int(number), num_slots, variant, draw, hide_types) for number in own]
    passes = list(make_passes(config.model, own, views, config.max_views_per_forward or 4 * config.batch_size))
    model.eval()
    plans = ((one, *maps_of([one])) for one in passes)
    stream = cache.stream(plans, accelerator.device, config.num_workers)
    logits = [forward(model, one, stored, cache.identity, accelerator).float().cpu() for one, stored in stream]
    numbers = np.concatenate([one.groups for one in passes]) if passes else own
    values = torch.cat(logits) if logits else torch.empty(0, groups.labels.shape[1])
    return gather_rows(accelerator, numbers, values, len(groups))


def predict_finally(
    config: FusionConfig,
    sets: dict[str, GroupSet],
    cache: FeatureCache,
    model: nn.Module,
    accelerator: Accelerator,
    log: Log,
) -> dict[str, Float[np.ndarray, "G C"]]:
    """Logits of val and test, averaged over the passes that the configuration asks for."""
    passes = evaluation_passes(config.evaluation, len(cache.identity.variants))
    parts = {
        split: [predict_groups(config, sets[split], cache, model, accelerator, *one) for one in passes]
        for split in ("val", "test")
    }
    logits = {split: average_logits(values) for split, values in parts.items()}
    if len(passes) > 1:
        plain, mean = (group_map(sigmoid(values), sets["val"]) for values in (parts["val"][0], logits["val"]))
        log(f"mean of {len(passes)} passes: validation mAP {plain:.3f} -> {mean:.3f}")
    return logits
