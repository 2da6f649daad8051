"""Losses as pure functions of log-probabilities: ``(loss, metrics)``.

Shapes: ``N`` completions of at most ``T`` tokens; masks are 1 on the tokens that count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from agents.settings import GSPOConfig, LossName

Metrics = dict[str, float]

RatioLevel = Literal["sequence", "sequence_token", "token"]
"""What an importance ratio belongs to.

``"sequence"``: a completion, ``s_i = exp(1/|y_i| sum_t log(pi(y_t) / pi_old(y_t)))``.
``"sequence_token"``: a token, ``s_it = sg[s_i] pi(y_t) / sg[pi(y_t)]``, the sequence's ratio with
the gradient of the token.
``"token"``: a token, ``r_it = pi(y_t) / pi_old(y_t)``.
"""


@dataclass(frozen=True)
class PolicyLoss:
    """A row of `LOSSES`."""

    level: RatioLevel
    normalizer: Literal["completion", "rollout", "longest"]
    """What sums over tokens are divided by: the length of their completion, the mean length of a
    rollout's completions, or the longest length allowed."""
    clips: tuple[float, float]
    """How far ratios may move from 1 by default, downwards and upwards."""

    def clips_of(self, config: GSPOConfig) -> tuple[float, float]:
        """The configuration's clips, or these defaults where it sets none."""
        low, high = self.clips
        return (
            low if config.clip_low is None else config.clip_low,
            high if config.clip_high is None else config.clip_high,
        )


LOSSES: dict[LossName, PolicyLoss] = {
    "gspo": PolicyLoss("sequence", "completion", (0.01, 0.015)),  # arXiv 2507.18071, eq. 5
    "gspo_token": PolicyLoss("sequence_token", "completion", (0.01, 0.015)),  # eq. 13 and 14
    "luspo": PolicyLoss("sequence", "rollout", (0.01, 0.015)),  # arXiv 2602.05261
    "grpo": PolicyLoss("token", "completion", (0.2, 0.2)),  # arXiv 2402.03300, eq. 3
    "dr_grpo": PolicyLoss("token", "longest", (0.2, 0.2)),  # arXiv 2503.20783, section 3.2
    "dapo": PolicyLoss("token", "rollout", (0.2, 0.28)),  # arXiv 2503.14476, eq. 8
}
"""The losses that compare the answers of a group; PPO's (arXiv 1707.06347, eq. 7) equals DAPO's.

GSPO's published clips, 3e-4 and 4e-4, are for reasoning of thousands of tokens; outlines have a
hundred, so their mean log ratio varies more. LUSPO is published without a divisor; the mean length
of a rollout keeps it on GSPO's scale.
"""


