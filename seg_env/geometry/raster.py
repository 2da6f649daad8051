"""COCO's polygon fill rule, bit for bit, computed directly instead of pixel by pixel.

The rule (``rleFrPoly`` in the COCO API's maskApi.c) draws the outline on a five times finer grid
and notes where it passes from sub-column ``5c + 2`` to ``5c + 3``, the middle of pixel column
``c``; going down that column, each such row switches between outside and inside (even-odd). Here
every edge yields its rows for all columns it passes at once, without drawing.

A *key* is ``column * (H + 1) + row`` with ``row`` in ``[0, H]``. *Spans* are keys in increasing
order, alternately the start and the (exclusive) end of a filled stretch of one column.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.polygon import Ring, ring_area, roles
from seg_env.geometry.rle import Rle, union_spans

LIMIT = float(1 << 26)
"""Largest absolute coordinate on the five times finer grid; farther vertices are moved there.

It is 13 million pixels, beyond which COCO's own code needs gigabytes for one edge."""

_TIE = 1e-4  # Rows this near to a whole number are computed again, as the C code does it.
_EXACT_REACH = float(1 << 22)  # Up to here rounding cannot move a crossing to an earlier step.
_SAFE_PRODUCT = float(1 << 32)  # Largest products for which rounding stays well below _TIE.
_BLOCK = 1 << 20  # Crossings worked on at once; bounds the temporary arrays.
_SMALL_BLOCK = 1 << 15  # If there are more, so many at once, which fit the processor's cache.


def usable_rings(rings: Sequence[Ring]) -> list[Ring]:
    """Rings that can enclose something: at least three vertices, all of them finite."""
    return [ring for ring in rings if len(ring) >= 3 and bool(np.isfinite(ring).all())]


def toggles(
    points: NDArray[np.float64], lengths: NDArray[np.int64], size: tuple[int, int]
) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
    """Where each of many rings switches between outside and inside.

    Args:
        points: ``(V, 2)`` finite vertices of all rings, one ring after another, in pixels.
        lengths: ``(R,)`` number of vertices of each ring, each at least 1.
        size: ``(H, W)`` of the raster.

    Returns:
        ``(keys, counts)``: the even-odd spans of every ring as keys, ring ``r`` raised by
        ``r * W * (H + 1)``, in increasing order (a span may be empty), and how many of them each
        ring has ``(R,)``, an even number.
    """
    height, width = size
    vertices = len(points)
    ends = np.cumsum(lengths)
    following = np.arange(1, vertices + 1)
    following[ends - 1] = ends - lengths

    edges = np.empty((6, vertices))
    fine = edges[:2]
    np.multiply(points.T, 5.0, out=fine)
    fine += 0.5
    np.trunc(fine, out=fine)  # C's cast to int: towards zero, also below zero.
    lowest, highest = fine.min(axis=1).tolist(), fine.max(axis=1).tolist()
    reach = max(-min(lowest), max(highest))
    if reach > LIMIT:
        np.clip(fine, -LIMIT, LIMIT, out=fine)
        reach = LIMIT
    inside = lowest[1] >= 0 and highest[1] <= 5 * height
    edges[2:4] = fine[:, following]
    column = np.floor((fine[0] + 2.0) / 5.0)
    np.minimum(np.maximum(column, 0.0, out=column), width, out=column)
    column_end = column[following]
    np.minimum(column, column_end, out=edges[4])
    edges[5] = np.repeat(np.arange(len(lengths)) * (width * (height + 1.0)), lengths)
    counts = np.abs(column_end - column).astype(np.int64)

    total = int(counts.sum())
    dtype: type[np.integer] = np.int32 if len(lengths) * width * (height + 1) < 2**31 else np.int64
    if total <= _BLOCK:
        keys = _edge_keys(edges, counts, height, reach, inside).astype(dtype)
    else:
        cuts = np.searchsorted(np.cumsum(counts), np.arange(_SMALL_BLOCK, total, _SMALL_BLOCK))
        blocks = zip(np.split(edges, cuts, axis=1), np.split(counts, cuts, axis=0), strict=True)
        keys = np.concatenate(
            [_edge_keys(*block, height, reach, inside).astype(dtype) for block in blocks]
        )
    counts = np.asarray(np.add.reduceat(counts, ends - lengths))
    if total <= _BLOCK:
        keys.sort()
        return keys, counts
    each = np.split(keys, np.cumsum(counts)[:-1])
    for ring, own in enumerate(each):
        if len(own) > width * (height + 1) // 4:  # Equal keys cancel: counting sorts them.
            low = ring * (width * (height + 1))
            each[ring] = np.flatnonzero(np.bincount(own - low) & 1).astype(dtype) + low
            counts[ring] = len(each[ring])
        else:
            own.sort()
    return np.concatenate(each), counts


