"""VinBigData Chest X-ray Abnormalities Detection (Kaggle 2021): 15,000 radiographs, 14 findings boxed by radiologists.

    <images>/train/<image_id>.dicom
    <images>/train.csv         image_id, class_name, class_id, rad_id, x_min, y_min, x_max, y_max: a row per box

These are the training images of VinDr-CXR under the same ids and by the same readers: one data set in two forms, never
two. Joined (`data.join`), they become one row per image, and an audit sees the ids in both. The competition's test
images have no public labels and are not read; boxes are not kept. There is no official split.

"Other lesion" holds what VinDr-CXR names (cavities, cysts, fractures, ...), so it is another class than VinDr's.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from data.errors import InputError
from data.ids import check_form
from data.label_spaces import VINBIGDATA_CLASSES
from data.manifest import Manifest, check_manifest
from data.sources.release import compare_with_release
from data.sources.table import split_by_patient
from data.sources.vindr import EXAMPLE, IMAGE_ID, IMAGES, check_image_folder, check_readers, image_rows
from data.sources.votes import NUM_READERS, Votes, combine
from data.tables import read_table

COLUMNS = ("image_id", "class_name", "class_id", "rad_id")


def read(
    images: Path,
    labels: Path | None = None,
    votes: Votes = "majority",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Manifest:
    """Read VinBigData as a manifest. Images are not opened.

    Args:
        images: Folder that holds `train/`.
        labels: The table of boxes; null: train.csv in the images' folder.
        votes: What three readers make a label: 1 if "any" of them drew a box, 1 if the "majority" did, or the "mean" of
            their votes as a soft label. Under "any", "No finding" is 1 if all three say so.
        val_fraction: Part of the images that validates, in (0, 1).
        test_fraction: Part that tests, likewise.
        seed: Of that split.

    Raises:
        InputError: A missing folder or file, another class, an image without exactly three readers, a fault in the
            table.
    """
    images = Path(images)
    path = Path(labels) if labels else images / "train.csv"
    check_image_folder(images, "train")
    table = read_table(path, required=COLUMNS, only_required=True)
    check_form(table["image_id"], IMAGE_ID, EXAMPLE, str(path))
    _check_classes(table, path)
    codes, names = pd.factorize(table["image_id"])
    image_ids = pd.Index(names)
    compare_with_release(str(path), "VinBigData", len(image_ids), IMAGES["train"])
    values = combine(_votes(table, codes, image_ids, path), VINBIGDATA_CLASSES.index("No finding"), votes)
    rows = image_rows(pd.Series(image_ids), "train", "train", "vinbigdata").astype("str")
    manifest = Manifest(rows, values, VINBIGDATA_CLASSES, images)
    check_manifest(manifest, str(path))
    return split_by_patient(manifest, val_fraction, test_fraction, seed)


def _check_classes(table: pd.DataFrame, path: Path) -> None:
    """Refuse a name that is not the class of its number."""
    numbers = {name: str(number) for number, name in enumerate(VINBIGDATA_CLASSES)}
    wrong = (table["class_name"].map(numbers) != table["class_id"]).to_numpy(dtype=bool)
    if wrong.any():
        row = int(np.argmax(wrong))
        name, number = table["class_name"].iat[row], table["class_id"].iat[row]
        raise InputError(
            f"{path}, row {row + 2}: '{name}' with class_id '{number}' is no class of VinBigData; the classes are"
            f" {', '.join(f'{n} {name}' for n, name in enumerate(VINBIGDATA_CLASSES))}"
        )


def _votes(table: pd.DataFrame, image_codes: np.ndarray, image_ids: pd.Index, path: Path) -> np.ndarray:
    """(N, R, C): 1 where a reader drew a box of the class, or wrote that there is no finding."""
    readings, reading_codes = np.unique(
        np.stack([image_codes, pd.factorize(table["rad_id"])[0]]), axis=1, return_inverse=True
    )
    check_readers(np.bincount(readings[0]), image_ids, path)  # sorted by image: readings 0, 1, 2 are of image 0
    found = np.zeros((readings.shape[1], len(VINBIGDATA_CLASSES)), dtype=np.float32)
    found[reading_codes, table["class_id"].astype(int)] = 1
    mixed = (found[:, VINBIGDATA_CLASSES.index("No finding")] == 1) & (found.sum(axis=1) > 1)
    if mixed.any():
        image_id = image_ids[readings[0, int(np.argmax(mixed))]]
        raise InputError(
            f"{path}: a reader of image {image_id} gave both 'No finding' and a finding; take the original"
        )
    return found.reshape(-1, NUM_READERS, len(VINBIGDATA_CLASSES))
