"""Referring expressions for objects that are not in a scene."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seg_env.data.scenes.layout import (
    COLORS,
    EASY_COLORS,
    EASY_SHAPES,
    Difficulty,
    SceneObject,
)
from seg_env.data.scenes.shapes import SHAPES

NEAR = 0.75
"""How often the colour or the shape is one that an object of the scene has."""


def describe_absent(
    objects: Sequence[SceneObject], difficulty: Difficulty, rng: np.random.Generator
) -> str:
    """Words for a colour and a shape that no object of the scene has together.

    Most of them are near misses, so that neither colour nor shape alone gives the absence away.

    Args:
        objects: What is in the scene.
        difficulty: Decides which colours and shapes there are.
        rng: Chooses among the expressions.
    """
    easy = difficulty == "easy"
    colors, shapes = (EASY_COLORS, EASY_SHAPES) if easy else (COLORS, tuple(SHAPES))
    present = {(thing.color, thing.shape) for thing in objects}
    seen_colors, seen_shapes = ({one[part] for one in present} for part in (0, 1))
    absent = [
        (color, shape) for color in colors for shape in shapes if (color, shape) not in present
    ]
    near = [pair for pair in absent if pair[0] in seen_colors or pair[1] in seen_shapes]
    choices = near if rng.random() < NEAR else absent
    color, shape = choices[rng.integers(len(choices))]
    return f"the {color} {shape}"
