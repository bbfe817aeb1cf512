"""PadChest (BIMCV, Hospital San Juan, Spain): 160,861 radiographs of 109,931 studies, labels from Spanish reports.

    PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv[.gz]    36 columns, the first one (a row index) without a name
    <images>/<ImageDir>/<ImageID>  or  <images>/<ImageID>        16-bit PNG; ImageDir, 0 to 50 or 54, is a zip's number

`StudyID` is taken from its column: in one of eighty rows the file name begins with another number. Views come from
`Projection`, which the authors assigned by hand or by a network, not from the free text of the header.

Labels belong to the report. `Labels` is the text of a Python list; a third of its items begin with a blank. A listed
label is present and every other one absent, unless the row names neither "normal" nor any finding (blank, `[]`, or
"unchanged" alone, say): that tells nothing, and all classes are unknown. Physicians labelled 39,053 rows, a network
trained on those the rest (`MethodLabel`): the manifest's source says which, so that scores come for both.

About 33 of the files do not decode; `data.scan` names them before training. No official split exists.
"""

import logging
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32

from data.errors import InputError
from data.manifest import MANIFEST_COLUMNS, Manifest, check_manifest
from data.sources.padchest_labels import PADCHEST_CLASSES, PADCHEST_LABELS, UNINFORMATIVE
from data.sources.table import agree_within_studies, frequent_classes, split_by_patient
from data.tables import read_table
from data.views import view_of_padchest, views_of

METADATA = ("ImageID", "ImageDir", "StudyID", "PatientID", "Projection")
SOURCES = {"Physician": "padchest_physician", "RNN_model": "padchest_rnn"}  # MethodLabel, its two values

ITEM = r"(?:'[^'\\\n]*'|\"[^\"\\\n]*\")"  # a string as Python prints it, where it holds nothing that needs a backslash
LIST = rf"\[\s*(?:{ITEM}(?:\s*,\s*{ITEM})*)?\s*\]"
LIST_OF_LISTS = rf"\[\s*(?:{LIST}(?:\s*,\s*{LIST})*)?\s*\]"
MONOCHROME1 = (
    "PhotometricInterpretation_DICOM is MONOCHROME1; MONOCHROME2 is expected in all rows, as the authors of PadChest"
    " left out the others, whose tag is often wrong: only the picture tells whether it is inverted"
)
SHOWN = 60  # characters of a bad cell that an error repeats

log = logging.getLogger(__name__)


