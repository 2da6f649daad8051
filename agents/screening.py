"""Batches without the images that a policy's processor refuses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy.model import VLMPolicy
from seg_env.envs.core import Question
from seg_env.envs.left_out import LeftOut, UnusableSampleError, loading
from seg_env.errors import ExplainedError

NOT_THE_IMAGE = (MemoryError, torch.OutOfMemoryError, ExplainedError)
"""Errors in preparing a batch that are not an image's fault."""


def require_usable(policy: VLMPolicy, image: NDArray[np.uint8], prompt: str) -> None:
    """Raise `UnusableSampleError` if a processor refuses an image; pass on `NOT_THE_IMAGE`."""
    with loading(*NOT_THE_IMAGE):  # processors may raise anything
        policy.prepare_on_cpu([image], [prompt])


def prepare_usable(
    policy: VLMPolicy, questions: Sequence[Question], left_out: LeftOut
) -> tuple[list[Question], dict[str, Tensor]]:
    """Leave out questions about images that the processor refuses, and prepare the others.

    Returns:
        The questions that are left, and the model's inputs, empty if none is.

    Raises:
        UnusableSampleError: One is refused, and samples are not to be left out.
    """
    usable = list(questions)
    try:
        return usable, _prepare(policy, usable)
    except NOT_THE_IMAGE:
        raise
    except Exception:
        usable = []
        for question in questions:
            try:
                require_usable(policy, question.image, question.prompt)
            except UnusableSampleError as error:
                left_out.add(question.sample.id, error)
            else:
                usable.append(question)
        if len(usable) == len(questions):
            raise
    return usable, _prepare(policy, usable)


def _prepare(policy: VLMPolicy, questions: Sequence[Question]) -> dict[str, Tensor]:
    if not questions:
        return {}
    return policy.prepare([each.image for each in questions], [each.prompt for each in questions])
