"""Areas and first moments of the rings of many answers in one pass (shoelace formula)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.raster import usable_rings
from seg_env.types import Ring


@dataclass(frozen=True, eq=False)
class StackedRings:
    """The usable rings of ``N`` answers, ``R`` in all, one after another. ``R`` is at least 1."""

    rings: list[Ring]
    """``R`` rings of at least three vertices, all finite."""
    owner: NDArray[np.int64]
    """``(R,)`` index of the answer each ring belongs to, never falling."""

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """``(R,)`` number of vertices."""
        return np.fromiter(map(len, self.rings), np.int64, len(self.rings))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """``(R,)`` index in `points` of each ring's first vertex."""
        return np.cumsum(self.lengths) - self.lengths

    @cached_property
    def points(self) -> NDArray[np.float64]:
        """``(V, 2)`` vertices."""
        return np.concatenate(self.rings).astype(np.float64, copy=False)

    @cached_property
    def origins(self) -> NDArray[np.float64]:
        """``(R, 2)`` mean vertex of each ring."""
        return np.asarray(np.add.reduceat(self.points, self.starts) / self.lengths[:, None])

    @cached_property
    def _local(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Vertices relative to the mean vertex, the vertices after them, and their products."""
        local = self.points - np.repeat(self.origins, self.lengths, axis=0)
        following = np.arange(1, len(local) + 1)
        following[self.starts + self.lengths - 1] = self.starts
        after = local[following]
        return local, after, local[:, 0] * after[:, 1] - after[:, 0] * local[:, 1]

    @cached_property
    def areas(self) -> NDArray[np.float64]:
        """``(R,)`` signed areas, positive when clockwise on screen; exactly 0 on one line."""
        local, _, cross = self._local
        areas = np.add.reduceat(cross, self.starts) / 2.0
        extent = np.maximum.reduceat(np.abs(local).max(axis=1), self.starts)
        # Points on one line enclose a rounding error, not an area.
        areas[np.abs(areas) <= 1e-12 * extent**2] = 0.0
        return np.asarray(areas, dtype=np.float64)

    @cached_property
    def centroids(self) -> NDArray[np.float64]:
        """``(R, 2)`` centroids of the enclosed areas, the mean vertex where the area is 0."""
        local, after, cross = self._local
        moments = np.add.reduceat((local + after) * cross[:, None], self.starts) / 6.0
        areas = self.areas[:, None]
        return self.origins + np.where(areas == 0, 0.0, moments / np.where(areas == 0, 1.0, areas))


def stack_rings(answers: Sequence[Sequence[Ring]]) -> StackedRings | None:
    """Stack the usable rings of ``N`` answers; None when there is not one.

    Rings of fewer than three vertices, or with a coordinate that is not finite, are left out, as
    they are when masks are filled.
    """
    owned = [
        (index, ring) for index, rings in enumerate(answers) for ring in rings if len(ring) >= 3
    ]
    if owned and not np.isfinite(np.concatenate([ring for _, ring in owned])).all():
        owned = [(index, ring) for index, ring in owned if usable_rings([ring])]
    if not owned:
        return None
    return StackedRings([ring for _, ring in owned], np.array([index for index, _ in owned]))
