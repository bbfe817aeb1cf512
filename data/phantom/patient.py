"""A patient's body: the few numbers that all of a patient's images share."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Patient:
    """What stays the same in all of a patient's images. `width, depth, height` stretch x, y, z."""

    seed: int
    female: bool
    age: float  # years
    width: float
    depth: float
    height: float
    fat: float  # cm of extra soft tissue around the chest
    heart: float  # size of the heart relative to the reference
    lung: float  # attenuation of aerated lung relative to the reference
    bone: float  # mineral content relative to the reference


def sample_patient(seed: int) -> Patient:
    """Draw a patient's body from `seed`."""
    random = np.random.default_rng([seed, 1])
    female = bool(random.random() < 0.47)
    size = random.normal(-0.035 if female else 0.03, 0.03)
    return Patient(
        seed=seed,
        female=female,
        age=float(random.uniform(25, 90)),
        width=float(1 + size + random.normal(0, 0.025)),
        depth=float(1 + size + random.normal(0, 0.035)),
        height=float(1 + size + random.normal(0, 0.03)),
        fat=float(np.clip(random.gamma(2.0, 0.5) - 0.4, -0.3, 2.6)),
        heart=float(np.clip(random.normal(0.97, 0.035), 0.88, 1.04)),
        lung=float(np.clip(random.normal(1, 0.10), 0.8, 1.25)),
        bone=float(np.clip(random.normal(1.0, 0.08), 0.8, 1.15)),
    )
