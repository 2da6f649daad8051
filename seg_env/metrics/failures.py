"""Why answers fail: the wrong object, the wrong outline, or no outline at all.

Boxes and points are sorted in the same way: a box by its own IoU, a point by what it lies on.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.overlap import iou_batch
from seg_env.geometry.rle import Rle
from seg_env.metrics.grounding import written_box_iou
from seg_env.metrics.regions import check_lengths
from seg_env.metrics.scores import Overlaps, answer_areas, iou, overlaps
from seg_env.types import Prediction, Target


class Failure(StrEnum):
    """What became of an answer. Every answer is exactly one of these, the first that applies."""

    MALFORMED = "malformed"
    """The text had issues, and not one pixel is filled: no usable ring came of it."""
    FALSE_ALARM = "false_alarm"
    """Pixels are filled though the object asked for is not there."""
    MISSED = "missed"
    """The object is there, and a well-formed answer fills nothing: ``[]``, or a mere line."""
    GOOD = "good"
    """Mask IoU with the target (box IoU of boxes) is at least the threshold, the point is on the
    target, or the absence was recognised."""
    WRONG_OBJECT = "wrong_object"
    """Another known object of the image is overlapped better (higher IoU) than the target."""
    WRONG_OUTLINE = "wrong_outline"
    """The target is overlapped, and no other object better: the right one, badly outlined."""
    NO_OBJECT = "no_object"
    """Neither the target nor any other known object is overlapped at all."""


def failures(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    others: Sequence[Sequence[Rle] | None] | None = None,
    *,
    counts: Overlaps | None = None,
    threshold: float = 0.5,
) -> NDArray[np.str_]:
    """Split answers into good ones and kinds of failure.

    An answer with issues that still fills pixels is judged by those pixels.

    Args:
        predictions: ``N`` answers.
        targets: ``N`` targets.
        others: For each sample the masks of the other objects in its image, at the target's size,
            or None where they are not known. Without them `Failure.WRONG_OBJECT` cannot be told
            from `Failure.NO_OBJECT` and `Failure.WRONG_OUTLINE`, and is never returned. The
            target itself may be among them.
        counts: `overlaps` of answers and targets, if known already.
        threshold: IoU from which an answer is good.

    Returns:
        ``(N,)`` values of `Failure`.

    Raises:
        ValueError: The arguments differ in length, or an object is not of its target's size.
    """
    check_lengths(predictions, targets)
    others = [None] * len(targets) if others is None else others
    if len(others) != len(targets):
        raise ValueError(f"other objects of {len(others)} images for {len(targets)} targets")
    counts = counts or overlaps(predictions, targets)
    areas, scores = answer_areas(counts, targets).tolist(), iou(*counts).tolist()
    boxes = [index for index, answer in enumerate(predictions) if answer.form == "bbox"]
    fits = np.array(scores)
    fits[boxes] = written_box_iou(
        [predictions[index] for index in boxes], [targets[index] for index in boxes]
    )
    judged = []
    for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        if prediction.point is not None:
            judged.append(_judge_point(prediction.point, target, others[index] or ()))
        elif not areas[index]:
            judged.append(_judge_empty(prediction, target))
        elif not target.area:
            judged.append(Failure.FALSE_ALARM)
        elif fits[index] >= threshold:
            judged.append(Failure.GOOD)
        else:
            judged.append(_judge_bad(prediction, target, others[index] or (), scores[index]))
    return np.array(judged, dtype=f"<U{max(map(len, Failure))}")


def _judge_empty(prediction: Prediction, target: Target) -> Failure:
    """An answer that fills nothing."""
    if not prediction.valid:
        return Failure.MALFORMED
    return Failure.MISSED if target.area else Failure.GOOD


def _judge_point(point: NDArray[np.float64], target: Target, others: Sequence[Rle]) -> Failure:
    """A point on the target, on something else, or on nothing known."""
    if not target.area:
        return Failure.FALSE_ALARM
    if target.contains(point):
        return Failure.GOOD
    on_other = any(Target(other).contains(point) for other in others)
    return Failure.WRONG_OBJECT if on_other else Failure.NO_OBJECT


def _judge_bad(
    prediction: Prediction, target: Target, others: Sequence[Rle], score: float
) -> Failure:
    """An answer that fills something else than the target."""
    if any(_iou_with(other, prediction, target) > score for other in others):
        return Failure.WRONG_OBJECT
    return Failure.WRONG_OUTLINE if score > 0 else Failure.NO_OBJECT


def _iou_with(other: Rle, prediction: Prediction, target: Target) -> float:
    if other.size != target.size:
        raise ValueError(
            f"another object has the size {other.size} and the target {target.size}; give masks "
            f"of the same image"
        )
    return float(iou_batch([prediction.rings], other, empty_union=0.0)[0])
