"""Losses with one importance ratio per token: GRPO and its relatives, PPO, and that of a critic.

They differ in how tokens are averaged. Pure functions, ``(loss, metrics)``; shapes as in
`agents.losses`: ``N`` completions of at most ``T`` tokens, masks 1 on the tokens that count.
"""

from __future__ import annotations

import torch
from torch import Tensor

from agents.losses import Metrics, clipped_objective, masked_mean, per_token


def grpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Group relative policy optimisation (DeepSeekMath, arXiv 2402.03300, eq. 3).

    ``J = mean_i w_i 1/|y_i| sum_t min(r_it A_it, clip(r_it) A_it)``: the mean over the tokens of a
    completion, then over completions.

    Args:
        log_probs: ``(N, T)`` under the policy being trained, with gradient.
        old_log_probs: ``(N, T)`` under the policy that sampled.
        advantages: ``(N, T)``, or ``(N,)`` for the same at every token.
        mask: ``(N, T)``.
        clip_low: How far a ratio may fall below 1 and still be reinforced downwards.
        clip_high: How far it may rise above 1.
        weights: ``(N,)`` importance weights ``w``; 1 if None.

    Returns:
        Scalar loss, and ``policy_loss``, ``clip_fraction`` (share of tokens whose gradient the clip
        removes), ``approx_kl`` (``mean(r - 1 - log r)`` over tokens), ``ratio_max``.
    """
    objective, metrics = _objective(log_probs, old_log_probs, advantages, mask, clip_low, clip_high)
    completions = masked_mean(objective, mask)
    loss = -(completions if weights is None else weights * completions).mean()
    return loss, {"policy_loss": loss.item(), **metrics}


def token_mean_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    weights: Tensor | None = None,
    tokens_per_answer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """The clipped objective of all tokens over one divisor: PPO, DAPO and Dr. GRPO.

    ``J = 1 / (N L) sum_i w_i sum_t min(r_it A_it, clip(r_it) A_it)``, in which every token weighs
    the same, whatever the length of its completion. ``L`` says whose loss it is: the mean length of
    the completions gives the mean over tokens of PPO (arXiv 1707.06347, eq. 7) and DAPO
    (arXiv 2503.14476, eq. 8); a constant such as the longest length allowed gives Dr. GRPO
    (arXiv 2503.20783, section 3.2).

    Args:
        log_probs: ``(N, T)`` under the policy being trained, with gradient.
        old_log_probs: ``(N, T)`` under the policy that sampled.
        advantages: ``(N, T)``, or ``(N,)`` for the same at every token.
        mask: ``(N, T)``.
        clip_low: How far a ratio may fall below 1 and still be reinforced downwards.
        clip_high: How far it may rise above 1.
        weights: ``(N,)`` importance weights ``w``; 1 if None.
        tokens_per_answer: ``L``; by default the mean length of these completions. Give that of the
            whole rollout where these are only a part of it, so that the parts add up.

    Returns:
        As `grpo_loss`.
    """
    objective, metrics = _objective(log_probs, old_log_probs, advantages, mask, clip_low, clip_high)
    if weights is not None:
        objective = weights[:, None] * objective
    loss = -_token_mean(objective, mask, tokens_per_answer)
    return loss, {"policy_loss": loss.item(), **metrics}


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float,
    tokens_per_answer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """Clipped squared error of a critic, as in PPO's reference implementation.

    ``1/2 mean max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2)`` over tokens: a value that
    has moved by more than ``c`` towards its return has no gradient.

    Args:
        values: ``(N, T)`` of the critic being trained, with gradient.
        old_values: ``(N, T)`` before its first step on this rollout.
        returns: ``(N, T)`` what they should have been.
        mask: ``(N, T)``.
        clip: ``c``, in units of reward, above 0.
        tokens_per_answer: See `token_mean_loss`.

    Returns:
        Scalar loss, and ``value_loss``, ``value_clip_fraction`` (share of tokens without gradient).

    Raises:
        ValueError: The clip is not positive.
    """
    if clip <= 0:
        raise ValueError(f"value clip {clip}, but it is a distance: use a number above 0, or inf")
    moved = values - old_values
    near = old_values + moved.clamp(-clip, clip)
    errors, clipped_errors = (values - returns).square(), (near - returns).square()
    loss = 0.5 * _token_mean(torch.maximum(errors, clipped_errors), mask, tokens_per_answer)
    # Where nothing is clipped the two errors are equal up to rounding only.
    clipped = _token_mean((moved.abs() > clip).float() * (clipped_errors > errors), mask, None)
    return loss, {"value_loss": loss.item(), "value_clip_fraction": clipped.item()}


def _objective(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Metrics]:
    """Clipped objective of every token ``(N, T)``, and the metrics of the ratios."""
    # Padding may hold anything; a ratio of 1 there keeps exp() finite, and no inf is times zero.
    log_ratio = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    ratio = log_ratio.exp()
    objective, clipped = clipped_objective(ratio, per_token(advantages), clip_low, clip_high)
    with torch.no_grad():
        metrics = {
            "clip_fraction": _token_mean(clipped.float(), mask, None).item(),
            "approx_kl": _token_mean(ratio - 1 - log_ratio, mask, None).item(),
            "ratio_max": (ratio * mask).max().item(),
        }
    return objective, metrics


def _token_mean(values: Tensor, mask: Tensor, tokens_per_answer: float | None) -> Tensor:
    """Sum of ``(N, T)`` values over ``N`` times a length, by default the mean one: a scalar."""
    total = (values * mask).sum()
    if tokens_per_answer is None:
        return total / mask.sum().clamp(min=1)
    return total / (len(mask) * tokens_per_answer)
