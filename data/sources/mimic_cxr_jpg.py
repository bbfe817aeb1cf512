"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 (PhysioNet): 377,110 JPEGs of 65,379 patients, 14 report labels, the official split.

    <images>/files/p10/p10000032/s50414267/<dicom_id>.jpg
    <images>/mimic-cxr-2.0.0-metadata.csv.gz  -split.csv.gz  -chexpert.csv.gz  -negbio.csv.gz
    <images>/mimic-cxr-2.1.0-test-set-labeled.csv                                  (release 2.1.0)

Do not judge a CXR-LT model by this split, or the reverse: the challenges split the same patients otherwise.
"""

from pathlib import Path

from data.manifest import Manifest
from data.sources.mimic_layout import check_image_folder
from data.sources.mimic_tables import (
    Labeler,
    LabelRule,
    NotMentioned,
    TestLabels,
    Uncertain,
    labelled_manifest,
    read_images,
)


def read(
    images: Path,
    tables: Path | None = None,
    labeler: Labeler = "chexpert",
    uncertain: Uncertain = "ignore",
    not_mentioned: NotMentioned = "zeros",
    test_labels: TestLabels = "report",
) -> Manifest:
    """Read MIMIC-CXR-JPG as a manifest. Images are not opened.

    Args:
        images: MIMIC-CXR-JPG folder, the one that holds `files/`.
        tables: Folder with the four `mimic-cxr-2.0.0-*.csv.gz`; null: the images' folder.
        labeler: The program that read the reports.
        uncertain: What its -1 becomes: 1, 0, or unknown.
        not_mentioned: What a blank becomes: 0 or unknown. A blank No Finding is 0 (the tables have no other way to say
            it), and a study whose row is blank throughout is unknown in all classes.
        test_labels: "radiologist": the test split keeps the studies of mimic-cxr-2.1.0-test-set-labeled.csv alone, with
            the labels there.

    Raises:
        InputError: A missing folder or file, a fault in a table, tables that do not belong together.
    """
    images = Path(images)
    check_image_folder(images)
    tables = Path(tables) if tables else images
    rule = LabelRule(labeler, uncertain, not_mentioned, test_labels)
    return labelled_manifest(read_images(tables), tables, images, ".jpg", "mimic_cxr_jpg", rule)
