"""Outlines of the things that scenes are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Outline = NDArray[np.float64]
"""A ring of ``(V, 2)`` points around the origin, largest radius about 1, y down."""


@dataclass(frozen=True, eq=False)
class Shape:
    """A nameable outline."""

    outer: Outline
    hole: Outline | None = None
    rotation: float = 20.0
    """Largest rotation in degrees, to either side, at which the name still fits."""
    stretch: float = 1.0
    """Radius relative to that of a circle that looks as large."""


def _arc(radius: float, start: float, stop: float, count: int) -> Outline:
    """Points on a circle from angle ``start`` to ``stop`` in degrees, ``(count, 2)``."""
    angles = np.radians(np.linspace(start, stop, count))
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _circle(radius: float = 1.0) -> Outline:
    return _arc(radius, 0.0, 357.0, 120)


def _regular(corners: int, inner: float | None = None) -> Outline:
    """A regular polygon pointing up; with ``inner`` a star whose notches have that radius."""
    count = corners if inner is None else 2 * corners
    points = _arc(1.0, -90.0, 270.0, count + 1)[:-1]
    if inner is not None:
        points[1::2] *= inner
    return points


def _fit(points: ArrayLike) -> Outline:
    """``(V, 2)`` points scaled so that the farthest lies on the unit circle."""
    array = np.asarray(points, dtype=np.float64)
    return np.asarray(array / np.hypot(array[:, 0], array[:, 1]).max(), dtype=np.float64)


def _blunted(points: Outline, share: float) -> Outline:
    """Cut off every second corner, the first included, at a share of its edges.

    Sharp tips would fall apart into single pixels that only touch at their corners.
    """
    before, after = np.roll(points, 1, axis=0)[::2], points[1::2]
    tips = points[::2]
    left, right = tips + share * (before - tips), tips + share * (after - tips)
    return np.stack([left, right, after], axis=1).reshape(-1, 2)


def _rectangle(half_width: float, half_height: float) -> Outline:
    return _fit(np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (half_width, half_height))


def _cross(arm: float = 0.36) -> Outline:
    quarter = np.array([(arm, -1.0), (arm, -arm), (1.0, -arm)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])  # a quarter turn, applied to row vectors
    return _fit(np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)]))


def _crescent() -> Outline:
    """A disc without the part under a smaller disc shifted to the right, ``(V, 2)``."""
    inner, shift, blunt = 0.82, 0.46, 10.0  # the last degrees of its horns are cut off
    meet = (1.0 + shift**2 - inner**2) / (2.0 * shift)  # x at which the two circles cross
    outer_angle = np.degrees(np.arccos(meet)) + blunt
    inner_angle = np.degrees(np.arctan2(np.sqrt(1.0 - meet**2), meet - shift)) + blunt
    back = _arc(1.0, outer_angle, 360.0 - outer_angle, 80)
    front = _arc(inner, 360.0 - inner_angle, inner_angle, 60) + np.array([shift, 0.0])
    return _fit(np.concatenate([back, front]) + np.array([0.25, 0.0]))


def _arrow() -> Outline:
    upper = [(1, 0), (0.24, -0.66), (0.15, -0.66), (0.15, -0.26), (-1, -0.26)]
    return _fit(upper + [(x, -y) for x, y in reversed(upper[1:])])


def _heart() -> Outline:
    t = np.linspace(0.0, 2.0 * np.pi, 80, endpoint=False)
    x = 16.0 * np.sin(t) ** 3
    y = 13.0 * np.cos(t) - 5.0 * np.cos(2 * t) - 2.0 * np.cos(3 * t) - np.cos(4 * t)
    return _fit(np.stack([x, -2.5 - y], axis=1))


SHAPES: dict[str, Shape] = {
    "circle": Shape(_circle(), rotation=0.0),
    "square": Shape(_rectangle(1.0, 1.0), stretch=1.2),
    "triangle": Shape(_regular(3), stretch=1.25),
    "star": Shape(_blunted(_regular(5, 0.46), 0.1), stretch=1.25),
    "cross": Shape(_cross(), stretch=1.1),
    "bar": Shape(_rectangle(1.0, 0.16), rotation=90.0, stretch=1.7),
    "diamond": Shape(_regular(4) * (0.62, 1.0), stretch=1.3),
    "hexagon": Shape(_regular(6), rotation=30.0, stretch=1.05),
    "ellipse": Shape(_circle() * (1.0, 0.58), rotation=90.0, stretch=1.25),
    "crescent": Shape(_crescent(), rotation=180.0, stretch=1.3),
    "ring": Shape(_circle(), hole=_circle(0.55), rotation=0.0, stretch=1.1),
    "arrow": Shape(_arrow(), rotation=180.0, stretch=1.3),
    "heart": Shape(_heart(), stretch=1.1),
}
"""Every shape by its name; the first five are those of the easy scenes."""
