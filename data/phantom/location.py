"""Where a finding lies in an image: its projected footprint, drawn again from the cohort's seeds.

Axes: **P** rows and columns of a square image.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from data.errors import InputError
from data.phantom.constants import PHANTOM_VERSION, View
from data.phantom.listing import Picture, cohort_pictures
from data.phantom.patient import sample_patient
from data.phantom.radiograph import sample_taking
from data.phantom.render import CHEST_FROM
from data.phantom.visibility import class_of, is_visible, noise_free

Mask = Bool[np.ndarray, "P P"]


def read_pictures(phantom_dir: Path) -> dict[str, Picture]:
    """How each image of a written phantom was made, by image id.

    Raises:
        InputError: no finished phantom, or one of another version, whose geometry this code does not draw.
    """
    path = phantom_dir / "phantom.json"
    if not path.is_file():
        raise InputError(f"{path}: no finished phantom here; findings can be located in phantoms only")
    record = json.loads(path.read_text())
    if record["phantom_version"] != PHANTOM_VERSION:
        raise InputError(
            f"{path}: phantom version {record['phantom_version']}, this code draws {PHANTOM_VERSION}; prepare it anew"
        )
    return {picture.image_id: picture for picture in cohort_pictures(tuple(record["num_studies"]), record["seed"])}


def visible_bodies(findings: Mapping[str, int], name: str, view: View) -> list[str]:
    """The bodies present behind class `name` that `view` shows; an electrode is one of those of Support Devices."""
    return [body for body in sorted(findings) if class_of(body) == name and is_visible(body, view)]


def locate(picture: Picture, classes: Sequence[str], size: int) -> tuple[Mask, dict[str, Mask]]:
    """Pixels that show the patient's body, and of each class present and visible the pixels that it shades.

    Shaded is what changes by more than half of the largest change that a body makes to the noise-free log image, the
    footprint of the phantom's contrast-to-noise ratio. Of a class with several bodies it is all of them.

    Args:
        size: Side of the square image in pixels (P).
    """
    patient, taking = sample_patient(picture.patient_seed), sample_taking(picture.view, picture.seed)
    findings, footprints = picture.study.findings, {}
    signal = noise_free(patient, findings, picture.view, taking, size)
    for name in classes:
        for body in visible_bodies(findings, name, picture.view):
            others = {key: seed for key, seed in findings.items() if key != body}
            change = np.abs(np.log(noise_free(patient, others, picture.view, taking, size) / signal))
            footprints[name] = footprints.get(name, False) | (change > 0.5 * change.max())
    return -np.log(signal) > CHEST_FROM, footprints
