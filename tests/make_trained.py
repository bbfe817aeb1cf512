"""Tiny runs with a trained stage two, and the images of their test split as new ones to predict."""

from pathlib import Path

from data.manifest import read_manifest
from data.study_files import StudyImage
from tests.launch import run
from tests.make_data import make_run

QUICK = ["--retrain_single", "false", "--pooled_mlp", "false"]


def make_trained(run_dir: Path, *options: str, num_studies: int = 30) -> Path:
    """A run after both stages, with one epoch each.

    Args:
        options: Of stage one.
    """
    make_run(run_dir, num_studies)
    run("extract", run_dir, *options)
    run("fusion", run_dir, *QUICK)
    return run_dir


def images_of_test(run_dir: Path) -> list[StudyImage]:
    """The test split as a user's table would name it."""
    part = read_manifest(run_dir / "manifest.csv").of_split("test")
    return [
        StudyImage(part.image_path(row), one.path, one.image_id, one.study_id, one.patient_id, one.view)
        for row, one in enumerate(part.images.itertuples())
    ]
