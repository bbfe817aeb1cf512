"""Checks a submission against what is known of its challenge: python tests/submission_checker.py CHALLENGE ZIP TEST_CSV

Written from the description of the challenges' files alone, with the standard library alone: it shares no line with the
code that writes submissions, so that both would have to be wrong in the same way. It is also the quickest look at a
submission that another program has made.
"""

import csv
import io
import math
import re
import sys
import zipfile

# The header line of a submission: the sample files' own, class names to the letter.
HEADERS = {
    "cxr-lt-2023": (
        "dicom_id,Atelectasis,Calcification of the Aorta,Cardiomegaly,Consolidation,Edema,Emphysema,"
        "Enlarged Cardiomediastinum,Fibrosis,Fracture,Hernia,Infiltration,Lung Lesion,Lung Opacity,Mass,"
        "No Finding,Nodule,Pleural Effusion,Pleural Other,Pleural Thickening,Pneumomediastinum,Pneumonia,"
        "Pneumoperitoneum,Pneumothorax,Subcutaneous Emphysema,Support Devices,Tortuous Aorta"
    ),
    "cxr-lt-2024-task1": (
        "dicom_id,Adenopathy,Atelectasis,Azygos Lobe,Calcification of the Aorta,Cardiomegaly,Clavicle Fracture,"
        "Consolidation,Edema,Emphysema,Enlarged Cardiomediastinum,Fibrosis,Fissure,Fracture,Granuloma,Hernia,"
        "Hydropneumothorax,Infarction,Infiltration,Kyphosis,Lobar Atelectasis,Lung Lesion,Lung Opacity,Mass,"
        "Nodule,Normal,Pleural Effusion,Pleural Other,Pleural Thickening,Pneumomediastinum,Pneumonia,"
        "Pneumoperitoneum,Pneumothorax,Pulmonary Embolism,Pulmonary Hypertension,Rib Fracture,"
        "Round(ed) Atelectasis,Subcutaneous Emphysema,Support Devices,Tortuous Aorta,Tuberculosis"
    ),
    "cxr-lt-2024-task2": (
        "dicom_id,Atelectasis,Calcification of the Aorta,Cardiomegaly,Consolidation,Edema,Emphysema,"
        "Enlarged Cardiomediastinum,Fibrosis,Fracture,Hernia,Infiltration,Lung Lesion,Lung Opacity,Mass,Normal,"
        "Nodule,Pleural Effusion,Pleural Other,Pleural Thickening,Pneumomediastinum,Pneumonia,Pneumoperitoneum,"
        "Pneumothorax,Subcutaneous Emphysema,Support Devices,Tortuous Aorta"
    ),
    "cxr-lt-2024-task3": ("dicom_id,Bulla,Cardiomyopathy,Hilum,Osteopenia,Scoliosis"),
    "cxr-lt-2026-task1": (
        "ImageID,Normal,aortic elongation,cardiomegaly,pleural effusion,Nodule,atelectasis,pleural thickening,"
        "aortic atheromatosis,Support Devices,alveolar pattern,fracture,Hernia,Emphysema,azygos lobe,"
        "Hydropneumothorax,Kyphosis,Mass,Pneumothorax,Subcutaneous Emphysema,pneumoperitoneo,"
        "vascular hilar enlargement,vertebral degenerative changes,hyperinflated lung,interstitial pattern,"
        "central venous catheter,hypoexpansion,bronchiectasis,hemidiaphragm elevation,sternotomy,"
        "calcified densities"
    ),
    "cxr-lt-2026-task2": ("ImageID,Scoliosis,Osteopenia,Bulla,Infarction,Adenopathy,goiter"),
}
MIMIC_ID = r"[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{8}"
PADCHEST_ID = r"[0-9]+_[0-9A-Za-z_-]+\.png"  # 36 to 50 digits of a study in PadChest, 8 of a patient in NIH


def problems(challenge, zip_path, test_csv):
    """Everything wrong with a submission, as lines; an empty list is a good one."""
    with zipfile.ZipFile(zip_path) as archive:
        if archive.namelist() != ["submission.csv"]:
            return [f"members {archive.namelist()}, wanted submission.csv alone at the root"]
        if archive.testzip() is not None:
            return ["the zip is damaged"]
        content = archive.read("submission.csv")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        return ["not UTF-8"]
    if text.startswith("\ufeff"):
        return ["starts with a byte order mark"]
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    if header != HEADERS[challenge].split(","):
        return [f"header {header}"]
    return id_problems(challenge, [row[0] if row else "" for row in rows], wanted_ids(test_csv)) + [
        f"line {number}: {problem}" for number, row in enumerate(rows, start=2) for problem in row_problems(row, header)
    ]


def wanted_ids(test_csv):
    """The ids of the official table, in its order. The 2026 one has 30 columns without a name."""
    with open(test_csv, encoding="utf-8-sig", newline="") as file:
        header, *rows = csv.reader(file, strict=True)
    column = header.index("dicom_id" if "dicom_id" in header else "ImageID")
    return [row[column] for row in rows]


def id_problems(challenge, found, wanted):
    """Ids that are not those of the test table, one for one."""
    form = MIMIC_ID if HEADERS[challenge].startswith("dicom_id") else PADCHEST_ID
    problems = [f"id {text!r}: not of the data set's form" for text in found if not re.fullmatch(form, text)]
    if len(set(found)) != len(found):
        problems.append("an id occurs twice")
    if len(found) != len(wanted):
        problems.append(f"{len(found)} rows, wanted {len(wanted)}")
    if sorted(found) != sorted(wanted):
        problems.append("other ids than the test table")
    elif found != wanted:
        problems.append("another order than the test table")
    return problems


def row_problems(row, header):
    """Values of one row that are no probabilities."""
    if len(row) != len(header):
        return [f"{len(row)} fields, wanted {len(header)}"]
    problems = []
    for name, text in zip(header[1:], row[1:], strict=True):
        try:
            value = float(text)
        except ValueError:
            problems.append(f"{name}: {text!r} is no number")
            continue
        if not math.isfinite(value) or not 0.0 <= value <= 1.0:
            problems.append(f"{name}: {text} is no probability")
    return problems


if __name__ == "__main__":
    found = problems(*sys.argv[1:4])
    print("\n".join(found) or "nothing wrong")
    sys.exit(bool(found))
