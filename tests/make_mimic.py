"""MIMIC-CXR and CXR-LT 2024 in miniature: the tables as text, in the form of the distributed ones, ids invented.

File names map to text; `write_files` packs those that end in .gz. Nine images of seven patients.
"""

import gzip
from pathlib import Path

CHEXPERT_HEADER = (
    "subject_id,study_id,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
RADIOLOGISTS_HEADER = (
    "study_id,Airspace Opacity,Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,"
    "Lung Lesion,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
META_2024 = "dicom_id,subject_id,study_id,ViewPosition,ViewCodeSequence_CodeMeaning,fpath"
CLASSES_40 = (
    "Adenopathy,Atelectasis,Azygos Lobe,Calcification of the Aorta,Cardiomegaly,Clavicle Fracture,Consolidation,Edema,"
    "Emphysema,Enlarged Cardiomediastinum,Fibrosis,Fissure,Fracture,Granuloma,Hernia,Hydropneumothorax,Infarction,"
    "Infiltration,Kyphosis,Lobar Atelectasis,Lung Lesion,Lung Opacity,Mass,Nodule,Normal,Pleural Effusion,"
    "Pleural Other,Pleural Thickening,Pneumomediastinum,Pneumonia,Pneumoperitoneum,Pneumothorax,Pulmonary Embolism,"
    "Pulmonary Hypertension,Rib Fracture,Round(ed) Atelectasis,Subcutaneous Emphysema,Support Devices,Tortuous Aorta,"
    "Tuberculosis"
)
CLASSES_26 = (
    "Atelectasis,Calcification of the Aorta,Cardiomegaly,Consolidation,Edema,Emphysema,Enlarged Cardiomediastinum,"
    "Fibrosis,Fracture,Hernia,Infiltration,Lung Lesion,Lung Opacity,Mass,Normal,Nodule,Pleural Effusion,Pleural Other,"
    "Pleural Thickening,Pneumomediastinum,Pneumonia,Pneumoperitoneum,Pneumothorax,Subcutaneous Emphysema,"
    "Support Devices,Tortuous Aorta"
)
CLASSES_5 = "Bulla,Cardiomyopathy,Hilum,Osteopenia,Scoliosis"
CLASSES_2023 = CLASSES_26.replace("Normal", "No Finding")
HEADERS = {1: CLASSES_40, 2: CLASSES_26, 3: CLASSES_5}

UNREADABLE = "03b2e67c-70631ff8-685825fb-6c989456-621ca64d"  # on the public list, p11/p11285576/s54979966
EMPTY = "0539ee33-9d402e49-a9cc6d36-7aabc539-3d80a62b"  # likewise, p10/p10291098/s57194260


def dicom(number: int) -> str:
    """An id of MIMIC's form."""
    return f"{number:08x}-11112222-33334444-55556666-77778888"


def place(subject: str, study: str, image: str, suffix: str = ".jpg") -> str:
    """Where an image lies."""
    return f"files/p{subject[:2]}/p{subject}/s{study}/{image}{suffix}"


# image, subject, study, ViewPosition, code meaning, split
IMAGES = [
    (dicom(1), "10999991", "59999991", "PA", "postero-anterior", "train"),
    (dicom(2), "10999991", "59999991", "LATERAL", "lateral", "train"),
    (dicom(3), "10999991", "50000001", "", "left lateral", "train"),
    (dicom(4), "10999992", "59999992", "AP", "", "validate"),
    (dicom(5), "10999992", "59999992", "PA LLD", "", "validate"),
    (dicom(6), "19999993", "59999993", "LL", "left lateral", "test"),
    (dicom(7), "19999993", "59999993", "", "", "test"),
    (dicom(8), "19999994", "59999994", "XTABLE LATERAL", "lateral", "test"),
    (UNREADABLE, "11285576", "54979966", "AP", "antero-posterior", "train"),
    (EMPTY, "10291098", "57194260", "AP", "antero-posterior", "train"),
]


def mimic_files() -> dict[str, str]:
    """MIMIC-CXR-JPG 2.1.0's tables, and the DICOM set's record list."""
    metadata = [
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
    ]
    split, records = ["dicom_id,study_id,subject_id,split"], ["subject_id,study_id,dicom_id,path"]
    for image, subject, study, view, meaning, part in IMAGES:
        name = '"CHEST (PA, LAT)"'
        metadata.append(f"{image},{subject},{study},{name},{view},3056,2544,21800506,80556.875,{name},{meaning},Erect")
        split.append(f"{image},{study},{subject},{part}")
        records.append(f"{subject},{study},{image},{place(subject, study, image, '.dcm')}")
    labels = [
        CHEXPERT_HEADER,
        "10999991,59999991,,,,,,,,,1.0,,,,,",
        "10999992,59999992,-1.0,1.0,,0.0,,,,1.0,,1.0,,-1.0,0.0,1.0",
        "10999991,50000001,,,,,,,,,,,,,,",  # nothing said: unknown throughout
        "19999993,59999993,0.0,,1.0,,,,,,,,,,,",
        "11285576,54979966,,,,,,,,,,,,1.0,,",
        "10291098,57194260,,,,,,,,,1.0,,,,,",  # 59999994 has no row, as 8 studies of the release
    ]
    order = [0, 4, 2, 9, 1, 8, 3, 7, 6, 5]  # other order than the metadata's
    return {
        "mimic-cxr-2.0.0-metadata.csv.gz": "\n".join(metadata) + "\n",
        "mimic-cxr-2.0.0-split.csv.gz": "\n".join([split[0], *(split[1 + n] for n in order)]) + "\n",
        "mimic-cxr-2.0.0-chexpert.csv.gz": "\n".join(labels) + "\n",
        "mimic-cxr-2.0.0-negbio.csv.gz": "\n".join(labels).replace("-1.0,0.0,1.0", "1.0,0.0,1.0") + "\n",
        "mimic-cxr-2.1.0-test-set-labeled.csv": f"{RADIOLOGISTS_HEADER}\n59999993,0,1,0,0,,0,0,0,0,1,0,-1,0,1\n",
        "cxr-record-list.csv.gz": "\n".join(records) + "\n",
    }


def challenge_row(image: tuple, classes: str, *positives: str, study: str = "s") -> str:
    """One row of a CXR-LT table; `study` is what stands before the study's digits."""
    name, subject, number, view, meaning, _ = image
    labels = ["1" if c in positives else "0" for c in classes.split(",")]
    place_ = place(subject, number, name)
    return ",".join([name, subject, study + number, view, meaning, place_, *labels])


def cxr_lt_2024_files() -> dict[str, str]:
    """All labelled tables of the three tasks: four images train, two develop, two test (one in task 2)."""
    parts = {"train": [0, 1, 2, 8], "development": [3, 4], "test": [5, 6]}
    found = {
        "59999991": ("Normal", "Scoliosis"),
        "50000001": ("Nodule", "Azygos Lobe", "Support Devices"),
        "54979966": ("Mass", "Round(ed) Atelectasis", "Bulla"),
        "59999992": ("Tuberculosis", "Tortuous Aorta", "Atelectasis", "Hilum"),
        "59999993": ("Normal", "Nodule", "Osteopenia"),
    }
    files = {}
    for part, numbers in parts.items():
        for task, classes in HEADERS.items():
            if part == "test" and task == 2:
                numbers = numbers[:1]
            rows = [challenge_row(IMAGES[n], classes, *found[IMAGES[n][2]]) for n in numbers]
            name = "train_labeled" if part == "train" else f"{part}_labeled_task{task}"
            if part != "train" or task == 1:
                files[f"{name}.csv"] = "\n".join([f"{META_2024},{classes}", *rows]) + "\n"
            numbers = parts[part]
    return files


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Write tables, and the folder that images would lie in."""
    (folder / "files").mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        content = text.encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder
