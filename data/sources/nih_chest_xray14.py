"""NIH ChestX-ray14 (NIH Clinical Center): 112,120 frontal PNGs of 30,805 patients, 14 findings from reports.

    Data_Entry_2017_v2020.csv, or the older Data_Entry_2017.csv    one row per image
    train_val_list.txt  test_list.txt                             the official split, by patient; one name per line
    BBox_List_2017.csv                                            984 boxes that radiologists drew on 880 images
    <images>/00000001_000.png, images/ or images_001/images/ ... images_012/images/

The header says `OriginalImage[Width,Height]` without quotes, so that it counts 11 columns where 9 are meant; some
copies end every line in a comma, and say `Patient Sex` for `Patient Gender`. There is no study: every image is its own.
"""

import logging
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError
from data.label_spaces import NIH_CHEST_XRAY14_CLASSES, NIH_CHEST_XRAY14_IMAGES, NIH_CHEST_XRAY14_POSITIVES
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.sources.nih_tables import image_places, read_entries, read_list
from data.sources.release import compare_with_release, find_table
from data.sources.table import split_by_patient, validate_by_patient

ENTRIES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
LISTS = {"train": ("train_val_list.txt", 86_524), "test": ("test_list.txt", 25_596)}  # file, images in the release
NO_FINDING = "No Finding"

log = logging.getLogger(__name__)


def read(
    images: Path,
    tables: Path | None = None,
    split: Literal["official", "patients"] = "official",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Manifest:
    """Read NIH ChestX-ray14 as a manifest. Images are not opened.

    Args:
        images: Folder of the PNGs, all in one, in images/, or in images_001/images/ to images_012/images/.
        tables: Folder with the table of labels and the two lists; null: the images' folder.
        split: "official": test_list.txt tests, and a part of the patients of train_val_list.txt validates. "patients":
            a split of all patients that keeps every class's share.
        val_fraction: Part of the patients (official: of the training patients) that validates, in (0, 1).
        test_fraction: Part that tests, likewise, where the split is not the official one.
        seed: Of that split.

    Raises:
        InputError: A missing folder or file, a fault in a table or list, a label that the data set does not have.
    """
    images = Path(images)
    tables = Path(tables) if tables else images
    path = find_table(tables, ENTRIES[0], "--tables", *ENTRIES[1:])
    rows, findings = read_entries(path)
    labels = _labels(findings, str(path))
    positives = dict(zip(NIH_CHEST_XRAY14_CLASSES, (labels == 1).sum(axis=0).tolist(), strict=True))
    compare_with_release(
        *(str(path), "NIH ChestX-ray14", len(rows), NIH_CHEST_XRAY14_IMAGES, positives, NIH_CHEST_XRAY14_POSITIVES)
    )
    rows = rows.assign(
        study_id=rows["image_id"],
        path=image_places(images, rows["image_id"], str(path)),
        split="train",
        source="nih_chest_xray14",
    )
    manifest = Manifest(rows[list(MANIFEST_COLUMNS)].astype("str"), labels, NIH_CHEST_XRAY14_CLASSES, images)
    check_manifest(manifest, str(path))
    if split == "patients":
        return split_by_patient(manifest, val_fraction, test_fraction, seed)
    return validate_by_patient(_officially_split(manifest, tables), val_fraction, seed)


def _officially_split(manifest: Manifest, tables: Path) -> Manifest:
    """With the split of the two lists; images in neither are named as rejected."""
    ids, splits = manifest.images["image_id"], {}
    for split, (file, published) in LISTS.items():
        path = find_table(tables, file, "--tables")
        names = read_list(path)
        compare_with_release(str(path), "NIH ChestX-ray14", len(names), published)
        shared = [name for name in names if name in splits]
        if shared:
            raise InputError(f"{path}: {len(shared)} names are also in {LISTS['train'][0]}, first {shared[0]}")
        splits |= dict.fromkeys(names, split)
    known = ids.isin(list(splits)).to_numpy(dtype=bool)
    if without := len(splits) - known.sum():
        log.warning("%d images of the lists have no row in the table", without)
    if not known.any():
        raise InputError(f"{tables}: the lists name none of the images of the table; are both of NIH ChestX-ray14?")
    reason = f"is neither in {' nor in '.join(file for file, _ in LISTS.values())}; together they should name all"
    rejected = tuple((path, reason) for path in manifest.images["path"][~known])
    manifest = manifest.select(known)
    images = manifest.images.assign(split=manifest.images["image_id"].map(splits).astype("str"))
    manifest = Manifest(images, manifest.labels, manifest.classes, manifest.root, rejected)
    check_manifest(manifest, str(tables))
    return manifest


def _labels(findings: pd.Series, where: str) -> Float32[np.ndarray, "N C"]:
    codes, texts = pd.factorize(findings)  # 836 different ones in the release
    values = np.zeros((len(texts), len(NIH_CHEST_XRAY14_CLASSES)), dtype=np.float32)
    places = {name: place for place, name in enumerate(NIH_CHEST_XRAY14_CLASSES)}
    for number, text in enumerate(texts):
        items = text.split("|")
        strange = [item for item in items if item not in places]
        if strange or (NO_FINDING in items and len(items) > 1):
            wanted = f"'{strange[0]}' is none of the classes" if strange else f"{NO_FINDING} must stand alone"
            row = int(np.argmax(codes == number))
            raise InputError(f"{where}, row {row + 2}, column 'Finding Labels': {wanted}, got '{text[:80]}'")
        values[number, [places[item] for item in items]] = 1
    return values[codes]
