"""A manifest with gaps in its labels, and prediction tables for it: tied, imperfect, in the layout of stage two."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data.manifest import Manifest, read_manifest, write_manifest
from data.predictions import write_predictions
from tests.make_data import make_manifest

CLASSES = ("Edema", "Nodule", "Hernia", "Fibrosis")


def labelled(root: Path, num_studies: int = 90) -> Manifest:
    """Four classes; labels are unknown for some studies, and Fibrosis has no positive outside train."""
    manifest = make_manifest(root, num_studies)
    rng = np.random.default_rng(5)
    labels = np.column_stack([manifest.labels, np.zeros(len(manifest), dtype=np.float32)])
    labels[(manifest.images["split"] == "train").to_numpy() & (np.arange(len(labels)) % 9 == 0), 3] = 1
    studies, study_of = np.unique(manifest.images["study_id"], return_inverse=True)
    labels[(rng.random((len(studies), 4)) < 0.15)[study_of]] = np.nan
    first = np.unique(study_of, return_index=True)[1]
    return replace(manifest, labels=labels[first][study_of], classes=CLASSES)


def predict(manifest: Manifest, seed: int = 0, noise: float = 0.25, steps: int = 16) -> np.ndarray:
    """Probabilities of single images on a coarse grid, so that many tie."""
    rng = np.random.default_rng(seed)
    seen = np.nan_to_num(manifest.labels, nan=0.4)
    values = np.clip(rng.normal(0.3 + 0.4 * seen, noise), 0, 1)
    return (np.round(values * steps) / steps).astype(np.float32)


def make_evaluable(run_dir: Path, seed: int = 0, name: str = "fusion", noise: float = 0.25) -> Manifest:
    """A run folder with manifest.csv and, in its folder `name`, predictions of val and test."""
    manifest = labelled(run_dir / "images")
    if not (run_dir / "manifest.csv").exists():
        write_manifest(manifest, run_dir / "manifest.csv")
    values = predict(manifest, seed, noise)
    for split in ("val", "test"):
        rows = (manifest.images["split"] == split).to_numpy()
        path = run_dir / name / f"predictions_{split}.csv"
        write_predictions(path, manifest.images[rows], values[rows], manifest.classes)
    return manifest


def rich_manifest(root):
    """Enough studies that every split has positives and negatives of each class."""
    return make_manifest(root, num_studies=150, max_views=2)


def make_results(run_dir, seeds=(1, 2), labels=True, by="study"):
    """A run with several result folders, as stage two leaves them: predictions around the truth, alike in a group."""
    from data.config import parse_config
    from extract.engine import sigmoid  # torch, which most tests of tables do without
    from fusion.config import FusionConfig

    manifest = rich_manifest(run_dir / "images")
    if not labels:
        is_test = (manifest.images["split"] == "test").to_numpy()
        manifest = replace(manifest, labels=np.where(is_test[:, None], np.float32(np.nan), manifest.labels))
    write_manifest(manifest, run_dir / "manifest.csv")
    truth = rich_manifest(run_dir).labels
    for seed in seeds:
        folder = run_dir / f"model_{seed}"
        folder.mkdir()
        _, resolved = parse_config(FusionConfig, None, ["--run_dir", str(run_dir), "--grouping.by", by])
        (folder / "config.yaml").write_text(resolved)
        noise = np.random.default_rng(seed).normal(size=(len(manifest), 3))
        owner = np.unique(manifest.images[f"{by}_id"], return_index=True, return_inverse=True)
        logits = (2.5 * truth - 1.5 + 1.5 * noise)[owner[1]][owner[2]].astype(np.float32)
        for split in ("val", "test"):
            rows = (manifest.images["split"] == split).to_numpy()
            images = manifest.images[rows]
            write_predictions(folder / f"logits_{split}.csv", images, logits[rows], manifest.classes)
            write_predictions(folder / f"predictions_{split}.csv", images, sigmoid(logits[rows]), manifest.classes)
    return [run_dir / f"model_{seed}" for seed in seeds]


def permute_labels(run_dir, split, share=1.0):
    """Give every patient of a split, or a share of them, another patient's labels."""
    manifest = read_manifest(run_dir / "manifest.csv")
    rows = np.flatnonzero(manifest.images["split"] == split)
    labels = manifest.labels.copy()
    patients = manifest.images["patient_id"].to_numpy(dtype=object)[rows]
    names = np.unique(patients)
    names = names[: round(share * len(names))]
    rows, patients = rows[np.isin(patients, names)], patients[np.isin(patients, names)]
    shuffled = dict(zip(names, np.random.default_rng(1).permutation(names), strict=True))
    first = {patient: labels[rows[patients == patient][0]] for patient in names}
    labels[rows] = [first[shuffled[patient]] for patient in patients]
    assert (labels != manifest.labels).any()
    write_manifest(Manifest(manifest.images, labels, manifest.classes, manifest.root), run_dir / "manifest.csv")
