"""Whether the answer is written in the agreed grammar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.base import Reward, score_by_form
from rewards.centroid_distance import stack_rings
from rewards.registry import register_reward
from seg_env.types import Prediction, Target


@register_reward("format")
class Format(Reward):
    """1 for a well-formed answer, 0 for any other.

    Source: "format reward" of SimpleSeg (arXiv 2601.19228), binary. Well-formed is ours to define:
    the text was read without a single issue, and it draws at least one ring that encloses an area,
    or gives one box, or one point, whichever was asked for. An answer of another form than was
    asked for has an issue. For a target without pixels, ``[]`` is well-formed too. Rings may cross
    themselves: the fill rule gives them a meaning, and `mask_iou` already makes them pay.
    """

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return zeros and ones, ``(N,)``."""
        return score_by_form(predictions, targets, mask=_outlines, bbox=_places, point=_places)


def _outlines(predictions: Sequence[Prediction], targets: Sequence[Target]) -> NDArray[np.float64]:
    scores = np.zeros(len(predictions), dtype=np.float64)
    stacked = stack_rings([prediction.rings for prediction in predictions])
    if stacked is not None:
        scores[stacked.owner[stacked.areas != 0.0]] = 1.0
    for index, prediction in enumerate(predictions):
        if not prediction.valid:
            scores[index] = 0.0
        elif not prediction.rings and not targets[index].area:
            scores[index] = 1.0
    return scores


def _places(predictions: Sequence[Prediction], targets: Sequence[Target]) -> NDArray[np.float64]:
    pairs = zip(predictions, targets, strict=True)
    return np.array(
        [answer.valid and not (answer.is_empty and target.area) for answer, target in pairs],
        dtype=np.float64,
    )
