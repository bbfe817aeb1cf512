"""The command `scripts/predict.py`: a trained model and new images in, tables and pictures out."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jsonargparse import ArgumentParser
from tqdm import tqdm

from data.errors import InputError
from data.files import atomic_write
from data.lock import locked
from data.runs import run_command
from data.study_files import StudyImage, find_images, read_image_table
from fusion.predict import load_model
from fusion.prediction_tables import PredictionTables, ranking, top_classes
from fusion.predictor import NUM_THREADS, Predictor, none_usable

MOST_PRINTED = 20
"""Studies whose ranking is printed; all of them are in the tables."""

RECORD = "predict.json"
"""In the folder of results: what they are of."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; a fault of the input ends it with one line and status 1."""
    parser = ArgumentParser(prog="predict.py", description="Predict new studies: DICOM, JPEG and PNG in, CSV out.")
    parser.add_argument(
        "--model", type=str, required=True, help="runs/x/fusion, a published model folder, or a Hub id owner/name"
    )
    parser.add_argument("--images", type=Path, nargs="+", default=[], help="files and folders")
    parser.add_argument(
        "--table", type=Path | None, default=None, help="instead: CSV with path, study_id and, if known, view"
    )
    parser.add_argument("--out", type=Path, default=Path("predictions"), help="folder to write")
    parser.add_argument("--heat_maps", action="store_true", help="draw where the model looked, a picture per class")
    parser.add_argument("--shares", action="store_true", help="write what each view added to each class")
    parser.add_argument("--classes", type=list[str], default=[], help="classes to draw (default: the most probable)")
    parser.add_argument("--top", type=int, default=3, help="how many classes to draw unless they are named")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--num_workers", type=int, default=NUM_THREADS, help="threads that decode images")
    parser.add_argument("--key", type=Path | None, default=None, help="file with the key of DICOM pseudonyms")
    options = vars(parser.parse_args(argv))
    run_command(lambda: predict(**options))


def predict(
    model: str,
    images: Sequence[Path] = (),
    table: Path | None = None,
    out: Path = Path("predictions"),
    heat_maps: bool = False,
    shares: bool = False,
    classes: Sequence[str] = (),
    top: int = 3,
    device: str = "auto",
    num_workers: int = NUM_THREADS,
    key: Path | None = None,
) -> None:
    """Write the tables, and with `heat_maps` the pictures, to `out`; print a ranking of classes per study.

    Raises:
        InputError: No such model, image, class or table, results of something else in `out`, no usable image.
    """
    if bool(images) == (table is not None):
        raise InputError("--images or --table: wanted one of the two")
    if inputs := [given for given in images if given.is_dir() and out.resolve().is_relative_to(given.resolve())]:
        raise InputError(f"--out {out}: lies in {inputs[0]}, so pictures written now would be taken for images later")
    predictor = load_model(model, device)
    if unknown := [name for name in classes if name not in predictor.classes]:
        raise InputError(f"--classes: {unknown[0]!r} is none of the classes {', '.join(predictor.classes)}")
    found, rejected = find_images(images, key) if table is None else (read_image_table(table), [])
    if not found:
        raise InputError(f"--images {images[0]}: {none_usable(rejected)}")
    record = run_record(predictor, found)
    refuse_others(out, record)
    with locked(out):
        atomic_write(out / RECORD, json.dumps(record, indent=1) + "\n")
        tables = PredictionTables(predictor.parts, rejected=rejected)
        groups = predictor.groups(found)
        bar = tqdm(predictor.outcomes(groups, num_workers), "predicting", len(groups), unit="study", disable=None)
        for number, one in enumerate(bar):
            tables.add(one, shares)
            if one.prediction is None:
                continue
            if number < MOST_PRINTED:
                tqdm.write(ranking(one))
            if heat_maps:
                chosen = list(classes) or [predictor.classes[c] for c in top_classes(one.prediction, top)]
                one.prediction.save_heat_maps(out / "heat_maps" / quote(one.group_id, safe=""), chosen)
        finish(out, tables, len(groups), heat_maps)


def finish(out: Path, tables: PredictionTables, num_groups: int, heat_maps: bool) -> None:
    """Write the tables and say what there is.

    Raises:
        InputError: Not one study had a usable image.
    """
    written = tables.write(out)
    if not tables.num_studies:
        raise InputError(f"{none_usable(tables.rejected)}; all are listed in {out / 'rejected.csv'}")
    if num_groups > MOST_PRINTED:
        print(f"... of {num_groups} studies the first {MOST_PRINTED} are shown")
    left_out = f"; {len(tables.rejected)} files left out" if tables.rejected else ""
    print(f"{tables.num_studies} studies with {len(tables.ids)} images predicted{left_out}")
    print(f"wrote {', '.join(written)}{' and heat_maps/' if heat_maps else ''} in {out}")


def run_record(model: Predictor, images: Sequence[StudyImage]) -> dict[str, Any]:
    """What predictions are of, as digests: the weights; the images by name, with their studies and views."""
    rows = [[one.name, one.image_id, one.study_id, one.patient_id, one.view] for one in images]
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return {"model": [model.parts.weights_sha256, model.parts.identity.weights_sha256], "images": digest}


def refuse_others(out: Path, record: dict[str, Any]) -> None:
    """Refuse a folder that holds anything else than results of the same model on the same images.

    Raises:
        InputError: says what is there.
    """
    if not out.exists() or (out.is_dir() and all(entry.name == ".lock" for entry in out.iterdir())):
        return
    try:
        former = json.loads((out / RECORD).read_text(encoding="utf-8"))
        differs = [name for name in record if former[name] != record[name]]
    except (OSError, ValueError, LookupError, TypeError):
        raise InputError(f"--out {out}: holds something else than predictions; choose another folder") from None
    if differs:
        what = {"model": "another model", "images": "other images, studies or views"}[differs[0]]
        raise InputError(f"--out {out}: holds predictions of {what}; choose another folder, or delete it")
