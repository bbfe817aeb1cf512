"""What a user names, and the files that belong to it: predictions, manifest, and what was fitted to the model.

`scripts/calibrate.py` leaves a calibration and thresholds in the model folder. They belong to the model's own test
predictions: to `predictions_test.csv`, which is calibrated here, and to `calibrated_test.csv`, which is so already.

N rows, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from data.calibration import Calibration
from data.errors import InputError
from data.thresholds import Thresholds
from fusion.result_folder import GroupBy, model_folder, recorded_group_by

OWN_TABLES = ("predictions", "calibrated")


@dataclass(frozen=True)
class Source:
    """Where predictions lie and what belongs to them."""

    path: Path
    predictions: Path
    validation: Path | None
    """Predictions of the validation split, from which thresholds may be chosen; None where there are none."""
    manifest: Path
    by: GroupBy
    fitted: bool
    """Whether thresholds, and the calibration, come from the model folder instead."""


@dataclass(frozen=True, eq=False)
class Fitted:
    """Calibration and thresholds of a model folder."""

    folder: Path
    calibration: Calibration
    thresholds: Thresholds
    already: bool
    """The predictions are calibrated."""

    def calibrated(
        self, values: Float32[np.ndarray, "N C"], classes: Sequence[str], path: Path
    ) -> Float32[np.ndarray, "N C"]:
        """Probabilities of a table, calibrated unless they are so already, columns in its order.

        Raises:
            InputError: The table has other classes than the calibration.
        """
        from fusion.saved import as_logits  # loads torch, which only calibrated results need

        if odd := sorted(set(classes) ^ set(self.calibration.classes)):
            raise InputError(f"{path}: has other classes than {self.folder / 'calibration.json'}, first {odd[0]!r}")
        if self.already:
            return values
        order = [list(classes).index(name) for name in self.calibration.classes]
        back = [self.calibration.classes.index(name) for name in classes]
        return self.calibration(as_logits(path, values[:, order]))[:, back]

    def cuts(self, classes: Sequence[str]) -> Float64[np.ndarray, "C"]:
        """Thresholds of some classes."""
        return self.thresholds.values[[self.thresholds.classes.index(name) for name in classes]]

    def as_json(self) -> dict[str, Any]:
        """What a report says of it."""
        return {"method": self.calibration.method, "already_calibrated": self.already}


def find_source(path: Path, split: str, manifest: Path | None, validation: Path | None, by: GroupBy | None) -> Source:
    """The files behind what a user names: a folder of stage two (or a copy of it), or one prediction table.

    Args:
        split: Which table of a folder.
        manifest: Instead of `manifest.csv` in the run folder, the one that holds the folder.
        validation: Instead of the model folder's thresholds and of `predictions_val.csv` beside the predictions.
        by: Groups, instead of what the folder says it fused, or else studies.

    Raises:
        InputError: There is no such table or manifest.
    """
    folder = path if path.is_dir() else path.parent
    predictions = path / f"predictions_{split}.csv" if path.is_dir() else path
    if not predictions.is_file():
        raise InputError(f"{predictions}: no such prediction table; name a folder of train_fusion.py or a CSV")
    kind = predictions.stem.split("_")[0]
    target = model_folder(folder)
    present = any((target / name).is_file() for name in ("calibration.json", "thresholds.json"))
    fitted = validation is None and kind in OWN_TABLES and present
    beside = folder / ("calibrated_val.csv" if kind == "calibrated" else "predictions_val.csv")
    if validation is None and kind != "adjusted" and beside.is_file() and beside != predictions:
        validation = beside
    found = manifest or folder.parent / "manifest.csv"
    if not found.is_file():
        raise InputError(f"{found}: no such manifest; say where it is: --manifest runs/x/manifest.csv")
    return Source(path, predictions, validation, found, by or recorded_group_by(folder) or "study", fitted)


def load_source_fitted(source: Source) -> Fitted | None:
    """Calibration and thresholds of the model behind the predictions, where `source.fitted` says so.

    Raises:
        InputError: They are damaged, or were fitted to another model.
    """
    if not source.fitted:
        return None
    from fusion.fitted import load_fitted  # loads torch, which only calibrated results need

    folder = source.predictions.parent
    calibration, thresholds = load_fitted(folder)
    already = source.predictions.stem.startswith("calibrated")
    return Fitted(model_folder(folder), calibration, thresholds, already)
