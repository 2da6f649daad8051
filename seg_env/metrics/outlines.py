"""Outlines as polygons: PoLiS, vertices spent, and the best score that text allows."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.geometry.contour import trace
from seg_env.geometry.overlap import iou_batch
from seg_env.geometry.raster import usable_rings
from seg_env.geometry.simplify import simplify_rings
from seg_env.grammar import decode, encode
from seg_env.metrics.scores import region_of
from seg_env.types import Ring, Sample, Target

REFERENCE_EPSILON = 0.005
"""Tolerance of the outline that answers are compared with: the best of SimpleSeg's ablation."""

_PAIRS_AT_ONCE = 1 << 18  # Pairs of a point and an edge worked on at a time.


@np.errstate(over="ignore", invalid="ignore")  # Coordinates near the largest float.
def polis(answer: Sequence[Ring], reference: Sequence[Ring], size: tuple[int, int]) -> float:
    """PoLiS: mean distance of either outline's vertices to the other outline, in pixels.

    Source: Avbelj, Müller and Bamler, "A Metric for Polygon Comparison and Building Extraction
    Evaluation" (IEEE GRSL 2015): half the mean over the answer's vertices plus half the mean over
    the reference's, such as ``target.outline(REFERENCE_EPSILON)``. Outlines of the unit frame in an
    image of ``(H, W)``; one of several rings, holes among them, is taken as a whole.

    It is 0 where answer and reference have no usable ring, the image diagonal where one of them has
    none. Larger values, possible far outside of the image, are cut to the diagonal.
    """
    diagonal = math.hypot(*size)
    scale = np.array([size[1], size[0]], dtype=np.float64)
    mine = [ring * scale for ring in usable_rings(answer)]
    theirs = [ring * scale for ring in usable_rings(reference)]
    if not mine or not theirs:
        return diagonal if mine or theirs else 0.0
    both = _vertex_distances(mine, theirs).mean() + _vertex_distances(theirs, mine).mean()
    return float(min(both / 2.0, diagonal)) if np.isfinite(both) else diagonal


def _vertex_distances(rings: Sequence[Ring], others: Sequence[Ring]) -> NDArray[np.float64]:
    """``(V,)`` distances of all vertices to the nearest edge of other rings."""
    points = np.concatenate(rings)
    starts = np.concatenate(others)
    edges = np.concatenate([np.roll(ring, -1, axis=0) for ring in others]) - starts
    squared_lengths = np.maximum((edges**2).sum(axis=1), np.finfo(np.float64).tiny)
    block = max(1, _PAIRS_AT_ONCE // len(edges))
    nearest = []
    for begin in range(0, len(points), block):
        to_point = points[begin : begin + block, None] - starts  # (P, E, 2)
        along = np.clip((to_point * edges).sum(axis=2) / squared_lengths, 0.0, 1.0)
        nearest.append(np.hypot(*np.moveaxis(to_point - along[..., None] * edges, 2, 0)).min(1))
    return np.concatenate(nearest)


def vertex_counts(outlines: Iterable[Sequence[Ring]]) -> NDArray[np.int64]:
    """``(N,)`` number of vertices in all rings of each outline."""
    return np.array([sum(map(len, rings)) for rings in outlines], dtype=np.int64)


def vertex_ratio(vertices: ArrayLike, target_vertices: ArrayLike) -> NDArray[np.float64]:
    """Vertices spent per vertex of the target's simplified outline; NaN where it has none."""
    wanted = np.asarray(target_vertices, dtype=np.float64)
    return np.asarray(vertices) / np.where(wanted > 0, wanted, np.nan)


def ceiling(
    samples: Iterable[Sample | Target],
    epsilon: float = REFERENCE_EPSILON,
    decimals: int = 3,
    *,
    empty_union: float = 1.0,
) -> NDArray[np.float64]:
    """Best mask IoU that text allows: of each target's own outline, written and read again.

    ``(N,)``; the mean is the gIoU of a model without faults. ``epsilon`` is the tolerance of the
    outline's simplification as a share of its perimeter. A target without pixels scores
    ``empty_union``.
    """
    scores = []
    for sample in samples:
        target = sample.target if isinstance(sample, Sample) else sample
        outline = simplify_rings(trace(target.mask()), target.size, epsilon)
        written = decode(encode(outline, decimals)).rings
        scores.append(float(iou_batch([written], region_of(target), empty_union=empty_union)[0]))
    return np.array(scores, dtype=np.float64)
