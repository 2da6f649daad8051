"""Grounding tasks and their mixtures: any of text, point, box and outline asked from another.

The paper recombines labels: a mask also gives a point and a box. A policy that learns all of them
finds objects sooner: only the first vertex of an outline says where the object is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast, get_args

import numpy as np
from numpy.typing import NDArray

from seg_env.frames import UNIT_ANSWERS, AnswerFrame
from seg_env.geometry.polygon import VertexOrder, reorder
from seg_env.grammar import encode
from seg_env.grammar.answers import encode_numbers
from seg_env.types import Form, Sample, Target

Task = Literal[
    "text->mask",
    "text->bbox",
    "text->point",
    "point->mask",
    "bbox->mask",
    "point->bbox",
    "mask->bbox",
    "mask->point",
]
"""What is given and what is asked for."""
TASKS: tuple[Task, ...] = get_args(Task)

DEFAULT_TASK: Task = "text->mask"

TEXT_TASKS: tuple[Task, ...] = ("text->mask", "text->bbox", "text->point")

Query = Literal["text", "mask", "bbox", "point"]
"""What a question gives: an expression, or a place."""

TaskSpec: TypeAlias = "str | Mapping[str, float] | Mapping[Task, float] | TaskMixture"
"""What `TaskMixture.from_spec` reads."""

PROMPTS: dict[Task, str] = {
    "text->mask": "Output the polygon coordinates of {expression} in the image.",
    "text->bbox": "Output the bounding box of {expression} in the image.",
    "text->point": "Output the center point of {expression} in the image.",
}
"""One question of the paper's kind for each form of answer; ``{expression}`` is the referring
expression or, in tasks that give a place, the phrase of `REFERENCES` for it."""

REFERENCES: dict[Query, str] = {
    "text": "{query}",
    "point": "the object at {query}",
    "bbox": "the object in {query}",
    "mask": "the object with polygon {query}",
}
"""How a question refers to the object; ``{query}`` is an expression, or a place written as an
answer of that form would be."""

_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


def query_of(task: Task) -> Query:
    """What a task gives, ``"point"`` for ``"point->mask"``."""
    return cast("Query", task.partition("->")[0])


def form_of(task: Task) -> Form:
    """What a task asks for, ``"mask"`` for ``"point->mask"``."""
    return cast("Form", task.partition("->")[2])


def prompt_for(form: Form) -> str:
    """The question of `PROMPTS` that asks for a form of answer."""
    return PROMPTS[cast("Task", f"text->{form}")]


def askable(sample: Sample, task: Task) -> Task:
    """The task itself or, where there is no object to point at, the one that asks by text."""
    if sample.target.area or query_of(task) == "text":
        return task
    return cast("Task", f"text->{form_of(task)}")


def question(sample: Sample, task: Task, reference: str | None = None) -> str:
    """The prompt of ``task`` about a sample.

    Tasks that give a place need the ``reference`` of `seg_env.tasks.queries.refer_to`; the others
    use the sample's expression by default.
    """
    if reference is None:
        if query_of(task) != "text":
            raise ValueError(f"{task} needs a reference to the place that it gives; see refer_to")
        reference = sample.expression
    return prompt_for(form_of(task)).format(expression=reference)


def answer(
    sample: Sample,
    task: Task,
    *,
    epsilon: float = 0.005,
    decimals: int = 3,
    pad: bool = False,
    frame: AnswerFrame = UNIT_ANSWERS,
    order: VertexOrder = "canonical",
    rng: np.random.Generator | None = None,
) -> str:
    """The text a perfect policy would answer.

    It is ``[[[x,y],...]]`` for a mask, ``[x0,y0,x1,y1]`` for a box, ``[x,y]`` for a point, ``[]``
    for any of them if there is no such object; location tokens where the frame writes those.
    ``epsilon`` is the Douglas-Peucker tolerance of outlines as a share of the perimeter; ``pad``
    writes every number with all its decimals, ``0.500`` for ``0.5``. ``order`` is that of the
    vertices of outlines, drawn from ``rng`` where it is not canonical.
    """
    form, numbers = form_of(task), frame.for_image(sample.target.size)
    if form == "mask" or not sample.target.area:
        outline = sample.target.outline(epsilon)
        if order != "canonical":
            outline = tuple(reorder(outline, order, rng or np.random.default_rng()))
        return frame.write(encode(outline, decimals, frame=numbers, pad=pad))
    place = box_of(sample.target) if form == "bbox" else point_of(sample.target)
    points = place.reshape(-1, 2)
    return frame.write(encode_numbers(points, decimals, frame=numbers, pad=pad))


def box_of(target: Target) -> NDArray[np.float64]:
    """``(x0, y0, x1, y1)`` of the target in the unit frame; 0 without pixels.

    It is the annotated box, where there is one, else the mask's along pixel edges.
    """
    if target.box is not None and target.area:
        return np.array(target.box)
    return _box_of_mask(target)


def _box_of_mask(target: Target) -> NDArray[np.float64]:
    height, width = target.size
    return np.array(target.rle.bbox) / np.maximum((width, height, width, height), 1)


def centre_of(target: Target) -> NDArray[np.float64]:
    """``(x, y)`` of the middle of the mask's box in the unit frame."""
    x0, y0, x1, y1 = _box_of_mask(target)
    return np.array([(x0 + x1) / 2, (y0 + y1) / 2])


