"""Rows that TRL's trainers read, made on demand: questions, and questions with perfect answers.

Row ``i`` depends only on the seed and ``i``, so that an interrupted run continues with the same
rows. Questions and answer sentences are those of the paper's released data script (arXiv
2601.19228), unless the environments' own are wanted. The script covers outlines only; boxes and
points are asked for in the same sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.policy.model import VLMPolicy
from agents.policy.processing import break_special_tokens
from agents.screening import require_usable
from agents.settings import SupervisedFineTuningConfig, Wording
from seg_env.data.base import Dataset
from seg_env.envs.core import Question, ReferringCore
from seg_env.envs.left_out import TRIES, LeftOut, first_usable, loading
from seg_env.tasks import (
    TASKS,
    Task,
    answer,
    askable,
    form_of,
    query_of,
    question,
    read_task_weights,
)
from seg_env.tasks.queries import check_places, refer_to
from seg_env.types import Form, Sample

Row = dict[str, Any]
"""``prompt`` and ``completion``, a list of one message each, and ``images``, a list of one."""

QUESTIONS: tuple[str, ...] = (
    '"{expression}"\'s {thing}',
    "What is the {thing} of {expression} in the image?",
    "Output the {numbers} of {expression} in the image.",
    "Tell me the {numbers} of {expression} in the image.",
    "Give me the {numbers} of {expression} in the image.",
    "Help me locate the {thing} of {expression}.",
    "Locate the {thing} of {expression}.",
)
"""Each is drawn equally often."""

ANSWERS: tuple[str, ...] = (
    "{answer}.",
    "{answer}.",
    "Sure, you can find it at {answer}.",
    "It is found at {answer}.",
    "It is at {answer}.",
)
"""Each is drawn equally often: the bare answer stands twice, as in the paper's script."""

NAMES: dict[Form, tuple[str, str]] = {
    "mask": ("polygon", "polygon coordinates"),
    "bbox": ("bounding box", "bounding box"),
    "point": ("center point", "center point"),
}
"""What is asked for, as a ``thing`` and as ``numbers``."""


class Rows:
    """Rows for a policy, each determined by its number.

    Samples that cannot be used are replaced, and counted in ``left_out``; by default they are an
    error.
    """

    def __init__(self, policy: VLMPolicy, left_out: LeftOut | None) -> None:
        """Ask in the policy's words; its processor decides which images can be used."""
        self.policy = policy
        self.left_out = LeftOut("error") if left_out is None else left_out
        self._usable: set[int] = set()

    def _require_usable(self, index: int, image: NDArray[np.uint8], prompt: str) -> None:
        """Raise `UnusableSampleError` if the processor refuses the image of a sample."""
        if index not in self._usable:
            require_usable(self.policy, image, prompt)
            self._usable.add(index)

    def _message(self, prompt: str) -> list[dict[str, str]]:
        """A prompt as TRL takes it, without special tokens."""
        return [{"role": "user", "content": break_special_tokens(prompt, self.policy.tokenizer)}]


