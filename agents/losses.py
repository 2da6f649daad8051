"""Policy-gradient losses as pure functions of log-probabilities: ``(loss, metrics)``.

Here those with one importance ratio per completion, and what all losses share; those with a ratio
per token are in `agents.token_losses`.

Shapes: ``N`` completions of at most ``T`` tokens; masks are 1 on the tokens that count.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Metrics = dict[str, float]


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(N, T)`` values over the real tokens of every row, ``(N,)``."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def sequence_log_ratio(log_probs: Tensor, old_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Length-normalised log ratio of whole completions, ``(N,)``.

    ``log s_i = 1/|y_i| sum_t (log pi(y_t) - log pi_old(y_t))`` (GSPO, arXiv 2507.18071, eq. 7).

    Args:
        log_probs: ``(N, T)`` under the policy being trained.
        old_log_probs: ``(N, T)`` under the policy that sampled.
        mask: ``(N, T)``.
    """
    return masked_mean(log_probs - old_log_probs, mask)


def clipped_objective(
    ratio: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """``min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`` (PPO, arXiv 1707.06347, eq. 7).

    Returns:
        The objective, to be made large, and a mask of where the clip removes the gradient.
    """
    free = ratio * advantages
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    return torch.minimum(free, clipped), clipped < free


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
    objective, clipped = clipped_objective(ratio, advantages, clip_low, clip_high)
    loss = -(objective if weights is None else weights * objective).mean()
    with torch.no_grad():
        metrics = {
            "policy_loss": loss.item(),
            "clip_fraction": clipped.float().mean().item(),
            "approx_kl": (ratio - 1 - log_ratio).mean().item(),
            "ratio_max": ratio.max().item(),
        }
    return loss, metrics


def luspo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    weights: Tensor | None = None,
    tokens_per_answer: float = 1.0,
) -> tuple[Tensor, Metrics]:
    """Length-unbiased sequence policy optimisation (arXiv 2602.05261): `gspo_loss` times length.

    GSPO's gradient of a token is divided by the length of its completion, which favours short good
    answers and long bad ones; ``J = mean_i |y_i| min(s_i A_i, clip(s_i) A_i)`` undoes that.

    Args:
        log_probs: ``(N, T)`` under the policy being trained, with gradient.
        old_log_probs: ``(N, T)`` under the policy that sampled.
        advantages: ``(N,)``.
        mask: ``(N, T)``.
        clip_low: See `gspo_loss`.
        clip_high: See `gspo_loss`.
        weights: ``(N,)`` importance weights.
        tokens_per_answer: What lengths are divided by: 1 is the published form; the mean length of
            a rollout keeps the loss on GSPO's scale.
    """
    lengths = mask.sum(-1) / tokens_per_answer
    scaled = lengths if weights is None else weights * lengths
    return gspo_loss(log_probs, old_log_probs, advantages, mask, clip_low, clip_high, scaled)


def gspo_token_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    weights: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """GSPO with an advantage per token (arXiv 2507.18071, eq. 13 and 14).

    ``J = mean_i w_i 1/|y_i| sum_t min(s_it A_it, clip(s_it) A_it)`` with
    ``s_it = sg[s_i] pi(y_t) / sg[pi(y_t)]``: the value of the sequence's ratio with the gradient of
    the token. Where the advantages of a completion are all equal, value and gradient are GSPO's.

    Args:
        log_probs: ``(N, T)`` under the policy being trained, with gradient.
        old_log_probs: ``(N, T)`` under the policy that sampled.
        advantages: ``(N, T)``, or ``(N,)`` for the same at every token.
        mask: ``(N, T)``.
        clip_low: See `gspo_loss`.
        clip_high: See `gspo_loss`.
        weights: ``(N,)`` importance weights.

    Returns:
        As `gspo_loss`; ``clip_fraction`` counts tokens within completions.
    """
    log_ratio = sequence_log_ratio(log_probs, old_log_probs, mask).detach()
    ratio = (log_ratio[:, None] + log_probs - log_probs.detach()).exp()
    objective, clipped = clipped_objective(ratio, per_token(advantages), clip_low, clip_high)
    completions = masked_mean(objective, mask)
    loss = -(completions if weights is None else weights * completions).mean()
    metrics = {
        "policy_loss": loss.item(),
        "clip_fraction": masked_mean(clipped.float(), mask).mean().item(),
        "approx_kl": (log_ratio.exp() - 1 - log_ratio).mean().item(),
        "ratio_max": log_ratio.exp().max().item(),
    }
    return loss, metrics


def per_token(values: Tensor) -> Tensor:
    """``(N,)`` of completions as ``(N, 1)``; ``(N, T)`` of tokens as it is."""
    return values[:, None] if values.ndim == 1 else values


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


KLEstimator = Literal["k1", "k2", "k3"]


def kl_estimates(
    log_probs: Tensor, reference_log_probs: Tensor, estimator: KLEstimator = "k3"
) -> Tensor:
    """KL divergence from the policy to a reference, estimated at each token drawn from the policy.

    With ``d = log ref - log pi`` (Schulman 2020, "Approximating KL divergence"): ``k1 = -d`` is
    unbiased and of either sign, ``k2 = d^2 / 2`` biased and never negative, ``k3 = exp(d) - d - 1``
    unbiased and never negative.

    Args:
        log_probs: Of any shape, under the policy that drew the tokens.
        reference_log_probs: Of the same shape.
        estimator: Which one.

    Returns:
        Estimates in nats, of that shape, with gradient.
    """
    difference = reference_log_probs - log_probs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return difference.square() / 2
    return difference.exp() - difference - 1


def kl_penalty(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean KL divergence to a reference policy per token, a scalar with gradient.

    The k3 estimate of `kl_estimates`, averaged over the tokens of a completion, then over
    completions.
    """
    return masked_mean(kl_estimates(log_probs, reference_log_probs), mask).mean()
