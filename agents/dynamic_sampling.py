"""Groups that teach nothing make room for others (DAPO's dynamic sampling, arXiv 2503.14476)."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor
from torch.nn.functional import pad

from agents.advantages import degenerate_groups
from agents.families import TEXT_INPUTS
from agents.rollout import Rollout


def replace_degenerate(rollout: Rollout, spare: Rollout, pad_id: int) -> Rollout:
    """Put groups of a spare rollout in place of those whose rewards are all equal.

    Args:
        rollout: ``B`` prompts; the groups that teach something come first in the result.
        spare: Of the same group size.
        pad_id: Token that prompts are padded with.

    Returns:
        ``B`` prompts again; groups that teach nothing are left if there are not enough others.
    """
    dull = degenerate_groups(rollout.rewards, rollout.group_size)
    useful = (~degenerate_groups(spare.rewards, spare.group_size)).nonzero().squeeze(-1)
    used = useful[: int(dull.sum())]
    if not len(used):
        return rollout
    order = dull.long().argsort(stable=True)  # those that teach nothing last
    kept = order[: len(order) - len(used)]
    return join(rollout.select(kept), spare.select(used), pad_id)


def join(first: Rollout, second: Rollout, pad_id: int) -> Rollout:
    """Two rollouts of one group size and with the same fields as one."""
    width = max(first.tokens.shape[1], second.tokens.shape[1])
    joined: dict[str, Tensor | None] = {}
    for field in fields(Rollout):
        parts = [getattr(rollout, field.name) for rollout in (first, second)]
        if isinstance(parts[0], Tensor):
            if parts[0].ndim > 1:
                parts = [pad(part, (0, width - part.shape[1])) for part in parts]
            joined[field.name] = torch.cat(parts)
    inputs = join_prompts(first.inputs, second.inputs, pad_id)
    return Rollout(inputs=inputs, **joined)  # type: ignore[arg-type]


def join_prompts(
    first: dict[str, Tensor], second: dict[str, Tensor], pad_id: int
) -> dict[str, Tensor]:
    """Prepared prompts of two batches as one, padded on the left.

    Raises:
        ValueError: The pictures of the two have been prepared in shapes that do not fit together.
    """
    width = max(len(inputs["input_ids"][0]) for inputs in (first, second))
    joined = {}
    for name in first:
        parts = [first[name], second[name]]
        if name in TEXT_INPUTS:
            filler = pad_id if name == "input_ids" else 0
            parts = [pad(part, (width - part.shape[1], 0), value=filler) for part in parts]
        elif parts[0].shape[1:] != parts[1].shape[1:]:
            raise ValueError(
                f"{name} of two batches has shapes {tuple(parts[0].shape)} and "
                f"{tuple(parts[1].shape)}: dynamic sampling needs pictures of one shape, give the "
                f"environment an image_size"
            )
        joined[name] = torch.cat(parts)
    return joined
