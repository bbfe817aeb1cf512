"""The healthy chest as a list of attenuating bodies, one patient at a time.

Everything is written for a reference body (lungs 26 cm wide, 27 cm high) and stretched per patient. Attenuations are
differences to what they replace, so the order of bodies does not matter: bone adds (bone - soft tissue) inside the
torso, the heart adds (soft tissue - lung) where it displaces lung, the trachea takes soft tissue away.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.phantom.bodies import Body, Convex, Ellipsoid, ellipsoid, half_space, rod
from data.phantom.constants import LUNG_GAIN, MU_LUNG, MU_SOFT, View
from data.phantom.patient import Patient
from data.phantom.skeleton import SIDES, ribs, shoulder_girdle, spine

TORSO_CENTER, TORSO_RADII = (0.0, -0.5, -9.0), (16.4, 11.4, 31.0)
LUNG_CENTER, LUNG_RADII, LUNG_TURN = (6.55, 0.0, -4.2), (6.15, 8.9, 17.4), 4.5  # left lung; the right is its mirror


@dataclass(frozen=True)
class Lung:
    """One lung: `space` is the pleural cavity above and around the diaphragm, `dome` what pushes up into it."""

    space: Convex
    dome: Convex


@dataclass(frozen=True)
class Chest:
    """Bodies of one patient in one state of breathing, before stretching by `scale` along x, y, z."""

    scale: np.ndarray
    torso: Convex
    lungs: tuple[Lung, Lung]  # right, left
    lung_attenuation: float
    bodies: list[Body]


def healthy_chest(patient: Patient, *, posture: View = "PA", breath: float = 0.0, enlarged: float = 1.0) -> Chest:
    """Build a chest without findings.

    Args:
        posture: Arms and shoulder blades. PA: shoulders rolled forward, blades out of the lungs; AP: lying, blades
            over the lungs; LATERAL: arms raised beside the head.
        breath: Diaphragm's displacement in cm, positive for a shallower breath.
        enlarged: Factor on the heart's size (cardiomegaly).
    """
    torso = _torso(patient)
    gas = ellipsoid((5.6, 1.0, -12.7 + breath), (2.5, 2.4, 1.3), (0, 8, 0))
    bodies = [
        *_soft_tissue(patient, torso, posture),
        *_heart(patient.heart * enlarged, breath),
        *shoulder_girdle(patient, posture),
        *(_muscles(np.random.default_rng([patient.seed, 9])) if posture == "LATERAL" else ()),
        Body(-MU_SOFT, (gas,)),  # in the stomach
        *_lasting_bodies(patient),
    ]
    scale = np.array([patient.width, patient.depth, patient.height])
    return Chest(scale, torso, (_lung(-1, breath), _lung(1, breath)), MU_LUNG * patient.lung, bodies)


@lru_cache(maxsize=8)
def _lasting_bodies(patient: Patient) -> tuple[Body, ...]:
    """What neither breath nor posture moves. These are most bodies; building them once per patient saves much time."""
    random = np.random.default_rng([patient.seed, 2])
    return (
        *_great_vessels(patient),
        *_lung_vessels(random),
        *_airways(),
        *spine(patient),
        *ribs(patient),
    )


def lung_surface(side: int, fallen: float = 0.0) -> Ellipsoid:
    """The lung's outer surface; `fallen` cm away from the side wall (halfway up), towards the mediastinum."""
    x, y, z = LUNG_CENTER
    rx, ry, rz = LUNG_RADII
    return ellipsoid((side * (x - fallen / 2), y, z), (rx - fallen / 2, ry, rz), (0, -side * LUNG_TURN, 0))


def _lung(side: int, breath: float) -> Lung:
    """Narrow at the apex, straight at the side, cut by the mediastinum; the dome leaves deep costophrenic angles."""
    medial = half_space((-side, 0, 0.02), (side * 1.2, 0, 0))
    top = (-18.6 if side < 0 else -19.7) + breath
    dome = ellipsoid((side * 6.2, 0.8, top), (7.7, 10.4, 10.4), (6, 0, 0))
    return Lung((lung_surface(side), medial), (dome,))


def _torso(patient: Patient) -> Convex:
    """Chest wall and abdomen, tapering upwards and cut off obliquely at the shoulders."""
    rx, ry, rz = TORSO_RADII
    body = ellipsoid(TORSO_CENTER, (rx + patient.fat, ry + patient.fat, rz))
    return body, half_space((0.40, 0, 1), (0, 0, 17.0)), half_space((-0.40, 0, 1), (0, 0, 17.0))


def skin_front(patient: Patient, x: float, z: float) -> float:
    """y of the skin in front of (x, z)."""
    rx, ry, rz = TORSO_RADII
    rest = 1 - (x / (rx + patient.fat)) ** 2 - ((z - TORSO_CENTER[2]) / rz) ** 2
    return TORSO_CENTER[1] + (ry + patient.fat) * float(np.sqrt(rest))


