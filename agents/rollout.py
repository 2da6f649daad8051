"""Rollouts: groups of completions with what they earned, ready to learn from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.policy.families import IMAGE_ROWS, TEXT_INPUTS, select_prompts

PADDED_TILES = {"pixel_values": 5, "pixel_attention_mask": 4}
"""Inputs of images that are cut into tiles, ``(B, tiles, …)``, with their number of axes."""


@dataclass
class Rollout:
    """Completions for ``B`` prompts, ``N = B * G`` rows, those of a prompt next to each other.

    An agent leaves what it does not use None.
    """

    inputs: dict[str, Tensor]
    """Prepared prompts."""
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
        """Completions per prompt, ``G``."""
        return len(self.tokens) // self.prompts

    def rows(self, prompts: Tensor) -> Tensor:
        """Rows ``(b * G,)`` of the completions for some prompts ``(b,)``."""
        offsets = torch.arange(self.group_size, device=prompts.device)
        return (prompts[:, None] * self.group_size + offsets).flatten()

    def select(self, prompts: Tensor) -> Rollout:
        """The part of the rollout that belongs to some prompts, by their indices ``(b,)``."""
        rows = self.rows(prompts)
        # One token is scored without a pass over answers; under ZeRO-3 all ranks must make as many.
        width = max(2, int(self.mask[rows].sum(-1).max()))
        chosen = {
            name: value[rows, :width] if value.ndim > 1 else value[rows]
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return Rollout(inputs=trim(select_prompts(self.inputs, prompts)), **chosen)


def trim(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Prepared prompts without the padding on the left that all of them share."""
    start = int(inputs["attention_mask"].any(dim=0).int().argmax())
    return {
        name: values[:, start:] if name in TEXT_INPUTS else values
        for name, values in inputs.items()
    }


def join(first: Rollout, second: Rollout, pad_id: int) -> Rollout:
    """Join two rollouts of one group size that have the same fields."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    joined = {}
    for name, value in vars(first).items():
        if isinstance(value, Tensor):
            parts = [value, getattr(second, name)]
            if value.ndim > 1:
                parts = [pad(part, (0, width - part.shape[1])) for part in parts]
            joined[name] = torch.cat(parts)
    return Rollout(inputs=join_prompts(first.inputs, second.inputs, pad_id), **joined)


def join_prompts(
    first: dict[str, Tensor], second: dict[str, Tensor], pad_id: int
) -> dict[str, Tensor]:
    """Join prepared prompts of two batches, padded on the left.

    Raises:
        ValueError: The images of the two have shapes that do not fit together.
    """
    if IMAGE_ROWS in first or IMAGE_ROWS in second:
        first, second = _numbered(first), _numbered(second)
    width = max(len(inputs["input_ids"][0]) for inputs in (first, second))
    joined = {}
    for name in first:
        parts = [first[name], second[name]]
        if name in TEXT_INPUTS:
            filler = pad_id if name == "input_ids" else 0
            parts = [pad(part, (width - part.shape[1], 0), value=filler) for part in parts]
        elif _are_tiles(name, parts):
            tiles = max(part.shape[1] for part in parts)
            parts = [
                pad(part, (0, 0) * (part.ndim - 2) + (0, tiles - part.shape[1])) for part in parts
            ]
        elif parts[0].shape[1:] != parts[1].shape[1:]:
            raise ValueError(
                f"{name} of two batches has shapes {tuple(parts[0].shape)} and "
                f"{tuple(parts[1].shape)}: rollouts are joined from images of one shape, "
                f"give the environment an image_size"
            )
        joined[name] = torch.cat(parts)
    return joined


def _numbered(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Prepared prompts with numbers of image rows; where none were noted there is one a prompt."""
    ids = inputs["input_ids"]
    return {IMAGE_ROWS: torch.ones(len(ids), dtype=torch.long, device=ids.device)} | inputs


def _are_tiles(name: str, parts: list[Tensor]) -> bool:
    """Whether inputs differ in the tiles per image alone, which are filled up with zeros."""
    return (
        name in PADDED_TILES
        and all(part.ndim == PADDED_TILES[name] for part in parts)
        and parts[0].shape[2:] == parts[1].shape[2:]
    )
