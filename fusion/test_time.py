"""Test-time averages of a finished stage two, from its model and cache: slot draws and cached variants."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from jaxtyping import Float

from data.errors import InputError
from fusion.config import EvaluationConfig
from fusion.evaluation import average_logits, evaluation_passes
from fusion.inference import predict_groups
from fusion.trained import load_trained

Predicted = tuple[list[str], Float[np.ndarray, "G C"]]
"""Group ids and their logits."""


def predict_passes(folder: Path, evaluation: EvaluationConfig, splits: Sequence[str]) -> dict[str, Predicted]:
    """Logits of the mean probability over the passes that `evaluation` asks for, per split.

    Args:
        folder: A result folder with its model, in a run folder with its cache.

    Raises:
        InputError: No model here, such as joined folds, or no cache.
    """
    if not (folder / "best").is_dir():
        raise InputError(
            f"{folder}: has predictions but no model; --slot_draws and --augment need its best/ and a cache"
        )
    trained = load_trained(folder.parent, folder.name)
    passes = evaluation_passes(evaluation, len(trained.cache.identity.variants))
    accelerator, found = Accelerator(), {}
    model = accelerator.prepare_model(trained.model, evaluation_mode=True)
    for split in splits:
        groups = trained.groups_of_split(split)[1]
        parts = [predict_groups(trained.config, groups, trained.cache, model, accelerator, *one) for one in passes]
        found[split] = (groups.ids, average_logits(parts))
    return found
