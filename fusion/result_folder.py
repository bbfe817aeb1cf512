"""What a result folder says of itself: its held-out predictions, what it fused, where its model lies.

*Held out* are the predictions that may be fitted on: `logits_val.csv` of a run, or `logits_oof.csv` of joined folds.
"""

from pathlib import Path
from typing import Any, Literal, cast

from data.config import read_yaml
from data.errors import InputError
from data.strict_json import read_json

GroupBy = Literal["study", "patient"]
HELD_OUT = {"val": ("val",), "oof": ("train", "val")}
"""What a held-out file is called after, and the splits whose images it may hold."""


def held_out_kind(folder: Path) -> str:
    """ "val" or "oof".

    Raises:
        InputError: There are no held-out predictions in the folder.
    """
    for kind in HELD_OUT:
        if (folder / f"logits_{kind}.csv").is_file():
            return kind
    raise InputError(
        f"{folder / 'logits_val.csv'}: missing, and no logits_oof.csv; finish train_fusion.py, or join folds, first"
    )


def group_by_of(folder: Path) -> GroupBy:
    """What a result folder fused.

    Raises:
        InputError: No record of it.
    """
    if (found := recorded_group_by(folder)) is None:
        raise InputError(
            f"{folder / 'config.yaml'}: missing, so it is not known whether studies or patients were fused"
        )
    return found


def recorded_group_by(folder: Path) -> GroupBy | None:
    """What a folder's predictions fused, from its own record or that of the run or folds it came from; None without."""
    if (folder / "ensemble.json").is_file():
        return _group_by(read_json(folder / "ensemble.json", "make it again").get("by"), folder / "ensemble.json")
    for stage in (folder, folder.parent, folder.parent / "fold_0" / folder.name):
        if (path := stage / "config.yaml").is_file():
            tree = read_yaml(path)  # parsing it as a configuration would load torch
            section = tree.get("grouping") if isinstance(tree, dict) else None
            return _group_by(section.get("by", "study") if isinstance(section, dict) else "study", path)
    return None


def model_folder(folder: Path) -> Path:
    """Where calibration and thresholds of a result folder lie: in its model, or beside the predictions of several."""
    return folder / "best" if (folder / "best").is_dir() else folder


def _group_by(found: Any, path: Path) -> GroupBy:
    if found not in ("study", "patient"):
        raise InputError(f"{path}: wanted groups by study or by patient, found {found!r}; make it again")
    return cast(GroupBy, found)
