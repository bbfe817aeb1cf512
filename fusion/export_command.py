"""The command `scripts/export.py`: a model as one ONNX or torch.export file, left only if it says what the model says.

**V** views, **C** classes.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jsonargparse import ArgumentParser

from data.errors import InputError
from data.files import sync_folder, sync_tree
from data.phantom.constants import View
from data.phantom.patient import sample_patient
from data.phantom.radiograph import radiograph, sample_taking
from data.phantom.write import write_image
from data.runs import run_command
from data.views import VIEWS
from fusion.export import MAX_VIEWS, Run, check_format, load_exported, write_exported
from fusion.grouping import slots_in_order
from fusion.joint_model import live_maps
from fusion.model_folder import EXAMPLE_FINDINGS, EXAMPLE_SEED, EXAMPLE_SIZE
from fusion.opened_image import Opened, open_image
from fusion.predict import load_model
from fusion.predictor import Predictor

MOST = 1e-4
"""Largest difference of a logit between file and model."""

STUDY: tuple[View, ...] = ("PA", "LATERAL", "AP", "PA", "LATERAL", "AP", "PA")
"""Views of the phantom study that file and model are compared on: the first, the first two, and so on."""


@dataclass(frozen=True)
class Parity:
    """Largest differences of the file's logits for one number of views."""

    num_views: int
    model: float
    """From the model in float32, its maps as they are."""
    predicted: float
    """From what `scripts/predict.py` says in one pass: with maps rounded to the form of the cache, in its precision."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="export.py", description="Export a trained model as one ONNX or torch.export file.")
    parser.add_argument(
        "--model", type=str, required=True, help="runs/x/fusion, a published model folder, or a Hub id owner/name"
    )
    parser.add_argument("--out", type=Path, required=True, help="model.onnx, or model.pt2 for torch.export")
    options = parser.parse_args(argv)
    run_command(lambda: export(options.model, options.out))


def export(model: str | Path, out: Path) -> None:
    """Write `out` and print how far its logits are from the model's; nothing is left where that is too far.

    Raises:
        InputError: No such model, `out` exists or has another suffix, a difference above `MOST`.
    """
    check_format(out)
    if out.exists():
        raise InputError(f"--out {out}: is there already; choose another name, or delete it")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no such folder")
    predictor = load_model(model, "cpu")
    temporary = out.with_name(f".tmp-{out.name}")
    try:
        write_exported(predictor.parts, temporary)
        rows = parity(predictor, load_exported(temporary))
        print("\n".join(parity_lines(rows)))
        refuse_far(rows, out)
        sync_tree(temporary)
        os.replace(temporary, out)
        sync_folder(out.absolute().parent)
    finally:
        temporary.unlink(missing_ok=True)
    print("\n".join(said_of(predictor, out)))


def parity(predictor: Predictor, run: Run) -> list[Parity]:
    """Compare an exported file with its model on phantom studies of one to seven views."""
    opened = phantom_study(predictor)
    return [compared(predictor, run, opened[:number]) for number in range(1, len(opened) + 1)]


def phantom_study(predictor: Predictor) -> list[Opened]:
    """Radiographs of one simulated patient, as files that the model opens."""
    patient, opened = sample_patient(EXAMPLE_SEED), []
    with tempfile.TemporaryDirectory() as folder:
        for number, view in enumerate(STUDY):
            path, taking = Path(folder, f"{number}.png"), sample_taking(view, EXAMPLE_SEED + number)
            write_image(path, radiograph(patient, EXAMPLE_FINDINGS, view, taking, EXAMPLE_SIZE), view)
            opened.append(open_image(predictor.parts, path, path.name, view))
    return opened


@torch.inference_mode()
def compared(predictor: Predictor, run: Run, opened: Sequence[Opened]) -> Parity:
    """One study through the file, through the model, and through all that `scripts/predict.py` does in one pass."""
    parts, prediction = predictor.parts, predictor.fuse(opened)
    grey = torch.from_numpy(prediction.images[prediction.order])[:, None]
    pixels = parts.preprocessing.normalised(grey).contiguous()
    types = torch.tensor([VIEWS.index(prediction.views[v].view) for v in prediction.order])
    number = torch.arange(len(opened))
    slots = torch.from_numpy(slots_in_order(len(opened), parts.config.model.num_slots))
    maps = live_maps(parts.backbone, pixels, parts.identity.pool, torch.float32)
    said = parts.fusion(maps[None], prediction.view_types[None], slots[None])[0].numpy()
    found = run(pixels.clone(), types, number)
    far = [float(np.abs(found - wanted).max()) for wanted in (said, prediction.plain_logits())]
    return Parity(len(opened), *far)


def parity_lines(rows: Sequence[Parity]) -> list[str]:
    """The differences as a table."""
    head = ["largest difference of a logit, simulated study", f"{'views':>5}{'to the model':>16}{'to predict.py':>16}"]
    return [*head, *(f"{row.num_views:>5}{row.model:>16.1e}{row.predicted:>16.1e}" for row in rows)]


def refuse_far(rows: Sequence[Parity], out: Path) -> None:
    """Refuse a file that says something else than its model.

    Raises:
        InputError: names the worst number of views.
    """
    worst = max(rows, key=lambda row: np.nan_to_num(row.model, nan=np.inf))
    if not worst.model <= MOST:
        raise InputError(
            f"--out {out}: not written: with {worst.num_views} views a logit differs by {worst.model:.1e} from the"
            f" model's, {MOST:g} at most is wanted; try the other format, or other versions of torch and onnxruntime"
        )


def said_of(predictor: Predictor, out: Path) -> list[str]:
    """What there is now, and what is not in it."""
    parts, plain = predictor.parts, predictor.parts.preprocessing
    size = f"(V {plain.channels} {plain.size} {plain.size})"
    lines = [
        f"wrote {out}, {out.stat().st_size / 1e6:.1f} MB: images {size} float32, view_types (V) int64, slots (V) int64"
        f" -> logits ({len(parts.classes)}); V from 1 to {MAX_VIEWS}",
        f"view types: {', '.join(f'{number} {view}' for number, view in enumerate(VIEWS))}; slots 0, 1, ... in the"
        " order of view types",
    ]
    left_out = ["decoding and preprocessing", *(["calibration"] if parts.fitted else [])]
    if parts.evaluation.slot_draws > 1 or len(parts.variants) > 1:
        left_out.append("the average over test-time passes")
    if parts.evaluation.normal_gate != "off":
        left_out.append("the normal gate")
    return [*lines, f"not in the file: {', '.join(left_out)}"]
