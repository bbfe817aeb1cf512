"""CheXpert Plus v1.0 (Stanford AIMI): 223,462 PNGs of 64,725 patients, reports, and CheXbert's labels of them.

    <images>/train/patient00001/study1/view1_frontal.png     valid/ likewise; the zips unpack to PNG/train, PNG/valid
    df_chexpert_plus_240401.csv                              one row per image; 27 columns, reports with line breaks
    chexbert_labels/impression_fixed.json                    JSON lines, one object per image; findings_, report_fixed

`path_to_image` ends in .jpg although the pictures are PNGs. CheXbert takes a section that is not there for "No
Finding": three of four reports have no findings section, one of a thousand no impression. Labels of a row whose section
is blank are therefore unknown. There are no test rows.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError
from data.label_spaces import CHEXPERT_CLASSES
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.sources.chexpert import finish, read_radiologists
from data.sources.chexpert_tables import check_image_folder, read_paths, refuse_differences, views
from data.sources.release import compare_with_release
from data.sources.report_labels import NotMentioned, UncertainRule, parse_report_labels
from data.tables import MAX_LINE, read_table

COLUMNS = ("path_to_image", "frontal_lateral", "ap_pa", "deid_patient_id", "split")
SECTIONS = {"impression": "section_impression", "findings": "section_findings", "report": "report"}
NUM_IMAGES = 223_462
SHOWN = 60  # characters of a bad line that an error repeats

TEXTS = {"None": "", **{text: text for text in ("1.0", "0.0", "-1.0", "1", "0", "-1")}}

Section = Literal["impression", "findings", "report"]

log = logging.getLogger(__name__)


def read(
    images: Path,
    table: Path,
    labels: Path | None = None,
    section: Section = "impression",
    valid: Path | None = None,
    uncertain: UncertainRule = "ignore",
    not_mentioned: NotMentioned = "zeros",
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Manifest:
    """Read CheXpert Plus as a manifest of PNGs. Images are not opened.

    The valid images test; a part of the training patients validates.

    Args:
        images: The folder of PNGs, the one that holds `train/`.
        table: df_chexpert_plus_240401.csv, packed or unpacked.
        labels: Folder with the JSON lines; null: chexbert_labels beside the table.
        section: The part of the report that the labels were found in.
        valid: valid.csv of CheXpert v1.0: radiologists' labels for the valid images, in place of those of reports.
        uncertain: What -1 becomes: ones, zeros, ignore (unknown) or a number in [0, 1]; one for all classes, or by
            class, {Edema: 0.7, Atelectasis: ones}, and unknown in the others. A fraction trains, but is unknown where
            images validate or test.
        not_mentioned: What a null becomes: 0 or unknown. A null No Finding is 0.
        val_fraction: Part of the training patients that validates, in (0, 1).
        seed: Of that split.

    Raises:
        InputError: A missing folder or file, a fault in a table, rows that do not belong together.
    """
    images, table, where = Path(images), Path(table), str(table)
    check_image_folder(images, "the folder of PNGs that holds train/ (unpacked: PNG)")
    frame = read_table(table, required=(*COLUMNS, SECTIONS[section]), only_required=True)
    compare_with_release(where, "CheXpert Plus", len(frame), NUM_IMAGES)
    rows = read_paths(frame["path_to_image"], where, None)
    refuse_differences(rows["patient_id"], frame["deid_patient_id"], where, "deid_patient_id")
    refuse_differences(rows["side"], frame["frontal_lateral"], where, "frontal_lateral")
    refuse_differences(rows["folder"], frame["split"], where, "split")
    source = Path(labels) if labels else table.parent / "chexbert_labels"
    values = _labels_of(rows, source / f"{section}_fixed.json", uncertain, not_mentioned)
    blank = (frame[SECTIONS[section]].str.strip() == "").to_numpy(dtype=bool)
    if blank.any():
        log.warning("%d of %d reports have no text in %s: their labels are unknown", blank.sum(), len(blank), section)
    values[blank] = np.nan
    if valid:
        _take_radiologists(values, rows, Path(valid), images)
    if (rows["folder"] == "test").any():
        raise InputError(f"{where}: {(rows['folder'] == 'test').sum()} rows lie in test/; CheXpert Plus has none there")
    rows = rows.assign(
        view=views(rows["side"], frame["ap_pa"], where),
        path=rows["path"].str.removesuffix(".jpg") + ".png",
        split=rows["folder"].map({"train": "train", "valid": "test"}),
        source="chexpert_plus",
    )
    manifest = Manifest(rows[list(MANIFEST_COLUMNS)].astype("str"), values, CHEXPERT_CLASSES, images)
    check_manifest(manifest, where)
    return finish([manifest], where, val_fraction, seed)


def read_json_lines(path: Path) -> pd.DataFrame:
    """CheXbert's labels as the text of a label table: `path_to_image` and the 14 classes, "" for null.

    Raises:
        InputError: No such file, a line that is no object with exactly these 15 keys, a path twice.
    """
    keys = ("path_to_image", *CHEXPERT_CLASSES)
    try:
        with open(path, encoding="utf-8") as file:
            lines = [_values(path, number, line, keys) for number, line in enumerate(_bounded(path, file), start=1)]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; --labels wants the folder that holds it") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not lines:
        raise InputError(f"{path}: empty file; JSON lines are wanted, one object per image")
    frame = pd.DataFrame(lines, columns=list(keys), dtype="str")
    repeated = frame["path_to_image"].duplicated()
    if repeated.any():
        row = int(np.argmax(repeated))
        raise InputError(f"{path}, line {row + 1}: {frame['path_to_image'].iat[row]} occurs twice")
    return frame


def _bounded(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE):
        number += 1
        if len(line) == MAX_LINE:
            raise InputError(f"{path}, line {number}: longer than {MAX_LINE} characters; JSON lines are wanted")
        yield line


def _values(path: Path, number: int, line: str, keys: tuple[str, ...]) -> list[str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or found.keys() != set(keys):
        shown = line[:SHOWN].strip()
        raise InputError(
            f"{path}, line {number}: one JSON object with path_to_image and the 14 classes is wanted, got {shown!r}"
        )
    texts = [str(found[key]) for key in keys]
    strange = [key for key, text in zip(keys[1:], texts[1:], strict=True) if text not in TEXTS]
    if strange:
        shown = repr(found[strange[0]])[:SHOWN]
        raise InputError(f"{path}, line {number}, '{strange[0]}': 1.0, 0.0, -1.0 or null is wanted, got {shown}")
    return [texts[0], *(TEXTS[text] for text in texts[1:])]


def _labels_of(
    rows: pd.DataFrame, path: Path, uncertain: UncertainRule, not_mentioned: NotMentioned
) -> Float32[np.ndarray, "N C"]:
    """Labels of each image; NaN where the file has no line for it."""
    found = read_json_lines(path)
    labels = parse_report_labels(found, CHEXPERT_CLASSES, str(path), uncertain, not_mentioned)
    places = pd.Index(found["path_to_image"]).get_indexer(rows["path"])
    strange = len(found) - (places >= 0).sum()
    if strange or (places < 0).all():
        raise InputError(f"{path}: {strange} of {len(found)} paths are not in the table; are both of one release?")
    if (places < 0).any():
        log.warning("%s: no line for %d images; their labels are unknown", path, (places < 0).sum())
    return np.where(places[:, None] < 0, np.float32(np.nan), labels[places])


def _take_radiologists(values: np.ndarray, rows: pd.DataFrame, path: Path, images: Path) -> None:
    """Write radiologists' labels over those of the valid images' reports."""
    theirs = read_radiologists(path, images, "valid", "test")
    places = pd.Index(theirs.images["image_id"]).get_indexer(rows["image_id"])
    without = ((rows["folder"] == "valid") & (places < 0)).to_numpy(dtype=bool)
    if without.any():
        raise InputError(
            f"{path}: no row for {rows['path'].iat[int(np.argmax(without))]} ({without.sum()} such images)"
        )
    values[places >= 0] = theirs.labels[places[places >= 0]]
