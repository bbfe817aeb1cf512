"""Predict studies that no run knows: from DICOM, JPEG and PNG files to probabilities, shares and heat maps.

    model = load_model("runs/demo/fusion")
    study = model.predict_study(["frontal.dcm", "lateral.png"], views=[None, "LATERAL"])
    study.table()
    model.predict("folder")

The command `scripts/predict.py` is `fusion.predict_command`.
"""

import re
from pathlib import Path

from data.errors import InputError
from fusion.device import device_of
from fusion.folder_check import EXAMPLE_FILES, MODEL_FILES, check_example, is_published, read_published
from fusion.model_parts import WANTED, read_result
from fusion.predictor import Predictor
from fusion.study_prediction import StudyPrediction, View

__all__ = ["Predictor", "StudyPrediction", "View", "load_model"]

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_model(source: str | Path, device: str = "auto") -> Predictor:
    """A trained model, ready for image files.

    A published folder is checked file by file, and against its own example.

    Args:
        source: Result folder of a run, a published model folder (`fusion.model_folder`), or, where no file of that
            name exists, a Hub id owner/name.
        device: auto (the GPU if there is one), cpu, cuda or cuda:N.

    Raises:
        InputError: Nothing to load there, a missing, unexpected or altered file or weight, parts that do not belong
            together, an example that comes out otherwise.
    """
    place, folder = device_of(device), Path(source)
    if folder.exists() and not is_published(folder):
        return Predictor(read_result(folder.parent if folder.name == "best" else folder), place)
    if folder.exists():
        model = Predictor(read_published(folder), place)
    else:
        folder = hub_folder(str(source))
        model = Predictor(read_published(folder, links_within=folder.parent.parent), place)
    check_example(model, folder)
    return model


def hub_folder(name: str) -> Path:
    """A model repository of the Hub, downloaded into the Hub's cache: weights, JSON, YAML and the example, no more.

    Raises:
        InputError: No id of the Hub, no such repository, no connection.
    """
    if not HUB_ID.fullmatch(name) or Path(name).parent.is_dir():
        raise InputError(f"{name}: no such folder; {WANTED}")
    from huggingface_hub import snapshot_download  # a second to import

    try:
        return Path(snapshot_download(name, allow_patterns=[*MODEL_FILES, *EXAMPLE_FILES]))
    except (OSError, ValueError) as error:  # what the Hub's library raises is one or the other
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: no such folder, and not fetched from the Hub ({reason})") from None
