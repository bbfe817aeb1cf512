"""RSNA Pneumonia Detection Challenge 2018 (Kaggle): 26,684 images of NIH ChestX-ray14, read again by radiologists.

    <images>/stage_2_train_images/<patientId>.dcm
    <images>/stage_2_detailed_class_info.csv    patientId, class: Lung Opacity, No Lung Opacity / Not Normal, Normal
    <images>/stage_2_train_labels.csv           patientId, x, y, width, height, Target: a row per box
    pneumonia-challenge-dataset-mappings_2018.json     RSNA's site: [{"subset_img_id": ..., "img_id": ...}, ...]

`patientId` is an image, not a patient: several of them are one person's. The mapping tells which image of ChestX-ray14
each is, so ids here are the NIH's: 00012345_003.png of patient 00012345. An audit and `data.join` then see what the two
sets share. The 3,000 test images have no public labels and are left out; boxes are not kept.

"Lung Opacity" was marked where an opacity looked like pneumonia, without clinical data.
"""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import InputError
from data.label_spaces import RSNA_CLASSES
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.sources.nih_tables import NAME, read_list, views_by_name
from data.sources.release import compare_with_release
from data.sources.table import split_by_patient, validate_by_patient
from data.tables import read_table

FOLDER = "stage_2_train_images"
DETAILS, BOXES = "stage_2_detailed_class_info.csv", "stage_2_train_labels.csv"
LABELS = {"Lung Opacity": (1.0, 0.0), "No Lung Opacity / Not Normal": (0.0, 0.0), "Normal": (0.0, 1.0)}
TARGETS = {"Lung Opacity": "1", "No Lung Opacity / Not Normal": "0", "Normal": "0"}
NUM_IMAGES = 26_684


def read(
    images: Path,
    mapping: Path,
    labels: Path | None = None,
    nih_table: Path | None = None,
    nih_test_list: Path | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Manifest:
    """Read the RSNA pneumonia challenge as a manifest. Images are not opened.

    Args:
        images: Folder that holds `stage_2_train_images/`.
        mapping: RSNA's pneumonia-challenge-dataset-mappings_2018.json.
        labels: Folder with the two tables; null: the images' folder.
        nih_table: Data_Entry_2017_v2020.csv of ChestX-ray14, for the views; null: views are unknown.
        nih_test_list: test_list.txt of ChestX-ray14, whose images then test here too; null: a split of its own.
        val_fraction: Part of the patients (of those left, with a list) that validates, in (0, 1).
        test_fraction: Part that tests, likewise; not used with a list.
        seed: Of that split.

    Raises:
        InputError: A missing folder or file, an image without a row in the mapping, tables that contradict each other,
            a fault in one of them.
    """
    images = Path(images)
    folder = Path(labels) if labels else images
    if not (images / FOLDER).is_dir():
        raise InputError(f"{images / FOLDER}: no such folder; --images wants the one that holds {FOLDER}/")
    classes = _classes(folder)
    compare_with_release(str(folder / DETAILS), "RSNA", len(classes), NUM_IMAGES)
    names = _nih_names(classes.index, Path(mapping))
    columns = {
        "image_id": names,
        "study_id": names,  # ChestX-ray14 has no study ids either
        "patient_id": names.str[:8],
        "view": views_by_name(names, Path(nih_table), str(mapping)) if nih_table else "UNKNOWN",
        "path": [f"{FOLDER}/{name}.dcm" for name in classes.index],
        "split": "train",
        "source": "rsna",
    }
    rows = pd.DataFrame(columns).reset_index(drop=True).astype("str")[list(MANIFEST_COLUMNS)]
    values = np.array([LABELS[name] for name in classes], dtype=np.float32)
    manifest = Manifest(rows, values, RSNA_CLASSES, images)
    check_manifest(manifest, str(folder / DETAILS))
    if nih_test_list is None:
        return split_by_patient(manifest, val_fraction, test_fraction, seed)
    return validate_by_patient(_with_test(manifest, Path(nih_test_list)), val_fraction, seed)


def _classes(folder: Path) -> pd.Series:
    """The class of each `patientId`, in the table's order, after comparing the two tables."""
    path = folder / DETAILS
    details = read_table(path, required=("patientId", "class"))
    strange = ~details["class"].isin(list(LABELS))
    if strange.any():
        row = int(np.argmax(strange))
        found, known = details["class"].iat[row], ", ".join(LABELS)
        raise InputError(f"{path}, row {row + 2}, column 'class': '{found}' is none of {known}")
    details = details.drop_duplicates()  # an image has a row per box
    twice = details["patientId"].duplicated()
    if twice.any():
        raise InputError(f"{path}: patientId {details['patientId'][twice].iat[0]} has two classes")
    classes = details.set_index("patientId")["class"]
    boxes = read_table(folder / BOXES, required=("patientId", "x", "Target"), only_required=True)
    expected = boxes["patientId"].map(classes.map(TARGETS))
    wrong = (boxes["Target"] != expected) | ((boxes["x"] != "") != (boxes["Target"] == "1"))
    if wrong.any():
        row = int(np.argmax(wrong))
        image_id = boxes["patientId"].iat[row]
        raise InputError(
            f"{folder / BOXES}, row {row + 2}: Target '{boxes['Target'].iat[row]}' with x '{boxes['x'].iat[row]}' does"
            f" not go with the class '{classes.get(image_id, 'none at all')}' that {DETAILS} gives to {image_id}"
        )
    if not classes.index.isin(boxes["patientId"]).all():
        missing = classes.index[~classes.index.isin(boxes["patientId"])][0]
        raise InputError(f"{folder / BOXES}: no row for {missing}, which {DETAILS} has; take both of stage 2")
    return classes


def _nih_names(image_ids: pd.Index, path: Path) -> pd.Series:
    """The ChestX-ray14 name of each image."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        names = {str(entry["subset_img_id"]): str(entry["img_id"]) for entry in entries}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); --mapping wants RSNA's mapping file") from None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path}: a JSON list of objects with 'subset_img_id' and 'img_id' is wanted"
            f" ({type(error).__name__}: {error})"
        ) from None
    found = pd.Series([names.get(image_id, "") for image_id in image_ids], dtype="str")
    wrong = ~found.map(lambda name: NAME.fullmatch(name) is not None).astype(bool)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise InputError(
            f"{path}: {image_ids[first]} should be an image of ChestX-ray14 (00012345_000.png), got"
            f" '{found.iat[first]}' ({wrong.sum()} such images)"
        )
    return found


def _with_test(manifest: Manifest, path: Path) -> Manifest:
    """With the images of ChestX-ray14's test list in test."""
    listed = read_list(path)
    split = manifest.images["split"].where(~manifest.images["image_id"].isin(listed), "test")
    tested = Manifest(manifest.images.assign(split=split), manifest.labels, manifest.classes, manifest.root)
    check_manifest(tested, str(path))  # the list splits by patient
    return tested
