"""Group sequence policy optimisation (arXiv 2507.18071), the paper's second stage, and relatives.

Crediting each vertex with its gain in IoU, on top of the answer's advantage, was tried and left
out: it ended 4.7 points of greedy gIoU below GSPO (docs/agents.md).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from agents.advantages import (
    against_others,
    best_advantages,
    degenerate_groups,
    greedy_advantages,
    group_advantages,
    most_different,
    term_advantages,
)
from agents.losses import LOSSES, Metrics, kl_penalty, policy_loss
from agents.on_policy import OnPolicyAgent
from agents.policy.model import VLMPolicy
from agents.policy.scoring import TokenScores
from agents.rollout import Rollout, join
from agents.settings import GSPOConfig as GSPOConfig
from seg_env.envs.left_out import OnError
from seg_env.envs.vector import ReferringSegmentationVectorEnv


class GSPO(OnPolicyAgent):
    """Compares the answers of a group with each other, which needs no critic."""

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
            ValueError: Settings contradict each other.
        """
        count, size = config.learned_answers, config.group_size
        if count == 1 or not 0 <= count <= size:
            raise ValueError(
                f"learned_answers={count} of group_size={size}: use 2 to {size}, or 0 for all"
            )
        if config.advantage == "terms":
            weights = [term.weight for term in env.unwrapped.core.rewards.terms.values()]
            if "gate" in weights or not any(weights):
                raise ValueError(
                    f"advantage='terms' normalises every reward by itself, which a gate has no "
                    f"part in, and needs a weight above 0: {env.unwrapped.core.rewards!r}"
                )
        super().__init__(policy, env, config, on_error=on_error)

    def collect(self) -> tuple[Rollout, Metrics]:
        """See `OnPolicyAgent.collect`; dynamic sampling repeats it until every group teaches.

        Metrics are those of the first round, before groups are replaced.
        """
        rollout, metrics = super().collect()
        if not self.config.dynamic_sampling:
            return rollout, metrics
        rounds = 0
        # All ranks go on as long as one of them has to: sampling may need every rank's weights.
        while rounds < self.config.dynamic_rounds and self.world.any(
            bool(degenerate_groups(rollout.rewards, rollout.group_size).any())
        ):
            spare, _ = super().collect()
            rollout = replace_degenerate(rollout, spare, self.policy)
            rounds += 1
        left = degenerate_groups(rollout.rewards, rollout.group_size).float().mean().item()
        found = self.world.reduce({"rollout/groups_left_degenerate": left})
        return rollout, metrics | found | {"rollout/further_rounds": float(rounds)}

    def credit(self, rollout: Rollout) -> Metrics:
        """Group-normalised rewards ``(N,)``."""
        self._mean_length = self.mean_length(rollout.choice_mask)
        rewards, size = rollout.rewards, rollout.group_size
        match self.config.advantage:
            case "group":
                found = group_advantages(rewards, size, self.config.advantage_floor)
            case "others":
                found = against_others(rewards[:, None], size)[:, 0]
            case "greedy":
                found = greedy_advantages(rewards, size)
            case "terms":
                found = self._term_advantages(rollout)
            case "best":
                found = best_advantages(rewards, size)
        if self.config.imitation:
            found = found + self.config.imitation * best_advantages(rewards, size)
        rollout.advantages = found
        return {}

    def choose_answers(self, rollout: Rollout) -> Rollout:
        """See `OnPolicyAgent.choose_answers`: those of a group that differ most."""
        count, size = self.config.learned_answers, rollout.group_size
        if not 0 < count < size:
            return rollout
        return rollout.keep(most_different(rollout.rewards, size, count))

    @property
    def greedy_first(self) -> bool:
        """See `OnPolicyAgent.greedy_first`."""
        return self.config.advantage == "greedy"

    def _term_advantages(self, rollout: Rollout) -> Tensor:
        terms = self.env.unwrapped.core.rewards.terms
        rewards = rollout.rewards
        earned = np.stack([rollout.infos[f"reward/{name}"] for name in terms], axis=1)
        found = torch.as_tensor(earned, dtype=torch.float32, device=rewards.device)
        weights = rewards.new_tensor([float(term.weight) for term in terms.values()])
        if self.config.token_budget:  # the price of tokens is one more term
            price = rewards - found @ weights
            found = torch.cat([found, price[:, None]], dim=1)
            weights = torch.cat([weights, weights.new_ones(1)])
        return term_advantages(found, weights, rollout.group_size, self.config.advantage_floor)

    def loss(self, scores: TokenScores, part: Rollout) -> tuple[Tensor, Metrics]:
        """The clipped objective that the configuration names, and the KL penalty."""
        assert part.advantages is not None
        loss = LOSSES[self.config.loss]
        lengths = {
            "completion": None,
            "rollout": self._mean_length,
            "longest": float(self.config.max_new_tokens),
        }
        objective, metrics = policy_loss(
            scores.log_probs,
            part.old_log_probs,
            part.advantages,
            part.choice_mask,
            *loss.clips_of(self.config),
            level=loss.level,
            weights=part.weights,
            tokens_per_answer=lengths[loss.normalizer],
        )
        if self._reference is not None:
            reference = self._reference_log_probs(part)
            penalty = kl_penalty(scores.log_probs, reference, part.choice_mask)
            objective = objective + self.kl_coefficient * penalty
            metrics["reference_kl"] = penalty.item()
        return objective, metrics


def replace_degenerate(rollout: Rollout, spare: Rollout, policy: VLMPolicy) -> Rollout:
    """Replace groups whose rewards are all equal with groups of a spare rollout.

    DAPO's dynamic sampling (arXiv 2503.14476). If too few of its groups teach
    something, some of those with equal rewards stay.
    """
    degenerate = degenerate_groups(rollout.rewards, rollout.group_size)
    useful = (~degenerate_groups(spare.rewards, spare.group_size)).nonzero().squeeze(-1)
    used = useful[: int(degenerate.sum())]
    if not len(used):
        return rollout
    if len(used) == rollout.prompts:
        return spare.select(used)
    order = degenerate.long().argsort(stable=True)  # those that teach nothing last
    kept = order[: len(order) - len(used)]
    return join(rollout.select(kept), spare.select(used), policy)