class QuestionRows(Rows):
    """Questions that TRL's GRPOTrainer asks, drawn with equal probability.

    Images are kept until the next batch: a group, and every pass over it, reads its image once.
    """

    def __init__(
        self, policy: VLMPolicy, core: ReferringCore, seed: int, left_out: LeftOut | None = None
    ) -> None:
        super().__init__(policy, left_out)
        self.core, self.seed = core, seed
        self._questions: dict[int, Question] = {}

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Rows whose numbers are in column ``row``, as columns: a transform of ``datasets``."""
        known = self._questions
        self._questions = {
            row: known[row] if row in known else self._ask(row)
            for row in dict.fromkeys(batch["row"])
        }
        questions = [self._questions[row] for row in batch["row"]]
        return {
            "prompt": [self._message(question.prompt) for question in questions],
            "images": [[question.image] for question in questions],
            "question": questions,
        }

    def _ask(self, row: int) -> Question:
        """The question of a row: the first of those drawn that can be asked."""
        rng = np.random.default_rng([self.seed, row])

        def load(index: int) -> Question:
            query_seed = self.core.draw_seed(rng)
            with loading():
                question = self.core.ask(index, query_seed=query_seed)
            self._require_usable(index, question.image, question.prompt)
            return question

        choices = (self.core.draw(rng) for _ in range(TRIES))
        return first_usable(choices, load, self.core.dataset, self.left_out)


class DemonstrationRows(Rows):
    """Questions with perfect answers about a data set, in the policy's frame.

    Every pass over the data has an order, tasks and wordings of its own. Images are loaded, and
    outlines traced, when a row is asked for.
    """

    def __init__(
        self,
        policy: VLMPolicy,
        dataset: Dataset,
        config: SupervisedFineTuningConfig,
        left_out: LeftOut | None = None,
    ) -> None:
        """Ask the tasks of a configuration, whose questions must be written in the frame."""
        super().__init__(policy, left_out)
        self.dataset, self.config, self.frame = dataset, config, policy.answer_frame
        self.task_weights = read_task_weights(config.tasks)
        check_places([task for task, weight in self.task_weights.items() if weight], self.frame)

    def __getitem__(self, index: int) -> Row:
        """Row ``index``, any number from 0."""
        seed = self.config.seed
        epoch, place = divmod(index, len(self.dataset))
        chosen = int(_order(len(self.dataset), seed, epoch)[place])
        others = (
            int(np.random.default_rng([seed, index, attempt]).integers(len(self.dataset)))
            for attempt in range(TRIES)
        )
        load = partial(self._write, rng=np.random.default_rng([seed, index]))
        return first_usable(chain([chosen], others), load, self.dataset, self.left_out)

    def _write(self, chosen: int, rng: np.random.Generator) -> Row:
        """A question about one sample with its answer."""
        config = self.config
        with loading():
            sample = self.dataset[chosen]
            image = sample.image
            numbers = self.frame.for_image(sample.target.size)
        weights = np.array([self.task_weights.get(task, 0.0) for task in TASKS])
        task = askable(sample, TASKS[rng.choice(len(TASKS), p=weights / weights.sum())])
        # The place that a question gives differs from pass to pass.
        seed = 0 if query_of(task) == "text" else int(rng.integers(2**31))
        reference = refer_to(sample, task, seed, frame=numbers)
        asked = word_question(sample, task, config.wording, rng, reference)
        self._require_usable(chosen, image, asked)
        reply = answer(
            sample,
            task,
            epsilon=config.epsilon,
            decimals=config.decimals,
            pad=config.pad,
            frame=self.frame,
        )
        if config.wording == "paper":  # `decode_answer` of seg_env reads all of these sentences
            reply = ANSWERS[rng.integers(len(ANSWERS))].format(answer=reply)
        return {
            "prompt": self._message(asked),
            "completion": [{"role": "assistant", "content": reply}],
            "images": [image],
        }

    def __call__(self, batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        """Rows whose numbers are in column ``row``, as columns: a transform of ``datasets``."""
        rows = [self[index] for index in batch["row"]]
        return {name: [row[name] for row in rows] for name in ("prompt", "completion", "images")}


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which one pass goes over ``length`` samples."""
    return np.random.default_rng([seed, epoch, length]).permutation(length)


def word_question(
    sample: Sample, task: Task, wording: Wording, rng: np.random.Generator, reference: str | None
) -> str:
    """The question that asks for ``task`` of a sample, in words that ``rng`` chooses.

    ``reference`` is how it speaks of the object, as in `seg_env.tasks.question`.
    """
    if wording == "plain":
        return question(sample, task, reference)
    thing, numbers = NAMES[form_of(task)]
    template = QUESTIONS[rng.integers(len(QUESTIONS))]
    reference = sample.expression if reference is None else reference
    return template.format(expression=reference, thing=thing, numbers=numbers)
