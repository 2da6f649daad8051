"""Batches without the images that a policy's processor refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.policy.model import VLMPolicy
from seg_env.envs.core import Question
from seg_env.envs.left_out import LeftOut, UnusableSampleError, describe
from seg_env.errors import ExplainedError

Prepare = Callable[[Sequence[NDArray[np.uint8]], Sequence[str]], dict[str, Tensor]]
"""Makes a model's inputs of images and prompts, as `VLMPolicy.prepare` does."""


def find_refusal(prepare: Prepare, image: NDArray[np.uint8], prompt: str) -> Exception | None:
    """Why a processor refuses an image with a prompt, None if it does not.

    Raises:
        MemoryError: Memory does not suffice, which is no property of the image.
        ExplainedError: The processor itself is at fault.
    """
    try:
        prepare([image], [prompt])
    except (MemoryError, torch.OutOfMemoryError, ExplainedError):
        raise
    except Exception as error:  # processors refuse in any way
        return error
    return None


def require_usable(prepare: Prepare, image: NDArray[np.uint8], prompt: str) -> None:
    """Make sure that a processor takes an image.

    Raises:
        UnusableSampleError: It refuses it.
    """
    if (error := find_refusal(prepare, image, prompt)) is not None:
        raise UnusableSampleError(describe(error)) from error


def prepare_usable(
    policy: VLMPolicy, questions: Sequence[Question], left_out: LeftOut
) -> tuple[list[Question], dict[str, Tensor]]:
    """Prepare a batch; questions about images that the processor refuses are left out.

    Returns:
        The questions that are left, and the model's inputs, empty if none is.

    Raises:
        UnusableSampleError: One is refused, and samples are not to be left out.
        Exception: The batch cannot be prepared, though each of its images alone can be.
    """
    left = list(questions)
    while left:
        try:
            return left, policy.prepare([q.image for q in left], [q.prompt for q in left])
        except (MemoryError, torch.OutOfMemoryError, ExplainedError):
            raise
        except Exception:
            refused = [find_refusal(policy.prepare, each.image, each.prompt) for each in left]
            if not any(refused):
                raise
        for question, error in zip(left, refused, strict=True):
            if error is not None:
                left_out.add(question.sample.id, error)
        left = [question for question, error in zip(left, refused, strict=True) if error is None]
    return [], {}
