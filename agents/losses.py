"""Policy-gradient losses as pure functions of log-probabilities: ``(loss, metrics)``.

Shapes: ``N`` completions of at most ``T`` tokens; masks are 1 on real tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

Metrics = dict[str, float]


def sequence_log_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Length-normalised log ratio of whole completions, ``(N,)``.

    ``log s_i = 1/|y_i| sum_t (log pi(y_t) - log pi_old(y_t))`` (GSPO, arXiv 2507.18071, eq. 7).

    Args:
        log_probs: ``(N, T)`` under the policy being trained.
        old_log_probs: ``(N, T)`` under the policy that sampled.
        mask: ``(N, T)``.
    """
    return masked_mean(log_probs - old_log_probs, mask)


def gspo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
) -> tuple[Tensor, Metrics]:
    """Group sequence policy optimisation (arXiv 2507.18071, eq. 5).

    ``J = mean_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)``; the loss is ``-J``.

    Args:
        log_probs: ``(N, T)`` under the policy being trained, with gradient.
        old_log_probs: ``(N, T)`` under the policy that sampled.
        advantages: ``(N,)``.
        mask: ``(N, T)``.
        clip_low: How far a ratio may fall below 1 and still be reinforced downwards.
        clip_high: How far it may rise above 1.

    Returns:
        Scalar loss, and ``policy_loss``, ``clip_fraction`` (share of completions whose gradient the
        clip removes), ``approx_kl`` (``mean(s - 1 - log s)``), ``ratio_max``.
    """
    log_ratio = sequence_log_ratio(log_probs, old_log_probs, mask)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    unclipped_objective, clipped_objective = ratio * advantages, clipped * advantages
    loss = -torch.minimum(unclipped_objective, clipped_objective).mean()
    with torch.no_grad():
        metrics = {
            "policy_loss": loss.item(),
            "clip_fraction": (clipped_objective < unclipped_objective).float().mean().item(),
            "approx_kl": (ratio - 1 - log_ratio).mean().item(),
            "ratio_max": ratio.max().item(),
        }
    return loss, metrics


def kl_penalty(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean KL divergence to a reference policy per token, a scalar with gradient.

    The non-negative unbiased estimate ``exp(d) - d - 1`` with ``d = log ref - log pi`` (Schulman's
    k3), averaged over the tokens of a completion, then over completions.
    """
    difference = reference_log_probs - log_probs
    return masked_mean(difference.exp() - difference - 1, mask).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(N, T)`` values over the real tokens of every row, ``(N,)``."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)
