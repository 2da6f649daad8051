"""What a reward is: a name, and one call for a whole batch of answers, of one form or several."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from seg_env.types import Prediction, Target


class Reward(ABC):
    """Scores a batch of answers against their targets.

    Weights belong to `rewards.RewardSum`. Instances carry at most their parameters, so they can be
    pickled. A bug must not become a zero: whatever a reward raises reaches the caller.

    Example:
        >>> @register_reward("few_vertices")
        ... class FewVertices(Reward):
        ...     '''1 for no vertex, falling to 0 at 100 of them.'''
        ...
        ...     def __call__(self, predictions, targets):
        ...         counts = [sum(map(len, answer.rings)) for answer in predictions]
        ...         return 1.0 - np.minimum(np.array(counts, dtype=float), 100.0) / 100.0
    """

    name: ClassVar[str]
    """Name in specification strings, logs and reports; the class name when none is given."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give a class without any name its class name."""
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "name"):
            cls.name = cls.__name__

    @abstractmethod
    def __call__(
        self, predictions: Sequence[Prediction], targets: Sequence[Target]
    ) -> NDArray[np.float64]:
        """Score ``N`` answers, ``(N,)``, finite.

        Answers to one question share one `Target` object; work that depends on the target alone may
        be kept in ``target.cache`` under the reward's name.
        """


class ScaledReward(Reward):
    """A reward whose parameters, the fields of a dataclass, are positive numbers."""

    def __post_init__(self) -> None:
        """Check the parameters."""
        for name, value in vars(self).items():
            if not (np.isfinite(value) and value > 0):
                raise ValueError(f"{self.name}: {name} must be a positive number, got {value!r}")


Measure: TypeAlias = "Callable[[Sequence[Prediction], Sequence[Target]], NDArray[np.float64]]"
"""A score of ``N`` answers of one form, ``(N,)``."""


def score_by_form(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    *,
    mask: Measure,
    bbox: Measure,
    point: Measure,
) -> NDArray[np.float64]:
    """Score answers, ``(N,)``, each by the measure of its form, which is called at most once."""
    measures = {"mask": mask, "bbox": bbox, "point": point}
    forms = [prediction.form for prediction in predictions]
    asked = dict.fromkeys(forms)
    if len(asked) <= 1:
        return measures[next(iter(asked), "mask")](predictions, targets)
    scores = np.zeros(len(forms), dtype=np.float64)
    for form in asked:
        rows = [row for row, each in enumerate(forms) if each == form]
        scores[rows] = measures[form](
            [predictions[row] for row in rows], [targets[row] for row in rows]
        )
    return scores
