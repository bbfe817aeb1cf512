"""NIH-CXR-LT (Holste et al., MICCAI 2023): 20 labels on the images of NIH ChestX-ray14, with a split of its own.

    <labels>/miccai2023_nih-cxr-lt_labels_train.csv  _val.csv  _test.csv

One row per image: `id`, 20 classes (five of them not in ChestX-ray14), 0 or 1, and `subj_id`. The split is by patient
and is not that of ChestX-ray14: a model trained on one has seen test images of the other. There are no views here.
"""

from pathlib import Path

import pandas as pd

from data.errors import InputError
from data.label_spaces import NIH_CXR_LT_CLASSES
from data.labels import ZERO_OR_ONE, parse_labels
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.sources.nih_tables import image_places, patients_of, views_by_name
from data.sources.release import compare_with_release, find_table
from data.sources.table import stacked
from data.tables import read_table

FILE = "miccai2023_nih-cxr-lt_labels_{}.csv"
# The first is what the other two leave of all 112,120 images, as the paper says; its table itself was not seen.
IMAGES = {"train": 78_506, "val": 12_533, "test": 21_081}


def read(images: Path, labels: Path, entries: Path | None = None) -> Manifest:
    """Read NIH-CXR-LT as a manifest with its own split. Images are not opened.

    Args:
        images: Folder of the PNGs of NIH ChestX-ray14, all in one, in images/, or in images_001/images/ to
            images_012/images/.
        labels: Folder with the three tables.
        entries: Data_Entry_2017_v2020.csv or Data_Entry_2017.csv of ChestX-ray14, for the views; null: all unknown.

    Raises:
        InputError: A missing folder or file, a fault in a table, other classes than the 20, an image in two tables.
    """
    images, labels = Path(images), Path(labels)
    parts = [_read_part(find_table(labels, FILE.format(split), "--labels"), split, images) for split in IMAGES]
    manifest = stacked(parts)
    places = image_places(images, manifest.images["image_id"], str(labels))
    rows = manifest.images.assign(path=pd.array(places, dtype="str"))
    if entries:
        rows = rows.assign(view=views_by_name(rows["image_id"], Path(entries), str(labels)))
    manifest = Manifest(rows, manifest.labels, manifest.classes, images)
    check_manifest(manifest, str(labels))
    return manifest


def _read_part(path: Path, split: str, images: Path) -> Manifest:
    frame, where = read_table(path, required=("id", *NIH_CXR_LT_CLASSES, "subj_id"), blank_end=True), str(path)
    strange = [name for name in frame.columns if name not in (*NIH_CXR_LT_CLASSES, "id", "subj_id")]
    if strange:
        raise InputError(f"{where}, row 1: column '{strange[0]}' is none of the 20 classes of NIH-CXR-LT")
    compare_with_release(where, "NIH-CXR-LT", len(frame), IMAGES[split])
    columns = {
        "image_id": frame["id"],
        "study_id": frame["id"],
        "patient_id": patients_of(frame["id"], frame["subj_id"], where),
        "view": "UNKNOWN",
        "path": frame["id"],
        "split": split,
        "source": "nih_cxr_lt",
    }
    rows = pd.DataFrame(columns, dtype="str")[list(MANIFEST_COLUMNS)]
    manifest = Manifest(rows, parse_labels(frame, NIH_CXR_LT_CLASSES, where, ZERO_OR_ONE), NIH_CXR_LT_CLASSES, images)
    check_manifest(manifest, where)
    return manifest
