"""Rewards for short answers: fewer characters, or no more vertices than the shape needs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rewards.base import Reward
from rewards.registry import register_reward
from seg_env.metrics import overlaps, vertex_counts
from seg_env.metrics.scores import answer_areas
from seg_env.types import Prediction, Target


@register_reward("length_penalty")
class LengthPenalty(Reward):
    """``-min(1, characters / scale)``: 0 for no text, falling to -1.

    SimpleSeg (arXiv 2601.19228) tried a length penalty and reports that it hurt, without giving
    its form; this one is for repeating that ablation. It counts the characters of
    ``Prediction.text`` (about 16 a vertex at three decimals), and pays the same for every target,
    so alone it teaches to say nothing.
    """

    def __init__(self, scale: float = 1000.0) -> None:
        """Set the number of characters at which the penalty is full."""
        if not (np.isfinite(scale) and scale > 0):
            raise ValueError(f"length_penalty: scale must be a positive number, got {scale!r}")
        self.scale = float(scale)

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return penalties in ``[-1, 0]``, ``(N,)``."""
        lengths = np.array([len(prediction.text) for prediction in predictions], dtype=np.float64)
        return np.asarray(0.0 - np.minimum(lengths / self.scale, 1.0))


@register_reward("vertex_budget")
class VertexBudget(Reward):
    """1 up to a budget of vertices that depends on the shape, falling to 0 at twice as many.

    The budget is that of the target's own simplified outline, so a star may cost more than a
    square, and spending less than the budget gains nothing: there is no reward for few points,
    which policies are quick to collect. An answer that fills no pixel scores 0, unless there is
    nothing to fill and it was read without issue.
    """

    def __init__(self, epsilon: float = 0.005, slack: float = 1.5, least: int = 8) -> None:
        """Set the budget: ``max(least, slack * vertices of the simplified outline)``.

        Args:
            epsilon: Tolerance of the simplification as a share of the perimeter; by default the
                best of SimpleSeg's ablation.
            slack: Vertices granted for each of that outline's.
            least: Vertices granted to every target.
        """
        for name, value in (("epsilon", epsilon), ("slack", slack), ("least", least)):
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"vertex_budget: {name} must be a positive number, got {value!r}")
        self.epsilon, self.slack, self.least = float(epsilon), float(slack), int(least)

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return scores in ``[0, 1]``, ``(N,)``."""
        if not len(predictions):
            return np.zeros(0, dtype=np.float64)
        spent = vertex_counts(prediction.rings for prediction in predictions)
        needed = vertex_counts(target.outline(self.epsilon) for target in targets)
        budgets = np.maximum(self.slack * needed, self.least)
        scores: NDArray[np.float64] = np.clip(2.0 - spent / budgets, 0.0, 1.0)
        areas = answer_areas(overlaps(predictions, targets), targets)
        for index in np.flatnonzero(areas == 0).tolist():
            scores[index] = float(not targets[index].area and predictions[index].valid)
        return scores
