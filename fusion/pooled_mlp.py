"""The baseline that learns but does not attend: a small MLP over a group's pooled maps.

A group is the mean over its views of each map's mean and maximum. The MLP sees the groups that fusion sees, in the same
order, with the same dropped views and drawn maps, for as many epochs, with the same loss, optimizer and schedule, and
is kept at its best epoch on validation. What is left between it and fusion is what tokens and attention bring.

It is small enough for one process: the same to the bit on any number of them.

Axes: **G** groups, **V** views, **N** cached images, **D** pooled features, **C** classes.
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from data.cache import FeatureCache
from data.manifest import Manifest
from data.order import derive_seed
from data.runs import Log
from data.sampling import epoch_draws
from extract.checkpoint import Content, check_folder, load_tensors, load_weights, save_folder
from extract.engine import build_optimizer, learning_rate, set_learning_rate, sigmoid
from extract.losses import class_statistics, multilabel_loss
from fusion.config import FusionConfig
from fusion.evaluation import average_logits, evaluation_passes
from fusion.grouping import GroupSet, training_views
from fusion.scoring import group_map
from fusion.tail.features import mean_of_views, pooled_images, standardisation

HIDDEN = 512
"""Features of the hidden layer, as in the MLP head of the CXR-LT 2026 winner."""
DROPOUT = 0.3
FOLDER = "pooled_mlp"


class PooledMLP(nn.Module):
    """Two layers over standardised features.

    Args:
        dim: Pooled features (D).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))
        self.layers = nn.Sequential(
            nn.Linear(dim, HIDDEN), nn.GELU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, num_classes)
        )

    def forward(self, x: Float[Tensor, "G D"]) -> Float[Tensor, "G C"]:
        """Logits."""
        return self.layers((x - self.mean) * self.scale)


def mlp_logits(
    config: FusionConfig, sets: dict[str, GroupSet], manifest: Manifest, cache: FeatureCache, log: Log
) -> dict[str, Float32[np.ndarray, "G C"]]:
    """Logits of val and test; trains the MLP unless this stage two has one already."""
    folder = config.run_dir / config.name / FOLDER
    if (folder / "digests.json").exists():
        model = load_mlp(folder, cache, len(manifest.classes))
    else:
        model = train_mlp(config, sets, cache, log)
        files: dict[str, Content] = {
            "model.safetensors": model.state_dict(),
            "classes.json": {"classes": list(manifest.classes)},
        }
        save_folder(folder, files)
    return {split: predict_mlp(config, model, sets[split], cache) for split in ("val", "test")}


def load_mlp(folder: Path, cache: FeatureCache, num_classes: int) -> PooledMLP:
    """A trained one.

    Raises:
        InputError: the folder is damaged, or made for other maps or classes.
    """
    check_folder(folder)
    model = PooledMLP(2 * cache.identity.map_shape[2], num_classes).eval()
    load_weights(model, load_tensors(folder / "model.safetensors"), str(folder))
    return model


def train_mlp(config: FusionConfig, sets: dict[str, GroupSet], cache: FeatureCache, log: Log) -> PooledMLP:
    """The MLP at its best epoch on validation."""
    train, val = sets["train"], sets["val"]
    variants = len(cache.identity.variants) if config.grouping.draw_variants else 1
    images = pool_variants(cache, train, variants)
    val_x, statistics = torch.from_numpy(pooled(cache, val)), class_statistics(train.labels)
    torch.manual_seed(derive_seed("pooled mlp", config.seed) % 2**32)
    model = start_mlp(images, train)
    optimizer = build_optimizer(model, config.optimizer)
    best, best_score, best_epoch = model.state_dict(), -1.0, 0
    for epoch in range(config.epochs):
        batches = epoch_draws(config.sampler, train.labels, train.sources, config.batch_size, config.seed, epoch)
        model.train()
        for step, batch in enumerate(batches):
            x = visit(config, train, images, batch.items.tolist(), batch.copies.tolist(), epoch, variants)
            targets = torch.from_numpy(train.labels[batch.items])
            rate = learning_rate(epoch * len(batches) + step, config.epochs * len(batches), config.optimizer)
            set_learning_rate(optimizer, rate)
            losses = multilabel_loss(model(x), targets, statistics, config.loss, epoch / config.epochs)
            optimizer.zero_grad()
            (losses / max(1, int((~targets.isnan()).sum()))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), config.optimizer.clip_norm or float("inf"))
            optimizer.step()
        score = float(np.nan_to_num(group_map(sigmoid(infer(model, val_x)), val)))
        if score > best_score:
            best, best_score, best_epoch = {k: w.clone() for k, w in model.state_dict().items()}, score, epoch + 1
    log(f"MLP on pooled maps: validation mAP {best_score:.3f} in epoch {best_epoch} of {config.epochs}")
    model.load_state_dict(best)
    return model.eval()


def start_mlp(images: dict[tuple[int, int], np.ndarray], train: GroupSet) -> PooledMLP:
    """A new one, scaled to the training groups' plain features."""
    plain = np.concatenate([[images[n, 0] for n in ordinals.tolist()] for ordinals in train.ordinals])
    projection = standardisation(mean_of_views(plain.astype(np.float32), train.num_views))
    model = PooledMLP(plain.shape[1], train.labels.shape[1])
    model.mean.copy_(torch.from_numpy(projection.mean))
    model.scale.copy_(torch.from_numpy(projection.matrix.diagonal().copy()))
    return model


def pool_variants(cache: FeatureCache, groups: GroupSet, variants: int) -> dict[tuple[int, int], np.ndarray]:
    """Pooled features of every image and variant, by (ordinal, variant)."""
    ordinals = np.unique(np.concatenate(groups.ordinals))
    return {
        (number, variant): row
        for variant in range(variants)
        for number, row in zip(ordinals.tolist(), pooled_images(cache, ordinals, variant), strict=True)
    }


def visit(
    config: FusionConfig,
    groups: GroupSet,
    images: dict[tuple[int, int], np.ndarray],
    numbers: list[int],
    copies: list[int],
    epoch: int,
    variants: int,
) -> Float32[Tensor, "G D"]:
    """Groups as they are at one visit: the views and maps that fusion draws there too."""
    means = []
    for number, copy in zip(numbers, copies, strict=True):
        slots = config.model.num_slots  # a draw of its own, before that of the maps
        drawn = training_views(groups, number, config.grouping, slots, config.seed, epoch, variants, copy)
        pairs = zip(drawn.ordinals.tolist(), drawn.variants.tolist(), strict=True)
        means.append(np.mean([images[pair] for pair in pairs], axis=0))
    return torch.from_numpy(np.stack(means).astype(np.float32))


def pooled(cache: FeatureCache, groups: GroupSet, variant: int = 0) -> Float32[np.ndarray, "G D"]:
    """Every group's features from all of its views."""
    return mean_of_views(pooled_images(cache, np.concatenate(groups.ordinals), variant), groups.num_views)


@torch.inference_mode()
def infer(model: PooledMLP, x: Float32[Tensor, "G D"]) -> Float32[np.ndarray, "G C"]:
    """Logits."""
    return model.eval()(x).numpy()


def predict_mlp(
    config: FusionConfig, model: PooledMLP, groups: GroupSet, cache: FeatureCache
) -> Float32[np.ndarray, "G C"]:
    """Logits of groups, averaged over the same maps as fusion's."""
    variants = sorted({variant for variant, _ in evaluation_passes(config.evaluation, len(cache.identity.variants))})
    return average_logits([infer(model, torch.from_numpy(pooled(cache, groups, variant))) for variant in variants])
