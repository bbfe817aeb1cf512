"""The head that stage one trained, applied to cached maps: single-image predictions without any image.

N images, C classes.
"""

from pathlib import Path

import numpy as np
import torch
import yaml
from jaxtyping import Float

from data.cache import FeatureCache
from data.errors import InputError
from data.files import sha256_file
from extract.checkpoint import check_folder, load_tensors, load_weights
from extract.heads import HeadConfig, build_head
from fusion.grouping import GroupSet

BATCH = 256


@torch.inference_mode()
def stage_one_logits(run_dir: Path, groups: GroupSet, cache: FeatureCache) -> Float[np.ndarray, "N C"]:
    """Logits of every image of a split, in manifest order.

    Raises:
        InputError: the model folder is damaged, or is not the one that made the cache.
    """
    best = run_dir / "stage_one" / "best"
    check_folder(best)
    found, wanted = sha256_file(best / "model.safetensors"), cache.identity.weights_sha256
    if found != wanted:
        raise InputError(
            f"{cache.folder}: this cache was made with another backbone (weights {wanted[:12]}, {best} has"
            f" {found[:12]}); delete {cache.folder} and rerun extract.py"
        )
    config = HeadConfig(**yaml.safe_load((best / "config.yaml").read_text())["head"])
    head = build_head(config, cache.identity.map_shape[2], len(cache.identity.classes)).eval()
    weights = load_tensors(best / "model.safetensors")
    prefix = "head."
    load_weights(head, {k.removeprefix(prefix): w for k, w in weights.items() if k.startswith(prefix)}, str(best))
    rows, ordinals = np.concatenate(groups.rows), np.concatenate(groups.ordinals)
    if (folds := cache.index.fold[ordinals]).any():
        raise InputError(
            f"{cache.folder}: {(folds > 0).sum()} maps of this split come from other backbones than {best}; merge the"
            " caches anew, this run's first"
        )
    logits = np.empty((len(rows), len(cache.identity.classes)), dtype=np.float32)
    for start in range(0, len(rows), BATCH):
        maps = torch.from_numpy(cache.read(ordinals[start : start + BATCH])).to(torch.get_default_dtype())
        logits[rows[start : start + BATCH]] = head(maps.flatten(1, 2)).numpy()
    return logits
