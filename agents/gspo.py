"""Group sequence policy optimisation (arXiv 2507.18071), the paper's second stage."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from agents.advantages import group_advantages
from agents.losses import Metrics, gspo_loss
from agents.on_policy import OnPolicyAgent, OnPolicyConfig, Rollout
from agents.policy import TokenScores, VLMPolicy
from seg_env.envs.vector import ReferringSegmentationVectorEnv


@dataclass
class GSPOConfig(OnPolicyConfig):
    """Settings of GSPO."""

    clip_low: float = 0.01
    """Sequence ratios below ``1 - clip_low`` are clipped. GSPO's 3e-4 is for traces of thousands of
    tokens; outlines have a hundred, so their mean log ratio spreads more."""
    clip_high: float = 0.015
    """Sequence ratios above ``1 + clip_high`` are clipped."""
    spread_floor: float = 0.2
    """Least standard deviation of a group that rewards are divided by; 1e-4 is the published form,
    which turns groups in which every answer misses into full-strength noise."""


class GSPO(OnPolicyAgent):
    """One advantage per answer, one importance ratio per answer."""

    config: GSPOConfig

    def __init__(
        self, policy: VLMPolicy, env: ReferringSegmentationVectorEnv, config: GSPOConfig
    ) -> None:
        """See `OnPolicyAgent`."""
        super().__init__(policy, env, config)

    def credit(self, rollout: Rollout) -> Metrics:
        """Group-normalised rewards, ``(N,)``."""
        rollout.advantages = group_advantages(
            rollout.rewards, rollout.group_size, self.config.spread_floor
        )
        return {}

    def loss(self, scores: TokenScores, part: Rollout) -> tuple[Tensor, Metrics]:
        """Clipped sequence-level objective."""
        assert part.advantages is not None
        return gspo_loss(
            scores.log_probs,
            part.old_log_probs,
            part.advantages,
            part.free,
            self.config.clip_low,
            self.config.clip_high,
            weights=part.weights,
        )
