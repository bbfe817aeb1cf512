"""One finished radiograph: how it was taken, and the picture that comes out.

Every image of a study shows the same chest; posture, breath, exposure, collimation and the lead letter change.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from data.phantom.bodies import Body
from data.phantom.constants import View
from data.phantom.findings import build_chest
from data.phantom.patient import Patient
from data.phantom.rays import Rays
from data.phantom.render import Pose, add_noise, beam, detector_signal, grey_scale, line_integral, structure

# Lead letters, five cells wide and seven high
LETTERS = {
    "R": ("####.", "#...#", "#...#", "####.", "#.#..", "#..#.", "#...#"),
    "L": ("#....", "#....", "#....", "#....", "#....", "#....", "#####"),
}
LEAD = 3.0  # log attenuation of a lead letter


@dataclass(frozen=True)
class Taking:
    """How one image is taken. `margins` are the shutter's edges in cm (left, right, top, bottom); `letter` is the
    lead marker's corner in cm on the detector (of the cell that starts it), or None."""

    pose: Pose = field(default_factory=Pose)
    breath: float = 0.0
    exposure: float = 1.0
    contrast: float = 1.0
    brightness: float = 0.0
    margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    letter: tuple[float, float] | None = None
    noise_seed: int = 0


def sample_taking(view: View, seed: int) -> Taking:
    """Draw how one image of `view` is taken; portable images are less straight and less well inspired."""
    random = np.random.default_rng([seed, 4])
    loose = 1.5 if view == "AP" else 1.0
    shift = random.normal(0, 0.55 * loose, 2)
    pose = Pose(
        turn=float(np.clip(random.normal(0, 1.6 * loose), -5, 5)),
        tilt=float(np.clip(random.normal(0, 1.0 * loose), -3, 3)),
        shift=(float(shift[0]), float(shift[1])),
        distance=float(random.uniform(0.97, 1.03)),
    )
    left, top, right, bottom = (float(m) for m in np.maximum(random.normal(-0.6, 1.0, 4), 0))
    place = (float(random.uniform(15.5, 17.0)), float(random.uniform(-18.5, -14.5)))
    return Taking(
        pose=pose,
        breath=float(random.uniform(0.4, 1.6) if view == "AP" else random.normal(0, 0.3)),
        exposure=float(np.exp(random.normal(0, 0.15))),
        contrast=float(np.exp(random.normal(0, 0.06))),
        brightness=float(random.normal(0, 0.12)),
        margins=(left, top, right, bottom),
        letter=place if random.random() < 0.6 else None,
        noise_seed=int(random.integers(0, 2**31)),
    )


def radiograph(
    patient: Patient,
    findings: Mapping[str, int],
    view: View,
    taking: Taking,
    size: int,
    bodies: Sequence[Body] = (),
) -> Float[np.ndarray, "H W"]:
    """The displayed picture in [0, 1], air dark and bone bright.

    Args:
        findings: Names of `data.phantom.findings.FINDINGS` or "Cardiomegaly", each with its seed.
        view: "PA", "AP" or "LATERAL".
        size: Side of the square picture in pixels; the chest is the same at any size.
        bodies: More of them, placed by the caller.
    """
    chest = build_chest(patient, findings, view, taking.breath)
    chest.bodies.extend(bodies)
    rays = beam(view, chest, size, taking.pose)
    integral = line_integral(chest, rays)
    integral += structure(integral, view, np.random.default_rng([patient.seed, 8, view == "LATERAL"]))
    random = np.random.default_rng(taking.noise_seed)
    log_image = add_noise(detector_signal(integral, view), view, taking.exposure, random)
    if taking.letter is not None:
        _add_letter(log_image, rays, view, taking.letter)  # lies on the cassette: neither magnified nor blurred
    picture = grey_scale(log_image, taking.contrast, taking.brightness)
    return picture * _shutter(rays, taking.margins)


def _add_letter(log_image: np.ndarray, rays: Rays, view: View, place: tuple[float, float]) -> None:
    """Put an R on the patient's right (the image's left) of a frontal, an L at the back of a left lateral."""
    name = "L" if view == "LATERAL" else "R"
    left = place[0] if view == "LATERAL" else -place[0] - 1.5
    cell = 0.32
    rows = np.floor((rays.v - place[1]) / cell).astype(int)
    columns = np.floor((rays.u - left) / cell).astype(int)
    mask = np.array([[c == "#" for c in row] for row in LETTERS[name]])
    down, across = np.flatnonzero((rows >= 0) & (rows < 7)), np.flatnonzero((columns >= 0) & (columns < 5))
    log_image[np.ix_(down, across)] += LEAD * mask[np.ix_(rows[down], columns[across])]


def _shutter(rays: Rays, margins: tuple[float, float, float, float]) -> Float[np.ndarray, "H W"]:
    """1 inside the collimated field, 0 outside, where the display is blackened."""
    left, right, top, bottom = margins
    columns = (rays.u - rays.u[0] >= left) & (rays.u[-1] - rays.u >= right)
    rows = (rays.v - rays.v[0] >= top) & (rays.v[-1] - rays.v >= bottom)
    return np.multiply.outer(rows, columns).astype(np.float32)
