"""From a chest to a radiograph: cone beam, Beer-Lambert, scatter, quantum noise, and the display's grey scale.

Frontal images face the viewer: the patient's right is on the image's left. Laterals show the front on the left. Air is
dark, bone is bright (MONOCHROME2). Axes: **H W** rows and columns.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from data.phantom.anatomy import Chest
from data.phantom.bodies import Body, Convex, Ellipsoid, rotation
from data.phantom.constants import (
    ANATOMICAL_FLOOR,
    ANATOMICAL_GRAIN,
    DETECTOR_GAP,
    DETECTOR_SIZE,
    MU_SOFT,
    QUANTA,
    SCATTER_CAP,
    SCATTER_SHARE,
    SCATTER_SIGMA,
    SOURCE_DISTANCE,
    View,
)
from data.phantom.rays import Interval, Rays, Shadows, Window, length, overlap

# Towards the detector, and to the right in the image
DIRECTIONS = {"PA": ((0, 1, 0), (1, 0, 0)), "AP": ((0, -1, 0), (1, 0, 0)), "LATERAL": ((1, 0, 0), (0, -1, 0))}
CHEST_FROM = 0.9  # log signal above which a pixel shows the chest, not the air beside it

Image = Float[np.ndarray, "H W"]


@dataclass(frozen=True)
class Pose:
    """How the patient stands: turn about the long axis and tilt in the image plane (degrees), shift on the detector
    (cm, right and down), and magnification of distances by the positioning of the tube."""

    turn: float = 0.0
    tilt: float = 0.0
    shift: tuple[float, float] = (0.0, 0.0)
    distance: float = 1.0


def beam(view: View, chest: Chest, size: int, pose: Pose | None = None) -> Rays:
    """The cone beam of one view; the detector touches the patient, wherever the patient is turned to."""
    pose = pose or Pose()
    distance, gap = SOURCE_DISTANCE[view] * pose.distance, DETECTOR_GAP[view]
    towards, right = DIRECTIONS[view]
    torso = chest.torso[0]
    assert isinstance(torso, Ellipsoid)
    reach = np.sqrt(np.diag(np.linalg.inv(torso.matrix)))  # of the chest wall along x, y, z
    wall = float(np.abs(towards) @ ((np.array(towards) * torso.center + reach) * chest.scale)) + gap
    spin = rotation((0, 0, pose.turn)) @ rotation((0, pose.tilt, 0) if view != "LATERAL" else (pose.tilt, 0, 0))
    towards, right, down = (spin @ np.asarray(a, float) for a in (towards, right, (0, 0, -1)))
    middle = np.array([0.0, 0.0, -0.8 * chest.scale[2]])
    detector = middle + wall * towards + pose.shift[0] * right + pose.shift[1] * down
    source = middle - (distance - wall) * towards
    half = DETECTOR_SIZE[view] / 2
    grid = (np.arange(size) + 0.5) / size * 2 * half - half
    return Rays(source, np.stack([detector - source, right, down], 1), grid, grid)


class _Lungs:
    """The aerated part of both lungs: cavity without dome, as intervals over the whole image."""

    def __init__(self, chest: Chest, shadows: Shadows, everywhere: Window) -> None:
        self.spaces = [shadows.interval(lung.space, everywhere) for lung in chest.lungs]
        self.domes = [shadows.interval(lung.dome, everywhere) for lung in chest.lungs]
        self.windows = [shadows.window(lung.space) for lung in chest.lungs]

    def within(self, body: Interval | None, window: Window) -> np.ndarray | float:
        """Length of `body`'s intervals (None: everything) inside aerated lung."""
        total: np.ndarray | float = 0.0
        for space, dome, lung_window in zip(self.spaces, self.domes, self.windows, strict=True):
            if lung_window is None or not _meet(window[1], lung_window[1]):
                continue
            space = (space[0][window], space[1][window])
            inside = space if body is None else overlap(body, space)
            under = overlap(inside, (dome[0][window], dome[1][window]))
            total = total + length(*inside) - length(*under)
        return total


def _meet(a: slice, b: slice) -> bool:
    return a.start < b.stop and b.start < a.stop


def line_integral(chest: Chest, rays: Rays) -> Image:
    """Integral of attenuation along every ray (no unit), exact for the bodies of `chest`."""
    shadows = Shadows(_shapes(chest), chest.scale, rays)
    everywhere = (slice(0, len(rays.v)), slice(0, len(rays.u)))
    lungs = _Lungs(chest, shadows, everywhere)
    total = MU_SOFT * length(*shadows.interval(chest.torso, everywhere))
    total += (chest.lung_attenuation - MU_SOFT) * lungs.within(None, everywhere)
    for body in chest.bodies:
        window = shadows.window(body.inside, body.box)
        if window is not None:
            total[window] += body.attenuation * _path(body, shadows, lungs, window)
    total *= rays.lengths
    return np.maximum(total, 0)


