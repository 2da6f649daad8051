"""Demonstrations as rows of conversation, the form that TRL's trainers read, made on demand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.prompts import harmless, prepare_inputs, special_tokens
from agents.screening import Prepare, refusal
from agents.wording import Wording, word_answer, word_question
from seg_env.data.base import Dataset
from seg_env.envs.left_out import LeftOut, UnusableSampleError, name_of
from seg_env.frames import UNIT_ANSWERS, AnswerFrame
from seg_env.task_mixture import read_task_weights as read_task_weights
from seg_env.task_queries import QueryStyle, refer_to
from seg_env.tasks import TASKS, Task, answer, askable, query_of
from seg_env.types import Sample

TRIES = 16
"""Samples that are tried for a row, one after another, until one can be used."""
Row = dict[str, Any]
"""``prompt`` and ``completion``, a list of one message each, and ``images``, a list of one."""


@dataclass(frozen=True)
class DemonstrationRows:
    """An endless, ordered supply of questions with perfect answers about a data set.

    Row ``i`` follows from the seed and ``i`` alone: every pass over the data has an order, tasks
    and wordings of its own, and a run that was interrupted goes on with the rows it would have had.
    Pictures are loaded, and outlines traced, when a row is asked for.
    """

    dataset: Dataset
    """What is asked about."""
    task_weights: Mapping[Task, float]
    """How often each task is asked, relative to the others."""
    special: tuple[str, ...] = ()
    """Tokens of the policy that are no text; see `rows_for`."""
    wording: Wording = "plain"
    """In which words."""
    epsilon: float = 0.005
    """Outline tolerance, see `seg_env.tasks.answer`."""
    decimals: int = 3
    """Digits of coordinates."""
    pad: bool = False
    """Whether coordinates have a fixed width."""
    seed: int = 0
    """What everything random depends on."""
    queries: QueryStyle = field(default_factory=QueryStyle)
    """How places that questions give are drawn and written."""
    frame: AnswerFrame = UNIT_ANSWERS
    """What numbers in questions and answers mean."""
    prepare: Prepare | None = None
    """Makes model inputs of an image and a prompt: tells which images the processor refuses."""
    left_out: LeftOut = field(default_factory=lambda: LeftOut("error"))
    """Told of samples that cannot be used, which give way to others; by default an error."""

    def __getitem__(self, index: int) -> Row:
        """Row ``index``, any number from 0."""
        epoch, place = divmod(index, len(self.dataset))
        chosen = int(_order(len(self.dataset), self.seed, epoch)[place])
        rng = np.random.default_rng([self.seed, index])
        for attempt in range(TRIES):
            row = self._write(chosen, rng)
            if isinstance(row, dict):
                return row
            self.left_out.add(name_of(self.dataset, chosen), row)
            other = np.random.default_rng([self.seed, index, attempt])
            chosen = int(other.integers(len(self.dataset)))
        raise UnusableSampleError(
            f"of {TRIES} samples in a row none can be used; {self.left_out.summary()}"
        )

    def _write(self, chosen: int, rng: np.random.Generator) -> Row | Exception:
        """A question about one sample with its answer, or why it cannot be asked."""
        try:
            sample = self.dataset[chosen]
            task = self._draw_task(sample, rng)
            reference = self._refer(sample, task, rng)
            asked = word_question(sample, task, self.wording, rng, reference)
            reply = answer(
                sample,
                task,
                epsilon=self.epsilon,
                decimals=self.decimals,
                pad=self.pad,
                frame=self.frame,
            )
            image = sample.image
        except MemoryError:
            raise
        except Exception as error:  # files fail in any way
            return error
        if self.prepare is not None:
            fault = refusal(self.prepare, image, asked)
            if fault is not None:
                return fault
        reply = word_answer(reply, self.wording, rng)
        return {
            "prompt": [{"role": "user", "content": harmless(asked, self.special)}],
            "completion": [{"role": "assistant", "content": reply}],
            "images": [image],
        }

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Rows whose numbers are in column ``row``, as columns: a transform of ``datasets``."""
        rows = [self[index] for index in batch["row"]]
        return {name: [row[name] for row in rows] for name in ("prompt", "completion", "images")}

    def _draw_task(self, sample: Sample, rng: np.random.Generator) -> Task:
        """A task by weight; what is not there is asked about by text."""
        weights = np.array([self.task_weights.get(task, 0.0) for task in TASKS])
        return askable(sample, TASKS[rng.choice(len(TASKS), p=weights / weights.sum())])

    def _refer(self, sample: Sample, task: Task, rng: np.random.Generator) -> str:
        """How the question speaks of the object; a place is another one in every pass."""
        seed = 0 if query_of(task) == "text" else int(rng.integers(2**31))
        numbers = self.frame.for_image(sample.target.size)
        return refer_to(sample, task, seed, style=self.queries, frame=numbers)


def rows_for(processor: Any, dataset: Dataset, **arguments: Any) -> DemonstrationRows:
    """Rows for the policy that a processor belongs to; arguments are those of the class."""
    special = tuple(special_tokens(processor.tokenizer).values())
    prepare = partial(prepare_inputs, processor)
    return DemonstrationRows(dataset, special=special, prepare=prepare, **arguments)


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which one pass goes over ``length`` samples."""
    return np.random.default_rng([seed, epoch, length]).permutation(length)
