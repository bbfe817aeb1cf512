"""From the tables of a full-size data set to manifest.csv: seconds and peak memory of scripts/prepare.py.

    python scripts/bench_prepare.py [--quick] [--out]

Tables in each data set's own form are made up in a temporary folder: as many rows and columns as the real ones, ids of
the same length, labels at about the same rates. Each is prepared by a process of its own; seconds are its wall time,
beside them its CPU time (what counts where other work runs), and its peak resident memory. --quick: a
tenth of the rows.
"""

import gzip
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import _bench
import _root  # noqa: F401
import numpy as np
import pandas as pd
from _bench_tables import write_chexpert, write_nih

from data.label_spaces import CXR_LT_2024_POSITIVES, CXR_LT_2024_TRAIN_IMAGES, MIMIC_CXR_CLASSES
from data.sources.mimic_layout import TABLE_NAMES, image_paths
from data.sources.padchest_labels import PADCHEST_LABELS
from data.tables import table_bytes

PARTS = {"train": 258_871, "val": 39_293, "test": 78_946}  # CXR-LT 2024 task 1; together MIMIC-CXR-JPG
STUDIES_PER_IMAGE = 227_835 / 377_110
PATIENTS_PER_STUDY = 65_379 / 227_835
PADCHEST_IMAGES, PADCHEST_STUDIES, PADCHEST_PATIENTS, PADCHEST_PHYSICIAN = 160_861, 109_931, 67_625, 39_053
PADCHEST_VIEWS = {
    "PA": 91_728,
    "L": 49_579,
    "AP_horizontal": 14_346,
    "AP": 4_559,
    "COSTAL": 630,
    "EXCLUDE": 11,
    "UNK": 8,
}
PADCHEST_COLUMNS = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,ViewPosition_DICOM,Projection,"
    "MethodProjection,Pediatric,Modality_DICOM,Manufacturer_DICOM,PhotometricInterpretation_DICOM,"
    "PixelRepresentation_DICOM,PixelAspectRatio_DICOM,SpatialResolution_DICOM,BitsStored_DICOM,WindowCenter_DICOM,"
    "WindowWidth_DICOM,Rows_DICOM,Columns_DICOM,XRayTubeCurrent_DICOM,Exposure_DICOM,ExposureInuAs_DICOM,ExposureTime,"
    "RelativeXRayExposure_DICOM,ReportID,Report,MethodLabel,Labels,Localizations,LabelsLocalizationsBySentence,"
    "labelCUIS,LocalizationsCUIS"
).split(",")
VIEWS = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral", "": ""}


def make_ids(num_images: int, first: int, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, list[str]]]:
    """The study's number of each image, and the columns of ids and views."""
    study = first + (np.arange(num_images) * STUDIES_PER_IMAGE).astype(np.int64)
    patient = first + ((study - first) * PATIENTS_PER_STUDY).astype(np.int64)
    hexadecimal = [rng.bytes(20).hex() for _ in range(num_images)]
    positions = rng.choice(list(VIEWS), num_images)
    columns = {
        "dicom_id": ["-".join(text[i : i + 8] for i in range(0, 40, 8)) for text in hexadecimal],
        "subject_id": [str(10_000_000 + n) for n in patient],
        "study_id": [str(50_000_000 + n) for n in study],
        "ViewPosition": positions.tolist(),
        "ViewCodeSequence_CodeMeaning": [VIEWS[text] for text in positions],
    }
    return study - first, columns


def write_cxr_lt_2024(folder: Path, share: float, rng: np.random.Generator) -> list[str]:
    """Tables of task 1; returns the words of the command."""
    (folder / "images" / "files").mkdir(parents=True)
    (folder / "cxr-lt-2024").mkdir()
    names = {"train": "train_labeled", "val": "development_labeled_task1", "test": "test_labeled_task1"}
    rates = np.array(list(CXR_LT_2024_POSITIVES.values())) / CXR_LT_2024_TRAIN_IMAGES
    for number, (split, size) in enumerate(PARTS.items()):
        study, columns = make_ids(int(size * share), number * 1_000_000, rng)
        ids = pd.DataFrame({ours: columns[theirs] for ours, theirs in TABLE_NAMES.items()})
        columns["fpath"] = image_paths(ids)
        columns["study_id"] = [f"s{text}" for text in columns["study_id"]]
        labels = np.where(rng.random((study[-1] + 1, len(rates))) < rates, "1", "0")[study]
        columns |= dict(zip(CXR_LT_2024_POSITIVES, labels.T.tolist(), strict=True))
        path = folder / "cxr-lt-2024" / f"{names[split]}.csv"
        path.write_bytes(table_bytes(list(columns), list(columns.values())))
    return ["cxr-lt-2024", "--task=1", f"--images={folder / 'images'}", f"--labels={folder}"]


