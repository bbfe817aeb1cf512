"""The tables of predictions on new studies: collected study by study, written together.

Values have the layout of training's predictions: a row per image, which carries the values of its study. As there, an
image that cannot be read gets what the other images of its study say.

C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.predictions import ID_COLUMNS, write_predictions
from data.scan import write_rejected
from data.study_files import Rejected
from data.tables import write_table
from fusion.explanation import share_table
from fusion.model_parts import ModelParts
from fusion.predictor import Outcome
from fusion.study_prediction import StudyPrediction

TABLES = ("predictions.csv", "logits.csv", "calibrated.csv", "positive.csv", "shares.csv", "images.csv", "rejected.csv")


@dataclass
class PredictionTables:
    """What is known so far."""

    parts: ModelParts
    rejected: Rejected = field(default_factory=list)
    num_studies: int = 0
    ids: list[tuple[str, str, str]] = field(default_factory=list)
    """Of every image of a predicted study."""
    images: list[tuple[str, ...]] = field(default_factory=list)
    values: dict[str, list[Float32[np.ndarray, "C"]]] = field(default_factory=dict)
    shares: list[pd.DataFrame] = field(default_factory=list)

    def add(self, outcome: Outcome, with_shares: bool) -> None:
        """Take a study in; its maps and pictures are not kept."""
        self.rejected += outcome.rejected
        if (prediction := outcome.prediction) is None:
            return
        self.num_studies += 1
        values = {"logits": prediction.logits, "predictions": prediction.probabilities}
        if prediction.calibrated is not None:
            values["calibrated"] = prediction.calibrated
        unread, views = {name for name, _ in outcome.rejected}, iter(prediction.views)
        for image in outcome.images:
            ids = (image.image_id, image.study_id, image.patient_id)
            view = None if image.name in unread else next(views)
            self.ids.append(ids)
            self.images.append((image.name, *ids, view.view if view else "", view.view_from if view else "rejected"))
            for name, value in values.items():
                self.values.setdefault(name, []).append(value)
        if with_shares:
            self.shares.append(self._shares(outcome, prediction, unread))

    def write(self, out: Path) -> list[str]:
        """Write all tables that there is something for; their names. Former ones that no longer apply are removed."""
        for name in TABLES:
            (out / name).unlink(missing_ok=True)
        write_rejected(out, sorted(self.rejected))
        if not self.ids:
            return ["rejected.csv"]
        ids = pd.DataFrame(self.ids, columns=list(ID_COLUMNS), dtype="str")
        for name, values in self.values.items():
            write_predictions(out / f"{name}.csv", ids, np.stack(values), self.parts.classes)
        if self.parts.fitted is not None:
            called = self.parts.fitted[1](np.stack(self.values["calibrated"])).astype(int).astype(str)
            frame = pd.DataFrame(called, columns=list(self.parts.classes))
            write_table(out / "positive.csv", pd.concat([ids, frame], axis=1))
        columns = ["path", *ID_COLUMNS, "view", "view_from"]
        write_table(out / "images.csv", pd.DataFrame(self.images, columns=columns, dtype="str"))
        if self.shares:
            write_table(out / "shares.csv", pd.concat(self.shares, ignore_index=True))
        return [name for name in TABLES if (out / name).is_file()]

    def _shares(self, outcome: Outcome, prediction: StudyPrediction, unread: set[str]) -> pd.DataFrame:
        read = [image.image_id for image in outcome.images if image.name not in unread]
        images = pd.DataFrame({"image_id": read, "view": [view.view for view in prediction.views]})
        logits, empty = prediction.plain_logits(), self.parts.empty_logits()
        shares = prediction.shares().T
        return share_table(outcome.group_id, images, self.parts.classes, logits, empty, shares)


def ranking(outcome: Outcome, most: int = 5) -> str:
    """A study's most probable classes in lines for people; a star where a class lies above its threshold."""
    prediction = outcome.prediction
    assert prediction is not None
    views = ", ".join(
        f"{view.view} ({view.view_from})" if view.view_from != "unknown" else view.view for view in prediction.views
    )
    calibrated, thresholds = prediction.calibrated, prediction.thresholds
    lines = [f"{outcome.group_id}: {views}"]
    for c in top_classes(prediction, most):
        line = f"  {prediction.probabilities[c]:.3f}  {prediction.classes[c]}"
        if calibrated is not None and thresholds is not None:
            star = "*" if calibrated[c] > thresholds[c] else " "
            line = f"{star} {calibrated[c]:.3f}  {prediction.classes[c]} (above {thresholds[c]:.3f}: positive)"
        lines.append(line)
    return "\n".join(lines)


def top_classes(prediction: StudyPrediction, most: int) -> Sequence[int]:
    """Numbers of the most probable classes, calibrated where that is known, the first of equals first."""
    values = prediction.probabilities if prediction.calibrated is None else prediction.calibrated
    return np.argsort(-values, kind="stable")[:most].tolist()
