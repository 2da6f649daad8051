"""Advantages: how much better an answer was than expected. Pure tensor functions."""

from __future__ import annotations

from torch import Tensor

EXACT_TOLERANCE = 1e-8
"""Rewards of a group that differ by less are called equal."""


def group_advantages(rewards: Tensor, group_size: int, spread_floor: float = 1e-4) -> Tensor:
    """Rewards relative to the other answers of their group.

    ``A = (r - mean(group)) / max(std(group), spread_floor)``. With a small floor this is GSPO's and
    GRPO's advantage (arXiv 2507.18071, eq. 3). A group in which every answer misses differs only by
    noise, which the published form blows up to full strength; a floor of the size of an ordinary
    group's spread leaves it small.

    Args:
        rewards: ``(N,)`` float, the ``group_size`` answers of a prompt next to each other.
        group_size: Answers per prompt, ``G``.
        spread_floor: Least standard deviation to divide by; above 0.

    Returns:
        ``(N,)``, of mean 0 in every group.

    Raises:
        ValueError: ``N`` is not a multiple of ``G``, or the floor is not positive.
    """
    if spread_floor <= 0:
        raise ValueError(f"spread_floor={spread_floor}, but it must be above 0")
    groups = _groups(rewards, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / group_spread(rewards, group_size)[:, None].clamp(min=spread_floor)).flatten()


def group_spread(rewards: Tensor, group_size: int) -> Tensor:
    """Standard deviation (with ``G - 1``) of the rewards of every group, ``(N / G,)``."""
    groups = _groups(rewards, group_size)
    return groups.std(dim=1) if group_size > 1 else groups.new_zeros(len(groups))


def degenerate_fraction(rewards: Tensor, group_size: int) -> float:
    """Share of groups whose rewards are all equal: they teach nothing."""
    return (group_spread(rewards, group_size) < EXACT_TOLERANCE).float().mean().item()


def _groups(rewards: Tensor, group_size: int) -> Tensor:
    """``(N,)`` to ``(B, G)``."""
    if group_size < 1 or rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            f"rewards of shape {tuple(rewards.shape)} do not split into groups of {group_size}"
        )
    return rewards.view(-1, group_size)