def point_of(target: Target) -> NDArray[np.float64]:
    """``(x, y)`` in the unit frame that answers a question for a point: always on the target.

    It is `centre_of` or, where that is beside the target, as in a ring, the middle of the longest
    stretch of the target in the nearest row of pixels. Kept in ``target.cache``.
    """
    cached: NDArray[np.float64] | None = target.cache.get("point_of")
    if cached is not None:
        return cached
    if not target.area:
        raise ValueError("a target without pixels has no point; its answer is []")
    mask, centre = target.mask(), centre_of(target)
    height, width = target.size
    row, column = int(centre[1] * height), int(centre[0] * width)
    if not mask[min(row, height - 1), min(column, width - 1)]:
        rows = np.flatnonzero(mask.any(axis=1))
        row = int(rows[np.abs(rows + 0.5 - centre[1] * height).argmin()])
        changes = np.flatnonzero(np.diff(mask[row], prepend=False, append=False))
        starts, ends = changes[0::2], changes[1::2]
        longest = int((ends - starts).argmax())
        middle = (int(starts[longest]) + int(ends[longest])) / 2
        centre = np.array([middle / width, (row + 0.5) / height])
    target.cache["point_of"] = centre
    return centre


@dataclass(frozen=True)
class TaskMixture:
    """Tasks with weights, in the order of `TASKS`."""

    weights: tuple[tuple[Task, float], ...] = ((DEFAULT_TASK, 1.0),)
    """All above 0."""

    @classmethod
    def from_spec(cls, spec: TaskSpec) -> TaskMixture:
        """Read one task or several with weights.

        They are given as a name, ``"point->mask"``, as ``"text->mask=0.7 point->mask=0.3"``, or as
        a mapping from names to weights. Weights are relative to each other; 0 leaves a task out.

        Raises:
            ValueError: It is none of these, a task is unknown, a weight is no number from 0, or
                their sum is 0 or infinite.
        """
        if isinstance(spec, TaskMixture):
            return spec
        if isinstance(spec, Mapping):
            words = [f"{task}={weight}" for task, weight in spec.items()]
        elif isinstance(spec, str):
            words = spec.split()
        else:
            raise _unknown(spec)
        if len(words) == 1 and "=" not in words[0]:
            words = [f"{check_task(words[0])}=1"]
        weights = read_task_weights(words)
        return cls(tuple((task, weights[task]) for task in TASKS if weights.get(task)))

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks alone."""
        return tuple(task for task, _ in self.weights)

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms of answer that are asked for, outlines first."""
        return tuple(form for form in get_args(Form) if form in map(form_of, self.tasks))

    @property
    def is_random(self) -> bool:
        """Whether a question's task, or the place it gives, is drawn at random."""
        return len(self.tasks) > 1 or query_of(self.tasks[0]) != "text"

    def __str__(self) -> str:
        if len(self.weights) == 1:
            return self.weights[0][0]
        # With the shortest text of a number, ``1`` for 1.0.
        shortest = [(task, repr(float(weight)).removesuffix(".0")) for task, weight in self.weights]
        return " ".join(f"{task}={weight}" for task, weight in shortest)


def check_task(name: object) -> Task:
    """The task with a name; ValueError if there is none."""
    for task in TASKS:
        if name == task:
            return task
    raise _unknown(name)


def _unknown(name: object) -> ValueError:
    return ValueError(
        f"task={name!r} is unknown; use one of {', '.join(map(repr, TASKS))}, or several with "
        f"weights as in 'text->mask=0.7 point->mask=0.3'"
    )


def read_task_weights(words: Sequence[str]) -> dict[Task, float]:
    """Task weights from ``name=weight`` terms, where ``mask`` is short for ``text->mask``.

    Raises:
        ValueError: A task is unknown, a weight is no number from 0, or their sum is 0 or infinite.
    """
    weights: dict[Task, float] = {}
    for word in words:
        name, _, number = word.partition("=")
        task = next((task for task in TASKS if name in (task, task.removeprefix("text->"))), None)
        if task is None or not _NUMBER.fullmatch(number):
            raise ValueError(
                f"{word!r} is not a task with a weight; use mask=0.8, where the task is one of "
                f"{', '.join(TASKS)} (text-> may be left out) and the weight a number from 0"
            )
        if task in weights:
            raise ValueError(f"{task} is named twice; give each task one weight")
        weights[task] = float(number)
    total = sum(weights.values())
    if not math.isfinite(total):  # shares of it would be no numbers
        raise ValueError(f"the weights of {', '.join(weights)} add up to {total}; use mask=0.8")
    if not total:
        raise ValueError(f"tasks {list(words)} give no task a weight above 0; use mask=1")
    return weights