def policy_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip_low: float,
    clip_high: float,
    *,
    level: RatioLevel,
    weights: Tensor | None = None,
    tokens_per_answer: float | None = None,
) -> tuple[Tensor, Metrics]:
    """The clipped objective of importance ratios, averaged over completions or over tokens.

    With ``o = min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`` of every completion or token, the
    loss is ``-mean_i w_i 1/|y_i| sum_t o_it``, or ``-1/(N L) sum_i w_i sum_t o_it`` in which every
    token weighs the same, whatever the length of its completion.

    Log-probabilities and mask are ``(N, T)``, ``advantages`` ``(N,)`` or, with a ratio per token,
    also ``(N, T)``. ``weights`` ``w`` are ``(N,)``, see `truncated_importance_weights`.
    ``tokens_per_answer`` is ``L`` of a whole rollout, so that its parts add up; None averages over
    each completion, then over completions.

    Returns:
        Scalar loss, and ``policy_loss``, ``clip_fraction`` (share of ratios whose gradient the clip
        removes), ``approx_kl`` (``mean(r - 1 - log r)``), ``ratio_max``.
    """
    # Padding may hold anything; a ratio of 1 there keeps exp() finite, and no inf is times zero.
    log_ratio = (log_probs - old_log_probs).masked_fill(mask == 0, 0.0)
    if level != "token":
        log_ratio = masked_mean(log_ratio, mask)
    ratio = moving = log_ratio.exp()
    if level == "sequence_token":
        moving = (log_ratio.detach()[:, None] + log_probs - log_probs.detach()).exp()
    if moving.ndim > 1 and advantages.ndim == 1:
        advantages = advantages[:, None]
    unclipped = moving * advantages
    bounded = moving.clamp(1 - clip_low, 1 + clip_high) * advantages
    objective, clipped = torch.minimum(unclipped, bounded), bounded < unclipped

    if weights is None:
        weights = torch.ones_like(mask[:, 0], dtype=objective.dtype)
    if tokens_per_answer is None:
        completions = masked_mean(objective, mask) if moving.ndim > 1 else objective
        loss = -(weights * completions).mean()
    elif moving.ndim > 1:
        loss = -_token_mean(weights[:, None] * objective, mask, tokens_per_answer)
    else:
        loss = -(weights * (mask.sum(-1) / tokens_per_answer) * objective).mean()

    with torch.no_grad():
        fractions, distances = clipped.float(), ratio - 1 - log_ratio
        if level == "token":
            fractions, distances = (_token_mean(x, mask) for x in (fractions, distances))
            ratio = ratio * mask
        elif level == "sequence_token":
            fractions = masked_mean(fractions, mask)
        metrics = {
            "policy_loss": loss.item(),
            "clip_fraction": fractions.mean().item(),
            "approx_kl": distances.mean().item(),
            "ratio_max": ratio.max().item(),
        }
    return loss, metrics


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
    has moved by more than ``c`` towards its return has no gradient. Tensors are ``(N, T)``; ``c``
    is in units of reward. ``tokens_per_answer`` is as in `policy_loss`, by default the mean length.

    Returns:
        Scalar loss, and ``value_loss``, ``value_clip_fraction`` (share of tokens without gradient).

    Raises:
        ValueError: The clip is not above 0.
    """
    if clip <= 0:
        raise ValueError(f"value clip {clip}, but it is a distance: use a number above 0, or inf")
    moved = values - old_values
    near = old_values + moved.clamp(-clip, clip)
    errors, clipped_errors = (values - returns).square(), (near - returns).square()
    loss = 0.5 * _token_mean(torch.maximum(errors, clipped_errors), mask, tokens_per_answer)
    # Where nothing is clipped the two errors are equal up to rounding only.
    clipped = _token_mean((moved.abs() > clip).float() * (clipped_errors > errors), mask)
    return loss, {"value_loss": loss.item(), "value_clip_fraction": clipped.item()}


def truncated_importance_weights(
    log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, cap: float
) -> tuple[Tensor, Metrics]:
    """Weights ``(N,)`` that correct for a sampler that is not quite the policy being trained.

    ``w_i = min(s_i, cap)`` with a sequence's length-normalised ratio ``s_i`` of policy to sampler:
    truncated importance sampling (Ionides 2008), per sequence as in GSPO. The metrics say how far
    the two are apart, ``sampler_kl`` by the k3 estimate per token.
    """
    if cap < 1:
        raise ValueError(f"importance cap {cap}, but weights are 1 where nothing differs: use >= 1")
    difference = log_probs - sampler_log_probs
    ratio = masked_mean(difference, mask).exp()
    metrics = {
        "sampler_kl": kl_penalty(sampler_log_probs, log_probs, mask).item(),
        "sampler_difference": (difference * mask).abs().max().item(),
        "truncated_fraction": (ratio > cap).float().mean().item(),
    }
    return ratio.clamp(max=cap), metrics


def kl_estimates(
    log_probs: Tensor, reference_log_probs: Tensor, estimator: Literal["k1", "k3"] = "k3"
) -> Tensor:
    """KL divergence from the policy to a reference, estimated at each token drawn from the policy.

    With ``d = log ref - log pi`` (Schulman 2020, "Approximating KL divergence"): ``k1 = -d`` has
    either sign, ``k3 = exp(d) - d - 1`` is never negative; both are unbiased. In nats, with
    gradient.
    """
    difference = reference_log_probs - log_probs
    return -difference if estimator == "k1" else difference.exp() - difference - 1


def kl_penalty(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean k3 estimate per token, then over completions: a scalar with gradient."""
    return masked_mean(kl_estimates(log_probs, reference_log_probs), mask).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``(N, T)`` values over the real tokens of every row, ``(N,)``."""
    return (values * mask).sum(-1) / mask.sum(-1).clamp(min=1)


def _token_mean(values: Tensor, mask: Tensor, tokens_per_answer: float | None = None) -> Tensor:
    """Sum of ``(N, T)`` values divided by ``N`` times a length, by default the mean length."""
    total = (values * mask).sum()
    if tokens_per_answer is None:
        return total / mask.sum().clamp(min=1)
    return total / (len(mask) * tokens_per_answer)
