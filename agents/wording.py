"""The wordings in which SimpleSeg's fine-tuning data asks and answers.

Questions and answer sentences are those of the paper's released data script (arXiv 2601.19228). It
words outlines only; boxes and points are asked for in the same sentences.
"""

from __future__ import annotations

import numpy as np

from agents.settings import WORDINGS as WORDINGS
from agents.settings import Wording as Wording
from seg_env.tasks import Task, form_of, question
from seg_env.types import Form, Sample

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


def word_question(
    sample: Sample,
    task: Task,
    wording: Wording,
    rng: np.random.Generator,
    reference: str | None = None,
) -> str:
    """The question that asks for ``task`` of a sample.

    Args:
        sample: What is asked about.
        task: What is asked for.
        wording: In which words.
        rng: Chooses among them.
        reference: How the question speaks of the object, as for `seg_env.tasks.question`.
    """
    if wording == "plain":
        return question(sample, task, reference)
    thing, numbers = NAMES[form_of(task)]
    template = QUESTIONS[rng.integers(len(QUESTIONS))]
    reference = sample.expression if reference is None else reference
    return template.format(expression=reference, thing=thing, numbers=numbers)


def word_answer(answer: str, wording: Wording, rng: np.random.Generator) -> str:
    """The sentence that gives an answer; `decode_answer` of `seg_env` reads them all."""
    if wording == "plain":
        return answer
    return ANSWERS[rng.integers(len(ANSWERS))].format(answer=answer)
