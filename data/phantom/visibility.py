"""Which view shows which finding, measured by deleting it.

The contrast-to-noise ratio of a finding is the mean absolute difference of the noise-free log images with and without
it, over the pixels above half of its maximum, divided by the noise there: quantum noise and `ANATOMICAL_FLOOR`,
added in quadrature. Measured at 128 pixels; quantum noise per pixel depends on the pixel's size.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float

from data.phantom.bodies import Body
from data.phantom.constants import ANATOMICAL_FLOOR, DEVICES, FRONTAL, VISIBILITY, View
from data.phantom.findings import build_chest
from data.phantom.patient import Patient
from data.phantom.radiograph import Taking
from data.phantom.render import beam, detector_signal, line_integral, relative_noise


def class_of(name: str) -> str:
    """The class that a body's name counts for."""
    return "Support Devices" if name in DEVICES else name


def is_visible(name: str, view: View) -> bool:
    """What the committed table says about a finding or device in a view."""
    return VISIBILITY[class_of(name)]["frontal" if view in FRONTAL else "lateral"]


def noise_free(
    patient: Patient,
    findings: Mapping[str, int],
    view: View,
    taking: Taking,
    size: int = 128,
    bodies: Sequence[Body] = (),
) -> Float[np.ndarray, "H W"]:
    """Expected detector signal of one image, relative to the open beam; `bodies` beside those of the findings."""
    chest = build_chest(patient, findings, view, taking.breath)
    chest.bodies.extend(bodies)
    return detector_signal(line_integral(chest, beam(view, chest, size, taking.pose)), view)


def contrast(
    patient: Patient, findings: Mapping[str, int], name: str, view: View, taking: Taking, size: int = 128
) -> tuple[Float[np.ndarray, "H W"], Float[np.ndarray, "H W"]]:
    """Signal with the finding, and the log difference that finding `name` makes (positive: brighter with it)."""
    present = noise_free(patient, findings, view, taking, size)
    absent = noise_free(patient, {k: v for k, v in findings.items() if k != name}, view, taking, size)
    return present, np.log(absent / present)


def contrast_to_noise(
    patient: Patient, findings: Mapping[str, int], name: str, view: View, taking: Taking | None = None
) -> float:
    """CNR of finding `name` of `findings` in one image."""
    taking = taking or Taking()
    return ratio(*contrast(patient, findings, name, view, taking), view, taking)


def ratio(signal: Float[np.ndarray, "H W"], difference: Float[np.ndarray, "H W"], view: View, taking: Taking) -> float:
    """CNR of a body: signal with it, and the log difference that it makes."""
    difference = np.abs(difference)
    footprint = difference > 0.5 * difference.max()
    noise = np.sqrt(relative_noise(signal, view, taking.exposure)[footprint] ** 2 + ANATOMICAL_FLOOR**2)
    return float(difference[footprint].mean() / noise.mean())
