"""Made-up tables of CheXpert and NIH ChestX-ray14 in full size for `bench_prepare.py`."""

from pathlib import Path

import numpy as np

from data.label_spaces import (
    CHEXPERT_CLASSES,
    CHEXPERT_POSITIVES,
    CHEXPERT_TRAIN_IMAGES,
    NIH_CHEST_XRAY14_IMAGES,
    NIH_CHEST_XRAY14_POSITIVES,
)
from data.tables import table_bytes

CHEXPERT_STUDIES, CHEXPERT_PATIENTS, NIH_PATIENTS = 187_641, 64_540, 30_805


def write_chexpert(folder: Path, share: float, rng: np.random.Generator) -> list[str]:
    """train.csv, and a small valid.csv; returns the words of the command."""
    (folder / "train").mkdir(parents=True)
    size = int(CHEXPERT_TRAIN_IMAGES * share)
    study = (np.arange(size) * CHEXPERT_STUDIES / CHEXPERT_TRAIN_IMAGES).astype(np.int64)
    rates = np.array(list(CHEXPERT_POSITIVES.values())) / CHEXPERT_TRAIN_IMAGES
    draws = rng.random((study[-1] + 1, len(rates)))
    labels = np.where(draws < rates, "1.0", np.where(draws > 0.95, "-1.0", np.where(draws > 0.85, "0.0", "")))
    labels[:, 0] = np.where(labels[:, 0] == "1.0", "1.0", "")  # No Finding is never 0 there
    patient = study * CHEXPERT_PATIENTS // CHEXPERT_STUDIES + 1
    lateral = np.diff(study, prepend=-1) == 0
    sides = np.where(lateral, "lateral", "frontal").tolist()
    rows = zip(patient.tolist(), study.tolist(), lateral.tolist(), sides, strict=True)
    columns = {
        "Path": [f"CheXpert-v1.0-small/train/patient{p:05d}/study{s}/view{1 + b}_{side}.jpg" for p, s, b, side in rows],
        "Sex": ["Female"] * size,
        "Age": ["68"] * size,
        "Frontal/Lateral": [side.capitalize() for side in sides],
        "AP/PA": np.where(lateral, "", rng.choice(["AP", "PA"], size, p=[0.85, 0.15])).tolist(),
        **dict(zip(CHEXPERT_CLASSES, labels[study].T.tolist(), strict=True)),
    }
    (folder / "train.csv").write_bytes(table_bytes(list(columns), list(columns.values())))
    valid = {"Path": ["valid/patient64541/study1/view1_frontal.jpg"]} | {name: ["0.0"] for name in CHEXPERT_CLASSES}
    (folder / "valid.csv").write_bytes(table_bytes(list(valid), list(valid.values())))
    return ["chexpert", f"--images={folder}"]


def write_nih(folder: Path, share: float, rng: np.random.Generator) -> list[str]:
    """The table of images, both lists, and as many empty images; returns the words of the command."""
    size = int(NIH_CHEST_XRAY14_IMAGES * share)
    patient = np.arange(size) * NIH_PATIENTS // NIH_CHEST_XRAY14_IMAGES + 1
    number = np.arange(size) - np.searchsorted(patient, patient)
    names = [f"{p:08d}_{n:03d}.png" for p, n in zip(patient.tolist(), number.tolist(), strict=True)]
    findings = np.array(list(NIH_CHEST_XRAY14_POSITIVES)[:-1])
    rates = np.array(list(NIH_CHEST_XRAY14_POSITIVES.values())[:-1]) / NIH_CHEST_XRAY14_IMAGES
    present = rng.random((size, len(rates))) < rates
    views = rng.choice(["PA", "AP"], size, p=[0.6, 0.4]).tolist()
    lines = [
        f"{name},{'|'.join(findings[row]) or 'No Finding'},0,{p},57,M,{view},2682,2749,0.143,0.143,"
        for name, row, p, view in zip(names, present, patient.tolist(), views, strict=True)
    ]
    header = (
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Sex,View Position,"
        "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
    )
    (folder / "images").mkdir(parents=True)
    (folder / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *lines]) + "\n")
    test = (patient % 5 == 0).tolist()
    for file, wanted in (("train_val_list.txt", False), ("test_list.txt", True)):
        (folder / file).write_text("\n".join(name for name, tests in zip(names, test, strict=True) if tests == wanted))
    for name in names:
        (folder / "images" / name).touch()
    return ["nih-chest-xray14", f"--images={folder}"]
