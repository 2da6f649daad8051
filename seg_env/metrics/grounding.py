"""Scores of answers that are boxes or points, written as such and not derived from an outline."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.metrics.regions import check_lengths
from seg_env.metrics.scores import iou_of_boxes, samples
from seg_env.tasks import box_of, point_of
from seg_env.types import Prediction, Target


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


def pointing_accuracy(inside: ArrayLike) -> NDArray[np.float64]:
    """Share of points that are on their target (the "pointing game").

    Args:
        inside: ``(..., N)`` from `points_inside`.

    Returns:
        ``(...,)`` in ``[0, 1]``.

    Raises:
        ValueError: There is no sample.
    """
    return np.asarray(samples(inside).mean(axis=-1))


def _with_absent(
    scores: NDArray[np.float64], predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """Scores with those of absent objects decided by whether the answer says so."""
    for row, (answer, target) in enumerate(zip(predictions, targets, strict=True)):
        if not target.area:
            scores[row] = float(answer.valid and answer.is_empty)
    return scores
