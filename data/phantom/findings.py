"""Findings and devices as attenuating bodies: their shape decides which view can show them.

A body's contrast is its path length along the beam. Long from front to back and thin from side to side, it shows on
frontal views only (pleural line, plaque, diffuse mediastinal widening); thin from front to back and wide from side to
side, on the lateral only (plate behind the heart, sternal fragment); compact in both, on both.

Two pairs cast the same frontal shadow from different bodies: a nodule and an electrode on the skin, a widened
mediastinum and an unfolded aorta. Only the lateral tells the second of each pair, and neither shows the first.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

from data.phantom.anatomy import Chest, healthy_chest, lung_surface, skin_front
from data.phantom.bodies import Body, ellipsoid, half_space, rod, slab
from data.phantom.constants import LUNG_GAIN, MU_SOFT, View
from data.phantom.patient import Patient
from data.phantom.skeleton import BONE

Bodies = list[Body]
Draw = np.random.Generator


def build_chest(patient: Patient, findings: Mapping[str, int], view: View, breath: float = 0.0) -> Chest:
    """The patient's chest, in the posture for `view`, with `findings`: their names and the seeds of size and place.

    Names are those of `FINDINGS` and "Cardiomegaly". Leaving one out removes it and changes nothing else.
    """
    enlarged = 1.0
    if "Cardiomegaly" in findings:
        enlarged = 1.27 + 0.10 * float(np.random.default_rng(findings["Cardiomegaly"]).random())
    if "Emphysema" in findings:
        breath -= 1.5  # overinflated lungs press the diaphragm down
    chest = healthy_chest(patient, posture=view, breath=breath, enlarged=enlarged)
    for name in sorted(findings):
        if name != "Cardiomegaly":
            chest.bodies.extend(FINDINGS[name](np.random.default_rng(findings[name]), patient, chest))
    return chest


def _side(draw: Draw) -> int:
    return 1 if draw.random() < 0.5 else -1


def pleural_effusion(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """Fluid fills the costophrenic angle; its upper surface climbs outwards and backwards (meniscus)."""
    first, both = _side(draw), draw.random() < 0.4
    bodies = []
    for side in (first, -first)[: 2 if both else 1]:
        level = draw.uniform(-9.6, -6.0) - (0.6 if side > 0 else 0.0)
        surface = half_space((-side * 0.45, 0.22, 1), (side * 9.5, -3, level))
        bodies.append(Body(LUNG_GAIN, (*chest.lungs[0 if side < 0 else 1].space, surface), in_lung=True))
    return bodies


def atelectasis(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """A collapsed plate lying flat: both beams run along it."""
    side = _side(draw)
    center = (side * draw.uniform(6.4, 8.4), draw.uniform(-2.5, 0.5), draw.uniform(-6.4, -2.4))
    radii = (draw.uniform(3.0, 3.8), draw.uniform(3.0, 3.8), draw.uniform(0.75, 0.9))
    return [Body(LUNG_GAIN, (ellipsoid(center, radii, (0, side * draw.uniform(-1, 7), 0)),), in_lung=True)]


def edema(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """Haze around both hila (bat wings)."""
    density = draw.uniform(0.040, 0.055)
    height = draw.uniform(5.5, 7.0)
    return [
        Body(density, (ellipsoid((side * 5.6, -0.8, -0.6), (4.0, 6.0, height), (0, -side * 8, 0)),), in_lung=True)
        for side in (-1, 1)
    ]


def emphysema(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """Both lungs hold less tissue: darker everywhere (and the diaphragm is lower, see `build_chest`)."""
    loss = -draw.uniform(0.020, 0.025)
    return [Body(loss, lung.space, in_lung=True) for lung in chest.lungs]


def consolidation(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """A coronal plate in the left lower lobe behind the heart: seen edge-on by the lateral only."""
    center = (4.2, draw.uniform(-6.4, -4.8), draw.uniform(-6.0, -4.6))
    radii = (5.0, draw.uniform(0.5, 0.6), draw.uniform(2.8, 3.4))
    return [Body(draw.uniform(0.10, 0.12), (ellipsoid(center, radii),), in_lung=True)]


def lung_lesion(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """A flat lesion beside the spine: the frontal looks through heart and spine, the lateral along it."""
    center = (draw.uniform(2.2, 2.8), draw.uniform(-8.0, -7.6), draw.uniform(-4.8, -3.6))
    return [Body(0.165, (ellipsoid(center, (4.2, 0.56, draw.uniform(2.6, 3.0))),))]


def fracture(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """A displaced fragment with haematoma behind the breast bone: wide, flat, in front of spine and mediastinum."""
    z = draw.uniform(-2.2, 0.8)
    center = (0.4, 6.4 - 0.12 * (z - 0.5), z)
    return [Body(0.9 * BONE, (ellipsoid(center, (3.8, 0.5, draw.uniform(2.5, 2.9)), (-7, 0, 0)),))]


def pneumothorax(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """Air beside the lung and the visceral pleura as a line: along the frontal beam, across the lateral one."""
    side = _side(draw)
    lung = chest.lungs[0 if side < 0 else 1]
    gap = draw.uniform(1.6, 2.1)
    surface, below = lung_surface(side, gap), lung_surface(side, gap + 0.22)
    air = Body(-chest.lung_attenuation, lung.space, (surface,), in_lung=True)
    return [air, Body(0.16, (*lung.space, surface), (below,), in_lung=True)]


def pleural_thickening(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """A plaque on the side wall: long for the frontal beam, thin for the lateral one."""
    side = _side(draw)
    lung = chest.lungs[0 if side < 0 else 1]
    band = slab((0, 0, 1), (0, 0, draw.uniform(-5, 0)), draw.uniform(9, 12))
    return [Body(0.105, (*lung.space, *band), (lung_surface(side, draw.uniform(1.1, 1.35)),), in_lung=True)]


def hernia(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """Stomach behind the heart with an air-fluid level."""
    size = draw.uniform(0.9, 1.1)
    center = (draw.uniform(0.4, 1.6), -4.0, draw.uniform(-7.2, -6.0))
    sac = ellipsoid(center, (3.6 * size, 3.3 * size, 3.1 * size))
    gas = ellipsoid(center, (3.3 * size, 3.1 * size, 2.8 * size))
    level = half_space((0, 0, -1), (0, 0, center[2] + 0.2))
    return [Body(LUNG_GAIN, (sac,), in_lung=True), Body(-MU_SOFT, (gas, level))]


def _disc_place(draw: Draw) -> tuple[float, float, float]:
    """Where a nodule or an electrode projects on the frontal, and its radius: the same law for both."""
    return _side(draw) * draw.uniform(4.6, 6.8), draw.uniform(6.8, 8.8), draw.uniform(1.6, 1.85)


def _disc_strength(draw: Draw) -> float:
    """The frontal line integral through the middle of a nodule or an electrode (at the reference size)."""
    return draw.uniform(1.0, 1.12)


def nodule(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """A faint (ground-glass) nodule in the upper zone, round from the front, drawn out in depth.

    The lateral looks along its short axis and through both shoulders: scatter and noise there drown it.
    """
    x, z, radius = _disc_place(draw)
    depth = 7.0
    attenuation = _disc_strength(draw) / (2 * depth)
    return [Body(attenuation, (ellipsoid((x, draw.uniform(-1.0, -0.2), z), (radius, depth, radius)),))]


def electrode(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """A flat electrode on the skin: the nodule's frontal shadow, but on the lateral it stands off the chest wall."""
    x, z, radius = _disc_place(draw)
    depth = 0.5
    attenuation = _disc_strength(draw) / (2 * depth)
    return [Body(attenuation, (ellipsoid((x, skin_front(patient, x, z) + 0.35, z), (radius, depth, radius)),))]


