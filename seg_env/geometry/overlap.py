"""Overlap of many predicted outlines with one target, from spans and run lengths, without masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.polygon import Ring, ring_area, roles
from seg_env.geometry.raster import ring_spans, toggles
from seg_env.geometry.rle import Rle, union_spans

_MAX_LAYERS = 8  # With more runs than this in one column, searching the runs is faster.
_MAX_CROSSINGS = 1 << 22  # Upper bound of crossings worked on at once (several predictions).


@dataclass(frozen=True, eq=False)
class PreparedTarget:
    """A target's runs, cut at column borders, laid out for look-up by column.

    Made once per target by `prepare` and shared by all its predictions.
    """

    size: tuple[int, int]
    """``(H, W)`` in pixels."""
    area: int
    """Number of pixels."""
    layer_starts: NDArray[np.int32]
    """``(L, W)`` key where the l-th run of each column starts; 0 without such a run. L is the
    largest number of runs in one column, or 0 when that is too many to go through one by one."""
    layer_ends: NDArray[np.int32]
    """``(L, W)`` key where it ends, exclusive; 0 without such a run."""
    runs_in_column: NDArray[np.integer]
    """``(W,)`` number of runs in each column."""
    starts: NDArray[np.int64]
    """``(N,)`` keys where the runs start, increasing."""
    ends: NDArray[np.int64]
    """``(N,)`` keys where they end, exclusive."""

    @cached_property
    def _covered(self) -> NDArray[np.int64]:
        """``(N + 1,)`` pixels in the first 0, 1, ... N runs."""
        return np.concatenate(([0], np.cumsum(self.ends - self.starts)))

    def intersections(
        self, starts: NDArray[np.integer], ends: NDArray[np.integer]
    ) -> NDArray[np.integer]:
        """Target pixels in each span ``[start, end)`` of keys; a span lies in one column."""
        if not len(self.layer_starts):
            return self._pixels_before(ends) - self._pixels_before(starts)
        column = starts // (self.size[0] + 1)
        inside = np.minimum(ends, self.layer_ends[0][column])
        inside -= np.maximum(starts, self.layer_starts[0][column])
        np.maximum(inside, 0, out=inside)
        if len(self.layer_starts) > 1:
            # Few columns have a second run, fewer a third: go on with those only.
            runs = self.runs_in_column[column]
            chosen = np.flatnonzero(runs > 1)
            for layer in range(1, len(self.layer_starts)):
                chosen = chosen[runs[chosen] > layer]
                where = column[chosen]
                overlap = np.minimum(ends[chosen], self.layer_ends[layer][where])
                overlap -= np.maximum(starts[chosen], self.layer_starts[layer][where])
                inside[chosen] += np.maximum(overlap, 0)
        return np.asarray(inside)

    def _pixels_before(self, keys: NDArray[np.integer]) -> NDArray[np.int64]:
        """Target pixels with a smaller key."""
        entered = np.searchsorted(self.starts, keys, side="right")
        # The last run entered may go on beyond the key.
        beyond = np.maximum(self.ends[entered - 1] - keys, 0)
        return np.asarray(self._covered[entered] - np.where(entered > 0, beyond, 0))


def prepare(rle: Rle) -> PreparedTarget:
    """Lay out a target for `overlap_batch`; takes time in proportion to its runs and width."""
    height, width = rle.size
    starts, ends = rle.runs
    if not len(starts):
        nothing = np.zeros((1, width), dtype=np.int32)
        return PreparedTarget(rle.size, 0, nothing, nothing, nothing[0], starts, ends)
    columns = starts // height
    last = (ends - 1) // height
    if (last != columns).any():  # Cut runs that go on in the next column.
        pieces = last - columns + 1
        step = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        columns = np.repeat(columns, pieces) + step
        starts = np.maximum(np.repeat(starts, pieces), columns * height)
        ends = np.minimum(np.repeat(ends, pieces), (columns + 1) * height)
    starts, ends = starts + columns, ends + columns  # From pixel indices to keys.
    runs_in_column = np.bincount(columns, minlength=width)
    depth = int(runs_in_column.max())
    layers = np.zeros((2, depth if depth <= _MAX_LAYERS else 0, width), dtype=np.int32)
    if depth <= _MAX_LAYERS:
        layer: int | NDArray[np.int64] = 0
        if depth > 1:
            before = np.cumsum(runs_in_column) - runs_in_column
            layer = np.arange(len(columns)) - before[columns]
        layers[0, layer, columns] = starts
        layers[1, layer, columns] = ends
    return PreparedTarget(rle.size, rle.area, layers[0], layers[1], runs_in_column, starts, ends)


@np.errstate(over="ignore", invalid="ignore")  # Huge coordinates and NaN have a defined result.
def overlap_batch(
    predictions: Sequence[Sequence[Ring]], target: PreparedTarget | Rle
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersections with one target and areas of N predictions, in pixels, each ``(N,)``.

    Predictions are lists of rings in the unit frame. Rings of fewer than three vertices or with
    coordinates that are not finite fill nothing; holes are taken out. A target of several batches
    is best prepared once by `prepare`.
    """
    if isinstance(target, Rle):
        target = prepare(target)
    intersections = np.zeros(len(predictions), dtype=np.int64)
    areas = np.zeros(len(predictions), dtype=np.int64)
    plain: list[list[Ring]] = []
    where: list[int] = []
    for index, prediction in enumerate(predictions):
        rings = [ring for ring in prediction if len(ring) >= 3]
        if len(rings) > 1 and _has_hole(rings):
            spans = ring_spans(rings, target.size)
            intersections[index] = target.intersections(spans[0::2], spans[1::2]).sum()
            areas[index] = (spans[1::2] - spans[0::2]).sum()
        elif rings:
            plain.append(rings)
            where.append(index)
    if 0 not in target.size:
        for block in _blocks(plain, target.size[1]):
            chosen = where[block]
            intersections[chosen], areas[chosen] = _plain_overlap(plain[block], target)
    return intersections, areas


