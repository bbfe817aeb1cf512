"""A tiny fusion model with random weights that reads image files, put together without a run."""

import numpy as np
import torch

from data.shards import CacheIdentity
from data.transforms import Preprocessing
from extract.backbone import Backbone, BackboneConfig, map_shape
from extract.config import ExtractConfig
from extract.heads import HeadConfig
from fusion.config import EvaluationConfig, FusionConfig
from fusion.model import FusionModel, ModelConfig
from fusion.model_parts import ModelParts
from fusion.predict import Predictor

CLASSES = ("Edema", "Nodule", "Hernia", "Mass")
FREQUENCY = {"Edema": "head", "Nodule": "medium", "Hernia": "tail", "Mass": "tail"}


def make_predictor(weights: str = "ab", classes: tuple[str, ...] = CLASSES, size: int = 32) -> Predictor:
    """Predicts `classes` from images of `size` pixels."""
    torch.manual_seed(0)
    backbone_config = BackboneConfig(name="test_resnet")
    image = Preprocessing(size=size)
    backbone = Backbone(backbone_config, image.channels).eval()
    shape = map_shape(backbone, image.channels, size)
    model = ModelConfig(width=8, depth=1, num_heads=2, num_slots=4, head=HeadConfig(width=8, num_heads=2))
    identity = CacheIdentity(
        backbone=backbone_config.name,
        weights_sha256=weights * 32,
        preprocessing=image.to_dict(),
        map_shape=shape,
        images_sha256="cd" * 32,
        num_images=1,
        images_per_shard=1,
        classes=classes,
    )
    config = FusionConfig(model=model)
    parts = ModelParts(
        config=config,
        evaluation=EvaluationConfig(),
        stage_one=ExtractConfig(backbone=backbone_config, image=image),
        backbone=backbone,
        fusion=FusionModel(model, shape, len(classes)).eval(),
        preprocessing=image,
        identity=identity,
        joint=False,
        classes=classes,
        frequency={name: band for name, band in FREQUENCY.items() if name in classes},
        fitted=None,
        no_view=np.zeros(len(classes)),
        weights_sha256="ef" * 32,
    )
    return Predictor(parts, torch.device("cpu"))
