"""Spine, breast bone, ribs and shoulder girdle of the reference body.

Attenuations are those of bone less the soft tissue that it replaces.
"""

from collections.abc import Iterator

import numpy as np

from data.phantom.bodies import Body, ellipsoid, half_space, rod, slab
from data.phantom.constants import MU_BONE, MU_SOFT, View
from data.phantom.patient import Patient

BONE = MU_BONE - MU_SOFT
SIDES = (-1, 1)  # the patient's right, left: the sign of x


def spine(patient: Patient) -> Iterator[Body]:
    """Vertebrae with discs between, processes behind and beside; the curve deepens with age. And the breast bone."""
    bend = 0.010 + 0.005 * max(0.0, (patient.age - 55) / 35)
    for z in np.arange(17.2, -22, -2.35):
        y = -7.1 + bend * (z - 1) ** 2
        size = 1 + 0.012 * (2 - z)
        body = ellipsoid((0, y, z), (1.85 * size, 1.75 * size, 1.6))
        yield Body(BONE * patient.bone * 0.6, (body, *slab((0, 0, 1), (0, y, z), 1.85)))
        yield Body(BONE * 0.75, (ellipsoid((0, y - 3.0, z - 0.9), (0.42, 1.7, 0.85), (18, 0, 0)),))
        yield Body(BONE * 0.6, (ellipsoid((0, y - 2.0, z + 0.1), (3.2, 0.6, 0.5)),))
    yield Body(BONE * 0.85, (ellipsoid((0, 8.6, 0.5), (1.7, 0.55, 7.4), (-9, 0, 0)),))


def ribs(patient: Patient) -> Iterator[Body]:
    """A shell around both lungs cut by oblique slabs: posterior arcs fall outwards, anterior arcs inwards.

    Attenuation is that of cortical bone: a tube's walls, smeared over its section.
    """
    outer = ellipsoid((0, -0.1, -4.4), (13.7, 9.75, 20.2))
    inner = ellipsoid((0, -0.1, -4.4), (13.0, 9.05, 19.5))
    for side in SIDES:
        beside_spine = half_space((-side, 0, 0), (side * 1.9, 0, 0))
        cartilage = half_space((-0.75 * side, 0.66, 0), (side * 5.4, 8.2, 0))
        for number, z in enumerate(np.linspace(11.4, -12.6, 11)):
            tilt = 0.46 + 0.012 * number
            band = slab((side * 0.20, tilt, 1), (0, 0, z + 0.6), 1.05)
            reach = (z + 0.6 - 0.20 * 13.8 - tilt * 9.9 - 0.65, z + 0.6 + tilt * 9.9 + 0.65)
            x = sorted((side * 1.9, side * 13.9))
            box = ((x[0], -9.9, reach[0]), (x[1], 9.9, reach[1]))
            yield Body(1.2 * BONE * patient.bone, (outer, *band, beside_spine, cartilage), (inner,), box=box)


def shoulder_girdle(patient: Patient, posture: View) -> Iterator[Body]:
    """Collar bones (bent), heads and shafts of the upper arms, shoulder blades."""
    strength = BONE * patient.bone
    raised = posture == "LATERAL"
    for side in SIDES:
        bend = (side * 8.6, 5.6, 10.9)
        yield Body(1.5 * strength, (rod((side * 0.9, 7.6, 9.6), (side * 9.8, 5.2, 11.1), 0.62),))
        yield Body(1.5 * strength, (rod(bend, (side * 16.4, 0.2, 13.2), 0.58),))
        joint = (side * 15.6, -1.0, 12.2 if raised else 9.6)
        yield Body(strength, (ellipsoid(joint, (2.2, 2.2, 2.3)),))
        elbow = (side * 15.0, 9.5, 33.0) if raised else (side * 22.5, -1.0, -16.0)
        yield Body(strength, (rod(joint, elbow, 1.15),))
        x, turn = (12.6, 24) if posture == "AP" else (14.6, 46)
        blade = ellipsoid((side * x, -7.2, 4.0), (3.6, 0.40, 7.0), (8, side * 8, -side * turn))
        yield Body(1.2 * strength, (blade,))
