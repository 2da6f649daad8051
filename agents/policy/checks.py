"""What is tried on a policy before it is trained: do images reach it, can answers share a prompt.

`compare_images` scores true answers with their image, with another one, and with none.
`try_sharing` samples and scores a few tokens both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from agents.policy.model import VLMPolicy
from agents.policy.sampling import AnswerWriter, evaluation_mode, write_shared
from agents.policy.scoring import score, score_plain, score_shared
from seg_env.errors import ExplainedError

GRAY = 127
"""Brightness of a blank image: the middle of the range, which most processors map to about 0."""
_LONGEST = 128
"""Tokens of an answer that are scored: where an object is shows in the first ones."""
_FLOOR = 1e-6
"""Nats below which two log-probabilities are equal; rounding of the model at hand comes on top."""
TOLERANCES = {"exact": 1e-3, "rounded": 0.5}
"""How much log-probabilities may differ between two correct ways to compute them."""


class BlindPolicyError(ExplainedError, RuntimeError):
    """Images do not reach a model: its answers cannot depend on what is shown."""


@dataclass(frozen=True)
class VisionReport:
    """How likely true answers are, in nats a token, and how much that hangs on the image."""

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
    """Largest change when the same is computed again."""

    @property
    def sees(self) -> bool:
        """Whether log-probabilities change with the image by more than by rounding."""
        limit = _FLOOR + 10 * self.rounding
        return min(self.change_other, self.change_blank) > limit

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
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
        """Numbers, and what they mean."""
        return {**asdict(self), "sees": self.sees}


@torch.no_grad()
def compare_images(
    policy: VLMPolicy,
    images: Sequence[NDArray[np.uint8]],
    prompts: Sequence[str],
    answers: Sequence[str],
) -> VisionReport:
    """Score true answers with their image, with another one and with a blank one.

    Images that are exchanged are resized to each other's size, so that prompts have the same
    tokens in the same places and nothing but what is seen can make a difference.

    Args:
        policy: Whose model is looked at.
        images: ``N`` images, at least two that differ.
        prompts: ``N`` questions about them.
        answers: ``N`` true answers as the policy would write them.

    Raises:
        ValueError: There are not two different images.
    """
    different = _exchange(images)
    blank = [np.full_like(image, GRAY) for image in images]
    tokens, mask = _tokens(policy, answers)
    own = _log_probs(policy, images, prompts, tokens, mask)
    again = _log_probs(policy, images, prompts, tokens, mask)
    other = _log_probs(policy, different, prompts, tokens, mask)
    without = _log_probs(policy, blank, prompts, tokens, mask)
    count = mask.sum()
    return VisionReport(
        len(images),
        *(float(values.sum() / count) for values in (own, other, without)),
        *(float((values - own).abs().max()) for values in (other, without, again)),
    )


def _exchange(images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """For each image another one, in its size."""
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
    """The first tokens ``(N, T)`` of answers, padded on the right, and their mask."""
    encoded = policy.tokenizer(list(answers), add_special_tokens=False).input_ids
    whole = ([*row, policy.end_ids[0]][:_LONGEST] for row in encoded)
    rows = [torch.tensor(row, device=policy.device) for row in whole]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return pad_sequence(rows, batch_first=True, padding_value=policy.pad_id), mask


def _log_probs(
    policy: VLMPolicy,
    images: Sequence[NDArray[np.uint8]],
    prompts: Sequence[str],
    tokens: Tensor,
    mask: Tensor,
) -> Tensor:
    """Log-probabilities ``(N, T)`` as training finds them, one prompt at a time."""
    constraint, policy.constraint = policy.constraint, None
    try:
        with evaluation_mode(policy.model):
            found = [
                score(
                    policy,
                    policy.prepare([image], [prompt]),
                    tokens[row : row + 1],
                    mask[row : row + 1],
                ).log_probs
                for row, (image, prompt) in enumerate(zip(images, prompts, strict=True))
            ]
    finally:
        policy.constraint = constraint
    return torch.cat(found)


def try_sharing(policy: VLMPolicy, inputs: dict[str, Tensor]) -> None:
    """Find out, once per policy, whether answers of a family that is in no table share prompts.

    Three tokens are sampled and scored both ways; `VLMPolicy.sharing_trial` keeps what was found.

    Args:
        policy: The policy; nothing is tried where `VLMPolicy.needs_trial` says so.
        inputs: Prepared prompts.
    """
    if policy.needs_trial and policy.obstacle_to_sharing(inputs, 3) is None:
        policy.sharing_trial = _try(policy, inputs) or ""


@torch.no_grad()
def _try(policy: VLMPolicy, inputs: dict[str, Tensor]) -> str | None:
    """What goes wrong when prompts are shared by two answers."""
    with evaluation_mode(policy.model):
        try:
            rows = 2 * len(inputs["input_ids"])
            noise = torch.rand(rows, 3, generator=torch.Generator().manual_seed(0))
            writer = AnswerWriter(policy, rows, 3, 1.0, noise.to(policy.device))
            write_shared(policy, inputs, 2, writer)
            drawn = writer.completions()
            shared = score_shared(policy, inputs, drawn.tokens, drawn.mask)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a model nobody has tried may fail in any way
            return f"sharing raises {type(error).__name__}: {error}"
        plain = score_plain(policy, inputs, drawn.tokens, drawn.mask)
    exact = policy.precision == "float32" and policy.model.dtype == torch.float32
    found = torch.stack([drawn.log_probs, shared.log_probs]) - plain.log_probs
    gap = found.abs().max().item()
    if not gap <= TOLERANCES["exact" if exact else "rounded"]:
        return f"log-probabilities come out {gap:.2g} apart"
    return None
