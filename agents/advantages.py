"""Advantages: how much better an answer, or a token, was than expected. Pure tensor functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EXACT_TOLERANCE = 1e-8
"""Rewards that differ by less are treated as equal."""

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes."""


def group_advantages(rewards: Tensor, group_size: int, spread_floor: float | None = 1e-4) -> Tensor:
    """Rewards ``(N,)`` minus the mean of their group, divided by its standard deviation.

    ``A = (r - mean(group)) / max(std(group), spread_floor)``. With a small floor this is GSPO's and
    GRPO's advantage (arXiv 2507.18071, eq. 3). If all answers of a group miss, their rewards differ
    only by noise, which the published form scales up to full strength; a floor as large as an
    ordinary group's standard deviation keeps it small. With None nothing is divided, as in Dr. GRPO
    (arXiv 2503.20783, section 3.2).

    Raises:
        ValueError: ``N`` is not a multiple of the group size, or the floor is not above 0.
    """
    if spread_floor is not None and spread_floor <= 0:
        raise ValueError(f"spread_floor={spread_floor}, but it must be above 0")
    groups = _groups(rewards, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    if spread_floor is None:
        return centred.flatten()
    return (centred / group_std(rewards, group_size)[:, None].clamp(min=spread_floor)).flatten()


def against_others(rewards: Tensor, group_size: int) -> Tensor:
    """Rewards ``(N, K)`` minus the mean of the group's other answers at the same position.

    A baseline that does not depend on the answer itself leaves policy gradients unbiased (RLOO,
    arXiv 2402.14740, section 2.2). Each answer has up to ``K`` parts, 0 where it has none; an
    answer without others stays as it is.

    Raises:
        ValueError: ``N`` is not a multiple of the group size.
    """
    if group_size < 1 or len(rewards) % group_size:
        raise ValueError(f"{len(rewards)} answers do not split into groups of {group_size}")
    if group_size == 1:
        return rewards
    groups = rewards.view(-1, group_size, rewards.shape[1])
    others = (groups.sum(dim=1, keepdim=True) - groups) / (group_size - 1)
    return (groups - others).view_as(rewards)


def greedy_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """Rewards ``(N,)`` minus the reward of the group's first answer, the greedy one.

    ReMax's baseline (arXiv 2310.10505, eq. 5). The first answer itself gets 0.
    """
    groups = _groups(rewards, group_size)
    return (groups - groups[:, :1]).flatten()


def best_advantages(rewards: Tensor, group_size: int) -> Tensor:
    """1 for the best answer of each group, to be imitated, and 0 for the others, ``(N,)``.

    Among equals the first is best, and a group whose rewards are all equal has no best (RAFT, arXiv
    2304.06767, section 3).
    """
    groups = _groups(rewards, group_size)
    best = torch.zeros_like(groups)
    best[torch.arange(len(groups)), groups.argmax(dim=1)] = 1.0
    best[degenerate_groups(rewards, group_size)] = 0.0
    return best.flatten()


def term_advantages(
    terms: Tensor, weights: Tensor, group_size: int, spread_floor: float | None
) -> Tensor:
    """Weighted sum ``(N,)`` of the `group_advantages` of each of ``(N, K)`` rewards.

    Normalised separately, every reward keeps its influence, however little it varies (GDPO, arXiv
    2601.05242, eq. 4). The sum is divided by the sum of the absolute weights ``(K,)``.
    """
    normalised = [group_advantages(each, group_size, spread_floor) for each in terms.unbind(1)]
    return (torch.stack(normalised, dim=1) @ weights) / weights.abs().sum()


def most_different(rewards: Tensor, group_size: int, count: int) -> Tensor:
    """Rows ``(N / G * count,)`` of the answers of each group whose rewards vary most.

    They are the group's best ``i`` and worst ``count - i`` answers (arXiv 2504.13818, theorem 1),
    in their original order.
    """
    groups = _groups(rewards, group_size)
    values, order = groups.sort(dim=1, stable=True)
    splits = [
        [*range(count - best), *range(group_size - best, group_size)] for best in range(count + 1)
    ]
    spreads = torch.stack([values[:, split].var(dim=1, correction=0) for split in splits], dim=1)
    chosen = torch.tensor(splits, device=rewards.device)[spreads.argmax(dim=1)]
    rows = order.gather(1, chosen).sort(dim=1).values
    return (rows + torch.arange(len(groups), device=rewards.device)[:, None] * group_size).flatten()


def group_std(rewards: Tensor, group_size: int) -> Tensor:
    """Standard deviation (with ``G - 1``) of the rewards of every group, ``(N / G,)``."""
    groups = _groups(rewards, group_size)
    return groups.std(dim=1) if group_size > 1 else groups.new_zeros(len(groups))


def degenerate_groups(rewards: Tensor, group_size: int) -> Tensor:
    """Which groups teach nothing because all their rewards are equal, ``(N / G,) bool``."""
    return group_std(rewards, group_size) < EXACT_TOLERANCE


def reward_metrics(rewards: Tensor, group_size: int) -> dict[str, float]:
    """Statistics of rewards ``(N,)``, and of how they differ within groups."""
    return {
        "reward": rewards.mean().item(),
        "group_std": group_std(rewards, group_size).mean().item(),
        "degenerate_groups": degenerate_groups(rewards, group_size).float().mean().item(),
    }


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the tokens of answers (arXiv 1506.02438, eq. 16).

    ``delta_t = r_t + gamma V_{t+1} - V_t``, ``A_t = delta_t + gamma lam A_{t+1}`` with ``V_t`` the
    value of the state in which token ``t`` was chosen; after an answer's last token both ``V`` and
    ``A`` are 0.

    Returns:
        Advantages and returns ``A_t + V_t``, both ``(N, T)`` as all arguments, and 0 on padding.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(values)
    later_value = later_advantage = values.new_zeros(len(values))
    for step in reversed(range(values.shape[1])):
        delta = rewards[:, step] + gamma * later_value - values[:, step]
        later_advantage = (delta + gamma * lam * later_advantage) * mask[:, step]
        advantages[:, step], later_value = later_advantage, values[:, step]
    return advantages, advantages + values


def masked_moments(
    values: Tensor, mask: Tensor, reduce: Reduce | None = None
) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of values where the mask is 1, over all processes."""

    def total(terms: Tensor) -> Tensor:
        # In float64 it does not matter how the terms are split among processes.
        part = (terms.double() * mask).sum()
        return part if reduce is None else reduce(part)

    count = total(torch.ones_like(values)).clamp(min=1)
    mean = total(values) / count
    variance = total((values.double() - mean).square()) / count
    return mean.to(values.dtype), variance.to(values.dtype)


def whiten(values: Tensor, mask: Tensor, reduce: Reduce | None = None) -> Tensor:
    """Shift and scale ``(N, T)`` to mean 0 and variance 1 over tokens that count; 0 elsewhere."""
    mean, variance = masked_moments(values, mask, reduce)
    return (values - mean) * (variance + EXACT_TOLERANCE).rsqrt() * mask


def explained_variance(
    values: Tensor, returns: Tensor, mask: Tensor, reduce: Reduce | None = None
) -> float:
    """Share of the variance of returns that a critic predicts: ``1 - Var(R - V) / Var(R)``.

    0 for a constant critic, or where all returns are equal; below 0 a critic is worse than none.
    """
    _, variance = masked_moments(returns, mask, reduce)
    _, missed = masked_moments(returns - values, mask, reduce)
    return (1 - missed / variance).item() if variance > EXACT_TOLERANCE else 0.0


def _groups(rewards: Tensor, group_size: int) -> Tensor:
    """``(N,)`` to ``(B, G)``."""
    if group_size < 1 or rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            f"rewards of shape {tuple(rewards.shape)} do not split into groups of {group_size}"
        )
    return rewards.view(-1, group_size)
