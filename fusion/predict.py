"""Predict studies that no run knows: from DICOM, JPEG and PNG files to probabilities, shares and heat maps.

model = load_model("runs/demo/fusion")
study = model.predict_study(["frontal.dcm", "lateral.png"], views=[None, "LATERAL"])
study.table()
model.predict("folder")
"""

from pathlib import Path

from fusion.model_parts import device_of, read_result
from fusion.predictor import Predictor
from fusion.study_prediction import StudyPrediction, View

__all__ = ["Predictor", "StudyPrediction", "View", "load_model"]


def load_model(source: str | Path, device: str = "auto") -> Predictor:
    """A trained model, ready for image files.

    Args:
        source: Result folder of a run.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.

    Raises:
        InputError: Nothing to load there, a damaged file, parts that do not belong together.
    """
    folder = Path(source)
    return Predictor(read_result(folder.parent if folder.name == "best" else folder), device_of(device))
