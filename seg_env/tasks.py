"""Grounding tasks as question and answer: where is it, what is its box, what is its outline.

The paper recombines labels: a mask also gives a point and a box. A policy that learns the three
together finds things sooner than one that only ever sees outlines, because only the first vertex of
an outline says where the object is.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.polygon import bbox
from seg_env.grammar import encode
from seg_env.types import Sample, Target

Task = Literal["text->mask", "text->bbox", "text->point"]
TASKS: tuple[Task, ...] = get_args(Task)

PROMPTS: dict[Task, str] = {
    "text->mask": "Output the polygon coordinates of {expression} in the image.",
    "text->bbox": "Output the bounding box of {expression} in the image.",
    "text->point": "Output the center point of {expression} in the image.",
}
"""One question of the paper's kind for each task; ``{expression}`` is the referring expression."""


def question(sample: Sample, task: Task) -> str:
    """The prompt that asks for ``task`` of a sample."""
    return PROMPTS[task].format(expression=sample.expression)


def answer(
    sample: Sample, task: Task, *, epsilon: float = 0.005, decimals: int = 3, pad: bool = False
) -> str:
    """The text a perfect policy would answer.

    Args:
        sample: What is asked about; its target must not be empty for points and boxes.
        task: Which form the answer takes.
        epsilon: Douglas-Peucker tolerance of outlines as a share of the perimeter.
        decimals: Digits after the decimal point.
        pad: Write every number with all its decimals, ``0.50`` for ``0.5``.

    Returns:
        ``[[[x,y],...]]`` for a mask, ``[x0,y0,x1,y1]`` for a box, ``[x,y]`` for a point.
    """
    if task == "text->mask":
        return encode(sample.target.outline(epsilon), decimals, pad=pad)
    numbers = box_of(sample.target) if task == "text->bbox" else centre_of(sample.target)
    written = (f"{number:.{decimals}f}" for number in numbers)
    return "[" + ",".join(text if pad else text.rstrip("0").rstrip(".") for text in written) + "]"


def box_of(target: Target) -> NDArray[np.float64]:
    """``(x0, y0, x1, y1)`` of the target in the unit frame, along pixel edges."""
    return np.asarray(bbox(target.rings), dtype=np.float64)


def centre_of(target: Target) -> NDArray[np.float64]:
    """``(x, y)`` of the middle of the target's box in the unit frame."""
    x0, y0, x1, y1 = box_of(target)
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2])