def iou_batch(
    predictions: Sequence[Sequence[Ring]],
    target: PreparedTarget | Rle,
    *,
    empty_union: float = 1.0,
) -> NDArray[np.float64]:
    """Mask IoU ``(N,)`` of predictions with one target, equal to pycocotools' to the last bit.

    ``empty_union`` is the score when both masks are empty. Text4Seg and LISA count 1 (a correct "no
    target"), VisionReasoner 0, pycocotools 0. See `overlap_batch` for predictions and target.
    """
    prepared = prepare(target) if isinstance(target, Rle) else target
    intersections, areas = overlap_batch(predictions, prepared)
    unions = areas + prepared.area - intersections
    return np.where(unions == 0, empty_union, intersections / np.maximum(unions, 1))


def _has_hole(rings: list[Ring]) -> bool:
    # Rings of one orientation are all filled; telling that takes no containment test.
    return len({ring_area(ring) > 0 for ring in rings}) > 1 and not roles(rings).all()


def _blocks(plain: list[list[Ring]], width: int) -> Iterator[slice]:
    """Cut a batch so that the crossings of a block fit into bounded memory."""
    begin = crossings = 0
    for index, rings in enumerate(plain):
        most = width * sum(map(len, rings))
        if begin < index and crossings + most > _MAX_CROSSINGS:
            yield slice(begin, index)
            begin, crossings = index, 0
        crossings += most
    if plain:
        yield slice(begin, len(plain))


def _plain_overlap(
    predictions: list[list[Ring]], target: PreparedTarget
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersections and areas ``(N,)`` of predictions that have rings, none of them a hole."""
    height, width = target.size
    frame = width * (height + 1)
    rings = [ring for prediction in predictions for ring in prediction]
    owner = [index for index, prediction in enumerate(predictions) for _ in prediction]
    one_each = len(rings) == len(predictions)
    points = np.concatenate(rings)
    if not math.isfinite(points.sum()):  # Rare, so that the common case pays for one sum only.
        finite = [index for index, ring in enumerate(rings) if np.isfinite(ring).all()]
        if not finite:
            return np.zeros(len(predictions), np.int64), np.zeros(len(predictions), np.int64)
        rings, owner = [rings[index] for index in finite], [owner[index] for index in finite]
        one_each = False
        points = np.concatenate(rings)
    lengths = np.fromiter(map(len, rings), dtype=np.int64, count=len(rings))
    spans, counts = toggles(points * (float(width), float(height)), lengths, target.size)
    if not one_each:
        to_owner = (np.arange(len(rings)) - owner) * frame
        spans = union_spans(spans - np.repeat(to_owner, counts))
        counts = np.diff(np.searchsorted(spans, np.arange(len(predictions) + 1) * frame))
    starts, ends = spans[0::2], spans[1::2]
    counts //= 2
    lengths = ends - starts
    starts = starts - np.repeat(np.arange(len(counts), dtype=spans.dtype) * frame, counts)
    inside = target.intersections(starts, starts + lengths)
    # Sums of consecutive stretches; reduceat cannot take empty ones.
    some = np.flatnonzero(counts)
    begin = (np.cumsum(counts) - counts)[some]
    intersections, areas = np.zeros(len(counts), np.int64), np.zeros(len(counts), np.int64)
    if len(some):
        intersections[some] = np.add.reduceat(inside, begin)
        areas[some] = np.add.reduceat(lengths, begin)
    return intersections, areas
