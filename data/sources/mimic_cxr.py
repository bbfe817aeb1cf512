"""MIMIC-CXR 2.0.0 and 2.1.0 (PhysioNet) as DICOM, with the tables of MIMIC-CXR-JPG.

    <images>/files/p10/p10000032/s50414267/<dicom_id>.dcm
    <images>/cxr-record-list.csv.gz                      subject_id, study_id, dicom_id, path
    <tables>/mimic-cxr-2.0.0-metadata.csv.gz  -split.csv.gz  -chexpert.csv.gz  -negbio.csv.gz

The DICOM set holds neither views nor labels in tables; both come from MIMIC-CXR-JPG's; its images are not needed.
"""

from pathlib import Path

from data.manifest import Manifest
from data.sources.mimic_layout import check_image_folder, check_paths
from data.sources.mimic_tables import (
    METADATA,
    Labeler,
    LabelRule,
    NotMentioned,
    TestLabels,
    Uncertain,
    find_table,
    labelled_manifest,
    read_ids,
    read_images,
    same_images,
)


def read(
    images: Path,
    tables: Path,
    labeler: Labeler = "chexpert",
    uncertain: Uncertain = "ignore",
    not_mentioned: NotMentioned = "zeros",
    test_labels: TestLabels = "report",
) -> Manifest:
    """Read MIMIC-CXR as a manifest of DICOM files. Images are not opened.

    Args:
        images: MIMIC-CXR folder, the one that holds `files/` and cxr-record-list.csv.gz.
        tables: Folder with the four `mimic-cxr-2.0.0-*.csv.gz` of MIMIC-CXR-JPG.
        labeler: The program that read the reports.
        uncertain: What its -1 becomes: 1, 0, or unknown.
        not_mentioned: What a blank becomes: 0 or unknown. A blank No Finding is 0 (the tables have no other way to say
            it), and a study whose row is blank throughout is unknown in all classes.
        test_labels: "radiologist": the test split keeps the studies of mimic-cxr-2.1.0-test-set-labeled.csv alone, with
            the labels there.

    Raises:
        InputError: A missing folder or file, a fault in a table, tables that do not belong together, a record with
            another path than the layout's.
    """
    images, tables = Path(images), Path(tables)
    check_image_folder(images)
    rows = read_images(tables)
    path = find_table(images, "cxr-record-list.csv.gz", "--images")
    records = read_ids(path, ("subject_id", "study_id", "dicom_id", "path"), key="image_id")
    check_paths(records, str(path), "path", (".dcm",))
    same_images(records, path, rows, find_table(tables, METADATA, "--tables"))
    rule = LabelRule(labeler, uncertain, not_mentioned, test_labels)
    return labelled_manifest(rows, tables, images, ".dcm", "mimic_cxr", rule)