def read(
    images: Path,
    table: Path,
    labelled_by: Literal["all", "physician"] = "all",
    min_positives: int = 0,
    study_labels: Literal["same", "any"] = "same",
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> Manifest:
    """Read PadChest as a manifest. Images are not opened; one that is missing on disk is found by `data.scan`.

    Left out by name: the projection EXCLUDE, and MONOCHROME1, which the authors left out because it was often wrong.

    Args:
        images: Folder of the PNGs, in one folder per zip (0 to 54) or all in one.
        table: The table of all images and labels, as downloaded or unpacked.
        labelled_by: "physician": without the rows that a network labelled.
        min_positives: Of the 190 classes, those with fewer images of label 1 are left out.
        study_labels: "same": the images of a study must carry the same labels. "any": a study has the labels that any
            of its images has.
        val_fraction: Part of the patients that validates, in (0, 1).
        test_fraction: Part that tests, likewise.
        seed: Of that split.

    Raises:
        InputError: A missing folder or file, a value that PadChest does not have, ids rounded by a spreadsheet, or
            whatever `check_manifest` and `group_images` refuse.
    """
    table, images, where = Path(table), Path(images), str(table)
    frame = read_metadata(table, ("PhotometricInterpretation_DICOM", "MethodLabel", "Labels"))
    _check_values(frame["MethodLabel"], SOURCES, where)
    columns = {
        "image_id": frame["ImageID"],
        "study_id": frame["StudyID"],
        "patient_id": frame["PatientID"],
        "view": views_of(frame["Projection"], view_of_padchest, where),
        "path": image_paths(images, frame["ImageDir"], frame["ImageID"], where),
        "split": "train",
        "source": frame["MethodLabel"].map(SOURCES),
    }
    rows = pd.DataFrame(columns, dtype="str")[list(MANIFEST_COLUMNS)]
    manifest = Manifest(rows, _labels(frame["Labels"], where), PADCHEST_CLASSES, images)
    check_manifest(manifest, where)
    manifest = _usable(manifest, frame, labelled_by, where)
    manifest = agree_within_studies(frequent_classes(manifest, min_positives, where), study_labels)
    return split_by_patient(manifest, val_fraction, test_fraction, seed)


def read_metadata(table: Path, more: tuple[str, ...] = ()) -> pd.DataFrame:
    """The columns `METADATA`, and others by name, of the PadChest table; all text.

    Raises:
        InputError: A fault of the table, or an id that is no plain number any more.
    """
    frame = read_table(table, required=(*METADATA, *more), only_required=True, unnamed=True)
    for name in ("StudyID", "PatientID", "ImageDir"):
        bad = ~frame[name].str.fullmatch("[0-9]+")
        if bad.any():
            row, found = int(np.argmax(bad)), frame[name][bad].iat[0]
            raise InputError(
                f"{table}, row {row + 2}, column '{name}': digits alone are wanted, got '{found}'; a spreadsheet or"
                f" another program may have rounded the column: use the table as it was downloaded"
            )
    return frame


def image_paths(images: Path, folders: pd.Series, names: pd.Series, where: str) -> pd.Series:
    """Where images lie below `images`, after one look into it: `<ImageDir>/<ImageID>`, or all in one folder.

    Raises:
        InputError: `images` is no folder, or holds neither one of the images nor one of the folders.
    """
    try:
        found = os.listdir(images)
    except OSError as error:
        raise InputError(f"{images}: cannot be read ({error.strerror}); --images wants the folder of PNGs") from None
    in_one_folder, in_its_folder = names.isin(found), folders.isin(found)
    if not (in_one_folder | in_its_folder).any():
        raise InputError(
            f"{images}: holds none of the images of {where}, nor a folder of one of its zips (0 to 54);"
            f" --images wants the folder that the zips were unpacked in"
        )
    return names.where(in_one_folder | ~in_its_folder, folders + "/" + names)


def read_locations(table: Path) -> pd.DataFrame:
    """Where in the body the reports see what: one row per sentence, label and location.

    From `LabelsLocalizationsBySentence`, which lists each sentence's labels, then its locations (`loc ...`).

    Returns:
        `image_id, sentence` (from 0), `label, location`; the location is "" for a label without one.

    Raises:
        InputError: A fault of the table, or a cell that is no list of lists.
    """
    column = "LabelsLocalizationsBySentence"
    frame = read_table(table, required=("ImageID", column), only_required=True, unnamed=True)
    lines = []
    for row, (image_id, text) in enumerate(zip(frame["ImageID"], frame[column], strict=True)):
        sentences = parse_nested_list(text)
        if sentences is None:
            raise _bad_cell(str(table), row, column, text, "a list of lists, [['a', 'loc b'], ['c']]")
        for number, items in enumerate(sentences):
            locations = [item.removeprefix("loc ") for item in items if item.startswith("loc ")] or [""]
            labels = [item for item in items if item and not item.startswith("loc ")]
            lines += [(image_id, number, label, location) for label in labels for location in locations]
    return pd.DataFrame(lines, columns=["image_id", "sentence", "label", "location"]).astype(
        {"image_id": "str", "sentence": "int64", "label": "str", "location": "str"}
    )


def parse_list(text: str) -> list[str] | None:
    """The items of a printed Python list of strings, without blanks around them; a blank cell is an empty list.

    Nothing is evaluated. None for any other text, items without a comma between them included, which Python would join.
    """
    if not text.strip():
        return []
    if not re.fullmatch(LIST, text.strip()):
        return None
    return [item[1:-1].strip() for item in re.findall(ITEM, text)]


def parse_nested_list(text: str) -> list[list[str]] | None:
    """As `parse_list`, for a list of such lists."""
    text = text.strip()
    if not text:
        return []
    if not re.fullmatch(LIST_OF_LISTS, text):
        return None
    return [[item[1:-1].strip() for item in re.findall(ITEM, part)] for part in re.findall(LIST, text[1:-1])]


def _labels(column: pd.Series, where: str) -> Float32[np.ndarray, "N C"]:
    codes, texts = pd.factorize(column)  # parse each of the different lists once
    values = np.empty((len(texts), len(PADCHEST_CLASSES)), dtype=np.float32)
    places = {name: place for place, name in enumerate(PADCHEST_CLASSES)}
    for number, text in enumerate(texts):
        items = parse_list(text)
        strange = [item for item in items or () if item not in PADCHEST_LABELS and item]
        if items is None or strange:
            wanted = f"'{strange[0]}' is none of PadChest's 193 labels" if strange else "a list, ['a', 'b'], is wanted"
            raise _bad_cell(where, int(np.argmax(codes == number)), "Labels", text, wanted)
        present = [places[item] for item in items if item not in UNINFORMATIVE]
        values[number] = 0 if present else np.nan
        values[number, present] = 1
    return values[codes]


def _usable(manifest: Manifest, frame: pd.DataFrame, labelled_by: str, where: str) -> Manifest:
    """The rows wanted, those that nobody should use named as rejected."""
    reasons = pd.Series("", index=frame.index)
    reasons[frame["PhotometricInterpretation_DICOM"] == "MONOCHROME1"] = MONOCHROME1
    reasons[frame["Projection"] == "EXCLUDE"] = "Projection is EXCLUDE: no chest image, say the authors of PadChest"
    wanted = (frame["MethodLabel"] == "Physician") | (labelled_by == "all")
    rejected = wanted & (reasons != "")
    if not (wanted & ~rejected).any():
        raise InputError(f"{where}: no image is left; {rejected.sum()} are rejected, of {wanted.sum()} asked for")
    paths = manifest.images["path"]
    manifest = replace(
        manifest.select((wanted & ~rejected).to_numpy(dtype=bool)),
        rejected=tuple(zip(paths[rejected].tolist(), reasons[rejected].tolist(), strict=True)),
    )
    if unknown := int(np.isnan(manifest.labels[:, 0]).sum()):
        log.warning("%d images have reports that name neither a finding nor normal: their labels are unknown", unknown)
    return manifest


def _check_values(column: pd.Series, allowed: dict[str, str], where: str) -> None:
    bad = ~column.isin(list(allowed))
    if bad.any():
        row, found = int(np.argmax(bad)), column[bad].iat[0]
        wanted = " or ".join(allowed)
        raise InputError(f"{where}, row {row + 2}, column '{column.name}': {wanted} is wanted, got '{found}'")


def _bad_cell(where: str, row: int, column: str, text: str, wanted: str) -> InputError:
    shown = " ".join(text[:SHOWN].split()) + ("..." if len(text) > SHOWN else "")
    return InputError(f"{where}, row {row + 2}, column '{column}': {wanted}, got {shown}")
