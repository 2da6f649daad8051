"""Whether an answer is right about there being such an object at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.base import Reward
from rewards.registry import register_reward
from seg_env.types import Prediction, Target


@register_reward("no_target")
class NoTarget(Reward):
    """1 for ``[]`` where the object is absent and for any place where it is there, 0 otherwise.

    A place is at least one ring, box or point, however far off, and with issues or without: where
    it is belongs to `mask_iou`, how it is written to `format`. Text that gives nothing and has an
    issue says nothing, so it scores 0 in both cases.

    The means over absent and over present objects are N-acc and T-acc (Liu et al., "GRES", CVPR
    2023) but for answers that fill no pixel: those metrics count a line as nothing, and unreadable
    text about a present object as something (see `seg_env.metrics.summarize`).
    """

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return zeros and ones, ``(N,)``."""
        pairs = zip(predictions, targets, strict=True)
        return np.array(
            [
                not answer.is_empty if target.area else answer.valid and answer.is_empty
                for answer, target in pairs
            ],
            dtype=np.float64,
        )
