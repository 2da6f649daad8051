"""The main reward: intersection over union of the filled outline and the target mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.base import Reward
from rewards.registry import register_reward
from seg_env.metrics import iou, overlaps
from seg_env.types import Prediction, Target


@register_reward("mask_iou")
class MaskIoU(Reward):
    """Mask IoU in ``[0, 1]`` at the target's own size, by COCO's fill rule.

    Source: "IoU reward" of SimpleSeg (arXiv 2601.19228), between the decoded and the true mask.

    A target without pixels ("there is no such object") is answered rightly, with 1, by an answer
    that fills no pixel and was read without any issue, such as ``[]``. Text that could not be read
    also fills nothing, but it does not say that nothing is there: it scores 0.
    """

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return the ``(N,)`` IoU of each answer with its target."""
        intersections, unions = overlaps(predictions, targets)
        scores = iou(intersections, unions, empty_union=1.0)
        for index in np.flatnonzero(unions == 0).tolist():
            scores[index] = float(predictions[index].valid)
        return scores
