"""How long a policy's answers may be: as the command line says, or measured on the ground truth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

import numpy as np
from rich.console import Console

from seg_env.envs.core import ReferringCore
from seg_env.envs.left_out import LeftOut, UnusableSampleError, loading
from seg_env.errors import WrongOptionError
from seg_env.tasks import Task, answer

if TYPE_CHECKING:
    from agents.policy.model import VLMPolicy

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
    high = max(float(np.quantile(some, QUANTILE)) for some in lengths.values())
    count = min(map(len, lengths.values()))
    found = math.ceil(high * ROOM)
    console.print(
        f"longest answer: {found} tokens ({QUANTILE:.0%} of {count} true answers of "
        f"{core.dataset.name} ({core.dataset.split}) have at most {high:.0f}, plus a fifth)",
        highlight=False,
        soft_wrap=True,
    )
    return found


def spread_evenly(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` places, the first and the last among them."""
    found: list[int] = np.unique(np.linspace(0, total - 1, min(count, total)).astype(int)).tolist()
    return found


def true_lengths(
    policy: VLMPolicy, core: ReferringCore, count: int = SAMPLES
) -> dict[Task, list[int]]:
    """Tokens of true answers by task, in the policy's frame, the end token included.

    Args:
        policy: Whose tokens are counted.
        core: Whose questions are answered.
        count: Samples, spread evenly over the data set.

    Raises:
        UnusableSampleError: No sample can be read.
    """
    places = spread_evenly(len(core.dataset), count)
    lengths: dict[Task, list[int]] = {task: [] for task in core.tasks.tasks}
    left_out = LeftOut()
    for index in places:
        try:
            with loading():
                sample = core.dataset[index]
                texts = {task: answer(sample, task, frame=core.answer_frame) for task in lengths}
        except UnusableSampleError as error:  # counted where it is asked about
            left_out.add(str(index), error)
            continue
        for task, text in texts.items():
            tokens = policy.tokenizer(text, add_special_tokens=False).input_ids
            lengths[task].append(len(tokens) + 1)
    if len(left_out) == len(places):
        raise UnusableSampleError(f"no true answer can be written: {left_out.summary()}")
    return lengths
