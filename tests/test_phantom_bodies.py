"""Paths through bodies: closed form against sampling points along each ray."""

import numpy as np
import pytest

from data.phantom.bodies import Body, HalfSpace, ellipsoid, half_space, rod, rotation, slab
from data.phantom.constants import MU_SOFT
from data.phantom.findings import build_chest
from data.phantom.patient import sample_patient
from data.phantom.rays import Rays, Shadows, length
from data.phantom.render import beam, line_integral

SCALE = np.array([1.05, 0.9, 1.1])


def rays_at(source: tuple, height: int = 5, width: int = 7) -> Rays:
    """A beam towards the origin from `source`, a different number of rows and columns."""
    source = np.array(source, float)
    ahead = -source / np.linalg.norm(source)
    right = np.cross(ahead, [0.1, 0.2, 1.0])
    right /= np.linalg.norm(right)
    frame = np.stack([-source * 1.2, right, np.cross(ahead, right)], 1)
    return Rays(source, frame, np.linspace(-9, 8, width), np.linspace(-7, 8.5, height))


def points_on(rays: Rays, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Middles of `steps` equal parts of every ray, (H, W, steps, 3), and the length of a part (H, W)."""
    grid = np.stack(np.broadcast_arrays(1.0, rays.u[None, :], rays.v[:, None]), -1) @ rays.G.T
    t = (np.arange(steps) + 0.5) / steps
    return rays.source + t[:, None] * grid[:, :, None, :], np.linalg.norm(grid, axis=-1) / steps


def contains(convex: tuple, points: np.ndarray, scale: np.ndarray) -> np.ndarray:
    inside, points = np.ones(points.shape[:-1], bool), points / scale
    for shape in convex:
        if isinstance(shape, HalfSpace):
            inside &= points @ shape.normal <= shape.offset
        else:
            offset = points - shape.center
            inside &= np.einsum("...i,ij,...j->...", offset, shape.matrix, offset) <= 1
    return inside


@pytest.mark.parametrize("source", [(-30, -170, 20), (160, 40, -35), (25, 90, 60)])
@pytest.mark.parametrize(
    "convex",
    [
        (ellipsoid((1, -2, 0.5), (6, 3, 4), (20, -35, 50)),),
        (rod((-9, 1, -8), (9, -2, 8), 3.5, 1.8),),
        (ellipsoid((0, 0, 0), (8, 7, 6)), *slab((0.3, 0.5, 1), (0, 0, 1), 2.0), half_space((1, 0.2, 0), (1, 0, 0))),
        (ellipsoid((-2, 0, 0), (5, 5, 5)), ellipsoid((2, 1, 0), (6, 4, 5), (0, 0, 30))),
    ],
)
def test_the_closed_form_path_equals_sampling_the_ray(source, convex):
    rays = rays_at(source)
    shadows = Shadows([convex], SCALE, rays)
    found = length(*shadows.interval(convex, (slice(0, 5), slice(0, 7)))) * rays.lengths
    points, step = points_on(rays, 6000)
    wanted = contains(convex, points, SCALE).sum(-1) * step
    assert wanted.max() > 2
    np.testing.assert_allclose(found, wanted, atol=2.5 * step.max())


def test_the_window_of_a_shadow_holds_every_ray_that_meets_the_body_and_hardly_more():
    convex = (ellipsoid((1, -2, 0.5), (2, 1, 3), (20, -35, 50)),)
    rays = rays_at((-30, -170, 20), height=60, width=90)
    shadows = Shadows([convex], SCALE, rays)
    rows, columns = shadows.window(convex)
    met = length(*shadows.interval(convex, (slice(0, 60), slice(0, 90)))) > 0
    assert met[rows, columns].sum() == met.sum() > 0
    used_rows, used_columns = np.flatnonzero(met.any(1)), np.flatnonzero(met.any(0))
    assert rows.stop - rows.start <= np.ptp(used_rows) + 4
    assert columns.stop - columns.start <= np.ptp(used_columns) + 4


def test_the_chord_of_one_ellipsoid_is_its_interval():
    shape = ellipsoid((1, -2, 0.5), (6, 3, 4), (20, -35, 50))
    shadows = Shadows([(shape,)], SCALE, rays_at((-30, -170, 20)))
    window = (slice(0, 5), slice(0, 7))
    np.testing.assert_allclose(shadows.chord(shape, window), length(*shadows.interval((shape,), window)), atol=1e-6)


def test_a_rotation_turns_about_x_then_y_then_z():
    np.testing.assert_allclose(rotation((90, 0, 0)) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation((0, 90, 0)) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation((90, 0, 90)) @ [0, 0, 1], [1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("view", ["PA", "AP", "LATERAL"])
def test_a_whole_chest_with_findings_equals_summing_attenuation_along_the_rays(view):
    findings = {"Pleural Effusion": 3, "Pneumothorax": 5, "Hernia": 8, "electrode": 2, "Cardiomegaly": 1, "Edema": 4}
    chest = build_chest(sample_patient(11), findings, view, 0.7)
    rays = beam(view, chest, 5)
    found = line_integral(chest, rays)
    points, step = points_on(rays, 3000)
    lung = np.zeros(points.shape[:-1], bool)
    for part in chest.lungs:
        lung |= contains(part.space, points, chest.scale) & ~contains(part.dome, points, chest.scale)
    wanted = MU_SOFT * contains(chest.torso, points, chest.scale) + (chest.lung_attenuation - MU_SOFT) * lung
    for body in chest.bodies:
        wanted += body.attenuation * _in_body(body, points, chest.scale, lung)
    np.testing.assert_allclose(found, np.maximum(wanted.sum(-1) * step, 0), atol=0.05)
    assert found.max() > 3


def _in_body(body: Body, points: np.ndarray, scale: np.ndarray, lung: np.ndarray) -> np.ndarray:
    inside = contains(body.inside, points, scale)
    if body.outside:
        inside &= ~contains(body.outside, points, scale)
    return inside & lung if body.in_lung else inside


def test_a_body_s_box_only_saves_work():
    chest = build_chest(sample_patient(12), {}, "PA")
    rays = beam("PA", chest, 40)
    boxed = line_integral(chest, rays)
    assert any(body.box for body in chest.bodies)
    chest.bodies[:] = [body._replace(box=None) for body in chest.bodies]
    np.testing.assert_allclose(boxed, line_integral(chest, rays), atol=1e-5)
