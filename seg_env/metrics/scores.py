"""Scores of answers against targets as plain functions of arrays.

Statistics work along the last axis, so that a bootstrap scores all its resamples in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.geometry.overlap import overlap_batch
from seg_env.metrics.regions import check_lengths, prepared_target, region_pairs
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

    Args:
        predictions: ``N`` decoded answers.
        targets: ``N`` targets. Answers to one question should share one `Target` object: it is
            prepared once and keeps the preparation in its ``cache``.

    Raises:
        ValueError: The two differ in length.
    """
    check_lengths(predictions, targets)
    intersections = np.zeros(len(targets), dtype=np.int64)
    unions = np.zeros(len(targets), dtype=np.int64)
    for members in groups_of(targets):
        prepared = prepared_target(targets[members[0]])
        answers = [predictions[index].rings for index in members]
        shared, areas = overlap_batch(answers, prepared)
        ignore = targets[members[0]].ignore
        if ignore is not None:  # pixels that count neither for nor against an answer
            areas = areas - overlap_batch(answers, ignore)[0]
        intersections[members] = shared
        unions[members] = areas + prepared.area - shared
    return Overlaps(intersections, unions)


def groups_of(targets: Sequence[Target]) -> list[list[int]]:
    """Positions of the answers to each target, by order of the first; targets by identity."""
    groups: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        groups.setdefault(id(target), []).append(index)
    return list(groups.values())


