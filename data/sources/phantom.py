"""The chest phantom written to disk in the form of MIMIC-CXR-JPG 2.0.0 with CXR-LT 2023 labels.

    <folder>/mimic-cxr-jpg/files/p1x/p1xxxxxxx/s5xxxxxxx/<dicom_id>.jpg
    <folder>/mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz  mimic-cxr-2.0.0-split.csv.gz
    <folder>/cxr-lt-2023/train.csv  development.csv  test.csv  sample_submission.csv
    <folder>/truth/findings.csv  ceiling.csv  visibility.csv     what the simulation knows and the labels do not say
    <folder>/phantom.json                                        written last: without it the folder is unfinished

Ids have the form of the real ones and are derived from the seed. Labels of the ten classes without bodies are 0.
"""

import gzip
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from tqdm import tqdm

from data.errors import InputError
from data.files import atomic_write, sha256_file
from data.label_spaces import CXR_LT_2023_CLASSES
from data.phantom.cohort import CLASSES, SPLITS
from data.phantom.constants import PHANTOM_VERSION, VISIBILITY
from data.phantom.listing import Picture, ceiling_row, cohort_pictures, label_row, metadata_row, truth_row
from data.phantom.patient import sample_patient
from data.phantom.radiograph import radiograph, sample_taking
from data.phantom.write import write_image
from data.tables import read_table, table_bytes, write_table

ImageFormat = Literal["jpg", "png", "dcm"]
TABLES = (
    "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz",
    "mimic-cxr-jpg/mimic-cxr-2.0.0-split.csv.gz",
    "cxr-lt-2023/train.csv",
    "cxr-lt-2023/development.csv",
    "cxr-lt-2023/test.csv",
    "cxr-lt-2023/sample_submission.csv",
    "truth/findings.csv",
    "truth/ceiling.csv",
    "truth/visibility.csv",
)
MIMIC_SPLIT = {"train": "train", "development": "validate", "test": "test"}


def write_phantom(
    folder: Path,
    *,
    num_studies: tuple[int, int, int] = (1200, 250, 450),
    size: int = 128,
    seed: int = 0,
    image_format: ImageFormat = "jpg",
    workers: int = 2,
    progress: bool = True,
) -> None:
    """Simulate a cohort and write it below `folder`. The same arguments give the same bytes, whatever `workers`.

    Args:
        num_studies: Studies in train, development and test; patients are never in two of them.
        size: Side of the square images in pixels, at least 32.
        image_format: "jpg" (8 bit, quality 95), "png" (16 bit) or "dcm" (12 of 16 bits, MONOCHROME1 and 2 by turns).
        workers: Processes that render.

    Raises:
        InputError: a number out of range, or the folder holds something else.
    """
    _check(folder, num_studies, size, workers)
    (folder / "phantom.json").unlink(missing_ok=True)  # from here on the folder is unfinished
    pictures = list(cohort_pictures(num_studies, seed))
    _write_images(folder / "mimic-cxr-jpg", pictures, size, image_format, workers, progress)
    _write_tables(folder, pictures, size, image_format)
    os.sync()
    record = _record(num_studies, size, seed, image_format)
    counts = {"studies": sum(num_studies), "images": len(pictures), "patients": len({p.patient_id for p in pictures})}
    digests = {name: sha256_file(folder / name) for name in TABLES}
    atomic_write(folder / "phantom.json", json.dumps({**record, **counts, "sha256": digests}, indent=1) + "\n")


def phantom_is_complete(
    folder: Path,
    *,
    num_studies: tuple[int, int, int] = (1200, 250, 450),
    size: int = 128,
    seed: int = 0,
    image_format: ImageFormat = "jpg",
) -> bool:
    """Whether `folder` holds exactly this phantom, of this version, all images and all tables unchanged."""
    try:
        found = json.loads((folder / "phantom.json").read_text())
    except (OSError, ValueError):
        return False
    wanted = _record(num_studies, size, seed, image_format)
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in wanted.items()):
        return False
    digests = found.get("sha256", {})
    if any(not (folder / name).is_file() or sha256_file(folder / name) != digests.get(name) for name in TABLES):
        return False
    return sum(1 for _ in (folder / "mimic-cxr-jpg" / "files").rglob(f"*.{image_format}")) == found.get("images")


