"""The wordings in which SimpleSeg's fine-tuning data asks and answers.

Questions and answer sentences are those of the paper's released data script (arXiv 2601.19228). It
words outlines only; boxes and points are asked for in the same sentences.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from seg_env.tasks import Task, question
from seg_env.types import Sample

Wording = Literal["plain", "paper"]
"""``"plain"``: the one question that environments ask, and the bare answer; ``"paper"``: a random
one of the paper's questions, and one of its answer sentences."""
WORDINGS: tuple[Wording, ...] = get_args(Wording)

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

NAMES: dict[Task, tuple[str, str]] = {
    "text->mask": ("polygon", "polygon coordinates"),
    "text->bbox": ("bounding box", "bounding box"),
    "text->point": ("center point", "center point"),
}
"""What is asked for, as a ``thing`` and as ``numbers``."""


def word_question(sample: Sample, task: Task, wording: Wording, rng: np.random.Generator) -> str:
    """The question that asks for ``task`` of a sample."""
    if wording == "plain":
        return question(sample, task)
    thing, numbers = NAMES[task]
    template = QUESTIONS[rng.integers(len(QUESTIONS))]
    return template.format(expression=sample.expression, thing=thing, numbers=numbers)


def word_answer(answer: str, wording: Wording, rng: np.random.Generator) -> str:
    """The sentence that gives an answer; `seg_env.grammar.decode` reads all of them."""
    if wording == "plain":
        return answer
    return ANSWERS[rng.integers(len(ANSWERS))].format(answer=answer)
