"""Rewards that measure outlines, boxes and points each in the way that fits them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from seg_env.types import Prediction, Target

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
    """Score each answer by the measure of what was asked for.

    Args:
        predictions: ``N`` answers, in any mixture of forms.
        targets: ``N`` targets.
        mask: Scores outlines.
        bbox: Scores boxes.
        point: Scores points.

    Returns:
        ``(N,) float64``, in the order of the answers; each measure is called at most once.
    """
    measures = {"mask": mask, "bbox": bbox, "point": point}
    forms = [prediction.form for prediction in predictions]
    asked = dict.fromkeys(forms)
    if len(asked) <= 1:
        return measures[next(iter(asked), "mask")](predictions, targets)
    scores = np.zeros(len(forms), dtype=np.float64)
    for form in asked:
        rows = [row for row, each in enumerate(forms) if each == form]
        some = [predictions[row] for row in rows]
        scores[rows] = measures[form](some, [targets[row] for row in rows])
    return scores