def _soft_tissue(patient: Patient, torso: Convex, posture: View) -> Iterator[Body]:
    """Neck, shoulders, arms, breasts: each counts only outside its neighbour, so shared tissue is not counted twice."""
    yield Body(MU_SOFT, (rod((0, -2.5, 8), (0, -0.8, 34), 5.6, 6.0),), torso)
    for side in SIDES:
        # raised arms are never quite level: two soft edges on the lateral, not one hard one
        y, z = (-1.8 + side * 0.8, 9.3 + side * 0.6) if posture == "LATERAL" else (-1.8, 9.0)
        shoulder: Convex = (ellipsoid((side * 12.6, y, z), (7.8, 6.3, 5.7), (0, side * 24, 0)),)
        yield Body(MU_SOFT, shoulder, torso)
        start, end = _arm(side, posture)
        yield Body(MU_SOFT, (rod(start, end, 4.4),), shoulder)
        if patient.female:
            size = 1 + 0.15 * patient.fat
            center = (side * 7.8, skin_front(patient, 7.8, -4.5) - 1.0, -4.8)
            yield Body(MU_SOFT, (ellipsoid(center, (5.6 * size, 3.0 * size, 4.8 * size), (-14, 0, side * 25)),), torso)


def _muscles(random: np.random.Generator) -> Iterator[Body]:
    """Muscle bundles and the fat between them, bunched by raised arms: what makes the upper lateral hard to read.

    A nodule's faint lateral shadow is no stronger than that of one bundle, and there are sixteen.
    """
    for side in SIDES:
        for number in range(8):
            center = (side * random.uniform(13.5, 16.5), random.uniform(-3.5, 1.5), random.uniform(5.0, 11.5))
            radii = (random.uniform(1.5, 2.0), random.uniform(2.5, 5.5), random.uniform(0.9, 2.0))
            attenuation = random.uniform(0.05, 0.10) * (-1) ** number
            yield Body(attenuation, (ellipsoid(center, radii, (random.uniform(-35, 35), 0, 0)),))


def _arm(side: int, posture: View) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Upper arm from shoulder to elbow (longer than real, so that it fills the shoulder)."""
    if posture == "LATERAL":
        return (side * 15.0, -3.5, 8.0), (side * 15.0, 9.5, 33.0)
    return (side * 18.6, -1.5, 15.5), (side * 25.5, -1.0, -22.0)


def _heart(size: float, breath: float) -> Iterator[Body]:
    """Left and right heart, growing to the left and resting on the diaphragm."""
    low = -4.9 + 0.55 * breath
    left = ellipsoid((2.0 + 3.2 * (size - 1), 2.6, low), (6.2 * size, 4.6 * size, 4.5 * size), (0, 26, -14))
    right = ellipsoid((-1.0, 2.4, low + 0.9), (2.9 * size, 3.4 * size, 4.8 * size))
    yield Body(LUNG_GAIN, (left,), in_lung=True)
    yield Body(LUNG_GAIN, (right,), (left,), in_lung=True)


def _great_vessels(patient: Patient) -> Iterator[Body]:
    """Mediastinum with superior vena cava, aorta and pulmonary trunk; the aorta widens with age."""
    age = (patient.age - 55) / 35
    knob = 1.55 + 0.15 * age
    core = ellipsoid((0, -1.5, 6.0), (2.35, 5.2, 13.0))
    arch = ellipsoid((2.1 + 0.2 * age, -1.5, 4.9), (knob, 2.6, knob + 0.1))
    ascending = ellipsoid((-1.5, 1.4, 4.0), (1.5, 2.0, 5.2), (0, 6, 0))
    descending = ellipsoid((1.8, -5.2, -3.0), (1.15, 1.2, 9.0))
    trunk = ellipsoid((1.9, 1.2, 1.3), (1.75, 2.2, 2.0))
    yield Body(LUNG_GAIN, (core,), in_lung=True)
    for vessel in (arch, ascending, descending, trunk):
        yield Body(LUNG_GAIN, (vessel,), (core,), in_lung=True)


def _lung_vessels(random: np.random.Generator) -> Iterator[Body]:
    """Hila and branching arteries: rods that fork, thin out and fan from the hilum into the lung."""
    for side in SIDES:
        root = np.array([side * 3.0, -0.9, 1.2 if side > 0 else 0.2])
        yield Body(LUNG_GAIN, (ellipsoid(root, (1.1, 1.2, 2.2), (0, side * 16, 0)),), in_lung=True)
        for angle in np.linspace(-76, 76, 8) + random.uniform(-7, 7, 8):
            out = random.uniform(-0.75, 0.75)
            direction = np.array([side * np.cos(np.deg2rad(angle)), out, np.sin(np.deg2rad(angle))])
            yield from _branch(random, side, root, direction / np.sqrt(direction @ direction), (4.4, 0.46), 2)


def _branch(
    random: np.random.Generator, side: int, root: np.ndarray, along: np.ndarray, size: tuple[float, float], more: int
) -> Iterator[Body]:
    """A vessel of length and radius `size`, and the two it forks into; none that would leave the lung."""
    length, radius = size
    end = root + along * length
    surface = lung_surface(side, 0.5)
    if (end - surface.center) @ surface.matrix @ (end - surface.center) > 0.9:
        return
    yield Body(LUNG_GAIN, (rod(root - 0.15 * length * along, end, radius),))
    if more:
        for turn in (-0.38, 0.42):
            towards = along + random.normal(0, 0.14, 3) + turn * np.array([-along[2], 0.5, along[0]])
            towards /= np.sqrt(towards @ towards)
            fork = root + along * length * 0.8
            yield from _branch(random, side, fork, towards, (length * 0.74, radius * 0.72), more - 1)


def _airways() -> Iterator[Body]:
    yield Body(-MU_SOFT, (rod((0, -0.4, 19), (-0.2, -3.0, 1.6), 0.9),))
    for side, drop in ((-1, 2.6), (1, 1.8)):
        yield Body(-MU_SOFT, (rod((0, -2.6, 3.4), (side * 3.6, -2.4, 3.4 - drop), 0.55),))