def iou(
    intersections: ArrayLike, unions: ArrayLike, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """Intersection over union of each sample.

    Args:
        intersections: ``(...)`` pixels in both masks.
        unions: ``(...)`` pixels in either mask.
        empty_union: Score where both masks are empty. Text4Seg and LISA count 1, VisionReasoner 0;
            a published score should say which.

    Returns:
        ``(...)`` in ``[0, 1]``.
    """
    intersections, unions = np.asarray(intersections), np.asarray(unions)
    return np.where(unions == 0, empty_union, intersections / np.maximum(unions, 1))


def giou(ious: ArrayLike) -> NDArray[np.float64]:
    """Mean IoU per sample (the "gIoU" of referring segmentation, not of box regression).

    Args:
        ious: ``(..., N)`` IoU of each sample.

    Returns:
        ``(...,)`` in ``[0, 1]``.

    Raises:
        ValueError: There is no sample.
    """
    return np.asarray(samples(ious).mean(axis=-1))


def ciou(
    intersections: ArrayLike, unions: ArrayLike, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """Cumulative IoU, all intersections over all unions: large objects count more.

    Args:
        intersections: ``(..., N)`` pixels in both masks of each sample.
        unions: ``(..., N)`` pixels in either mask.
        empty_union: Score when every union is empty. A single empty one adds nothing to either sum.

    Returns:
        ``(...,)`` in ``[0, 1]``.

    Raises:
        ValueError: There is no sample.
    """
    totals = samples(intersections).sum(axis=-1), samples(unions).sum(axis=-1)
    return iou(*totals, empty_union=empty_union)


def precision_at(ious: ArrayLike, threshold: float) -> NDArray[np.float64]:
    """Share of samples whose IoU reaches a threshold ("Pr@0.5"); exactly the threshold counts.

    Args:
        ious: ``(..., N)`` IoU of each sample.
        threshold: IoU in ``[0, 1]``.

    Returns:
        ``(...,)`` in ``[0, 1]``.

    Raises:
        ValueError: There is no sample, or the threshold is outside ``[0, 1]``.
    """
    _check_threshold(threshold)
    return np.asarray((samples(ious) >= threshold).mean(axis=-1))


def box_iou(
    predictions: Sequence[Prediction], targets: Sequence[Target], *, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """IoU of the bounding boxes of the predicted and the true mask.

    Boxes run along pixel edges around what is filled, at the target's own size. `rec_accuracy`
    turns the values into the accuracy of referring comprehension (REC).

    Args:
        predictions: ``N`` answers.
        targets: ``N`` targets.
        empty_union: Score where answer and target are both empty. Where one is, the score is 0.

    Returns:
        ``(N,)`` in ``[0, 1]``.

    Raises:
        ValueError: The two differ in length.
    """
    boxes = [(answer.box, target.box) for answer, target in region_pairs(predictions, targets)]
    pairs = np.array(boxes).reshape(-1, 2, 4)
    return iou_of_boxes(pairs[:, 0], pairs[:, 1], empty_union)


def iou_of_boxes(
    boxes: ArrayLike, others: ArrayLike, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """IoU of boxes with each other, pair by pair.

    Args:
        boxes: ``(N, 4)`` as ``x0, y0, x1, y1``; a box without area is empty.
        others: ``(N, 4)``.
        empty_union: Score where both are empty.

    Returns:
        ``(N,)`` in ``[0, 1]``.
    """
    low, high = np.split(np.stack((np.asarray(boxes), np.asarray(others))), 2, axis=2)
    common = np.prod(np.maximum(high.min(axis=0) - low.max(axis=0), 0), axis=1)
    unions = np.prod(high - low, axis=2).sum(axis=0) - common
    return np.where(unions == 0, empty_union, common / np.where(unions == 0, 1, unions))


def rec_accuracy(box_ious: ArrayLike, threshold: float = 0.5) -> NDArray[np.float64]:
    """Share of samples whose boxes overlap by more than a threshold ("REC Acc@0.5").

    Args:
        box_ious: ``(..., N)`` IoU of boxes, as from `box_iou`.
        threshold: IoU in ``[0, 1]``; exactly the threshold does not count.

    Returns:
        ``(...,)`` in ``[0, 1]``.

    Raises:
        ValueError: There is no sample, or the threshold is outside ``[0, 1]``.
    """
    _check_threshold(threshold)
    return np.asarray((samples(box_ious) > threshold).mean(axis=-1))


def written_boxes(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    """``(N, 4)`` boxes ``x0, y0, x1, y1`` around the rings of answers, unit frame; 0 without."""
    boxes = np.zeros((len(predictions), 4))
    for row, prediction in enumerate(predictions):
        if prediction.rings:
            points = np.concatenate(prediction.rings)
            boxes[row] = (*points.min(axis=0), *points.max(axis=0))
    return boxes


def written_box_iou(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """IoU of boxes as written with the boxes of the targets, along pixel edges.

    Unlike `box_iou` nothing is rounded to pixels.

    Args:
        predictions: ``N`` answers to questions for a box.
        targets: ``N`` targets.

    Returns:
        ``(N,)`` in ``[0, 1]``. Where there is no object, 1 for an answer that was read without
        issue and gives none either, and 0 for any other.

    Raises:
        ValueError: The two differ in length.
    """
    check_lengths(predictions, targets)
    wanted = np.array([box_of(target) for target in targets]).reshape(-1, 4)
    scores = iou_of_boxes(written_boxes(predictions), wanted)
    return _with_absent(scores, predictions, targets)


def points_inside(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """Whether points are on their targets: the pixel under them belongs to the mask.

    Args:
        predictions: ``N`` answers to questions for a point.
        targets: ``N`` targets.

    Returns:
        ``(N,)`` zeros and ones; see `written_box_iou` for absent objects.

    Raises:
        ValueError: The two differ in length.
    """
    check_lengths(predictions, targets)
    scores = np.array(
        [
            answer.point is not None and target.contains(answer.point)
            for answer, target in zip(predictions, targets, strict=True)
        ],
        dtype=np.float64,
    )
    return _with_absent(scores, predictions, targets)


def point_distances(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """Distance of points from the ones that answer best, `seg_env.tasks.point_of`.

    Returns:
        ``(N,)`` in the unit frame, NaN where there is no point or no object.

    Raises:
        ValueError: The two differ in length.
    """
    check_lengths(predictions, targets)
    distances = np.full(len(predictions), np.nan)
    for row, (answer, target) in enumerate(zip(predictions, targets, strict=True)):
        if answer.point is not None and target.area:
            distances[row] = np.hypot(*(answer.point - point_of(target)))
    return distances


def no_target_accuracy(says_absent: ArrayLike, has_target: ArrayLike) -> NDArray[np.float64]:
    """N-acc: share of the questions about absent objects that are answered with "nothing there".

    Source: gRefCOCO (Liu et al., "GRES", CVPR 2023), TP / (TP + FN) with "no target" as positive.

    Args:
        says_absent: ``(..., N)`` True where the answer says so, as from `says_absent`.
        has_target: ``(..., N)`` True where there is an object.

    Returns:
        ``(...,)`` in ``[0, 1]``, NaN where no question is about an absent object.

    Raises:
        ValueError: There is no sample.
    """
    absent = ~samples(has_target).astype(np.bool_)
    return _share(samples(says_absent).astype(np.bool_) & absent, absent)


def target_accuracy(says_absent: ArrayLike, has_target: ArrayLike) -> NDArray[np.float64]:
    """T-acc: share of the questions about present objects not answered with "nothing there".

    Source: gRefCOCO (Liu et al., "GRES", CVPR 2023), TN / (TN + FP) with "no target" as positive.

    Args:
        says_absent: ``(..., N)`` True where the answer says so, as from `says_absent`.
        has_target: ``(..., N)`` True where there is an object.

    Returns:
        ``(...,)`` in ``[0, 1]``, NaN where no question is about a present object.

    Raises:
        ValueError: There is no sample.
    """
    present = samples(has_target).astype(np.bool_)
    return _share(~samples(says_absent).astype(np.bool_) & present, present)


def says_absent(
    predictions: Sequence[Prediction], targets: Sequence[Target], counts: Overlaps | None = None
) -> NDArray[np.bool_]:
    """Which answers say that nothing is there: well-formed, no pixel is filled, no point is given.

    Text that could not be read fills nothing either, but it says nothing.

    Args:
        predictions: ``N`` answers.
        targets: ``N`` targets.
        counts: Their `overlaps`, if known already.

    Returns:
        ``(N,)`` bool.

    Raises:
        ValueError: The arguments differ in length.
    """
    valid = np.array([each.valid and each.point is None for each in predictions], dtype=np.bool_)
    areas = answer_areas(counts or overlaps(predictions, targets), targets)
    return np.asarray(valid & (areas == 0))


def answer_areas(counts: Overlaps, targets: Sequence[Target]) -> NDArray[np.int64]:
    """``(N,)`` pixels that the answers fill, from `overlaps` with their targets."""
    areas = np.array([target.area for target in targets], dtype=np.int64)
    return counts.unions + counts.intersections - areas


def samples(values: ArrayLike) -> NDArray[np.float64]:
    """Values as an array with at least one sample along its last axis.

    Raises:
        ValueError: There is no sample.
    """
    array = np.asarray(values)
    if array.ndim == 0 or not array.shape[-1]:
        raise ValueError(f"a score needs at least one sample, got shape {array.shape}")
    return array


def _with_absent(
    scores: NDArray[np.float64], predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """Scores with those of absent objects decided by whether the answer says so."""
    for row, (answer, target) in enumerate(zip(predictions, targets, strict=True)):
        if not target.area:
            scores[row] = float(answer.valid and answer.is_empty)
    return scores


def _share(counted: NDArray[np.bool_], of: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share along the last axis, NaN of nothing."""
    total = of.sum(axis=-1)
    return np.where(total > 0, counted.sum(axis=-1) / np.maximum(total, 1), np.nan)


def _check_threshold(threshold: float) -> None:
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold {threshold!r} is no IoU; it lies in [0, 1], as 0.5")
