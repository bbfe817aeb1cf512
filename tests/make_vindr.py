"""Miniatures of VinDr-CXR (PhysioNet) and VinBigData (Kaggle) in their exact form, with the same training images."""

from pathlib import Path

LABELS = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,"
    "Enlarged PA,ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,"
    "Pleural thickening,Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,"
    "Tuberculosis,Other diseases,No finding"
).split(",")
A, B, C, D, E = (f"{letter}{'0123456789abcdef' * 2}"[:32] for letter in "abcde")  # A to D train, E test

# image, reader, findings: the three rows of an image are adjacent, images come in no order
READINGS = [
    (B, "R8", "Cardiomegaly,Nodule/Mass"),
    (B, "R9", "Cardiomegaly"),
    (B, "R10", "Rib fracture"),
    (A, "R1", "No finding"),
    (A, "R2", "No finding"),
    (A, "R10", "No finding"),
    (D, "R9", "Pleural effusion"),
    (D, "R8", "No finding"),
    (D, "R1", "No finding"),
    (C, "R1", "Pleural effusion,Other diseases"),
    (C, "R2", "Pleural effusion,Other diseases"),
    (C, "R3", "Pleural effusion,Other diseases"),
]
BOXES = [  # of the same readings, as far as Kaggle has the classes; a reader draws a box per lesion
    (A, "No finding", "14", "R2", "", "", "", ""),
    (B, "Cardiomegaly", "3", "R8", "691.0", "1375.0", "1653.0", "1831.0"),
    (B, "Nodule/Mass", "8", "R8", "10.0", "20.0", "30.0", "40.0"),
    (B, "Nodule/Mass", "8", "R8", "50.0", "20.0", "70.0", "40.0"),
    (A, "No finding", "14", "R10", "", "", "", ""),
    (B, "Cardiomegaly", "3", "R9", "690.0", "1370.0", "1650.0", "1830.0"),
    (B, "Other lesion", "9", "R10", "1.0", "1.0", "5.0", "5.0"),
    (A, "No finding", "14", "R1", "", "", "", ""),
    (C, "Pleural effusion", "10", "R1", "1.0", "2.0", "3.0", "4.0"),
    (C, "Pleural effusion", "10", "R2", "1.0", "2.0", "3.0", "4.0"),
    (C, "Pleural effusion", "10", "R3", "1.0", "2.0", "3.0", "4.0"),
    (D, "Pleural effusion", "10", "R9", "1.0", "2.0", "3.0", "4.0"),
    (D, "No finding", "14", "R8", "", "", "", ""),
    (D, "No finding", "14", "R1", "", "", "", ""),
]


def line(names: str) -> str:
    """0 or 1 for each of the 28."""
    return ",".join(str(int(name in names.split(","))) for name in LABELS)


def write_vindr(root: Path, readings=READINGS, tests=((E, "Cardiomegaly,Lung Opacity"),)) -> Path:
    """PhysioNet's form, without the images."""
    for name in ("train", "test", "annotations"):
        (root / name).mkdir(parents=True, exist_ok=True)
    rows = [f"image_id,rad_id,{','.join(LABELS)}", *(f"{i},{reader},{line(names)}" for i, reader, names in readings)]
    (root / "annotations" / "image_labels_train.csv").write_text("\n".join(rows) + "\n")
    header = ",".join(LABELS).replace("Other diseases", "Other disease")
    rows = [f"image_id,{header}", *(f"{i},{line(names)}" for i, names in tests)]
    (root / "annotations" / "image_labels_test.csv").write_text("\n".join(rows) + "\n")
    return root


def write_vinbigdata(root: Path, boxes=BOXES) -> Path:
    """Kaggle's form, without the images."""
    (root / "train").mkdir(parents=True, exist_ok=True)
    rows = ["image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max", *(",".join(box) for box in boxes)]
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root
