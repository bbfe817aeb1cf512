"""Convex bodies: what the phantom is made of.

Coordinates in cm: x from the patient's right to left, y from back to front, z up. Every body is an intersection of
ellipsoids and half-spaces, so it is convex and a ray meets it in one interval (`data.phantom.rays`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Vector = Sequence[float | int] | np.ndarray  # three numbers: x, y, z
Box = tuple[tuple[float, float, float], tuple[float, float, float]]  # lowest and highest x, y, z


class Ellipsoid(NamedTuple):
    """Points p with (p - center)^T matrix (p - center) <= 1."""

    center: np.ndarray
    matrix: np.ndarray


class HalfSpace(NamedTuple):
    """Points p with normal . p <= offset."""

    normal: np.ndarray
    offset: float


Convex = tuple[Ellipsoid | HalfSpace, ...]


class Body(NamedTuple):
    """`inside` without `outside`, adding `attenuation` (1/cm) to what is already there.

    With `in_lung` only the part in aerated lung counts: something that displaces lung, and is not seen elsewhere.
    `box` may say where the body is more tightly than its ellipsoids do; half-spaces do not
    narrow the window that is computed.
    """

    attenuation: float
    inside: Convex
    outside: Convex = ()
    in_lung: bool = False
    box: Box | None = None


def rotation(angles: Vector) -> Float[np.ndarray, "3 3"]:
    """Rotation by `angles` in degrees about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(angles)):
        turn = np.eye(3)
        i, j = [k for k in range(3) if k != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[j, i] = np.sin(angle) if axis != 1 else -np.sin(angle)
        turn[i, j] = -turn[j, i]
        matrix = turn @ matrix
    return matrix


def ellipsoid(center: Vector, radii: Vector, turn: Vector = (0, 0, 0)) -> Ellipsoid:
    """Ellipsoid with half-axes `radii` (cm) along x, y, z, turned by `turn` degrees about x, then y, then z."""
    inverse = 1 / np.asarray(radii, float) ** 2
    if not any(turn):
        return Ellipsoid(np.asarray(center, float), np.diag(inverse))
    axes = rotation(turn)
    return Ellipsoid(np.asarray(center, float), (axes * inverse) @ axes.T)


def rod(start: Vector, end: Vector, radius: float, flat: float | None = None) -> Ellipsoid:
    """Thin ellipsoid from `start` to `end`; `flat` is another radius for the axis nearest to y."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    half = (b - a) / 2
    x, y, z = along = half / np.sqrt(half @ half)
    assert abs(y) < 0.999, "a rod along y has no axis nearest to y"
    second = np.array([-x * y, 1 - y * y, -z * y]) / np.sqrt(1 - y * y)
    rest = np.eye(3) - np.outer(along, along) - np.outer(second, second)
    across = np.outer(second, second) * (flat or radius) ** -2.0
    return Ellipsoid((a + b) / 2, np.outer(along, along) / (half @ half) + across + rest * radius**-2.0)


def half_space(normal: Vector, through: Vector) -> HalfSpace:
    """Half-space on the side of the plane through `through` that `normal` points away from."""
    n = np.asarray(normal, float)
    return HalfSpace(n, float(n @ np.asarray(through, float)))


def slab(normal: Vector, through: Vector, thickness: float) -> Convex:
    """The space between two planes `thickness` cm apart, `through` half-way between them."""
    n = np.asarray(normal, float) / np.sqrt(np.dot(normal, normal))
    middle = float(n @ np.asarray(through, float))
    return HalfSpace(n, middle + thickness / 2), HalfSpace(-n, thickness / 2 - middle)
