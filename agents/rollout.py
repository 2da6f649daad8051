"""Rollouts: groups of completions with what they earned, ready to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from agents.policy.families import TEXT_INPUTS, select_prompts
from agents.policy.model import VLMPolicy


@dataclass
class Prompts:
    """``B`` prompts, prepared for a policy."""

    images: Sequence[NDArray[np.uint8]]
    texts: Sequence[str]
    inputs: dict[str, Tensor]
    """What the policy's model is given."""

    @classmethod
    def prepare(
        cls, policy: VLMPolicy, images: Sequence[NDArray[np.uint8]], texts: Sequence[str]
    ) -> Prompts:
        """Let a policy prepare questions about images."""
        return cls(images, texts, policy.prepare(images, texts))

    def select(self, chosen: Tensor) -> Prompts:
        """Some of the prompts, by index, without the left padding that all of them share."""
        inputs = select_prompts(self.inputs, chosen)
        start = int(inputs["attention_mask"].any(dim=0).int().argmax())
        trimmed = {
            name: values[:, start:] if name in TEXT_INPUTS else values
            for name, values in inputs.items()
        }
        rows = chosen.tolist()
        return Prompts([self.images[i] for i in rows], [self.texts[i] for i in rows], trimmed)


@dataclass
class Rollout:
    """Completions for ``B`` prompts, ``N = B * G`` rows, those of a prompt next to each other.

    Fields that an agent does not use stay None.
    """

    asked: Prompts
    tokens: Tensor
    """``(N, T)``."""
    mask: Tensor
    """``(N, T)``, 1 on real tokens."""
    choice_mask: Tensor
    """``(N, T)``, 1 on real tokens that the policy chose; a grammar may leave one possibility."""
    sampler_log_probs: Tensor
    """``(N, T)`` as found while sampling."""
    old_log_probs: Tensor
    """``(N, T)`` under the policy that sampled, as the scorer finds them."""
    rewards: Tensor
    """``(N,)`` float32, of whole answers."""
    weights: Tensor | None = None
    """``(N,)`` importance weights for the difference between sampler and scorer."""
    token_rewards: Tensor | None = None
    """``(N, T)`` rewards placed on the tokens that earned them."""
    advantages: Tensor | None = None
    """``(N,)`` or ``(N, T)``, whatever the agent's loss takes."""
    values: Tensor | None = None
    """``(N, T)`` what a critic expected before each token."""
    returns: Tensor | None = None
    """``(N, T)`` what a critic should have expected."""
    infos: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """What is known besides, arrays of ``N``: the environment's infos, the ``text`` of each answer,
    and whether it ``ended`` before its longest length."""

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Inputs of the model for the prompts."""
        return self.asked.inputs

    @property
    def prompts(self) -> int:
        """Number of prompts, ``B``."""
        return len(self.inputs["input_ids"])

    @property
    def group_size(self) -> int:
        """Completions per prompt, ``G``."""
        return len(self.tokens) // self.prompts

    def rows(self, prompts: Tensor) -> Tensor:
        """Rows ``(b * G,)`` of the completions for some prompts ``(b,)``."""
        offsets = torch.arange(self.group_size, device=prompts.device)
        return (prompts[:, None] * self.group_size + offsets).flatten()

    def select(self, prompts: Tensor) -> Rollout:
        """The part of the rollout that belongs to some prompts, by their indices ``(b,)``."""
        rows = self.rows(prompts)
        # A lone token is scored without a pass over answers, but under ZeRO-3 ranks need equal
        # passes.
        width = max(2, int(self.mask[rows].sum(-1).max()))
        chosen = {
            name: value[rows, :width] if value.ndim > 1 else value[rows]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Rollout(asked=self.asked.select(prompts), infos=self._infos_of(rows), **chosen)

    def keep(self, rows: Tensor) -> Rollout:
        """Some completions, equally many per prompt, by their rows in order."""
        chosen = {
            name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return Rollout(asked=self.asked, infos=self._infos_of(rows), **chosen)

    def _infos_of(self, rows: Tensor) -> dict[str, NDArray[Any]]:
        places = rows.tolist()
        return {name: values[places] for name, values in self.infos.items()}


def join(first: Rollout, second: Rollout, policy: VLMPolicy) -> Rollout:
    """Join two rollouts of one group size that have the same fields.

    Prompts are prepared again, together: the processor knows how to pad texts and images.
    """
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    joined = {}
    for name, value in vars(first).items():
        if isinstance(value, Tensor):
            parts = [value, getattr(second, name)]
            if value.ndim > 1:
                parts = [pad(part, (0, width - part.shape[1])) for part in parts]
            joined[name] = torch.cat(parts)
    images = [*first.asked.images, *second.asked.images]
    texts = [*first.asked.texts, *second.asked.texts]
    infos = {
        name: np.concatenate([values, second.infos[name]]) for name, values in first.infos.items()
    }
    return Rollout(asked=Prompts.prepare(policy, images, texts), infos=infos, **joined)
