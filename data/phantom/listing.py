"""The images of a cohort, under which ids, and their rows in the tables of MIMIC-CXR-JPG 2.0.0 and CXR-LT 2023."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data.label_spaces import CXR_LT_2023_CLASSES
from data.phantom.ceiling import study_posteriors
from data.phantom.cohort import CLASSES, SPLITS, Study, sample_cohort
from data.phantom.constants import BLANK_VIEW, DEVICES, LATERAL_AS_LL, View

MEANINGS = {"PA": "postero-anterior", "AP": "antero-posterior", "LATERAL": "lateral", "LL": "left lateral", "": ""}


class Picture(NamedTuple):
    """One image to be made: whose, of which study, which view, under which ids."""

    patient_seed: int
    patient_id: str
    study_id: str
    image_id: str
    split: str
    study: Study
    view: View
    seed: int
    view_position: str

    def path(self, image_format: str) -> str:
        """Path below `mimic-cxr-jpg/`."""
        folder = f"files/p{self.patient_id[:2]}/p{self.patient_id}/s{self.study_id}"
        return f"{folder}/{self.image_id}.{image_format}"


def cohort_pictures(num_studies: tuple[int, int, int], seed: int) -> Iterator[Picture]:
    """All images of the cohort in the order of the tables, under made-up but format-true ids."""
    cohort = sample_cohort(num_studies, seed)
    random = np.random.default_rng([seed, 5])
    patient_ids = iter(_distinct(random, 10_000_000, sum(len(v) for v in cohort.values())))
    study_ids = iter(_distinct(random, 50_000_000, sum(num_studies)))
    for split in SPLITS:
        for patient in cohort[split]:
            patient_id = next(patient_ids)
            for study in patient.studies:
                study_id = next(study_ids)
                for number, view in enumerate(study.views):
                    image_seed = int(np.random.SeedSequence([study.seed, number]).generate_state(1)[0])
                    image_id = _image_id(f"{seed}/{study_id}/{number}")
                    position = _view_position(view, image_seed)
                    yield Picture(
                        patient.seed, patient_id, study_id, image_id, split, study, view, image_seed, position
                    )


def _distinct(random: np.random.Generator, first: int, count: int) -> list[str]:
    """`count` different 8-digit ids that start with the digit of `first`."""
    return [str(first + n) for n in random.choice(10_000_000, size=count, replace=False)]


def _image_id(text: str) -> str:
    """40 hexadecimal digits in five groups of eight."""
    digits = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
    return "-".join(digits[i : i + 8] for i in range(0, 40, 8))


def _view_position(view: str, seed: int) -> str:
    blank, as_ll = np.random.default_rng([seed, 6]).random(2)
    if blank < BLANK_VIEW:
        return ""
    return "LL" if view == "LATERAL" and as_ll < LATERAL_AS_LL else view


def metadata_row(picture: Picture, size: int) -> dict[str, str]:
    """A row of MIMIC-CXR-JPG's metadata; StudyTime has lost its leading zeros there, so it has here."""
    random = np.random.default_rng([picture.study.seed, 7])
    date = f"{random.integers(2105, 2205)}{random.integers(1, 13):02d}{random.integers(1, 29):02d}"
    time = random.integers(0, 24) * 10000 + random.integers(0, 60) * 100 + random.integers(0, 60)
    procedure = "CHEST (PORTABLE AP)" if set(picture.study.views) == {"AP"} else "CHEST (PA AND LAT)"
    return {
        "dicom_id": picture.image_id,
        "subject_id": picture.patient_id,
        "study_id": picture.study_id,
        "PerformedProcedureStepDescription": procedure,
        "ViewPosition": picture.view_position,
        "Rows": str(size),
        "Columns": str(size),
        "StudyDate": date,
        "StudyTime": f"{time}.{random.integers(0, 1000):03d}",
        "ProcedureCodeSequence_CodeMeaning": procedure,
        "ViewCodeSequence_CodeMeaning": MEANINGS[picture.view_position],
        "PatientOrientationCodeSequence_CodeMeaning": "Erect" if picture.view != "AP" else "Recumbent",
    }


def label_row(picture: Picture, image_format: str) -> dict[str, str]:
    return {
        "dicom_id": picture.image_id,
        "subject_id": picture.patient_id,
        "study_id": picture.study_id,
        "ViewPosition": picture.view_position,
        "ViewCodeSequence_CodeMeaning": MEANINGS[picture.view_position],
        "path": picture.path(image_format),
        **{name: str(int(name in picture.study.labels)) for name in CXR_LT_2023_CLASSES},
    }


def truth_row(picture: Picture) -> dict[str, str]:
    """Bodies present, by class, then the devices one by one."""
    truth = picture.study.truth
    classes = {name: str(int(name in truth)) for name in (*CLASSES, "No Finding")}
    devices = {name: str(int(name in picture.study.findings)) for name in DEVICES}
    return {"dicom_id": picture.image_id, "study_id": picture.study_id, **classes, **devices}


def ceiling_row(study_id: str, study: Study) -> dict[str, str]:
    posteriors = study_posteriors(study)
    return {"study_id": study_id, **{name: f"{posteriors.get(name, 0.0):.6f}" for name in CXR_LT_2023_CLASSES}}
