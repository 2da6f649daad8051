"""Overlap of many predicted outlines with one target, from spans and run lengths, without masks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.polygon import Ring, ring_area, roles
from seg_env.geometry.raster import toggles
from seg_env.geometry.regions import Region
from seg_env.geometry.rle import Rle, union_spans

_MAX_CROSSINGS = 1 << 22  # Upper bound of crossings worked on at once (several predictions).


@np.errstate(over="ignore", invalid="ignore")  # Huge coordinates and NaN have a defined result.
def overlap_batch(
    predictions: Sequence[Sequence[Ring]], target: Region | Rle
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersections with one target and areas of N predictions, in pixels, each ``(N,)``.

    Predictions are lists of rings in the unit frame. Rings of fewer than three vertices or with
    coordinates that are not finite fill nothing; holes are taken out. A target used in several
    batches is best given as a `Region`, which keeps its look-up tables.
    """
    if isinstance(target, Rle):
        target = Region.of_rle(target)
    intersections = np.zeros(len(predictions), dtype=np.int64)
    areas = np.zeros(len(predictions), dtype=np.int64)
    plain: list[list[Ring]] = []
    where: list[int] = []
    for index, prediction in enumerate(predictions):
        rings = [ring for ring in prediction if len(ring) >= 3]
        # Rings of one orientation are all filled; telling that takes no containment test.
        mixed = len(rings) > 1 and len({ring_area(ring) > 0 for ring in rings}) > 1
        if mixed and not roles(rings).all():
            region = Region.of_rings(rings, target.size)
            intersections[index] = target.intersections(region.starts, region.ends).sum()
            areas[index] = region.area
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
    target: Region | Rle,
    *,
    empty_union: float = 1.0,
) -> NDArray[np.float64]:
    """Mask IoU ``(N,)`` of predictions with one target, equal to pycocotools' to the last bit.

    ``empty_union`` is the score when both masks are empty. Text4Seg and LISA count 1 (a correct "no
    target"), VisionReasoner 0, pycocotools 0. See `overlap_batch` for predictions and target.
    """
    intersections, areas = overlap_batch(predictions, target)
    unions = areas + target.area - intersections
    return np.where(unions == 0, empty_union, intersections / np.maximum(unions, 1))


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
    predictions: list[list[Ring]], target: Region
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Intersections and areas ``(N,)`` of predictions that have rings, none of them a hole."""
    height, width = target.size
    frame = width * (height + 1)
    rings = [ring for prediction in predictions for ring in prediction]
    owner = [index for index, prediction in enumerate(predictions) for _ in prediction]
    one_each = len(rings) == len(predictions)
    points = np.concatenate(rings)
    if not math.isfinite(points.sum()):  # Rare, so that the common case pays for one sum only.
        rings = [ring if np.isfinite(ring).all() else np.zeros((3, 2)) for ring in rings]
        points = np.concatenate(rings)
    lengths = np.fromiter(map(len, rings), dtype=np.int64, count=len(rings))
    spans, counts = toggles(points * (float(width), float(height)), lengths, target.size)
    if not one_each:
        to_owner = (np.arange(len(rings)) - owner) * frame
        spans = union_spans(spans - np.repeat(to_owner, counts))
        counts = np.diff(np.searchsorted(spans, np.arange(len(predictions) + 1) * frame))
    counts //= 2
    lengths = spans[1::2] - spans[0::2]
    raised = np.repeat(np.arange(len(counts), dtype=spans.dtype) * frame, counts)
    starts = spans[0::2] - raised
    inside = target.intersections(starts, starts + lengths)
    # Sums of consecutive stretches; reduceat cannot take empty ones.
    some = np.flatnonzero(counts)
    begin = (np.cumsum(counts) - counts)[some]
    intersections, areas = np.zeros((2, len(counts)), dtype=np.int64)
    if len(some):
        intersections[some] = np.add.reduceat(inside, begin)
        areas[some] = np.add.reduceat(lengths, begin)
    return intersections, areas
