"""Everything that turns X-rays into a prediction: backbone, form of its maps, fusion model, what follows the logits.

Read from the result folder of a run here, from a published model folder in `fusion.model_folder`; strictly, and only if
the parts belong together. C classes.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from torch import nn

from data.cache import read_cache_record
from data.calibration import Calibration
from data.config import parse_config
from data.errors import InputError
from data.manifest import CONTROL
from data.predictions import read_predictions
from data.shards import CacheIdentity
from data.strict_json import read_json
from data.thresholds import Thresholds
from data.transforms import Preprocessing
from extract.backbone import Backbone, map_shape
from extract.checkpoint import check_folder, load_json, load_tensors, load_weights
from extract.config import ExtractConfig
from extract.estimate import pooled
from extract.teacher import load_teacher
from fusion.config import EvaluationConfig, FusionConfig
from fusion.fitted import load_fitted
from fusion.model import FusionModel

STAGE_ONE = "stage_one.yaml"
"""Stage one's configuration in the model folder of a joint phase, which holds a backbone of its own."""

NO_CONFIGURATION = "is no configuration of this version (see the line above)"
WANTED = "wanted the result folder of a run, such as runs/demo/fusion, a published model folder, or a Hub id owner/name"


@dataclass(frozen=True, eq=False)
class ModelParts:
    """A trained model with all that its predictions depend on; networks in evaluation mode, on the CPU."""

    config: FusionConfig
    evaluation: EvaluationConfig
    """With which val and test were predicted last; `config` has the one of training."""
    stage_one: ExtractConfig
    backbone: Backbone
    fusion: FusionModel
    preprocessing: Preprocessing
    identity: CacheIdentity
    """Of the maps that the fusion model was trained on: their form, and the weights that made them."""
    joint: bool
    """Backbone and fusion model learned together: maps go from one to the other as they are, stored in no form."""
    classes: tuple[str, ...]
    frequency: dict[str, str]
    """head, medium or tail, of the classes of which it is known."""
    fitted: tuple[Calibration, Thresholds] | None
    no_view: Float64[np.ndarray, "C"] | Path | None
    """Logits that stand for no view at all in Shapley shares, or the held-out logits whose mean they are."""
    weights_sha256: str
    """Of the fusion model."""

    @property
    def variants(self) -> tuple[str, ...]:
        """Maps of an image that a prediction takes, the plain one first."""
        return self.identity.variants if self.evaluation.augment else self.identity.variants[:1]

    def empty_logits(self) -> Float64[np.ndarray, "C"]:
        """What the model says of nobody in particular: the mean logits of its validation groups.

        Raises:
            InputError: The folder does not tell.
        """
        if isinstance(self.no_view, Path):
            ids, logits, _ = read_predictions(self.no_view)
            first = ~ids[f"{self.config.grouping.by}_id"].duplicated().to_numpy(dtype=bool)
            return logits[first].mean(axis=0, dtype=np.float64)
        if self.no_view is None:
            raise InputError("shares: this model has no logits_val.csv to measure them against; rerun train_fusion.py")
        return self.no_view


def read_result(folder: Path) -> ModelParts:
    """The model behind the predictions of a result folder: stage two's, or that of its joint phase.

    Raises:
        InputError: No finished model here, a damaged file, or a backbone, cache and fusion model that do not belong
            together.
    """
    best = folder / "best"
    if not (best / "model.safetensors").is_file():
        raise InputError(f"{folder}: no trained fusion model in it; {WANTED}")
    check_folder(best)
    joint = (best / STAGE_ONE).is_file()
    run_dir = folder.parent.parent if joint else folder.parent
    if not joint and (folder.name == "stage_one" or not (run_dir / "stage_one").is_dir()):
        raise InputError(f"{folder}: no fusion model with its backbone in stage_one/ beside it; {WANTED}")
    config = read_config(FusionConfig, best / "config.yaml")
    _, identity = read_cache_record(cache_folder(config, run_dir))
    if "evaluation" in (results := _record(folder / "metrics.json")):
        evaluation = EvaluationConfig(**results["evaluation"])
    else:
        evaluation = config.evaluation
    held_out = folder / "logits_val.csv"
    return assembled(
        folder=best,
        backbone_folder=None if joint else run_dir / "stage_one" / "best",
        config=config,
        evaluation=evaluation,
        identity=identity,
        fitted=load_fitted(folder) if (best / "calibration.json").is_file() else None,
        no_view=held_out if held_out.is_file() else None,
    )


def cache_folder(config: FusionConfig, run_dir: Path) -> Path:
    """The cache that a stage two was trained on; one inside the run is found after the run was moved, too."""
    if config.cache_dir is None:
        return run_dir / "cache"
    if config.cache_dir.is_relative_to(config.run_dir):
        return run_dir / config.cache_dir.relative_to(config.run_dir)
    return config.cache_dir


