"""The main reward: how well an answer covers the target, by the measure that fits its form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.base import Reward, score_by_form
from rewards.registry import register_reward
from seg_env.metrics import iou, overlaps, points_inside, written_box_iou
from seg_env.types import Prediction, Target


@register_reward("mask_iou")
class MaskIoU(Reward):
    """Mask IoU in ``[0, 1]`` at the target's own size, by COCO's fill rule.

    Source: "IoU reward" of SimpleSeg (arXiv 2601.19228), between the decoded and the true mask.

    Where a box was asked for it is the IoU of the box as written with the target's box, and where a
    point was asked for it is 1 on the target and 0 beside it.

    A target without pixels ("there is no such object") is answered rightly, with 1, by an answer
    that fills no pixel and was read without any issue, such as ``[]``. Text that could not be read
    also fills nothing, but it does not say that nothing is there: it scores 0.
    """

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return scores in ``[0, 1]``, ``(N,)``."""
        return score_by_form(
            predictions, targets, mask=outline_iou, bbox=written_box_iou, point=points_inside
        )


def outline_iou(
    predictions: Sequence[Prediction], targets: Sequence[Target]
) -> NDArray[np.float64]:
    """Mask IoU of what the rings of answers fill, ``(N,)``; a point fills nothing and gets 0."""
    intersections, unions = overlaps(predictions, targets)
    scores = iou(intersections, unions, empty_union=1.0)
    for index in np.flatnonzero(unions == 0).tolist():
        answer = predictions[index]
        scores[index] = float(answer.valid and answer.point is None)
    return scores
