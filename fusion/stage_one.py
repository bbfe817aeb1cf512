"""The head that stage one trained, applied to cached maps: single-image predictions without any image.

N images, C classes.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from data.cache import FeatureCache
from data.config import read_yaml
from data.errors import InputError
from data.files import sha256_file
from extract.checkpoint import AGAIN, check_folder, load_tensors, load_weights
from extract.heads import HeadConfig, build_head
from fusion.evaluation import average_logits
from fusion.grouping import GroupSet

BATCH = 256


@torch.inference_mode()
def stage_one_logits(
    run_dir: Path, groups: GroupSet, cache: FeatureCache, num_variants: int = 1
) -> Float[np.ndarray, "N C"]:
    """Logits of every image of a split, in manifest order.

    Args:
        num_variants: Average over the first ones of an image's cached maps, as `fusion.evaluation` does; 1: plain.

    Raises:
        InputError: the model folder is damaged, or is not the one that made the cache.
    """
    head = load_head(run_dir, cache)
    rows, ordinals = np.concatenate(groups.rows), np.concatenate(groups.ordinals)
    if (folds := cache.index.fold[ordinals]).any():
        raise InputError(
            f"{cache.folder}: {(folds > 0).sum()} maps of this split come from other backbones than"
            f" {run_dir / 'stage_one' / 'best'}; merge the caches anew, this run's first"
        )
    logits = np.empty((num_variants, len(rows), len(cache.identity.classes)), dtype=np.float32)
    for variant in range(num_variants):
        for start in range(0, len(rows), BATCH):
            part = slice(start, start + BATCH)
            maps = torch.from_numpy(cache.read(ordinals[part], variant)).to(torch.get_default_dtype())
            logits[variant, rows[part]] = head(maps.flatten(1, 2)).numpy()
    return average_logits(list(logits))


def load_head(run_dir: Path, cache: FeatureCache) -> nn.Module:
    """The head of the run's best single-image model, which must be the model that made the cache.

    Raises:
        InputError: it is not, or its folder is damaged.
    """
    best = run_dir / "stage_one" / "best"
    check_folder(best)
    found, wanted = sha256_file(best / "model.safetensors"), cache.identity.weights_sha256
    if found != wanted:
        raise InputError(
            f"{cache.folder}: this cache was made with another backbone (weights {wanted[:12]}, {best} has"
            f" {found[:12]}); delete {cache.folder} and rerun extract.py"
        )
    tree = read_yaml(best / "config.yaml")
    try:
        config = HeadConfig(**tree["head"])
    except (KeyError, TypeError):
        raise InputError(f"{best / 'config.yaml'}: damaged, wanted the options of the head; {AGAIN}") from None
    head = build_head(config, cache.identity.map_shape[2], len(cache.identity.classes)).eval()
    weights = load_tensors(best / "model.safetensors")
    prefix = "head."
    load_weights(head, {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}, str(best))
    return head
