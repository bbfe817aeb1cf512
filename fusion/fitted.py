"""`calibration.json` and `thresholds.json` of a model folder: plain JSON, written as a pair, read strictly.

They say what they were fitted on and to which model. They are not in `digests.json`, which vouches for what training
wrote; training a model anew replaces its folder, and them with it.
"""

import json
from pathlib import Path
from typing import Any

from data import calibration, thresholds
from data.calibration import Calibration
from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.strict_json import check_keys, read_json
from data.thresholds import Thresholds
from fusion.result_folder import HELD_OUT, held_out_kind, model_folder
from fusion.saved import Saved

FORMAT = 1
AGAIN = "run scripts/calibrate.py again"


def save_fitted(folder: Path, fitted: Calibration, chosen: Thresholds, held_out: Saved) -> None:
    """Write both files. `thresholds.json` names the calibration that it belongs to, so that half a pair is noticed."""
    target = model_folder(folder)
    head = {"format": FORMAT, "fitted_on": origin(held_out), "predictor_sha256": predictor_digest(target)}
    atomic_write(target / "calibration.json", _as_text(head | calibration.to_json(fitted)))
    head["calibration_sha256"] = sha256_file(target / "calibration.json")
    atomic_write(target / "thresholds.json", _as_text(head | thresholds.to_json(chosen)))


def load_fitted(folder: Path) -> tuple[Calibration, Thresholds]:
    """Read both files.

    Args:
        folder: A model folder, or the result folder that holds it.

    Raises:
        InputError: A file is missing, says something else than it should, or belongs to another model or to held-out
            predictions that were made anew since.
    """
    target = model_folder(folder)
    path, other = target / "calibration.json", target / "thresholds.json"
    _, body = _read(path, predictor_digest(target), {})
    fitted = calibration.from_json(body, str(path))
    head, body = _read(other, predictor_digest(target), {"calibration_sha256": str})
    chosen = thresholds.from_json(body, str(other))
    if head["calibration_sha256"] != sha256_file(path) or chosen.classes != fitted.classes:
        raise InputError(f"{other}: was made with another calibration.json than the one beside it; {AGAIN}")
    _refuse_new_predictions(folder, head["fitted_on"])
    return fitted, chosen


def origin(held_out: Saved) -> dict[str, Any]:
    """What was fitted on: the file by name and digest, its unit, and how many of it."""
    digest, rows = sha256_file(held_out.path), len(held_out.groups.ids)
    return {"file": held_out.path.name, "sha256": digest, "unit": held_out.by, "rows": rows}


def predictor_digest(target: Path) -> str:
    """SHA-256 of a model's weights, as its `digests.json` has it; of several models, of their held-out predictions."""
    path = target / "digests.json"
    if not path.is_file():
        return sha256_file(target / f"logits_{held_out_kind(target)}.csv")
    digest = read_json(path, "train the model again").get("model.safetensors")
    if not isinstance(digest, str):
        raise InputError(f"{path}: damaged, wanted the digest of model.safetensors; train the model again")
    return digest


def _refuse_new_predictions(folder: Path, fitted_on: dict[str, Any]) -> None:
    """The same model predicts differently with other test-time passes or gates, and wants another calibration then."""
    for kind in HELD_OUT:
        path = folder / f"logits_{kind}.csv"
        if path.name == fitted_on["file"] and path.is_file() and sha256_file(path) != fitted_on["sha256"]:
            raise InputError(f"{path}: has changed since calibration.json was fitted on it; {AGAIN}")


def _read(path: Path, predictor: str, extra: dict[str, type]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The head, checked, and the rest of the file."""
    record = read_json(path, "run scripts/calibrate.py first")
    keys = {"format": int, "fitted_on": dict, "predictor_sha256": str} | extra
    head = {key: record.pop(key) for key in keys if key in record}
    check_keys(head, keys, str(path))
    check_keys(head["fitted_on"], {"file": str, "sha256": str, "unit": str, "rows": int}, f"{path}: fitted_on")
    if head["format"] != FORMAT:
        raise InputError(f"{path}: format must be {FORMAT}, found {head['format']}; {AGAIN}")
    if head["predictor_sha256"] != predictor:
        raise InputError(f"{path}: was fitted to another model than {path.parent} holds; {AGAIN}")
    return head, record


def _as_text(record: dict[str, Any]) -> str:
    return json.dumps(record, indent=1, allow_nan=False) + "\n"