def assembled(
    folder: Path,
    backbone_folder: Path | None,
    config: FusionConfig,
    evaluation: EvaluationConfig,
    identity: CacheIdentity,
    fitted: tuple[Calibration, Thresholds] | None,
    no_view: Float64[np.ndarray, "C"] | Path | None,
) -> ModelParts:
    """Load the networks of a checked model folder, and check that they belong together.

    Args:
        folder: With the fusion model's files.
        backbone_folder: With the backbone's; None: `folder` holds both, of a joint phase.

    Raises:
        InputError: names what does not fit.
    """
    if config.model.kind == "published":
        raise InputError(f"{folder}: model.kind published is for comparisons; a group's logits depend on its batch")
    classes = read_classes(folder)
    preprocessing = Preprocessing.from_dict(load_json(folder / "preprocessing.json"))
    if backbone_folder is None:
        stage_one, backbone, fusion = _joint_networks(folder, config, preprocessing, identity, len(classes))
    else:
        stage_one, backbone = _frozen_backbone(backbone_folder, preprocessing, identity)
        fusion = FusionModel(config.model, identity.map_shape, len(classes))
        load_weights(fusion, load_tensors(folder / "model.safetensors"), str(folder))
    if fitted is not None and fitted[0].classes != classes:
        raise InputError(f"{folder / 'calibration.json'}: of other classes than the model's; run scripts/calibrate.py")
    return ModelParts(
        config=config,
        evaluation=evaluation,
        stage_one=stage_one,
        backbone=backbone.eval(),
        fusion=fusion.eval(),
        preprocessing=preprocessing,
        identity=identity,
        joint=backbone_folder is None,
        classes=classes,
        frequency=_frequency(folder / "metrics.json"),
        fitted=fitted,
        no_view=no_view,
        weights_sha256=load_json(folder / "digests.json")["model.safetensors"],
    )


def read_classes(folder: Path) -> tuple[str, ...]:
    """The classes of a model folder.

    Raises:
        InputError: They are not a list of different names.
    """
    path = folder / "classes.json"
    names = read_json(path, "copy the whole folder again").get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise InputError(f"{path}: wanted a list of class names; copy the whole folder again")
    if len(set(names)) < len(names) or any(CONTROL.search(name) for name in names):
        raise InputError(f"{path}: a class name occurs twice or holds control characters; copy the whole folder again")
    return tuple(names)


def _frozen_backbone(
    folder: Path, preprocessing: Preprocessing, identity: CacheIdentity
) -> tuple[ExtractConfig, Backbone]:
    """Stage one's backbone, which must be the one that made the maps that the fusion model knows."""
    try:
        teacher = load_teacher(folder)
    except SystemExit:
        raise InputError(f"{folder / 'config.yaml'}: {NO_CONFIGURATION}") from None
    found, wanted = teacher.weights_sha256, identity.weights_sha256
    if found != wanted:
        raise InputError(
            f"{folder}: this backbone (weights {found[:12]}) did not make the maps that the fusion model was trained on"
            f" (weights {wanted[:12]}); rerun extract.py and train_fusion.py"
        )
    for made in (teacher.config.image.to_dict(), identity.preprocessing):
        if made != preprocessing.to_dict():
            raise InputError(f"{folder}: its preprocessing is not the fusion model's; rerun train_fusion.py")
    return teacher.config, teacher.model.backbone


def _joint_networks(
    folder: Path, config: FusionConfig, preprocessing: Preprocessing, identity: CacheIdentity, num_classes: int
) -> tuple[ExtractConfig, Backbone, FusionModel]:
    """Both networks of a joint phase, which saves them as one."""
    stage_one = replace(read_config(ExtractConfig, folder / STAGE_ONE), image=preprocessing)
    backbone = Backbone(replace(stage_one.backbone, pretrained=False), preprocessing.channels)
    shape = pooled(map_shape(backbone, preprocessing.channels, preprocessing.size), identity.pool)
    fusion = FusionModel(config.model, shape, num_classes)
    both = nn.ModuleDict({"backbone": backbone, "fusion": fusion})
    load_weights(both, load_tensors(folder / "model.safetensors"), str(folder))
    return stage_one, backbone, fusion


def read_config(config_class: Any, path: Path) -> Any:
    """A configuration that a stage saved.

    Raises:
        InputError: It does not fit this version; the line before says how.
    """
    try:
        return parse_config(config_class, path, [])[0]
    except SystemExit:
        raise InputError(f"{path}: {NO_CONFIGURATION}") from None


def _frequency(path: Path) -> dict[str, str]:
    """The frequency group of each class, as validation has it."""
    record: Any = _record(path)
    for key in ("val", "per_class"):
        record = record.get(key) if isinstance(record, dict) else None
    entries = record.items() if isinstance(record, dict) else ()
    groups = {name: entry.get("group") for name, entry in entries if isinstance(entry, dict)}
    return {name: group for name, group in groups.items() if group in ("head", "medium", "tail")}


def _record(path: Path) -> dict[str, Any]:
    return read_json(path, "train again") if path.is_file() else {}
