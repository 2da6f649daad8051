"""Which task is asked how often: ``"text->mask=0.7 point->mask=0.3"``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias, get_args

import numpy as np

from seg_env.tasks.tasks import TASKS, Task, form_of, query_of
from seg_env.types import Form

DEFAULT_TASK: Task = "text->mask"

TaskSpec: TypeAlias = "str | Sequence[str] | Mapping[str, float] | TaskMixture"
"""What `TaskMixture.from_spec` reads."""

_NUMBER = re.compile(r"(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class TaskMixture:
    """Tasks with weights, in the order of `TASKS`."""

    weights: tuple[tuple[Task, float], ...] = ((DEFAULT_TASK, 1.0),)
    """Tasks of a weight above 0."""

    @classmethod
    def from_spec(cls, spec: TaskSpec) -> TaskMixture:
        """Read a single task, ``"point->mask"``, or several with weights.

        Args:
            spec: One of

                - the name of a task;
                - a string of ``task=weight`` terms separated by spaces,
                  ``"text->mask=0.7 point->mask=0.3"``, or a sequence of such strings;
                - a mapping from names to weights;
                - a `TaskMixture`, returned as it is.

                Weights are relative to each other; 0 leaves a task out.

        Raises:
            ValueError: It is none of these, a task is unknown, a weight is no number from 0, or
                their sum is 0 or infinite.
        """
        if isinstance(spec, TaskMixture):
            return spec
        words = _words(spec)
        if len(words) == 1 and "=" not in words[0]:
            words = [f"{check_task(words[0])}=1"]
        weights = read_task_weights(words)
        return cls(tuple((task, weights[task]) for task in TASKS if weights.get(task)))

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that are asked."""
        return tuple(task for task, _ in self.weights)

    @property
    def forms(self) -> tuple[Form, ...]:
        """The forms of answer that are asked for, outlines first."""
        return tuple(form for form in get_args(Form) if form in map(form_of, self.tasks))

    @property
    def is_random(self) -> bool:
        """Whether something about a question is left to chance: its task, or the place it gives."""
        return len(self.tasks) > 1 or query_of(self.tasks[0]) != "text"

    def __str__(self) -> str:
        """The string that `from_spec` reads."""
        if len(self.weights) == 1:
            return self.weights[0][0]
        return " ".join(f"{task}={_written(weight)}" for task, weight in self.weights)

    def draw(self, rng: np.random.Generator) -> Task:
        """A task by weight; nothing is drawn where there is only one."""
        if len(self.weights) == 1:
            return self.weights[0][0]
        shares = np.array([weight for _, weight in self.weights])
        return self.weights[int(rng.choice(len(shares), p=shares / shares.sum()))][0]


def _words(spec: object) -> list[str]:
    """The terms of a mixture in any form but its own."""
    if isinstance(spec, Mapping):
        return [f"{task}={weight}" for task, weight in spec.items()]
    parts = [spec] if isinstance(spec, str) else spec
    if isinstance(parts, Sequence) and all(isinstance(part, str) for part in parts):
        return [word for part in parts for word in part.split()]
    raise _unknown(spec)


def _written(weight: float) -> str:
    """The shortest text that is read as the same number, ``1`` for 1.0."""
    return repr(float(weight)).removesuffix(".0")


def check_task(name: object) -> Task:
    """The task of a name.

    Raises:
        ValueError: There is none.
    """
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
    """Task weights as a command line gives them.

    Args:
        words: ``name=weight`` each; ``mask`` is short for ``text->mask``.

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
