"""How far the answer's centre is from the target's: tells near misses from far ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rewards.base import ScaledReward, score_by_form
from rewards.registry import register_reward
from seg_env.geometry.polygon import roles
from seg_env.geometry.raster import usable_rings
from seg_env.metrics import point_distances
from seg_env.metrics.scores import region_of, with_absent
from seg_env.tasks import centre_of
from seg_env.types import Prediction, Ring, Target


@register_reward("centroid_distance")
@dataclass(eq=False)
class CentroidDistance(ScaledReward):
    """``max(0, 1 - d / scale)`` with ``d`` the distance of the centroids in the unit frame.

    Source: SimpleSeg's "MSE distance IoU" term (arXiv 2601.19228), the distance between the
    centroids of prediction and target. How the paper turns a distance into a reward is not
    published; the linear mapping is ours. Its slope is the same everywhere, so an answer that
    misses the object altogether (IoU 0) still learns which way to move.

    The target's centroid is the mean of its pixel centres; the answer's is that of the area inside
    its rings, holes taken out, without rasterising (rings that overlap count twice). Rings that
    enclose no area give the mean of their vertices. No usable ring gives 0; if the target has no
    pixels either and the answer was read without issue, 1.

    Where a box was asked for, ``d`` is the distance of the middles of the two boxes; where a point
    was asked for, that of the point from the one that answers best (`seg_env.tasks.point_of`).
    """

    scale: float = 1.0
    """Distance in the unit frame at which the reward reaches 0."""

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return rewards in ``[0, 1]``, ``(N,)``."""
        distances = score_by_form(
            predictions,
            targets,
            mask=partial(_distances, centre_of_target=target_centroid),
            bbox=partial(_distances, centre_of_target=centre_of),
            point=point_distances,
        )
        near = np.maximum(0.0, 1.0 - distances / self.scale)
        return with_absent(np.where(np.isnan(distances), 0.0, near), predictions, targets)


def _distances(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    centre_of_target: Callable[[Target], ArrayLike],
) -> NDArray[np.float64]:
    """From the centres of answers to those of targets, ``(N,)``, NaN where there is none."""
    wanted = np.array([centre_of_target(target) for target in targets]).reshape(-1, 2)
    found = prediction_centroids([prediction.rings for prediction in predictions])
    return np.asarray(np.hypot(*(found - wanted).T))


def target_centroid(target: Target) -> tuple[float, float]:
    """Mean pixel centre ``(x, y)`` of the mask in the unit frame, NaN when it has no pixels.

    Kept in ``target.cache``.
    """
    cached: tuple[float, float] | None = target.cache.get("centroid_distance")
    if cached is not None:
        return cached
    (height, width), area = target.size, target.area
    centroid = (float("nan"), float("nan"))
    if area:
        region = region_of(target)
        columns, tops = np.divmod(region.starts, height + 1)
        lengths = region.ends - region.starts
        x, y = columns * lengths, tops * lengths + lengths * (lengths - 1) // 2
        centroid = (
            (float(x.sum()) / area + 0.5) / width,
            (float(y.sum()) / area + 0.5) / height,
        )
    target.cache["centroid_distance"] = centroid
    return centroid


def prediction_centroids(answers: Sequence[Sequence[Ring]]) -> NDArray[np.float64]:
    """Centroids ``(N, 2)`` of what the rings of each answer enclose, in any orientation.

    NaN where an answer has no ring of three or more finite vertices. A centroid is kept inside the
    bounding box of its answer, which it could leave only where rings cross themselves or each
    other.
    """
    centroids = np.full((len(answers), 2), np.nan)
    stacked = stack_rings(answers)
    if stacked is None:
        return centroids
    weights = np.abs(stacked.areas) * np.where(_filled(stacked), 1.0, -1.0)
    first = np.flatnonzero(np.diff(stacked.owner, prepend=-1))  # first ring of each answer
    total = np.add.reduceat(weights, first)[:, None]
    weighted = np.add.reduceat(stacked.centroids * weights[:, None], first)
    points, starts = stacked.points, stacked.starts[first]
    # Nothing enclosed: the vertices themselves say where the answer points.
    mean_vertex = np.add.reduceat(points, starts)
    mean_vertex /= np.add.reduceat(stacked.lengths, first)[:, None]
    found = np.where(total > 0, weighted / np.where(total > 0, total, 1.0), mean_vertex)
    low, high = np.minimum.reduceat(points, starts), np.maximum.reduceat(points, starts)
    centroids[stacked.owner[first]] = np.clip(found, low, high)
    return centroids


class StackedRings(NamedTuple):
    """The usable rings of several answers, ``R >= 1`` in all with ``V`` vertices, in order."""

    rings: list[Ring]
    owner: NDArray[np.int64]
    """``(R,)`` index of the answer each ring belongs to, never falling."""
    points: NDArray[np.float64]
    """``(V, 2)`` vertices of all rings."""
    starts: NDArray[np.int64]
    """``(R,)`` index in `points` of each ring's first vertex."""
    lengths: NDArray[np.int64]
    """``(R,)`` number of vertices."""
    areas: NDArray[np.float64]
    """``(R,)`` signed areas, positive when clockwise on screen; exactly 0 on one line."""
    centroids: NDArray[np.float64]
    """``(R, 2)`` centroids of the enclosed areas, the mean vertex where the area is 0."""


def stack_rings(answers: Sequence[Sequence[Ring]]) -> StackedRings | None:
    """Stack the rings of answers that have three or more vertices, all finite; None without any."""
    owned = [
        (index, ring) for index, rings in enumerate(answers) for ring in rings if len(ring) >= 3
    ]
    if owned and not np.isfinite(np.concatenate([ring for _, ring in owned])).all():
        owned = [(index, ring) for index, ring in owned if usable_rings([ring])]
    if not owned:
        return None
    rings = [ring for _, ring in owned]
    points = np.concatenate(rings).astype(np.float64, copy=False)
    lengths = np.fromiter(map(len, rings), np.int64, len(rings))
    starts = np.cumsum(lengths) - lengths
    mean_vertices = np.add.reduceat(points, starts) / lengths[:, None]
    local = points - np.repeat(mean_vertices, lengths, axis=0)
    following = np.arange(1, len(local) + 1)
    following[starts + lengths - 1] = starts
    after = local[following]
    cross = local[:, 0] * after[:, 1] - after[:, 0] * local[:, 1]
    areas = np.add.reduceat(cross, starts) / 2.0
    # Points on one line enclose a rounding error, not an area.
    extent = np.maximum.reduceat(np.abs(local).max(axis=1), starts)
    areas[np.abs(areas) <= 1e-12 * extent**2] = 0.0
    moments = np.add.reduceat((local + after) * cross[:, None], starts) / 6.0
    moments /= np.where(areas == 0, 1.0, areas)[:, None]
    centroids = mean_vertices + np.where(areas[:, None] == 0, 0.0, moments)
    owner = np.array([index for index, _ in owned])
    return StackedRings(rings, owner, points, starts, lengths, areas, centroids)


def _filled(stacked: StackedRings) -> NDArray[np.bool_]:
    """``(R,)`` False for holes; only answers with rings of both orientations can have any."""
    owner, areas = stacked.owner, stacked.areas
    filled = np.ones(len(owner), dtype=np.bool_)
    if (areas > 0).any() and (areas < 0).any():
        for index in np.intersect1d(owner[areas > 0], owner[areas < 0]).tolist():
            members = np.flatnonzero(owner == index)
            filled[members] = roles([stacked.rings[member] for member in members.tolist()])
    return filled
