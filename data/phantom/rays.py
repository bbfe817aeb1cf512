"""The lengths of X-ray paths through convex bodies, in closed form.

The intersection of two bodies along a ray is the intersection of their intervals, and "A without B" is |A| - |A and B|.

A ray of pixel (u, v) is `source + t * d(u, v)` with `d = G @ (1, u, v)`, not normalised: t is 0 at the source and 1 at
the detector. Writing K for an ellipsoid's matrix, the interval's middle is linear over quadratic in (u, v) and the
discriminant is one quadratic form, the conic that the ellipsoid's shadow is. Hence a body costs a handful of operations
on the pixels of its own shadow's bounding box, and nothing elsewhere.

Axes: **H W** image rows and columns, **h w** those of a window.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float

from data.phantom.bodies import Box, Convex, Ellipsoid, HalfSpace

Window = tuple[slice, slice]
Interval = tuple[Any, Any]  # t of entering and leaving: an array per ray, or a scalar where it is the same for all
NEVER, ALWAYS = np.float32(0), np.float32(1)  # t of the source and of the detector


@dataclass(frozen=True)
class Rays:
    """One cone beam: `source` (cm), `G` whose columns are the detector's centre - source and its two unit vectors, and
    the pixel centres `u` along columns and `v` along rows (cm on the detector, v downwards in the image)."""

    source: Float[np.ndarray, "3"]
    G: Float[np.ndarray, "3 3"]
    u: Float[np.ndarray, "W"]
    v: Float[np.ndarray, "H"]

    @property
    def lengths(self) -> Float[np.ndarray, "H W"]:
        """Distance from source to each pixel in cm: the length of one unit of t."""
        shape = (slice(0, len(self.v)), slice(0, len(self.u)))
        return np.sqrt(self.evaluate(_polynomial(self.G.T @ self.G), shape))

    @cached_property
    def _powers(self) -> tuple[np.ndarray, np.ndarray]:
        """(1, v, v^2) as columns in float32 and (1, u, u^2) as rows in float64."""
        return np.stack([self.v**0, self.v, self.v**2], 1).astype(np.float32), np.stack([self.u**0, self.u, self.u**2])

    def evaluate(self, table: np.ndarray, window: Window) -> Float[np.ndarray, "h w"]:
        """A polynomial of (u, v) of degree up to 2 on a window; float64 along rows, float32 on the grid."""
        v, u = self._powers
        p, q = table.shape
        return v[window[0], :p] @ (table @ u[:q, window[1]]).astype(np.float32)


def _polynomial(form: np.ndarray) -> np.ndarray:
    """Coefficients of the quadratic forms (..., 3, 3) of (1, u, v): rows are powers of v, columns powers of u."""
    table = np.zeros_like(form)
    table[..., 0, 0], table[..., 0, 1], table[..., 0, 2] = form[..., 0, 0], 2 * form[..., 0, 1], form[..., 1, 1]
    table[..., 1, 0], table[..., 1, 1], table[..., 2, 0] = 2 * form[..., 0, 2], 2 * form[..., 1, 2], form[..., 2, 2]
    return table


class Shadows:
    """The shadows of many bodies under one beam: intervals of t per pixel, each in its own window."""

    def __init__(self, bodies: Sequence[Convex], scale: np.ndarray, rays: Rays) -> None:
        self.rays = rays
        self.scale = scale
        shapes = {id(s): s for convex in bodies for s in convex if isinstance(s, Ellipsoid)}
        self.number = {key: n for n, key in enumerate(shapes)}
        centers = np.stack([s.center for s in shapes.values()]) * scale
        matrices = np.stack([s.matrix for s in shapes.values()]) / np.outer(scale, scale)
        offset = rays.source - centers
        turned = matrices @ rays.G
        self.A = rays.G.T @ turned  # |d|^2 in the ellipsoid's metric: a quadratic form of (1, u, v)
        self.B = np.einsum("ni,nij->nj", offset, turned)  # half the linear coefficient: linear in (1, u, v)
        C = np.einsum("ni,nij,nj->n", offset, matrices, offset) - 1
        assert (C > 0).all(), "the source must be outside every body"
        self.disc = self.B[:, :, None] * self.B[:, None, :] - C[:, None, None] * self.A
        self.windows = self._windows()
        self.A, self.disc = _polynomial(self.A), _polynomial(self.disc)

    def _windows(self) -> list[Window]:
        """Bounding box of each shadow: the tangents u = const, v = const of its conic, from the inverse matrix."""
        dual, windows = np.linalg.inv(self.disc), []
        for axis, grid in ((2, self.rays.v), (1, self.rays.u)):
            middle = dual[:, 0, axis] / dual[:, 0, 0]
            spread = np.sqrt(np.maximum(middle**2 - dual[:, axis, axis] / dual[:, 0, 0], 0))
            step = grid[1] - grid[0]
            ends = np.sort((np.stack([middle - spread, middle + spread]) - grid[0]) / step, axis=0)
            windows.append((np.clip(np.floor(ends[0]), 0, len(grid)), np.clip(np.ceil(ends[1]) + 1, 0, len(grid))))
        (top, bottom), (left, right) = windows
        bounds = np.stack([top, bottom, left, right], 1).astype(int).tolist()
        return [(slice(t, b), slice(le, r)) for t, b, le, r in bounds]

    def window(self, convex: Convex, box: Box | None = None) -> Window | None:
        """The part of the image that `convex` can shade, or None."""
        top, left, bottom, right = 0, 0, len(self.rays.v), len(self.rays.u)
        if box is not None:
            (top, bottom), (left, right) = self._box_window(box)
        for shape in convex:
            if isinstance(shape, Ellipsoid):
                rows, columns = self.windows[self.number[id(shape)]]
                top, bottom = max(top, rows.start), min(bottom, rows.stop)
                left, right = max(left, columns.start), min(right, columns.stop)
        return (slice(top, bottom), slice(left, right)) if top < bottom and left < right else None

    def _box_window(self, box: Box) -> list[tuple[int, int]]:
        """Rows and columns between which a box's eight corners fall."""
        corners = np.array(list(product(*zip(*box, strict=True)))) * self.scale
        w = np.linalg.solve(self.rays.G, (corners - self.rays.source).T)
        ends = []
        for axis, grid in ((2, self.rays.v), (1, self.rays.u)):
            place = (w[axis] / w[0] - grid[0]) / (grid[1] - grid[0])
            ends.append((max(int(place.min()), 0), min(int(place.max()) + 2, len(grid))))
        return ends

    def interval(self, convex: Convex, window: Window) -> Interval:
        """Where each ray of the window enters and leaves `convex` (t); a miss ends before it starts, or as it does."""
        parts = [
            self._of_ellipsoid(shape, window) if isinstance(shape, Ellipsoid) else self._of_plane(shape, window)
            for shape in convex
        ]
        return reduce(overlap, parts)

    def chord(self, shape: Ellipsoid, window: Window) -> np.ndarray:
        """Length of one ellipsoid's intervals: half the work of finding their ends."""
        n = self.number[id(shape)]
        root = self._root(n, window)
        root /= self.rays.evaluate(0.5 * self.A[n], window)
        return root

    def _root(self, n: int, window: Window) -> np.ndarray:
        root = self.rays.evaluate(self.disc[n], window)
        np.maximum(root, 0, out=root)
        return np.sqrt(root, out=root)

    def _of_ellipsoid(self, shape: Ellipsoid, window: Window) -> Interval:
        n = self.number[id(shape)]
        root = self._root(n, window)
        inverse = 1 / self.rays.evaluate(self.A[n], window)
        b0, b1, b2 = -self.B[n]
        middle = self.rays.evaluate(np.array([[b0, b1], [b2, 0]]), window)
        middle *= inverse
        root *= inverse
        return middle - root, middle + root

    def _of_plane(self, shape: HalfSpace, window: Window) -> Interval:
        normal = shape.normal / self.scale
        room = np.float32(shape.offset - normal @ self.rays.source)
        n0, n1, n2 = normal @ self.rays.G
        slope = self.rays.evaluate(np.array([[n0, n1], [n2, 0]]), window)
        corners = slope[:: max(slope.shape[0] - 1, 1), :: max(slope.shape[1] - 1, 1)]  # extremes of a linear function
        if corners.min() > 0:  # every ray goes out of the half-space: the meeting point is the end of the interval
            return NEVER, room / slope
        if corners.max() < 0:
            return room / slope, ALWAYS
        np.copyto(slope, np.float32(1e-9), where=np.abs(slope) < 1e-9)
        meet, out = room / slope, slope > 0
        return np.where(out, NEVER, meet), np.where(out, meet, ALWAYS)


def length(enter: np.ndarray, leave: np.ndarray) -> np.ndarray:
    """Length of the intervals, 0 where empty."""
    return np.maximum(leave - enter, 0)


def overlap(a: Interval, b: Interval) -> Interval:
    """Intersection of two intervals per ray."""
    return np.maximum(a[0], b[0]), np.minimum(a[1], b[1])