def _band_shape(draw: Draw) -> tuple[float, float, float, float, float]:
    """x, z, half-width, half-height and frontal line integral of a widened mediastinum or an unfolded aorta."""
    x, z = draw.uniform(3.3, 3.7), draw.uniform(0.8, 1.8)
    return x, z, draw.uniform(1.0, 1.15), draw.uniform(6.0, 6.8), draw.uniform(0.72, 0.8)


def enlarged_cardiomediastinum(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """Diffuse widening, long from front to back: hardly any contrast across."""
    x, z, half_width, half_height, strength = _band_shape(draw)
    return [Body(strength / 18.0, (ellipsoid((x, 0.3, z), (half_width, 9.0, half_height)),))]


def tortuous_aorta(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """An unfolded aorta: the same frontal shadow from a compact band beside the spine."""
    x, z, half_width, half_height, strength = _band_shape(draw)
    depth = 1.15
    return [Body(strength / (2 * depth), (ellipsoid((x, -4.4, z), (half_width, depth, half_height)),))]


def pacemaker(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """Generator under the left collar bone, lead to the right ventricle."""
    x, z = draw.uniform(8.0, 9.5), draw.uniform(4.5, 6.5)
    front = skin_front(patient, x, z) - 1.2
    case = ellipsoid((x, front, z), (2.2, 0.5, 1.9))
    points = [(x - 1, front - 0.4, z + 1), (3, 5, 9.5), (-1.2, 2.5, 4.5), (-0.8, 2.5, -4), (3.2, 4.6, -7.2)]
    lead = [Body(5.0, (rod(a, b, 0.11),)) for a, b in pairwise(points)]
    return [Body(2.4, (case,)), *lead]


def tube(draw: Draw, patient: Patient, chest: Chest) -> Bodies:
    """Feeding tube through the gullet into the stomach."""
    x = draw.uniform(-0.4, 0.4)
    points = [(x, -2.8, 19), (x, -4.2, 4), (x + 0.8, -3.6, -8), (x + 5, 0.5, -13)]
    return [Body(3.5, (rod(a, b, 0.24),)) for a, b in pairwise(points)]


FINDINGS: dict[str, Callable[[Draw, Patient, Chest], Bodies]] = {
    "Pleural Effusion": pleural_effusion,
    "Atelectasis": atelectasis,
    "Edema": edema,
    "Emphysema": emphysema,
    "Consolidation": consolidation,
    "Lung Lesion": lung_lesion,
    "Fracture": fracture,
    "Pneumothorax": pneumothorax,
    "Pleural Thickening": pleural_thickening,
    "Hernia": hernia,
    "Nodule": nodule,
    "Enlarged Cardiomediastinum": enlarged_cardiomediastinum,
    "Tortuous Aorta": tortuous_aorta,
    "electrode": electrode,
    "pacemaker": pacemaker,
    "tube": tube,
}
