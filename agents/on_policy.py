"""The loop every on-policy agent shares: collect groups, compute advantages, learn from them."""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agents.advantages import degenerate_fraction, group_spread
from agents.base import Agent, UpdateCallback, split_observations
from agents.checkpoints import read_checkpoint, write_checkpoint
from agents.engine import Engine, OptimizerSettings
from agents.losses import Metrics, kl_penalty, masked_mean, truncated_importance_weights
from agents.optim import cosine_with_warmup
from agents.policy import TokenScores, VLMPolicy
from agents.rollout import Rollout
from agents.sampling import sample
from seg_env.envs.vector import ReferringSegmentationVectorEnv


@dataclass
class OnPolicyConfig:
    """What all on-policy agents need to know. SimpleSeg publishes none of these values for RL."""

    prompts_per_update: int = 32
    """Prompts per rollout."""
    group_size: int = 8
    """Answers per prompt, G."""
    minibatches: int = 2
    """Optimizer steps per pass over a rollout; groups are never split."""
    epochs: int = 1
    """Passes over a rollout."""
    prompts_per_forward: int = 0
    """Prompts per forward pass, to bound memory; 0 takes a whole minibatch at once."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup: float = 0.03
    """Share of the updates in which the learning rate rises."""
    final_rate: float = 0.05
    """Last learning rate as a share of the peak."""
    muon: bool = True
    """Muon on hidden matrices; False for AdamW everywhere (then divide the rate by three)."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    temperature: float = 1.0
    """Sampling temperature; scoring uses the same."""
    max_new_tokens: int = 128
    """Longest answer in tokens; below the longest honest answer, answers are cut and malformed."""
    kl_coefficient: float = 0.0
    """Weight of the KL divergence to the policy training started from; 0 keeps no copy of it."""
    importance_cap: float = 2.0
    """Where the scorer's log-probabilities differ from the sampler's, answers are weighted by their
    ratio, at most by this."""
    seed: int = 0
    """Seed of the choice of prompts and of sampling."""