def write_mimic_cxr_jpg(folder: Path, share: float, rng: np.random.Generator) -> list[str]:
    """Metadata, split and labels as gzip files; returns the words of the command."""
    (folder / "files").mkdir(parents=True)
    study, ids = make_ids(int(sum(PARTS.values()) * share), 0, rng)
    more = {
        "PerformedProcedureStepDescription": "CHEST (PA AND LAT)",
        "Rows": "3056",
        "Columns": "2544",
        "StudyDate": "21800506",
        "StudyTime": "213014.531",
        "ProcedureCodeSequence_CodeMeaning": "CHEST (PA AND LAT)",
        "PatientOrientationCodeSequence_CodeMeaning": "Erect",
    }
    write_gzip(folder, "metadata", ids | {name: [text] * len(study) for name, text in more.items()})
    split = {name: ids[name] for name in ("dicom_id", "study_id", "subject_id")}
    patient = np.array(ids["subject_id"]).astype(np.int64) % 100
    write_gzip(
        folder, "split", split | {"split": np.array(["train", "validate", "test"])[patient.clip(97) - 97].tolist()}
    )
    first = np.unique(study, return_index=True)[1]
    labels = rng.choice(["", "0.0", "1.0", "-1.0"], (len(first), len(MIMIC_CXR_CLASSES)), p=[0.75, 0.1, 0.12, 0.03])
    rows = {name: np.array(ids[name])[first].tolist() for name in ("subject_id", "study_id")}
    write_gzip(folder, "chexpert", rows | dict(zip(MIMIC_CXR_CLASSES, labels.T.tolist(), strict=True)))
    return ["mimic-cxr-jpg", f"--images={folder}"]


def write_gzip(folder: Path, name: str, columns: dict[str, list[str]]) -> None:
    """One of MIMIC's tables, under its distributed name."""
    content = gzip.compress(table_bytes(list(columns), list(columns.values())), compresslevel=6)
    (folder / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(content)


def write_padchest(folder: Path, share: float, rng: np.random.Generator) -> list[str]:
    """PadChest's one table and the folders of its zips; returns the words of the command."""
    for name in (*range(51), 54):
        (folder / "images" / str(name)).mkdir(parents=True)
    size = int(PADCHEST_IMAGES * share)
    study = (np.arange(size) * PADCHEST_STUDIES / PADCHEST_IMAGES).astype(np.int64)
    labels = [str(items) for items in padchest_labels(study[-1] + 1, rng)]
    physician = rng.random(study[-1] + 1) < PADCHEST_PHYSICIAN / PADCHEST_IMAGES
    views = np.array(list(PADCHEST_VIEWS.values()))
    folders, projections = rng.integers(0, 51, size), rng.choice(list(PADCHEST_VIEWS), size, p=views / views.sum())
    columns = {name: ["None"] * size for name in PADCHEST_COLUMNS} | {
        "": [str(row) for row in range(size)],
        "ImageID": [f"{10**38 + number}_{row:06x}.png" for row, number in enumerate(study.tolist())],
        "ImageDir": folders.astype(str).tolist(),
        "StudyID": [str(10**38 + number) for number in study.tolist()],
        "PatientID": [str(2 * 10**38 + number * PADCHEST_PATIENTS // PADCHEST_STUDIES) for number in study.tolist()],
        "Projection": projections.tolist(),
        "PhotometricInterpretation_DICOM": ["MONOCHROME2"] * size,
        "Report": [f" {'palabr ' * 30}{number} . fin ." for number in study.tolist()],
        "MethodLabel": np.where(physician, "Physician", "RNN_model")[study].tolist(),
        "Labels": [labels[number] for number in study],
        "LabelsLocalizationsBySentence": [f"[{labels[number]}, ['loc basal']]" for number in study],
        "labelCUIS": ["['C0034069' 'C2115817'\n 'C0032227']"] * size,
    }
    (folder / "table.csv").write_bytes(table_bytes(list(columns), list(columns.values())))
    return ["padchest", f"--images={folder / 'images'}", f"--table={folder / 'table.csv'}"]


def padchest_labels(num_studies: int, rng: np.random.Generator) -> list[list[str]]:
    """Items of `Labels` at their rates in the release, about two a study, an eighth of them with a leading blank."""
    rates = np.array(list(PADCHEST_LABELS.values()), dtype=float)
    names = np.array([blank + name for blank in ("", " ") for name in PADCHEST_LABELS])
    rates = np.concatenate([0.875 * rates, 0.125 * rates]) / rates.sum()
    counts = rng.choice(6, num_studies, p=[0.02, 0.4, 0.3, 0.16, 0.08, 0.04])
    items = rng.choice(names, counts.sum(), p=rates)
    return [part.tolist() for part in np.split(items, counts.cumsum()[:-1])]


# A data set: the start of its keys in the JSON line, and what writes its tables.
FORMS: dict[str, Callable[[Path, float, np.random.Generator], list[str]]] = {
    "cxr_lt": write_cxr_lt_2024,
    "mimic": write_mimic_cxr_jpg,
    "padchest": write_padchest,
    "chexpert": write_chexpert,
    "nih": write_nih,
}


def measure(command: list[str], out: Path) -> dict[str, float]:
    """Wall seconds, CPU seconds and peak resident memory of one prepare command."""
    script = Path(__file__).resolve().with_name("prepare.py")
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(script), *command, f"--out={out / 'manifest.csv'}"], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"prepare.py {' '.join(command)} failed")
    return {
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss * resource_unit() / 1e9, 2),
    }


def resource_unit() -> int:
    """Bytes in a unit of `ru_maxrss`."""
    return 1 if sys.platform == "darwin" else 1024


def main() -> None:
    """Measure each data set and report."""
    options = _bench.parse_options(__doc__)
    share, numbers = 0.1 if options.quick else 1.0, {}
    for form, write in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            command = write(root / form, share, np.random.default_rng(0))
            found = measure(command, root / "run")
        print(f"{form}: {found['seconds']} s ({found['cpu_seconds']} s of CPU), {found['peak_gb']} GB")
        numbers |= {f"{form}_{key}": value for key, value in found.items()}
    _bench.report("tables", numbers, options)


if __name__ == "__main__":
    main()
