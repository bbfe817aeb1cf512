"""CheXpert v1.0 and v1.0-small (Stanford AIMI): 223,648 JPEGs of 64,740 patients, 14 labels from reports.

    <images>/train.csv  valid.csv                      the labels of the CheXpert labeler, and of radiologists
    <images>/train_cheXbert.csv  train_visualCheXbert.csv    other labels of the same training images
    <images>/train/patient00001/study1/view1_frontal.jpg     valid/  test/ likewise
    test_labels.csv (by image), groundtruth.csv (by study)   released later, with the images of test/

The tables put "No Finding" first or last, and have other folder names before the same paths; columns are taken by name
and paths from train/, valid/ or test/ on. Training labels are 1.0, 0.0, -1.0 (uncertain) or blank (not mentioned),
those of radiologists 0 or 1.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from data.errors import InputError
from data.groups import group_images
from data.label_spaces import CHEXPERT_CLASSES, CHEXPERT_POSITIVES, CHEXPERT_TRAIN_IMAGES
from data.labels import ZERO_OR_ONE, parse_labels
from data.manifest import MANIFEST_COLUMNS, SPLITS, Manifest, check_manifest
from data.sources.chexpert_tables import (
    check_image_folder,
    images_of_studies,
    read_paths,
    refuse_differences,
    views,
)
from data.sources.release import compare_with_release, find_table
from data.sources.report_labels import NotMentioned, UncertainRule, parse_report_labels
from data.sources.table import stacked, validate_by_patient
from data.tables import read_table, require_columns

TRAIN_TABLES = {
    "chexpert": "train.csv",
    "chexbert": "train_cheXbert.csv",
    "visualchexbert": "train_visualCheXbert.csv",
}
VIEW_COLUMNS = ("Frontal/Lateral", "AP/PA")
VALID_IMAGES = 234
TEST_ROWS = {"Path": 668, "Study": 500}


def read(
    images: Path,
    tables: Path | None = None,
    labeler: Literal["chexpert", "chexbert", "visualchexbert"] = "chexpert",
    test: Path | None = None,
    uncertain: UncertainRule = "ignore",
    not_mentioned: NotMentioned = "zeros",
    val_fraction: float = 0.1,
    seed: int = 0,
) -> Manifest:
    """Read CheXpert as a manifest. Images are not opened.

    With a test table: valid.csv validates. Without: it tests, and a part of the training patients validates.

    Args:
        images: The folder CheXpert-v1.0 or CheXpert-v1.0-small, the one that holds `train/` (and `test/`).
        tables: Folder with the tables of train and valid; null: the images' folder.
        labeler: The program whose labels train: train.csv, train_cheXbert.csv or train_visualCheXbert.csv.
        test: test_labels.csv or groundtruth.csv; null: none.
        uncertain: What -1 becomes: ones, zeros, ignore (unknown) or a number in [0, 1]; one for all classes, or by
            class, {Edema: 0.7, Atelectasis: ones}, and unknown in the others. A fraction trains, but is unknown where
            images validate.
        not_mentioned: What a blank becomes: 0 or unknown. A blank No Finding is 0 (the tables have no other way to say
            it), and a row that is blank throughout is unknown in all classes.
        val_fraction: Part of the training patients that validates where there is no test table, in (0, 1).
        seed: Of that split.

    Raises:
        InputError: A missing folder or file, a fault in a table, a path or view that CheXpert does not have.
    """
    images = Path(images)
    check_image_folder(images, "CheXpert-v1.0 or CheXpert-v1.0-small, the folder that holds train/")
    tables = Path(tables) if tables else images
    path = find_table(tables, TRAIN_TABLES[labeler], "--tables")
    frame = read_table(path, required=("Path", *VIEW_COLUMNS, *CHEXPERT_CLASSES), only_required=True)
    labels = parse_report_labels(frame, CHEXPERT_CLASSES, str(path), uncertain, not_mentioned)
    positives = {name: int(frame[name].isin(["1", "1.0"]).sum()) for name in CHEXPERT_CLASSES}
    published = CHEXPERT_POSITIVES if labeler == "chexpert" else {}
    compare_with_release(str(path), "CheXpert", len(frame), CHEXPERT_TRAIN_IMAGES, positives, published)
    parts = [_part(frame, labels, images, str(path), "train", "train")]
    parts.append(read_radiologists(find_table(tables, "valid.csv", "--tables", "val_labels.csv"), images, "valid",
                                   "val" if test else "test"))  # fmt: skip
    if test:
        parts.append(read_radiologists(Path(test), images, "test", "test"))
    return finish(parts, str(tables), val_fraction, seed)


def finish(parts: list[Manifest], where: str, val_fraction: float, seed: int) -> Manifest:
    """The parts as one manifest: checked, with images to validate on, whose labels are 0, 1 or unknown."""
    manifest = stacked(parts)
    check_manifest(manifest, where)
    try:
        group_images(manifest, "study")
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if not (manifest.images["split"] == "val").any():
        manifest = validate_by_patient(manifest, val_fraction, seed)
    scored = (manifest.images["split"] != "train").to_numpy(dtype=bool)
    soft = (manifest.labels > 0) & (manifest.labels < 1) & scored[:, None]  # a metric would round them
    return replace(manifest, labels=np.where(soft, np.float32(np.nan), manifest.labels))


def read_radiologists(path: Path, images: Path, folder: Literal["valid", "test"], split: str) -> Manifest:
    """A table of radiologists' labels, by image (`Path`) or by study (`Study`).

    Args:
        folder: Where its images must lie.
        split: What they are for, one of `SPLITS`.

    Raises:
        InputError: A fault of the table, a blank or uncertain label among them.
    """
    assert split in SPLITS, split
    frame, where = read_table(path, required=CHEXPERT_CLASSES), str(path)
    by = "Study" if "Study" in frame and "Path" not in frame else "Path"
    require_columns(path, list(frame.columns), [by])
    published = VALID_IMAGES if folder == "valid" else TEST_ROWS[by]
    compare_with_release(where, "CheXpert", len(frame), published, unit="studies" if by == "Study" else "images")
    labels = parse_labels(frame, CHEXPERT_CLASSES, where, ZERO_OR_ONE)
    if by == "Study":
        frame = images_of_studies(frame.assign(row=range(len(frame))), images, where)
        labels = labels[frame["row"].to_numpy()]
    return _part(frame, labels, images, where, folder, split)


def _part(frame: pd.DataFrame, labels: np.ndarray, images: Path, where: str, folder: str, split: str) -> Manifest:
    """Rows with a `Path`, and the two columns of the view if they have them, as a manifest."""
    rows = read_paths(frame["Path"], where, folder)
    projections = pd.Series("", frame.index, dtype="str")
    if VIEW_COLUMNS[0] in frame:
        require_columns(Path(where), list(frame.columns), VIEW_COLUMNS)
        refuse_differences(rows["side"], frame[VIEW_COLUMNS[0]], where, VIEW_COLUMNS[0])
        projections = frame[VIEW_COLUMNS[1]]
    rows = rows.assign(view=views(rows["side"], projections, where), split=split, source="chexpert")
    manifest = Manifest(rows[list(MANIFEST_COLUMNS)].astype("str"), labels, CHEXPERT_CLASSES, images)
    check_manifest(manifest, where)
    return manifest