class OnPolicyAgent(Agent):
    """Collects groups of answers from a vector environment and learns from them.

    Subclasses say what an advantage is and what the loss is.

    Attributes:
        env: Vector environment of ``prompts_per_update * group_size`` questions.
        update: Updates made so far.
    """

    def __init__(
        self, policy: VLMPolicy, env: ReferringSegmentationVectorEnv, config: OnPolicyConfig
    ) -> None:
        """Set up; the policy as it is now is the reference of the KL penalty.

        Raises:
            ValueError: The environment has another number of questions than the configuration.
        """
        rows = config.prompts_per_update * config.group_size
        if env.num_envs != rows:
            raise ValueError(
                f"the environment asks {env.num_envs} questions at a time; prompts_per_update="
                f"{config.prompts_per_update} times group_size={config.group_size} needs {rows}"
            )
        self.policy, self.env, self.config = policy, env, config
        self.max_new_tokens = config.max_new_tokens
        self.engine = Engine(
            self.trained_module(),
            OptimizerSettings(
                config.learning_rate, config.weight_decay, config.max_grad_norm, config.muon
            ),
        )
        self.update = 0
        self._indices = np.random.default_rng(config.seed)
        self._generator = torch.Generator(policy.device).manual_seed(config.seed)
        self._reference: VLMPolicy | None = None
        if config.kl_coefficient:
            model = copy.deepcopy(policy.model).eval().requires_grad_(False)
            self._reference = VLMPolicy(model, policy.processor, precision=policy.precision)

    def trained_module(self) -> nn.Module:
        """What the optimizer trains; agents with a critic add it to the policy's model."""
        return self.policy.model

    def place_rewards(self, rollout: Rollout, texts: Sequence[str]) -> None:
        """Say which tokens earned what, right after the environment scored ``N`` answers.

        Agents that credit whole answers leave this as it is.
        """

    @abstractmethod
    def credit(self, rollout: Rollout) -> Metrics:
        """Fill in the advantages, and whatever else `loss` takes, before the first step."""

    @abstractmethod
    def loss(self, scores: TokenScores, part: Rollout) -> tuple[Tensor, Metrics]:
        """The policy loss of a part of a rollout, with metrics."""

    def learn(self, updates: int, on_update: UpdateCallback | None = None) -> None:
        """Train until ``updates`` updates have been made in all."""
        while self.update < updates:
            start = time.perf_counter()
            rollout, metrics = self.collect()
            collected = time.perf_counter()
            metrics |= self.train(rollout, self._schedule(updates))
            self.update += 1
            now = time.perf_counter()
            metrics |= {"time/collect": collected - start, "time/train": now - collected}
            if on_update is not None:
                on_update(self.update, metrics)

    def collect(self) -> tuple[Rollout, Metrics]:
        """Ask prompts, sample a group of answers to each, and let the environment score them."""
        config = self.config
        self.policy.model.eval()
        asked = self._indices.integers(len(self.env.dataset), size=config.prompts_per_update)
        repeated = np.repeat(asked, config.group_size)
        observations, _ = self.env.reset(options={"indices": repeated})
        images, prompts = split_observations(observations)
        inputs = self.policy.prepare(images[:: config.group_size], prompts[:: config.group_size])
        answers = sample(
            self.policy,
            inputs,
            group_size=config.group_size,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            generator=self._generator,
        )
        texts = self.policy.texts(answers.tokens, answers.mask)
        _, earned, _, _, infos = self.env.step(texts)
        rewards = torch.as_tensor(earned, dtype=torch.float32, device=self.policy.device)
        metrics = {
            "rollout/reward": rewards.mean().item(),
            "rollout/iou": float(np.mean(infos["iou"])),
            "rollout/valid": float(np.mean(infos["valid"])),
            "rollout/vertices": float(np.mean(infos["num_vertices"])),
            "rollout/tokens": answers.lengths.float().mean().item(),
            "rollout/group_spread": group_spread(rewards, config.group_size).mean().item(),
            "rollout/degenerate_groups": degenerate_fraction(rewards, config.group_size),
        }
        metrics |= {
            f"rollout/{key}": float(np.mean(infos[key]))
            for key in infos
            if key.startswith("reward/")
        }
        rollout = Rollout(
            inputs=inputs,
            tokens=answers.tokens,
            mask=answers.mask,
            free=answers.free,
            sampler_log_probs=answers.log_probs,
            old_log_probs=answers.log_probs,
            rewards=rewards,
        )
        self.place_rewards(rollout, texts)
        return rollout, metrics

    def train(self, rollout: Rollout, learning_rate: float) -> Metrics:
        """Learn from a rollout: ``epochs * minibatches`` optimizer steps; returns mean metrics."""
        config = self.config
        self.policy.model.train()
        found = self._check_sampler(rollout) if self.policy.precision != "float32" else {}
        found |= self.credit(rollout)
        collected: list[Metrics] = []
        for _ in range(config.epochs):
            for part in self._minibatches(rollout):
                collected.append(self._step(part, learning_rate))
            if self.should_stop(collected[-1]):
                break
        found |= {key: float(np.mean([one[key] for one in collected])) for key in collected[0]}
        found["learning_rate"] = learning_rate
        return {f"train/{key}": value for key, value in found.items()}

    def should_stop(self, metrics: Metrics) -> bool:
        """Whether to leave out the remaining epochs on this rollout."""
        return False

    def _minibatches(self, rollout: Rollout) -> Iterator[Rollout]:
        """Parts of a rollout, one per optimizer step: every ``minibatches``-th prompt.

        Prompts are drawn independently of each other, so there is nothing to shuffle, and a fixed
        choice is the same however the prompts are shared out among processes.
        """
        everything = torch.arange(rollout.prompts, device=self.policy.device)
        for first in range(self.config.minibatches):
            yield rollout.select(everything[first :: self.config.minibatches])

    def _check_sampler(self, rollout: Rollout) -> Metrics:
        """Take the scorer's word for what the sampler did, and weigh answers by the difference.

        Rounding makes the two disagree; ratios need numerator and denominator of one kind.
        """
        rollout.old_log_probs = self._rescore(rollout)
        rollout.weights, metrics = truncated_importance_weights(
            rollout.old_log_probs,
            rollout.sampler_log_probs,
            rollout.free,
            self.config.importance_cap,
        )
        return metrics

    def _step(self, minibatch: Rollout, learning_rate: float) -> Metrics:
        """One optimizer step."""
        metrics: Metrics = {}
        for part, share in self._forward_parts(minibatch):
            scores = self._score(self.policy, part)
            loss, found = self.loss(scores, part)
            found["entropy"] = masked_mean(scores.entropies, part.mask).mean().item()
            if self._reference is not None:
                with torch.no_grad():
                    reference = self._score(self._reference, part).log_probs
                penalty = kl_penalty(scores.log_probs, reference, part.free)
                loss = loss + self.config.kl_coefficient * penalty
                found["reference_kl"] = penalty.item()
            self.engine.backward(loss * share)
            for key, value in found.items():
                metrics[key] = metrics.get(key, 0.0) + share * value
        return metrics | {"grad_norm": self.engine.step(learning_rate)}

    def _forward_parts(self, rollout: Rollout) -> Iterator[tuple[Rollout, float]]:
        """Parts small enough for one forward pass, each with its share of the prompts."""
        everything = torch.arange(rollout.prompts, device=self.policy.device)
        for prompts in everything.split(self.config.prompts_per_forward or rollout.prompts):
            yield rollout.select(prompts), len(prompts) / rollout.prompts

    @torch.no_grad()
    def _rescore(self, rollout: Rollout) -> Tensor:
        """Log-probabilities ``(N, T)`` of a rollout by the scorer, before any step."""
        found = torch.zeros_like(rollout.sampler_log_probs)
        start = 0
        for part, _ in self._forward_parts(rollout):
            count, width = part.tokens.shape
            found[start : start + count, :width] = self._score(self.policy, part).log_probs
            start += count
        return found

    def _score(self, policy: VLMPolicy, part: Rollout) -> TokenScores:
        return policy.score(part.inputs, part.tokens, part.mask, self.config.temperature)

    def _schedule(self, updates: int) -> float:
        config = self.config
        return cosine_with_warmup(
            self.update,
            updates,
            config.learning_rate,
            warmup=config.warmup,
            final=config.final_rate,
        )

    def save(self, path: str | Path) -> None:
        """Write policy, optimizer, random states and counters; see `write_checkpoint`."""
        tensors = {
            "optimizer": self.engine.state_dict(),
            "generator": self._generator.get_state().cpu(),
        }
        facts = {
            "update": self.update,
            "indices": self._indices.bit_generator.state,
            "config": asdict(self.config),
        }
        write_checkpoint(path, self.policy, tensors, facts)

    def load(self, path: str | Path) -> None:
        """Go on from `save` to the same numbers as if nothing had happened.

        The reference policy of the KL penalty is not in a checkpoint: build the agent on the policy
        that training started from, then load.
        """
        tensors, facts = read_checkpoint(path, self.policy)
        self.engine.load_state_dict(tensors["optimizer"])
        self._generator.set_state(tensors["generator"].cpu())
        self._indices.bit_generator.state = facts["indices"]
        self.update = facts["update"]