def _edge_keys(
    edges: NDArray[np.float64],
    counts: NDArray[np.int64],
    height: int,
    reach: float,
    inside: bool,
) -> NDArray[np.float64]:
    """Keys of all crossings of some edges, in no order.

    ``edges`` is ``(6, E)``: x, y of both ends on the fine grid, first column passed, key of the
    ring. ``counts`` is ``(E,)``: the number of columns each edge passes. ``reach`` is the largest
    absolute coordinate on that grid; ``inside`` means that no vertex lies above or below the
    raster.
    """
    x, y, x_end, y_end, first, base = edges
    begin = np.cumsum(counts) - counts
    with np.errstate(divide="ignore", invalid="ignore"):  # Vertical edges pass no column.
        slope = (y_end - y) / (x_end - x)
        # Shallow edges: the smaller of the two fine rows beside the crossing, rounded half up.
        # Steep edges: the last fine row before the line reaches 5c + 2.5.
        steep = np.abs(slope) > 1.0
        shift = np.where(steep, 2.5, 2.0 + (slope < 0.0))
        line = (y + 2.5 - 0.5 * steep + slope * (shift - x)) / 5.0  # Row at column 0.
        # All crossings are numbered consecutively; along an edge, number and column grow together.
        # So the key is linear in that number, and only rounding it down is left to do.
        line += base + _TIE + (height + 1.0) * first + slope * first
        slope += height + 1.0
        line -= slope * begin
    place = np.arange(float(counts.sum()))
    number = place if inside else place.copy()
    place *= np.repeat(slope, counts)
    place += np.repeat(line, counts)
    keys = np.floor(place)
    place -= keys
    if reach * (reach + len(keys)) < _SAFE_PRODUCT:
        exact = np.flatnonzero(place < 2 * _TIE)
    else:
        exact = np.arange(len(keys))
    if len(exact):
        edge = np.searchsorted(begin, exact, side="right") - 1
        columns = first[edge] + (exact - begin[edge])
        rows = _exact_rows(edges[:4, edge], columns, slack=16.0 * (reach > _EXACT_REACH))
        keys[exact] = base[edge] + columns * (height + 1) + rows
    if not inside:
        top = np.repeat(base + (first - begin) * (height + 1), counts) + number * (height + 1)
        np.clip(keys, top, top + height, out=keys)
    return np.asarray(keys)


def _exact_rows(
    ends: NDArray[np.float64], columns: NDArray[np.float64], slack: float
) -> NDArray[np.float64]:
    """Rows of crossings by exactly the floating-point operations of the C code, not clipped.

    ``ends`` is ``(4, K)``: x, y, x, y of an edge on the fine grid; ``columns`` are those it
    crosses; ``slack`` is how many steps too late rounding can make the first guess on a steep edge.
    """
    run, rise = ends[2:] - ends[:2]
    steep = np.abs(rise) > np.abs(run)
    # The C code goes along the longer axis in growing order.
    x, y = np.where(np.where(steep, rise, run) < 0.0, ends[2:], ends[:2])
    slope = rise / run
    before = 5.0 * columns + 2.0
    fine_row = np.trunc(y + slope * (before - x + (slope < 0.0)) + 0.5)

    which = np.flatnonzero(steep)
    if len(which):
        x, y, run, rise, before = np.stack((x, y, run, rise, before))[:, which]
        rightwards = run / rise
        # The quotient finds the step across up to rounding; the C code's own test decides.
        step = np.ceil((before + 0.5 - x) * rise / run) - slack
        passes = rightwards > 0.0
        while (early := (x + rightwards * step + 0.5 >= before + 1.0) != passes).any():
            step += early
        fine_row[which] = y + step - 1.0
    return np.asarray(np.floor((fine_row + 2.0) / 5.0))


