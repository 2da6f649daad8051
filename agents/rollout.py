"""Rollouts: groups of answers with what they earned, ready to learn from."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from agents.families import select_prompts


@dataclass
class Rollout:
    """Answers to ``B`` prompts, ``N = B * G`` rows, the answers to one prompt next to each other.

    Fields that are None are those that an agent does not use.
    """

    inputs: dict[str, Tensor]
    """Prepared prompts, ``B`` of them."""
    tokens: Tensor
    """``(N, T)`` completions."""
    mask: Tensor
    """``(N, T)``, 1 on real tokens."""
    free: Tensor
    """``(N, T)``, 1 on real tokens that the policy chose; a grammar may leave one possibility."""
    sampler_log_probs: Tensor
    """``(N, T)`` as found while sampling."""
    old_log_probs: Tensor
    """``(N, T)`` under the policy that sampled, as the scorer finds them."""
    rewards: Tensor
    """``(N,)`` float32, of whole answers."""
    weights: Tensor | None = None
    """``(N,)`` importance weights for what sampler and scorer disagree in."""
    token_rewards: Tensor | None = None
    """``(N, T)`` rewards placed on the tokens that earned them."""
    advantages: Tensor | None = None
    """``(N,)`` or ``(N, T)``, whatever the agent's loss takes."""
    values: Tensor | None = None
    """``(N, T)`` what a critic expected before each token."""
    returns: Tensor | None = None
    """``(N, T)`` what a critic should have expected."""

    @property
    def prompts(self) -> int:
        """Number of prompts, ``B``."""
        return len(self.inputs["input_ids"])

    @property
    def group_size(self) -> int:
        """Answers per prompt, ``G``."""
        return len(self.tokens) // self.prompts

    def rows(self, prompts: Tensor) -> Tensor:
        """Rows of the answers to some prompts ``(b,)``, ``(b * G,)``."""
        offsets = torch.arange(self.group_size, device=prompts.device)
        return (prompts[:, None] * self.group_size + offsets).flatten()

    def select(self, prompts: Tensor) -> Rollout:
        """The part of the rollout that belongs to some prompts, by their indices ``(b,)``."""
        rows = self.rows(prompts)
        # One token is scored without a pass over answers; under ZeRO-3 all ranks must make as many.
        width = max(2, int(self.mask[rows].sum(-1).max()))
        chosen: dict[str, Tensor | None] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                chosen[field.name] = value[rows, :width] if value.ndim > 1 else value[rows]
        return Rollout(inputs=select_prompts(self.inputs, prompts), **chosen)  # type: ignore[arg-type]
