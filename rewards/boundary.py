"""Rewards for the boundary, which hardly counts in the mask IoU of large objects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.base import ScaledReward
from rewards.registry import register_reward
from seg_env.metrics import boundary_f, boundary_iou
from seg_env.types import Prediction, Target


@register_reward("boundary_iou")
@dataclass(eq=False)
class BoundaryIoU(ScaledReward):
    """Boundary IoU in ``[0, 1]`` (Cheng et al., CVPR 2021), see `seg_env.metrics.boundary_iou`.

    It is 0 until the answer comes within a few pixels of the boundary, so it belongs beside
    `mask_iou`, not in its place. Where neither answer nor target has a pixel, an answer that was
    read without issue scores 1 and any other 0, as for `mask_iou`.
    """

    dilation_ratio: float = 0.02
    """Width of the band as a share of the image diagonal; a wide one is easier to hit."""

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return the boundary IoU of each answer, ``(N,)``."""
        ratio = self.dilation_ratio
        scores = boundary_iou(predictions, targets, dilation_ratio=ratio, empty_union=np.nan)
        return _settle_empty(scores, predictions)


@register_reward("boundary_f")
@dataclass(eq=False)
class BoundaryF(ScaledReward):
    """Boundary F in ``[0, 1]`` (DAVIS, Perazzi et al. 2016), see `seg_env.metrics.boundary_f`.

    Empty answers to empty targets score as for `BoundaryIoU`.
    """

    tolerance_ratio: float = 0.008
    """How far boundaries may be apart, as a share of the image diagonal."""

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return the boundary F of each answer, ``(N,)``."""
        ratio = self.tolerance_ratio
        scores = boundary_f(predictions, targets, tolerance_ratio=ratio, empty_union=np.nan)
        return _settle_empty(scores, predictions)


def _settle_empty(
    scores: NDArray[np.float64], predictions: Sequence[Prediction]
) -> NDArray[np.float64]:
    """Scores in which NaN, an empty union, becomes whether the text was read without issue."""
    return np.where(np.isnan(scores), [answer.valid for answer in predictions], scores)
