"""Proximal policy optimisation (arXiv 1707.06347) with a critic, one action per token."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from agents.advantages import (
    against_others,
    explained_variance,
    generalized_advantages,
    masked_moments,
    whiten,
)
from agents.critic import Critic, regression_sums, ridge_regression
from agents.losses import Metrics, kl_estimates, policy_loss, value_loss
from agents.on_policy import OnPolicyAgent
from agents.policy.model import VLMPolicy
from agents.policy.scoring import TokenScores, score
from agents.rollout import Rollout
from agents.settings import PPOConfig as PPOConfig
from agents.vertex_credit import TokenAligner, credits_of, place_credit

CRITIC = "critic."
"""Prefix of the critic's weights in a checkpoint."""


class PPO(OnPolicyAgent):
    """An advantage for every token, from a critic that learns the expected reward.

    The state before token ``t`` is the prompt and the tokens so far. Rewards are the environment's,
    placed where ``config.credit`` says, minus at every token the KL divergence to the policy that
    training started from (k1 estimate, as in InstructGPT, arXiv 2203.02155, section 3.4), weighted
    by ``kl_coefficient``, which ``target_kl`` steers.
    """

    config: PPOConfig

    @cached_property
    def _aligner(self) -> TokenAligner:
        return TokenAligner(self.policy.tokenizer)

    def trained_module(self) -> nn.Module:
        """The policy's model and the critic."""
        self.critic = Critic(self.policy, self.config.critic, self.config.critic_rate)
        return nn.ModuleDict({"model": self.policy.model, "critic": self.critic})

    def place_rewards(self, rollout: Rollout, texts: Sequence[str]) -> None:
        """Put rewards on the last token of every answer, or of every vertex."""
        group_size = rollout.group_size if self.config.relative else 1
        if self.config.credit == "vertex":
            rollout.token_rewards = place_credit(
                self._aligner,
                rollout.tokens,
                rollout.mask,
                texts,
                credits_of(self.env, texts),
                group_size,
            )
            return
        rollout.token_rewards = torch.zeros(rollout.mask.shape, device=rollout.mask.device)
        last = rollout.mask.sum(-1, keepdim=True).clamp(min=1) - 1
        relative = against_others(rollout.rewards[:, None], group_size)
        rollout.token_rewards.scatter_(1, last, relative)

    def credit(self, rollout: Rollout) -> Metrics:
        """Find values, returns and advantages of every token."""
        config = self.config
        assert rollout.token_rewards is not None
        self._lengths = {
            "all": self.mean_length(rollout.mask),
            "choices": self.mean_length(rollout.choice_mask),
        }
        penalty, metrics = self._divergence(rollout)
        rewards = rollout.token_rewards - penalty
        if self._only_fits:
            self._fit_critic(rollout, rewards)
        rollout.values = self._measure(
            rollout, lambda part: self.critic.values(self._score(self.policy, part), part)
        )
        advantages, rollout.returns = generalized_advantages(
            rewards, rollout.values, rollout.mask, config.gamma, config.lam
        )
        if config.whiten:
            advantages = whiten(advantages, rollout.choice_mask, self.world.sum)
        rollout.advantages = advantages
        value, _ = masked_moments(rollout.values, rollout.mask, self.world.sum)
        metrics["value"] = value.item()
        metrics["explained_variance"] = explained_variance(
            rollout.values, rollout.returns, rollout.mask, self.world.sum
        )
        return metrics

    def loss(self, scores: TokenScores, part: Rollout) -> tuple[Tensor, Metrics]:
        """Clipped objective of the policy plus the critic's clipped squared error."""
        config = self.config
        assert part.advantages is not None
        assert part.values is not None
        assert part.returns is not None
        objective, metrics = policy_loss(
            scores.log_probs,
            part.old_log_probs,
            part.advantages,
            part.choice_mask,
            config.clip_low,
            config.clip_high,
            level="token",
            weights=part.weights,
            tokens_per_answer=self._lengths["choices"],
        )
        errors, found = value_loss(
            self.critic.values(scores, part, detach=self._only_fits),
            part.values,
            part.returns,
            part.mask,
            config.value_clip,
            self._lengths["all"],
        )
        loss = (0.0 if self._only_fits else 1.0) * objective + config.value_coefficient * errors
        return loss, metrics | found

    def should_stop(self, metrics: Metrics) -> bool:
        """Whether the policy is too far from the one that sampled."""
        return 0 < self.config.stop_kl < metrics["approx_kl"]

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """See `OnPolicyAgent.state`; the critic's weights and the KL penalty's weight, too."""
        tensors, facts = super().state()
        coefficient = torch.tensor(self.kl_coefficient, dtype=torch.float64)
        extra = self.critic.state_dict(prefix=CRITIC) | {"kl_coefficient": coefficient}
        return tensors | {"extra": extra}, facts

    def load_state(self, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """Inverse of `state`."""
        super().load_state(tensors, facts)
        extra = dict(tensors["extra"])
        self.kl_coefficient = extra.pop("kl_coefficient").item()
        self.critic.load_state_dict(
            {name.removeprefix(CRITIC): value for name, value in extra.items()}
        )

    @property
    def _only_fits(self) -> bool:
        """Whether this update fits the critic and leaves the policy as it is."""
        return self.config.fit_critic and self.update == 0

    @torch.no_grad()
    def _fit_critic(self, rollout: Rollout, rewards: Tensor) -> None:
        """Fit the value head to the reward earned from each token on."""
        nothing = torch.zeros_like(rewards)
        _, rollout.returns = generalized_advantages(
            rewards, nothing, rollout.mask, self.config.gamma, 1.0
        )
        sums = torch.zeros((), dtype=torch.float64, device=self.policy.device)
        for part in map(rollout.select, self._forward_parts(rollout)):
            assert part.returns is not None
            real = part.mask.bool()
            states = self.engine.forward(partial(self._states, part)).float()
            sums = sums + regression_sums(states[real], part.returns[real])
        # Regularised, since answers are few and their tokens much alike.
        found = ridge_regression(self.world.sum(sums), 0.1)
        with self.engine.gathered_weights(change=True):
            self.critic.head.start_from(*found)

    def _divergence(self, rollout: Rollout) -> tuple[Tensor, Metrics]:
        """KL divergence to the reference at every token times its weight, ``(N, T)``."""
        if self._reference is None:
            return torch.zeros_like(rollout.old_log_probs), {}
        found = self._measure(rollout, self._reference_log_probs)
        divergence = kl_estimates(rollout.old_log_probs, found, "k1") * rollout.mask
        per_answer = self.world.sum(divergence.sum(-1).mean()).item() / self.world.size
        penalty = self.kl_coefficient * divergence
        metrics = {"reference_kl": per_answer, "kl_coefficient": self.kl_coefficient}
        if self.config.target_kl:
            answers = self.world.size * len(rollout.tokens)
            self.kl_coefficient = steer_coefficient(
                self.kl_coefficient,
                per_answer,
                self.config.target_kl,
                answers / self.config.kl_horizon,
            )
        return penalty, metrics

    def _states(self, part: Rollout) -> Tensor:
        return self.critic.hidden(self._score(self.policy, part), part)

    def _score(self, policy: VLMPolicy, part: Rollout) -> TokenScores:
        temperature = self.config.temperature
        return score(policy, part.inputs, part.tokens, part.mask, temperature, hidden=True)


def steer_coefficient(coefficient: float, found: float, target: float, share: float) -> float:
    """Weight of a KL penalty, adapted to the divergence found (arXiv 1909.08593, section 2.2).

    ``beta * (1 + share * clip(found / target - 1, -0.2, 0.2))``. Ziegler et al. use a share of 0.1
    per batch; here it is the size of the rollout relative to the horizon.

    Raises:
        ValueError: The target is not positive.
    """
    if target <= 0:
        raise ValueError(f"target_kl={target}, but a divergence is above 0")
    error = min(max(found / target - 1, -0.2), 0.2)
    return coefficient * (1 + share * error)
