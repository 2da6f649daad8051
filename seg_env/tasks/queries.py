"""Places that a question gives instead of an expression, drawn from the ground truth.

They depend on the sample and a seed alone, so all answers of a group are to the same question.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from seg_env.errors import WrongOptionError
from seg_env.frames import UNIT, AnswerFrame, Frame
from seg_env.grammar import MAX_DECIMALS, encode
from seg_env.grammar.answers import decode_answer, encode_numbers
from seg_env.tasks.tasks import REFERENCES, TASKS, Task, TaskMixture, box_of, query_of
from seg_env.types import Sample, Target

_TRIES = 16  # Most points drawn until one is still on the object when it is written.


@dataclass(frozen=True)
class QueryStyle:
    """How places are drawn and written."""

    decimals: int = 3
    """Digits after the point, 1 to 9; ignored in frames of whole numbers."""
    pad: bool = False
    """Write every number with all its decimals."""
    epsilon: float = 0.01
    """Douglas-Peucker tolerance of outlines, as a share of the perimeter."""
    jitter: float = 0.05
    """How far each side of a box may be moved in either direction, uniformly, as a share of the
    box's width or height; the box stays in the image."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, kind, low, below, allowed in (
            ("decimals", Integral, 1, MAX_DECIMALS + 1, f"a whole number from 1 to {MAX_DECIMALS}"),
            ("pad", bool, 0, 2, "True or False"),
            ("epsilon", Real, 0, 1, "a number from 0 to below 1"),
            ("jitter", Real, 0, 0.5, "a number from 0 to below 0.5"),
        ):
            value = getattr(self, name)
            fits = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)
            if not fits or not low <= value < below:
                raise ValueError(f"queries: {name}={value!r}; use {allowed}")

    @classmethod
    def from_spec(cls, spec: Mapping[str, object] | QueryStyle | None) -> QueryStyle:
        """A style from a mapping of its fields; None gives the default."""
        if isinstance(spec, QueryStyle):
            return spec
        known = list(cls.__dataclass_fields__)
        given = {} if spec is None else spec
        if not isinstance(given, Mapping) or not set(given) <= set(known):
            raise ValueError(f"queries={spec!r}; use a dictionary with some of {known}, or None")
        return cls(**given)  # type: ignore[arg-type]


def draw_task(mixture: TaskMixture, sample: Sample, seed: int) -> Task:
    """The task that a mixture asks of a sample, by weight."""
    if len(mixture.tasks) == 1:
        return mixture.tasks[0]
    shares = np.array([weight for _, weight in mixture.weights])
    rng = _generator(sample, seed, len(TASKS))
    return mixture.tasks[int(rng.choice(len(shares), p=shares / shares.sum()))]


def check_places(tasks: Iterable[Task], frame: AnswerFrame) -> None:
    """Raise WrongOptionError if questions would have to give places in location tokens."""
    given = next((task for task in tasks if query_of(task) != "text"), None)
    if given is not None and frame.writes_tokens:
        raise WrongOptionError(
            f"task {given} gives a place in brackets, and frame {frame.family!r} writes location "
            f"tokens: ask by text, or choose another frame"
        )


def refer_to(
    sample: Sample,
    task: Task,
    seed: int = 0,
    *,
    style: QueryStyle | None = None,
    frame: Frame = UNIT,
) -> str:
    """How a task's question refers to the sample's object.

    A point is one of the object's pixels, each as likely as the others; a box is the object's with
    each side moved a little; an outline is the object's, simplified. Numbers are written in the
    frame of the answers, clipped to the image. The seed is any number from 0.

    Raises:
        ValueError: The task gives a place, and the target has no pixel; see `askable`.
    """
    kind = query_of(task)
    if kind == "text":
        return sample.expression
    if not sample.target.area:
        raise ValueError(f"{task} of {sample.id!r}: there is no object whose place can be given")
    style = style or QueryStyle()
    rng = _generator(sample, seed, TASKS.index(task))
    if kind == "mask":
        rings = sample.target.outline(style.epsilon)
        written = encode(rings, style.decimals, frame=frame, pad=style.pad)
    elif kind == "bbox":
        corners = jittered_box(sample.target, style.jitter, rng).reshape(2, 2)
        written = encode_numbers(corners, style.decimals, frame=frame, pad=style.pad)
    else:
        written = _point_on_target(sample.target, style, frame, rng)
    return REFERENCES[kind].format(query=written)


def jittered_box(target: Target, jitter: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """The target's box ``(4,)`` in the unit frame, each side moved, see `QueryStyle`."""
    box = box_of(target)
    width, height = box[2] - box[0], box[3] - box[1]
    moves = rng.uniform(-jitter, jitter, 4) * (width, height, width, height)
    return np.asarray(np.clip(box + moves, 0.0, 1.0), dtype=np.float64)


def interior_point(target: Target, rng: np.random.Generator) -> NDArray[np.float64]:
    """The centre ``(x, y)`` of a pixel of the target, in the unit frame, uniformly drawn."""
    height, width = target.size
    starts, ends = target.rle.runs
    place = int(rng.integers(target.area))
    behind = np.cumsum(ends - starts)
    run = int(np.searchsorted(behind, place, side="right"))
    column, row = divmod(int(ends[run] - (behind[run] - place)), height)
    return np.array([(column + 0.5) / width, (row + 0.5) / height])


def _point_on_target(
    target: Target, style: QueryStyle, frame: Frame, rng: np.random.Generator
) -> str:
    """A point that is on the target as it is written, if a few draws find one."""
    written = ""
    for _ in range(_TRIES):
        point = interior_point(target, rng)[None]
        written = encode_numbers(point, style.decimals, frame=frame, pad=style.pad)
        read = decode_answer(written, "point", frame).point
        if read is not None and target.contains(read):
            break
    return written


def _generator(sample: Sample, seed: int, stream: int) -> np.random.Generator:
    name = zlib.crc32(sample.id.encode("utf-8", "surrogatepass"))
    return np.random.default_rng([seed, name, stream])
