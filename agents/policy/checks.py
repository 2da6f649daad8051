"""Checks on a policy before training: do images reach it, and can answers share a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agents.policy.families import obstacle_to_sharing
from agents.policy.model import VLMPolicy
from agents.policy.sampling import evaluation_mode, sample
from agents.policy.scoring import score
from seg_env.errors import ExplainedError


class BlindPolicyError(ExplainedError, RuntimeError):
    """Images do not reach a model: its answers cannot depend on what is shown."""


@dataclass(frozen=True)
class VisionReport:
    """How likely true answers are, in nats per token, and how much that depends on the image."""

    questions: int
    """Answers that were scored."""
    own: float
    """Mean log-probability of a token of the true answer, with the image that it is about."""
    other: float
    """The same with the image of another question, in the same size."""
    blank: float
    """The same with a blank image of the same size."""
    change_other: float
    """Largest change of a token's log-probability with the other image."""
    change_blank: float
    """Largest change of a token's log-probability with a blank image."""
    rounding: float
    """Largest change when the computation is repeated."""

    @property
    def sees(self) -> bool:
        """Whether log-probabilities change with the image by more than by rounding."""
        limit = 1e-6 + 10 * self.rounding
        return min(self.change_other, self.change_blank) > limit

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        found = (
            f"log-probability of a token of {self.questions} true answers: {self.own:.4f} with "
            f"their image, {self.other:.4f} with another one, {self.blank:.4f} with a blank one"
        )
        if self.sees:
            return f"The policy sees ({found})."
        return (
            f"Images do not reach the model ({found}; no token changes by more than "
            f"{max(self.change_other, self.change_blank):.1g}): its processor, projector or "
            f"checkpoint is at fault, and it would learn to answer blindly."
        )

    def to_json(self) -> dict[str, Any]:
        """All figures, with the verdict."""
        return {**asdict(self), "sees": self.sees}


@torch.no_grad()
def compare_images(
    policy: VLMPolicy,
    images: Sequence[NDArray[np.uint8]],
    prompts: Sequence[str],
    answers: Sequence[str],
) -> VisionReport:
    """Score true answers with their image, with another one and with a blank one.

    Swapped images are resized to each other's size, so that prompts keep the same tokens in the
    same places and only the content of the image can make a difference.

    Raises:
        ValueError: There are not two different images.
    """
    other_images = _exchange(images)
    gray = [np.full_like(image, 127) for image in images]  # most processors map it to about 0
    tokens, mask = _tokens(policy, answers)
    unconstrained = copy(policy)
    unconstrained.constraint = None

    def log_probs(shown: Sequence[NDArray[np.uint8]]) -> Tensor:
        rows = []
        for row, (image, prompt) in enumerate(zip(shown, prompts, strict=True)):
            inputs, part = policy.prepare([image], [prompt]), slice(row, row + 1)
            rows.append(score(unconstrained, inputs, tokens[part], mask[part]).log_probs)
        return torch.cat(rows)

    with evaluation_mode(policy.model):
        own, again = log_probs(images), log_probs(images)
        other, blank = log_probs(other_images), log_probs(gray)
    count = mask.sum()
    return VisionReport(
        len(images),
        *(float(values.sum() / count) for values in (own, other, blank)),
        *(float((values - own).abs().max()) for values in (other, blank, again)),
    )


def _exchange(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Another image for each one, in its size."""
    found = []
    for place, image in enumerate(images):
        size = (image.shape[1], image.shape[0])
        candidates = [*images[place + 1 :], *images[:place]]
        resized = (np.asarray(Image.fromarray(each).resize(size)) for each in candidates)
        other = next((each for each in resized if not np.array_equal(each, image)), None)
        if other is None:
            raise ValueError("whether a policy sees is asked with at least two different images")
        found.append(other)
    return found


def _tokens(policy: VLMPolicy, answers: Sequence[str]) -> tuple[Tensor, Tensor]:
    """The first tokens ``(N, T)`` of answers, padded on the right, and their mask.

    The first ones already show where an object is.
    """
    encoded = policy.tokenizer(list(answers), add_special_tokens=False).input_ids
    whole = ([*row, policy.end_ids[0]][:128] for row in encoded)
    rows = [torch.tensor(row, device=policy.device) for row in whole]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=policy.pad_id), mask


def try_sharing(policy: VLMPolicy, inputs: dict[str, Tensor]) -> None:
    """Find out, once per policy, whether answers of an untested family can share prompts.

    Three tokens are sampled and scored both ways; `VLMPolicy.sharing_trial` keeps the result.
    """
    length = inputs["input_ids"].shape[1] + 3
    if policy.needs_trial and obstacle_to_sharing(policy.model, length) is None:
        policy.sharing_trial = _try(policy, inputs)


@torch.no_grad()
def _try(policy: VLMPolicy, inputs: dict[str, Tensor]) -> str:
    """What goes wrong when two answers share their prompt, "" if nothing does."""
    sharing = copy(policy)
    sharing.sharing_trial = ""
    noise = torch.rand(2 * len(inputs["input_ids"]), 3, generator=torch.Generator().manual_seed(0))
    noise = noise.to(policy.device)
    with evaluation_mode(policy.model):
        try:
            drawn = sample(sharing, inputs, group_size=2, max_new_tokens=3, noise=noise)
            shared = score(sharing, inputs, drawn.tokens, drawn.mask)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model nobody has tried may fail in any way
            return f"sharing raises {type(error).__name__}: {error}"
        plain = score(policy, inputs, drawn.tokens, drawn.mask, shared=False)
    exact = policy.precision == "float32" and policy.model.dtype == torch.float32
    found = torch.stack([drawn.log_probs, shared.log_probs]) - plain.log_probs
    gap = found.abs().max().item()
    if not gap <= (1e-3 if exact else 0.5):  # NaN is wrong, too
        return f"log-probabilities come out {gap:.2g} apart"
    return ""
