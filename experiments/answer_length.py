"""How long a policy's answers may be: as the command line says, or measured on the ground truth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console

from seg_env.envs.core import ReferringCore
from seg_env.errors import WrongOptionError
from seg_env.tasks import answer

if TYPE_CHECKING:
    from agents.policy import VLMPolicy

AnswerLength = int | Literal["auto"]
"""Tokens of the longest answer, or ``"auto"``."""

SAMPLES = 256
"""Answers that are measured."""
QUANTILE, ROOM = 0.99, 1.2
"""Share of the true answers that must fit, and how much longer than those an answer may be."""


def longest_answer(
    choice: AnswerLength, policy: VLMPolicy, core: ReferringCore, console: Console
) -> int:
    """Tokens of the longest answer, the end token included; says aloud what was measured.

    Args:
        choice: A number of tokens, or ``"auto"`` to measure it.
        policy: Whose tokens are counted.
        core: Whose questions are answered.
        console: Where the number is told.

    Raises:
        ValueError: No answer can be written with the number given, or no target can be read.
    """
    if choice != "auto":
        if choice < 1:
            raise WrongOptionError(f"--max-new-tokens {choice}: use at least 1, or auto")
        return choice
    lengths = true_lengths(policy, core)
    high = float(np.quantile(lengths, QUANTILE))
    found = math.ceil(high * ROOM)
    console.print(
        f"longest answer: {found} tokens ({QUANTILE:.0%} of {len(lengths)} true answers of "
        f"{core.dataset.name} ({core.dataset.split}) have at most {high:.0f}, plus a fifth)",
        highlight=False,
        soft_wrap=True,
    )
    return found


def true_lengths(policy: VLMPolicy, core: ReferringCore, count: int = SAMPLES) -> list[int]:
    """Tokens of true answers to some questions, in the policy's frame, the end token included.

    Args:
        policy: Whose tokens are counted.
        core: Whose questions are answered; an answer of each form that is asked for is counted.
        count: Samples, spread evenly over the data set.

    Raises:
        ValueError: No sample can be read.
    """
    total = len(core.dataset)
    places = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()
    lengths = []
    fault: Exception | None = None
    for index in places:
        try:
            sample = core.dataset[index]
            texts = [answer(sample, task, frame=core.answer_frame) for task in core.tasks.tasks]
        except (OSError, ValueError) as error:  # counted where it is asked about
            fault = error
            continue
        tokens = policy.tokenizer(texts, add_special_tokens=False).input_ids
        lengths += [len(each) + 1 for each in tokens]
    if not lengths:
        raise ValueError(f"no true answer of {core.dataset.name} can be written: {fault}")
    return lengths
