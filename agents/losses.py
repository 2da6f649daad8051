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
    weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Group sequence policy optimisation (arXiv 2507.18071, eq. 5).

    ``J = mean_i w_i min(s_i A_i, clip(s_i, 1 - clip_low, 1 + clip_high) A_i)``; the loss is ``-J``.

    Args:
        log_probs: ``(N, T)`` under the policy being trained, with gradient.
        old_log_probs: ``(N, T)`` under the policy that sampled.
        advantages: ``(N,)``.
        mask: ``(N, T)``.
        clip_low: How far a ratio may fall below 1 and still be reinforced downwards.
        clip_high: How far it may rise above 1.
        weights: ``(N,)`` importance weights ``w``, see `truncated_importance_weights`; 1 if None.

    Returns:
        Scalar loss, and ``policy_loss``, ``clip_fraction`` (share of completions whose gradient the
        clip removes), ``approx_kl`` (``mean(s - 1 - log s)``), ``ratio_max``.
    """
    log_ratio = sequence_log_ratio(log_probs, old_log_probs, mask)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    unclipped_objective, clipped_objective = ratio * advantages, clipped * advantages
    objective = torch.minimum(unclipped_objective, clipped_objective)
    loss = -(objective if weights is None else weights * objective).mean()
    with torch.no_grad():
        metrics = {
            "policy_loss": loss.item(),
            "clip_fraction": (clipped_objective < unclipped_objective).float().mean().item(),
            "approx_kl": (ratio - 1 - log_ratio).mean().item(),
            "ratio_max": ratio.max().item(),
        }
    return loss, metrics


def truncated_importance_weights(
    log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, cap: float
) -> tuple[Tensor, Metrics]:
    """Weights of completions drawn by a sampler that is not quite the policy being trained.

    ``w_i = min(s_i, cap)`` with the length-normalised ratio ``s_i`` of `sequence_log_ratio` from
    sampler to policy: truncated importance sampling (Ionides 2008), at the level of sequences as
    the rest of GSPO is.

    Args:
        log_probs: ``(N, T)`` of the policy before its first step.
        sampler_log_probs: ``(N, T)`` as recorded while sampling.
        mask: ``(N, T)``.
        cap: Largest weight, at least 1.

    Returns:
        Weights ``(N,)``, and how far the two are apart: ``sampler_kl`` (k3 estimate per token),
        ``sampler_difference`` (largest of any token), ``truncated_fraction``.
    """
    if cap < 1:
        raise ValueError(f"importance cap {cap}, but weights are 1 where nothing differs: use >= 1")
    ratio = sequence_log_ratio(log_probs, sampler_log_probs, mask).exp()
    metrics = {
        "sampler_kl": kl_penalty(sampler_log_probs, log_probs, mask).item(),
        "sampler_difference": ((log_probs - sampler_log_probs) * mask).abs().max().item(),
        "truncated_fraction": (ratio > cap).float().mean().item(),
    }
    return ratio.clamp(max=cap), metrics


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
