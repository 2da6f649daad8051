"""Scores of answers against targets as plain functions of arrays.

Functions of predictions and targets, here and in the other modules of the package, take ``N`` of
each, return ``(N,)``, and raise ValueError where the two differ in length. Statistics work along
the last axis, so that a bootstrap scores all its resamples in one call, and raise ValueError
without a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.geometry.overlap import overlap_batch
from seg_env.geometry.regions import Region
from seg_env.tasks import box_of, point_of
from seg_env.types import Prediction, Target

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""IoU at which `precision_at` is reported."""


class Overlaps(NamedTuple):
    """Pixel counts of ``N`` answers filled over their targets."""

    intersections: NDArray[np.int64]
    """``(N,)`` pixels in both."""
    unions: NDArray[np.int64]
    """``(N,)`` pixels in either."""


def overlaps(predictions: Sequence[Prediction], targets: Sequence[Target]) -> Overlaps:
    """Count the pixels shared by answers and targets, at the targets' own sizes.

    Answers to one question should share one `Target` object, which is then prepared once.
    """
    check_lengths(predictions, targets)
    intersections = np.zeros(len(targets), dtype=np.int64)
    unions = np.zeros(len(targets), dtype=np.int64)
    for members in groups_of(targets):
        target = targets[members[0]]
        answers = [predictions[index].rings for index in members]
        shared, areas = overlap_batch(answers, region_of(target))
        ignore = target.ignore
        if ignore is not None:  # pixels that count neither for nor against an answer
            areas = areas - overlap_batch(answers, ignore)[0]
        intersections[members] = shared
        unions[members] = areas + target.area - shared
    return Overlaps(intersections, unions)


def region_of(target: Target) -> Region:
    """What a target fills; made once and kept in ``target.cache["region"]``."""
    region: Region | None = target.cache.get("region")
    if region is None:
        region = target.cache["region"] = Region.of_rle(target.rle)
    return region


def check_lengths(predictions: Sequence[Prediction], targets: Sequence[Target]) -> None:
    """Raise ValueError unless there is one target for each prediction."""
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")


def groups_of(targets: Sequence[Target]) -> list[list[int]]:
    """Positions of the answers to each target (by identity), by order of the first."""
    groups: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        groups.setdefault(id(target), []).append(index)
    return list(groups.values())


def answer_areas(counts: Overlaps, targets: Sequence[Target]) -> NDArray[np.int64]:
    """``(N,)`` pixels that the answers fill, from `overlaps` with their targets."""
    areas = np.array([target.area for target in targets], dtype=np.int64)
    return counts.unions + counts.intersections - areas


def iou(
    intersections: ArrayLike, unions: ArrayLike, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """Intersection over union of each sample, ``(...)``.

    Where both masks are empty it is ``empty_union``: Text4Seg and LISA count 1, VisionReasoner 0; a
    published score should say which.
    """
    intersections, unions = np.asarray(intersections), np.asarray(unions)
    return np.where(unions == 0, empty_union, intersections / np.maximum(unions, 1))


def giou(ious: ArrayLike) -> NDArray[np.float64]:
    """Mean IoU per sample (the "gIoU" of referring segmentation, not of box regression)."""
    return np.asarray(samples(ious).mean(axis=-1))


def ciou(
    intersections: ArrayLike, unions: ArrayLike, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """Cumulative IoU, all intersections over all unions ``(..., N)``: large objects count more.

    It is ``empty_union`` when every union is empty; a single empty one adds nothing to either sum.
    """
    totals = samples(intersections).sum(axis=-1), samples(unions).sum(axis=-1)
    return iou(*totals, empty_union=empty_union)


def giou_gain(before: ArrayLike, after: ArrayLike) -> NDArray[np.float64]:
    """`giou` of the IoUs after, minus that of the IoUs of the same samples before."""
    return giou(after) - giou(before)


def precision_at(ious: ArrayLike, threshold: float) -> NDArray[np.float64]:
    """Share of samples whose IoU reaches a threshold ("Pr@0.5"); exactly the threshold counts."""
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold {threshold!r} is no IoU; it lies in [0, 1], as 0.5")
    return np.asarray((samples(ious) >= threshold).mean(axis=-1))


def iou_of_boxes(
    boxes: ArrayLike, others: ArrayLike, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """IoU of boxes ``(N, 4)``, ``x0, y0, x1, y1``, pair by pair; one without area is empty."""
    low, high = np.split(np.stack((np.asarray(boxes), np.asarray(others))), 2, axis=2)
    common = np.prod(np.maximum(high.min(axis=0) - low.max(axis=0), 0), axis=1)
    unions = np.prod(high - low, axis=2).sum(axis=0) - common
    return np.where(unions == 0, empty_union, common / np.where(unions == 0, 1, unions))


def written_box_iou(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """IoU of boxes as written with the boxes of the targets, along pixel edges.

    Nothing is rounded to pixels. Where there is no object, it is 1 for an answer that was read
    without issue and gives no box either, and 0 for any other.
    """
    check_lengths(predictions, targets)
    boxes = np.zeros((len(predictions), 4))
    for row, prediction in enumerate(predictions):
        if prediction.rings:
            points = np.concatenate(prediction.rings)
            boxes[row] = (*points.min(axis=0), *points.max(axis=0))
    wanted = np.array([box_of(target) for target in targets]).reshape(-1, 4)
    return with_absent(iou_of_boxes(boxes, wanted), predictions, targets)


def points_inside(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """1 where the pixel under the point belongs to the mask, else 0 (the "pointing game").

    Absent objects count as in `written_box_iou`.
    """
    check_lengths(predictions, targets)
    inside = [
        answer.point is not None and target.contains(answer.point)
        for answer, target in zip(predictions, targets, strict=True)
    ]
    return with_absent(np.array(inside, dtype=np.float64), predictions, targets)


def point_distances(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """Distance of points from the best ones, `seg_env.tasks.point_of`, in the unit frame.

    It is NaN where there is no point or no object.
    """
    check_lengths(predictions, targets)
    distances = np.full(len(predictions), np.nan)
    for row, (answer, target) in enumerate(zip(predictions, targets, strict=True)):
        if answer.point is not None and target.area:
            distances[row] = np.hypot(*(answer.point - point_of(target)))
    return distances


def with_absent(
    scores: NDArray[np.float64], predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """The scores, those of absent objects decided by whether the answer says so: 1 or 0."""
    for row, (answer, target) in enumerate(zip(predictions, targets, strict=True)):
        if not target.area:
            scores[row] = float(answer.valid and answer.is_empty)
    return scores


def samples(values: ArrayLike) -> NDArray[np.float64]:
    """Values as an array with at least one sample along its last axis."""
    array = np.asarray(values)
    if array.ndim == 0 or not array.shape[-1]:
        raise ValueError(f"a score needs at least one sample, got shape {array.shape}")
    return array