@np.errstate(over="ignore")  # Coordinates near the largest float are moved to LIMIT anyway.
def ring_spans(rings: Sequence[Ring], size: tuple[int, int]) -> NDArray[np.int64]:
    """Spans of what a list of rings fills, holes taken out.

    Rings are painted from the largest to the smallest: a filled ring adds its even-odd interior, a
    hole removes it (see `seg_env.geometry.polygon.roles`). Rings of fewer than three vertices or
    with a coordinate that is not finite fill nothing.

    Returns:
        ``(2 * S,)`` spans as keys, none of them empty, none overlapping.
    """
    height, width = size
    spans = np.zeros(0, dtype=np.int64)
    rings = usable_rings(rings)
    if not rings or not height or not width:
        return spans
    filled = roles(rings)
    order = np.argsort([-abs(ring_area(ring)) for ring in rings], kind="stable")
    lengths = np.array([len(ring) for ring in rings])
    points = np.concatenate(rings) * (float(width), float(height))
    keys, counts = toggles(points, lengths, size)
    offsets = np.arange(len(rings)) * (width * (height + 1))
    each = np.split(keys - np.repeat(offsets, counts), np.cumsum(counts)[:-1])
    groups = [
        (bool(role), np.concatenate([each[index] for index in group]))
        for role, group in groupby(order.tolist(), key=filled.__getitem__)
    ]
    if len(groups) <= _FEW_LAYERS:
        for role, painted in groups:
            if role:
                spans = union_spans(np.concatenate((spans, painted)))
            else:  # A hole is added to what lies outside.
                outside = np.concatenate(([-1], spans, [width * (height + 1)], painted))
                spans = union_spans(outside)
            pairs = spans.reshape(-1, 2)
            spans = pairs[pairs[:, 0] < pairs[:, 1]].ravel()
            if not role:
                spans = spans[1:-1]
        return spans
    layers = [_layer(union_spans(painted), role) for role, painted in groups]
    while len(layers) > 1:  # Pairs of neighbours, so that every span is merged few times.
        twos = [layers[start : start + 2] for start in range(0, len(layers), 2)]
        layers = [_paint(*two) if len(two) == 2 else two[0] for two in twos]
    where, paint = layers[0]
    is_filled = paint == _FILLED
    return np.asarray(where[np.diff(is_filled, prepend=False)])


_FEW_LAYERS = 4  # Up to so many are painted one after another.
_FILLED, _HOLE = 1, 2
_Layer = tuple[NDArray[np.int64], NDArray[np.int8]]
"""Increasing keys, and what is painted from each of them on: 0 for nothing, or one of the above."""


def _layer(spans: NDArray[np.int64], filled: bool) -> _Layer:
    """The layer that ordered spans without overlap paint; empty spans paint nothing."""
    pairs = spans.reshape(-1, 2)
    keys = pairs[pairs[:, 0] < pairs[:, 1]].ravel()
    paint = np.zeros(len(keys), dtype=np.int8)
    paint[::2] = _FILLED if filled else _HOLE
    return keys, paint


def _paint(lower: _Layer, upper: _Layer) -> _Layer:
    """One layer over another."""
    if not len(lower[0]) or not len(upper[0]):
        return upper if len(upper[0]) else lower
    keys = np.concatenate((lower[0], upper[0]))
    order = np.argsort(keys, kind="stable")
    keys, is_upper = keys[order], order >= len(lower[0])
    below, above = (
        np.append(np.int8(0), paint)[np.cumsum(own)]
        for (_, paint), own in ((lower, ~is_upper), (upper, is_upper))
    )
    paint = np.where(above != 0, above, below)
    # Of equal keys the last one sees what both layers do there.
    last = np.append(keys[1:] != keys[:-1], True)
    keys, paint = keys[last], paint[last]
    changes = np.diff(paint, prepend=np.int8(0)) != 0
    return keys[changes], paint[changes]


def rasterize_rle(rings: Sequence[Ring], size: tuple[int, int]) -> Rle:
    """Fill rings of the unit frame by COCO's rule, holes taken out, as run lengths."""
    height, width = size
    spans = ring_spans(rings, size)
    flat = spans - spans // (height + 1)  # Column-major pixel index.
    return Rle(size, np.diff(flat, prepend=0, append=height * width))


def rasterize(rings: Sequence[Ring], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill rings of the unit frame by COCO's rule, holes taken out, as an ``(H, W)`` mask."""
    return rasterize_rle(rings, size).to_mask()
