"""Rewards for short answers: fewer characters, or no more vertices than the shape needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewards.base import ScaledReward
from rewards.registry import register_reward
from seg_env.metrics import overlaps, vertex_counts
from seg_env.metrics.scores import answer_areas
from seg_env.types import Prediction, Target


@register_reward("length_penalty")
@dataclass(eq=False)
class LengthPenalty(ScaledReward):
    """``-min(1, characters / scale)``: 0 for no text, falling to -1.

    SimpleSeg (arXiv 2601.19228) tried a length penalty and reports that it hurt, without giving
    its form; this one is for repeating that ablation. It counts the characters of
    ``Prediction.text`` (about 16 a vertex at three decimals), and pays the same for every target,
    so alone it teaches to say nothing.
    """

    scale: float = 1000.0
    """Number of characters at which the penalty is full."""

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return penalties in ``[-1, 0]``, ``(N,)``."""
        lengths = np.array([len(prediction.text) for prediction in predictions], dtype=np.float64)
        return np.asarray(0.0 - np.minimum(lengths / self.scale, 1.0))


@register_reward("vertex_budget")
@dataclass(eq=False)
class VertexBudget(ScaledReward):
    """1 up to a budget of vertices that depends on the shape, falling to 0 at twice as many.

    The budget is ``slack`` times the vertices of the target's own simplified outline. So a star may
    cost more than a square, and spending less than the budget gains nothing: there is no reward for
    few points, which policies are quick to collect. An answer that fills no pixel scores 0, unless
    there is nothing to fill and it was read without issue.
    """

    epsilon: float = 0.005
    """Tolerance of the simplification as a share of the perimeter: by default the best of
    SimpleSeg's ablation."""
    slack: float = 1.5
    least: int = 8
    """Vertices granted to every target."""

    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Return scores in ``[0, 1]``, ``(N,)``."""
        spent = vertex_counts(prediction.rings for prediction in predictions)
        needed = vertex_counts(target.outline(self.epsilon) for target in targets)
        budgets = np.maximum(self.slack * needed, self.least)
        scores: NDArray[np.float64] = np.clip(2.0 - spent / budgets, 0.0, 1.0)
        areas = answer_areas(overlaps(predictions, targets), targets)
        for index in np.flatnonzero(areas == 0).tolist():
            scores[index] = float(not targets[index].area and predictions[index].valid)
        return scores
