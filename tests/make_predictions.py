"""A manifest with gaps in its labels, and prediction tables for it: tied, imperfect, in the layout of stage two."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from data.manifest import Manifest, write_manifest
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
