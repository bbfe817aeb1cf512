"""Every choice of stage two."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from extract.losses import LossConfig
from extract.options import OptimizerConfig, TrainingConfig
from fusion.model import ModelConfig


@dataclass(frozen=True, kw_only=True)
class GroupingConfig:
    """Which images are fused, and what training does to them."""

    by: Literal["study", "patient"] = "study"
    """study: the images of one examination, as the challenges label them; patient: all images of a patient."""

    study_labels: Literal["same", "any"] = "same"
    """same: images of a study must carry equal labels; any: a study is positive if any of its images is."""

    view_dropout: float = 0.1
    """Probability that training leaves a view out; one view always stays. Keeps one-view groups strong."""

    type_dropout: float = 0.1
    """Probability that training hides a view's type, so that images without one are served too."""

    max_views: int = 0
    """Views of a group at most in one training visit, drawn anew each time; 0: all. Validation and test take all."""

    shuffle: bool = True
    """Training draws each view's slot, so that order carries no information; false: slots in canonical order, as at
    test time. To measure what shuffling brings."""

    hide_types: bool = False
    """The fusion module never learns a view's type, at test time either; order and baselines still do. To measure what
    types bring. (Likewise for segment embeddings: `model.num_slots` 1, the same for all views.)"""

    draw_variants: bool = True
    """Where the cache holds flipped or augmented maps of an image, training draws one of all its maps at each visit;
    validation and test take the plain one."""

    def __post_init__(self) -> None:
        for name in ("view_dropout", "type_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"grouping.{name} must be in [0, 1), got {getattr(self, name)}")
        if self.max_views < 0:
            raise ValueError(f"grouping.max_views must be at least 1, or 0 for all, got {self.max_views}")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How the groups of val and test are predicted once training is over, by fusion and baselines alike.

    The epochs themselves are validated plainly. On a finished run the same command with other values predicts anew.
    """

    augment: bool = False
    """Test-time augmentation: average the probabilities over all cached maps of an image, its flipped and augmented
    ones included, all views of a group alike. Only for changes that the backbone was trained with."""

    slot_draws: int = 1
    """Average the probabilities over that many fixed assignments of views to slots; 1: the canonical order alone."""

    normal_gate: Literal["off", "power", "linear"] = "off"
    """Lower every finding by the probability p_0 of `normal_class`: power multiplies by (1 - p_0)^0.5, linear by
    1 - 0.5 p_0."""

    normal_class: str = "No Finding"
    """The class that says that there is no finding; only for `normal_gate`."""

    def __post_init__(self) -> None:
        if self.slot_draws < 1:
            raise ValueError(f"evaluation.slot_draws must be at least 1, got {self.slot_draws}")


@dataclass(frozen=True, kw_only=True)
class JointConfig:
    """The last phase, started with ``--joint``: backbone and fusion model learn together, from images.

    It goes on from the finished fusion model with the same groups, batches and loss, and a short schedule of its own.
    """

    run: bool = False
    """Run this phase after stage two; ``--joint`` alone says the same."""

    epochs: int = 3
    """Passes over the training groups, each of which runs the backbone on every image."""

    lr: float = 1e-4
    """Peak learning rate of the fusion model; all else of `optimizer` holds here too."""

    backbone_lr: float = 0.1
    """Factor on the learning rate of the backbone."""

    unfreeze: int | Literal["all"] = "all"
    """How many of the backbone's last stages learn, as timm counts them (a vision transformer's are its blocks); the
    others stay as they are, to the bit. all: the stem too; 0: the fusion model alone, on uncached maps."""

    augment: bool = False
    """Change training images at random, as stage one did (its `augmentation`)."""

    max_views_per_forward: int = 16
    """Largest number of images in one forward pass, to bound memory (one group always fits); 0: no limit. Gradients add
    up exactly."""

    num_workers: int = 2
    """Image-decoding workers per process; 0 decodes in the training process. Changes no result."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"joint.epochs must be at least 1, got {self.epochs}")
        for name in ("lr", "backbone_lr"):
            if getattr(self, name) <= 0:
                raise ValueError(f"joint.{name} must be positive, got {getattr(self, name)}")
        if self.unfreeze != "all" and self.unfreeze < 0:
            raise ValueError(f"joint.unfreeze must be a number of stages or all, got {self.unfreeze}")
        for name in ("max_views_per_forward", "num_workers"):
            if getattr(self, name) < 0:
                raise ValueError(f"joint.{name} must not be negative, got {getattr(self, name)}")


RESERVED_NAMES = {".", "..", "cache", "stage_one", "tail", "trial", "missing_views"}
"""Folders of a run that stage two must not take."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig(TrainingConfig):
    """Stage two: train the fusion transformer on cached maps, compare it with baselines, write a submission.

    Without --config it reads fusion/configs/demo.yaml, which goes on from extract.py without arguments.
    """

    cache_dir: Path | None = None
    """Feature cache; run_dir/cache unless given, for example a converted or an out-of-fold one."""

    name: str = "fusion"
    """Folder in `run_dir` that receives everything."""

    epochs: int = 20
    """Passes over the training groups."""

    max_views_per_forward: int = 0
    """Largest number of views in one forward pass, to bound memory; 0: no limit. Gradients add up exactly."""

    num_workers: int = 2
    """Threads per process that read maps ahead. Changes no result."""

    grouping: GroupingConfig = field(default_factory=GroupingConfig)
    """Which images are fused."""

    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How val and test are predicted."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Fusion transformer and head."""

    loss: LossConfig = field(default_factory=LossConfig)
    """Training loss."""

    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=5e-4))
    """Optimizer and schedule."""

    joint: JointConfig = field(default_factory=JointConfig)
    """The last phase, with the backbone."""

    retrain_single: bool = True
    """Also train the same module on single images, with the same budget, as a source of baselines: a fair comparison
    needs it, because it has seen the cached maps as often as fusion has."""

    pooled_mlp: bool = True
    """Also train a small MLP on pooled maps, in the same budget, as the baseline that learns without attention. Takes
    seconds."""

    template: Path | None = None
    """The challenge's sample submission; without one, the rows of the manifest's test split."""

    test_table: Path | None = None
    """The challenge's test table, compared with the template."""

    truth_dir: Path | None = None
    """Folder with a phantom's truth, for the ceilings; found by itself in the demo."""

    bootstrap_replicates: int = 1000
    """Patient bootstrap replicates behind every interval."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_workers", "bootstrap_replicates"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.model.kind == "published" and self.max_views_per_forward:
            raise ValueError("max_views_per_forward must be 0 with model.kind published: its groups see their batch")
        if not self.name or "/" in self.name or self.name in RESERVED_NAMES:
            raise ValueError(f"name must be a plain folder name and none of the run's others, got {self.name!r}")
        if self.joint.run and (self.dry_run or self.trial):
            raise ValueError("joint: dry_run and trial rehearse stage two; give them without --joint")
        if self.joint.run and self.evaluation.augment:
            raise ValueError(
                "evaluation.augment averages over cached maps, --joint reads images: set --evaluation.augment false"
            )

    @property
    def stage_dir(self) -> Path:
        """Folder of stage two."""
        return self.run_dir / self.name

    @property
    def result_dir(self) -> Path:
        """Folder of the results: stage two's, or that of the joint phase in it."""
        return self.stage_dir / "joint" if self.joint.run else self.stage_dir
