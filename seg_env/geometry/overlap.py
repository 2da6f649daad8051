"""Overlap of many predicted outlines with one target, from spans and run lengths, without masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.polygon import Ring, ring_area, roles
from seg_env.geometry.raster import ring_spans, toggles, union_spans
from seg_env.geometry.rle import Rle

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
    if depth > _MAX_LAYERS:
        return PreparedTarget(
            rle.size, rle.area, layers[0], layers[1], runs_in_column, starts, ends
        )
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
    """Intersection with one target and area of many predictions, in pixels.

    Args:
        predictions: N lists of rings in the unit frame. Rings of fewer than three vertices or with
            coordinates that are not finite fill nothing; holes are taken out.
        target: The target, best prepared once by `prepare`.

    Returns:
        ``(intersections, areas)``, each ``(N,)`` int64.
    """
    if isinstance(target, Rle):
        target = prepare(target)
    intersections = np.zeros(len(predictions), dtype=np.int64)
    areas = np.zeros(len(predictions), dtype=np.int64)
    plain: list[tuple[int, list[Ring]]] = []
    for index, prediction in enumerate(predictions):
        rings = [ring for ring in prediction if len(ring) >= 3]
        if _may_have_holes(rings) and not roles(rings).all():
            spans = ring_spans(rings, target.size)
            intersections[index] = target.intersections(spans[0::2], spans[1::2]).sum()
            areas[index] = (spans[1::2] - spans[0::2]).sum()
        elif rings:
            plain.append((index, rings))
    if 0 not in target.size:
        for block in _blocks(plain, target.size[1]):
            where = [index for index, _ in block]
            overlap = _plain_overlap([rings for _, rings in block], target)
            intersections[where], areas[where] = overlap
    return intersections, areas


def iou_batch(
    predictions: Sequence[Sequence[Ring]],
    target: PreparedTarget | Rle,
    *,
    empty_union: float = 1.0,
) -> NDArray[np.float64]:
    """Mask IoU of many predictions with one target, equal to pycocotools' to the last bit.

    Args:
        predictions: N lists of rings in the unit frame.
        target: The target, best prepared once by `prepare`.
        empty_union: Score when both masks are empty. Text4Seg and LISA count 1 (a correct "no
            target"), VisionReasoner 0, pycocotools 0.

    Returns:
        ``(N,)`` IoU in ``[0, 1]``.
    """
    prepared = prepare(target) if isinstance(target, Rle) else target
    intersections, areas = overlap_batch(predictions, prepared)
    unions = areas + prepared.area - intersections
    return np.where(unions == 0, empty_union, intersections / np.maximum(unions, 1))


def _may_have_holes(rings: list[Ring]) -> bool:
    """False when the rings are too few, or too alike in orientation, for one to be a hole."""
    return len(rings) > 1 and len({ring_area(ring) > 0 for ring in rings}) > 1


def _blocks(
    plain: list[tuple[int, list[Ring]]], width: int
) -> Iterator[list[tuple[int, list[Ring]]]]:
    """Cut a batch so that the crossings of a block fit into bounded memory."""
    block: list[tuple[int, list[Ring]]] = []
    crossings = 0
    for item in plain:
        most = sum(len(ring) for ring in item[1]) * width
        if block and crossings + most > _MAX_CROSSINGS:
            yield block
            block, crossings = [], 0
        block.append(item)
        crossings += most
    if block:
        yield block


def _plain_overlap(predictions: list[list[Ring]], target: PreparedTarget) -> NDArray[np.int64]:
    """Intersections and areas ``(2, N)`` of predictions that have rings, none of them a hole."""
    height, width = target.size
    rings = [ring for prediction in predictions for ring in prediction]
    owner = np.repeat(np.arange(len(predictions)), [len(rings) for rings in predictions])
    points = np.concatenate(rings)
    if not np.isfinite(points.sum()):  # Rare, so that the common case pays for one sum only.
        finite = [bool(np.isfinite(ring).all()) for ring in rings]
        rings = [ring for ring, usable in zip(rings, finite, strict=True) if usable]
        if not rings:
            return np.zeros((2, len(predictions)), dtype=np.int64)
        owner, points = owner[finite], np.concatenate(rings)
    lengths = np.array([len(ring) for ring in rings])
    spans, counts = toggles(points * (float(width), float(height)), lengths, target.size)
    frame = width * (height + 1)
    counts //= 2
    if len(rings) == len(predictions):
        shift = np.arange(len(rings), dtype=spans.dtype) * frame
        starts, ends = spans[0::2], spans[1::2]
    else:
        shift = (np.arange(len(rings)) - owner) * frame
        spans = union_spans(spans - np.repeat(shift, 2 * counts))
        starts, ends = spans[0::2], spans[1::2]
        counts = np.diff(np.searchsorted(starts, np.arange(len(predictions) + 1) * frame))
        shift = np.arange(len(predictions)) * frame
    areas = ends - starts
    starts = starts - np.repeat(shift, counts)
    inside = target.intersections(starts, starts + areas)
    return np.stack((_sums(inside, counts), _sums(areas, counts)))


def _sums(values: NDArray[np.integer], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum consecutive stretches of values; ``counts`` are their lengths, which may be 0."""
    sums = np.zeros(len(counts), dtype=np.int64)
    some = np.flatnonzero(counts)
    if len(some):
        sums[some] = np.add.reduceat(values, (np.cumsum(counts) - counts)[some])
    return sums
