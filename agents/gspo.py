"""Group sequence policy optimisation (arXiv 2507.18071), the paper's second stage, and kin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from agents.advantages import (
    degenerate_fraction,
    degenerate_groups,
    group_advantages,
    segment_advantages,
)
from agents.dynamic_sampling import replace_degenerate
from agents.losses import Metrics, gspo_loss, gspo_token_loss, luspo_loss
from agents.on_policy import OnPolicyAgent, OnPolicyConfig
from agents.policy.model import VLMPolicy
from agents.policy.scoring import TokenScores
from agents.rollout import Rollout
from agents.token_losses import grpo_loss, token_mean_loss
from agents.vertex_credit import TokenAligner, credits_of, place_improvements
from seg_env.envs.left_out import OnError
from seg_env.envs.vector import ReferringSegmentationVectorEnv

LossName = Literal["gspo", "gspo_token", "luspo", "grpo", "dr_grpo", "dapo"]

CLIPS: dict[LossName, tuple[float, float]] = {
    "gspo": (0.01, 0.015),
    "gspo_token": (0.01, 0.015),
    "luspo": (0.01, 0.015),
    "grpo": (0.2, 0.2),
    "dr_grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
}
"""How far ratios may leave 1, downwards and upwards. Those of single tokens spread more than those
of whole answers. GSPO's published 3e-4 and 4e-4 are for traces of thousands of tokens; outlines
have a hundred, so their mean log ratio spreads more."""

TOKEN_LOSSES: tuple[LossName, ...] = ("gspo_token", "grpo", "dr_grpo", "dapo")
"""Losses that take an advantage per token."""


@dataclass
class GSPOConfig(OnPolicyConfig):
    """Settings of GSPO and of other losses that compare the answers of a group."""

    loss: LossName = "gspo"
    """gspo: a ratio per answer; gspo_token: the same with an advantage per token; luspo: the same
    times length; grpo, dr_grpo, dapo: a ratio per token, averaged over answers, over a constant,
    or over tokens. dr_grpo does not divide by the spread of a group."""
    clip_low: float | None = None
    """Ratios below ``1 - clip_low`` are clipped; by default what suits the loss, 0.01 for gspo."""
    clip_high: float | None = None
    """Ratios above ``1 + clip_high`` are clipped; by default what suits the loss, 0.015 for
    gspo."""
    spread_floor: float = 0.2
    """Least standard deviation of a group that rewards are divided by; 1e-4 is the published form,
    which turns groups in which every answer misses into full-strength noise."""
    dynamic_sampling: bool = False
    """Ask other questions in place of those whose answers all earned the same."""
    dynamic_rounds: int = 3
    """Most further rounds of questions of an update."""
    vertex_weight: float = 0.0
    """Weight of what each vertex added to the IoU, relative to the group's other vertices, in the
    advantage of its tokens; needs a loss with an advantage per token."""

    @property
    def credits_vertices(self) -> bool:
        """See `OnPolicyConfig.credits_vertices`."""
        return bool(self.vertex_weight)


class GSPO(OnPolicyAgent):
    """Advantages are relative to the other answers of a group: no critic is needed."""

    config: GSPOConfig

    def __init__(
        self,
        policy: VLMPolicy,
        env: ReferringSegmentationVectorEnv,
        config: GSPOConfig,
        *,
        on_error: OnError = "skip",
    ) -> None:
        """See `OnPolicyAgent`.

        Raises:
            ValueError: Vertices are credited, but the loss has one advantage per answer.
        """
        if config.vertex_weight and config.loss not in TOKEN_LOSSES:
            raise ValueError(
                f"vertex_weight={config.vertex_weight} with loss={config.loss!r}, which has one "
                f"advantage per answer: use one of {', '.join(TOKEN_LOSSES)}"
            )
        self._aligner = TokenAligner(policy.tokenizer)
        self._tokens_per_answer = 1.0
        super().__init__(policy, env, config, on_error=on_error)

    @property
    def clips(self) -> tuple[float, float]:
        """How far ratios may leave 1, downwards and upwards."""
        low, high = CLIPS[self.config.loss]
        config = self.config
        return (
            low if config.clip_low is None else config.clip_low,
            high if config.clip_high is None else config.clip_high,
        )

    def collect(self) -> tuple[Rollout, Metrics]:
        """As of all agents; with dynamic sampling, rounds until every group teaches something.

        Metrics are those of the first round, so that they tell what the policy earns.
        """
        rollout, metrics = super().collect()
        if not self.config.dynamic_sampling:
            return rollout, metrics
        rounds = 0
        # All ranks go on as long as one of them has to: sampling may need the weights of each.
        while rounds < self.config.dynamic_rounds and self.world.any(self._has_dull(rollout)):
            spare, _ = super().collect()
            rollout = replace_degenerate(rollout, spare, self.policy.pad_id)
            rounds += 1
        left = degenerate_fraction(rollout.rewards, rollout.group_size)
        found = self.world.reduce({"rollout/groups_left_degenerate": left})
        return rollout, metrics | found | {"rollout/further_rounds": float(rounds)}

    @staticmethod
    def _has_dull(rollout: Rollout) -> bool:
        return bool(degenerate_groups(rollout.rewards, rollout.group_size).any())

    def place_rewards(self, rollout: Rollout, texts: Sequence[str]) -> None:
        """What each vertex added to the IoU, relative to its group, on all of its tokens."""
        if not self.config.vertex_weight:
            return
        improvements, ends = place_improvements(
            self._aligner, rollout.tokens, rollout.mask, texts, credits_of(self.env, texts)
        )
        rollout.token_rewards = segment_advantages(
            improvements, ends, rollout.group_size, self._spread_floor
        )

    def credit(self, rollout: Rollout) -> Metrics:
        """Group-normalised rewards ``(N,)``, or ``(N, T)`` where vertices are credited."""
        self._tokens_per_answer = self.mean_length(rollout.free)
        advantages = group_advantages(rollout.rewards, rollout.group_size, self._spread_floor)
        if rollout.token_rewards is not None:
            advantages = advantages[:, None] + self.config.vertex_weight * rollout.token_rewards
        rollout.advantages = advantages
        return {}

    def loss(self, scores: TokenScores, part: Rollout) -> tuple[Tensor, Metrics]:
        """The clipped objective that the configuration names."""
        assert part.advantages is not None
        given = (scores.log_probs, part.old_log_probs, part.advantages, part.free, *self.clips)
        match self.config.loss:
            case "gspo":
                return gspo_loss(*given, part.weights)
            case "gspo_token":
                return gspo_token_loss(*given, part.weights)
            case "luspo":
                return luspo_loss(*given, part.weights, self._tokens_per_answer)
            case "grpo":
                return grpo_loss(*given, part.weights)
            case "dr_grpo":
                return token_mean_loss(*given, part.weights, self.config.max_new_tokens)
            case "dapo":
                return token_mean_loss(*given, part.weights, self._tokens_per_answer)

    @property
    def _spread_floor(self) -> float | None:
        return None if self.config.loss == "dr_grpo" else self.config.spread_floor