def _shapes(chest: Chest) -> list[Convex]:
    parts = [chest.torso, *(part for lung in chest.lungs for part in (lung.space, lung.dome))]
    return parts + [part for body in chest.bodies for part in (body.inside, body.outside)]


def _path(body: Body, shadows: Shadows, lungs: _Lungs, window: Window) -> np.ndarray | float:
    shape = body.inside[0]
    if len(body.inside) == 1 and isinstance(shape, Ellipsoid) and not body.outside and not body.in_lung:
        return shadows.chord(shape, window)
    inside = shadows.interval(body.inside, window)
    parts = [inside]
    if body.outside:
        parts.append(overlap(inside, shadows.interval(body.outside, window)))
    sizes = [lungs.within(part, window) if body.in_lung else length(*part) for part in parts]
    return sizes[0] - sizes[1] if body.outside else sizes[0]


@lru_cache(maxsize=16)
def _blur_matrices(size: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Averaging down to 32 cells, and blur + interpolation back: scatter is so smooth that 32 cells carry it."""
    cells = 32
    edges = np.linspace(0, size, cells + 1)
    shared = np.minimum(edges[1:, None], np.arange(1, size + 1)) - np.maximum(edges[:-1, None], np.arange(size))
    down = np.maximum(shared, 0) * cells / size
    centers = (np.arange(cells) + 0.5) / cells
    fine = (np.arange(size) + 0.5) / size
    up = np.exp(-0.5 * ((fine[:, None] - centers) / sigma) ** 2)
    return down.astype(np.float32), (up / up.sum(1, keepdims=True)).astype(np.float32)


def structure(integral: Image, view: View, random: np.random.Generator) -> Image:
    """Superposed normal structure: a smooth field of standard deviation `ANATOMICAL_FLOOR`, none in air.

    The field is drawn on a grid of its own grain, so that it is the same at any image size.
    """
    cells = round(DETECTOR_SIZE[view] / ANATOMICAL_GRAIN)
    centers, fine = (np.arange(cells) + 0.5) / cells, (np.arange(len(integral)) + 0.5) / len(integral)
    spread = np.exp(-0.5 * ((fine[:, None] - centers) * cells) ** 2)
    spread /= np.sqrt((spread**2).sum(1, keepdims=True))
    spread = spread.astype(np.float32)
    field = spread @ random.standard_normal((cells, cells), np.float32) @ spread.T
    return np.float32(ANATOMICAL_FLOOR) * field * np.minimum(integral, 1)


def detector_signal(integral: Image, view: View) -> Image:
    """Expected signal relative to the open beam: primary plus scatter."""
    primary = np.exp(-integral)
    down, up = _blur_matrices(integral.shape[0], SCATTER_SIGMA / DETECTOR_SIZE[view])
    scatter = up @ (down @ np.minimum(primary, SCATTER_CAP) @ down.T) @ up.T
    return _soften(primary) + SCATTER_SHARE[view] * scatter


def _soften(image: Image) -> Image:
    """Detector blur of about one pixel (binomial 1-2-1), which also keeps thin edges from aliasing."""
    padded = np.pad(image, 1, mode="edge")
    rows = 0.25 * (padded[:-2] + padded[2:]) + 0.5 * padded[1:-1]
    return 0.25 * (rows[:, :-2] + rows[:, 2:]) + 0.5 * rows[:, 1:-1]


def relative_noise(signal: Image, view: View, exposure: float = 1.0) -> Image:
    """Standard deviation of log signal per pixel from counting quanta (Poisson, so 1 / sqrt(count))."""
    pixel = DETECTOR_SIZE[view] / signal.shape[0]
    return 1 / np.sqrt(np.float32(QUANTA[view] * exposure * pixel**2) * signal)


def add_noise(signal: Image, view: View, exposure: float, random: np.random.Generator) -> Image:
    """Log signal with quantum noise (negated: bone high, air low)."""
    return -np.log(signal) + relative_noise(signal, view, exposure) * random.standard_normal(signal.shape, np.float32)


def grey_scale(log_image: Image, contrast: float = 1.0, brightness: float = 0.0) -> Image:
    """The display's curve: an S over the exposed chest's own range, to [0, 1]."""
    sparse = log_image[::4, ::4]
    low, high = np.percentile(sparse[sparse > CHEST_FROM], (8, 97))
    x = (log_image - np.float32(0.5 * (low + high))) * np.float32(4.0 * contrast / (high - low))
    return 1 / (1 + np.exp(-x - np.float32(brightness)))