def write_unknowns_table(folder: Path) -> Path:
    """Write `<folder>/unknowns/table.csv`: the same images as one plain table in which some labels are unknown.

    Patients come from three sites: one labels everything, one never looked for the second half of the classes, one
    reports positives only (an empty cell is "not mentioned"). Columns are the manifest's own; paths are relative to
    `<folder>/mimic-cxr-jpg`.

    Raises:
        InputError: `folder` holds no finished phantom.
    """
    if not (folder / "phantom.json").is_file():
        raise InputError(f"{folder}: no finished phantom here (phantom.json is missing); run write_phantom first")
    names = (*CLASSES, "No Finding")
    parts = []
    for file_name, split in (("train", "train"), ("development", "val"), ("test", "test")):
        frame = read_table(folder / "cxr-lt-2023" / f"{file_name}.csv")
        site = frame["subject_id"].map(lambda text: f"site_{'abc'[int(text) % 3]}")
        view = frame["ViewPosition"].map({"": "UNKNOWN", "LL": "LATERAL"}).fillna(frame["ViewPosition"])
        ids = {"image_id": frame["dicom_id"], "study_id": frame["study_id"], "patient_id": frame["subject_id"]}
        part = pd.DataFrame({**ids, "view": view, "path": frame["path"], "split": split, "source": site})
        for n, name in enumerate(names):
            unseen = (site == "site_b") & (n >= len(names) // 2)
            unsaid = (site == "site_c") & (frame[name] == "0")
            part[name] = frame[name].mask(unseen | unsaid, "")
        parts.append(part)
    path = folder / "unknowns" / "table.csv"
    path.parent.mkdir(exist_ok=True)
    write_table(path, pd.concat(parts, ignore_index=True))
    return path


def _check(folder: Path, num_studies: tuple[int, int, int], size: int, workers: int) -> None:
    if len(num_studies) != 3 or min(num_studies) < 1:
        raise InputError(f"num_studies: three numbers from 1 on are wanted, got {num_studies}")
    if size < 32:
        raise InputError(f"size: at least 32 pixels are wanted, got {size}")
    if workers < 1:
        raise InputError(f"workers: at least 1 is wanted, got {workers}")
    strange = [p.name for p in folder.iterdir()] if folder.is_dir() else []
    strange = sorted(set(strange) - {"mimic-cxr-jpg", "cxr-lt-2023", "truth", "unknowns", "phantom.json"})
    if strange:
        raise InputError(f"{folder}: holds {strange[0]}, which is not part of a phantom; give a new or empty folder")


def _record(num_studies: tuple[int, int, int], size: int, seed: int, image_format: str) -> dict[str, Any]:
    return {
        "phantom_version": PHANTOM_VERSION,
        "num_studies": list(num_studies),
        "size": size,
        "seed": seed,
        "image_format": image_format,
    }


def _write_images(
    root: Path, pictures: list[Picture], size: int, image_format: str, workers: int, progress: bool
) -> None:
    """Render in pieces of whole patients; each image depends on its own seeds alone."""
    order = sorted({p.patient_id for p in pictures})
    of_patient: dict[str, list[Picture]] = {name: [] for name in order}
    for picture in pictures:
        of_patient[picture.patient_id].append(picture)
    jobs = [(root, of_patient[name], size, image_format) for name in order]
    with tqdm(total=len(pictures), desc="phantom", unit="image", disable=not progress) as bar:
        if workers == 1:
            for job in jobs:
                bar.update(_write_patient(job))
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for count in pool.map(_write_patient, jobs, chunksize=8):
                bar.update(count)


def _write_patient(job: tuple[Path, list[Picture], int, str]) -> int:
    root, pictures, size, image_format = job
    patient = sample_patient(pictures[0].patient_seed)
    for picture in pictures:
        taking = sample_taking(picture.view, picture.seed)
        image = radiograph(patient, picture.study.findings, picture.view, taking, size)
        write_image(root / picture.path(image_format), image, picture.view, picture.patient_id, picture.study_id)
    return len(pictures)


def _write_tables(folder: Path, pictures: list[Picture], size: int, image_format: str) -> None:
    for name in TABLES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    root, labels, truth = folder / "mimic-cxr-jpg", folder / "cxr-lt-2023", folder / "truth"
    _write_gzip(root / "mimic-cxr-2.0.0-metadata.csv.gz", pd.DataFrame([metadata_row(p, size) for p in pictures]))
    split = [(p.image_id, p.study_id, p.patient_id, MIMIC_SPLIT[p.split]) for p in pictures]
    columns = ["dicom_id", "study_id", "subject_id", "split"]
    _write_gzip(root / "mimic-cxr-2.0.0-split.csv.gz", pd.DataFrame(split, columns=columns))
    for name in SPLITS:
        rows = [label_row(p, image_format) for p in pictures if p.split == name]
        write_table(labels / f"{name}.csv", pd.DataFrame(rows))
    halves = dict.fromkeys(CXR_LT_2023_CLASSES, "0.5")
    sample = [{"dicom_id": p.image_id, **halves} for p in pictures if p.split == "test"]
    write_table(labels / "sample_submission.csv", pd.DataFrame(sample))
    write_table(truth / "findings.csv", pd.DataFrame([truth_row(p) for p in pictures]))
    studies = {p.study_id: p.study for p in pictures}
    write_table(truth / "ceiling.csv", pd.DataFrame([ceiling_row(name, study) for name, study in studies.items()]))
    shown = {**VISIBILITY, "No Finding": {"frontal": True, "lateral": True}}
    rows = [{"class": name, **{kind: str(int(yes)) for kind, yes in kinds.items()}} for name, kinds in shown.items()]
    write_table(truth / "visibility.csv", pd.DataFrame(rows))


def _write_gzip(path: Path, frame: pd.DataFrame) -> None:
    content = table_bytes(list(frame.columns), [frame[name].tolist() for name in frame.columns])
    atomic_write(path, gzip.compress(content, mtime=0))  # the same bytes each time
