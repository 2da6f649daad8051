"""The main reward: intersection over union of the filled outline and the target mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.base import Reward
from rewards.registry import register_reward
from seg_env.geometry.overlap import PreparedTarget, iou_batch, prepare
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
        groups: dict[int, list[int]] = {}
        for index, target in enumerate(targets):
            groups.setdefault(id(target), []).append(index)
        scores = np.zeros(len(predictions), dtype=np.float64)
        for members in groups.values():
            target = targets[members[0]]
            rings = [predictions[index].rings for index in members]
            scores[members] = iou_batch(rings, prepared_target(target), empty_union=1.0)
            if not target.area:
                scores[members] *= [predictions[index].valid for index in members]
        return scores


def prepared_target(target: Target) -> PreparedTarget:
    """The target's mask made ready for overlaps; made once and kept in ``target.cache``."""
    prepared: PreparedTarget | None = target.cache.get("mask_iou")
    if prepared is None:
        prepared = target.cache["mask_iou"] = prepare(target.rle)
    return prepared
