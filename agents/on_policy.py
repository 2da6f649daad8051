"""The loop that on-policy agents share: collect groups, compute advantages, learn from them.

Each rank has a contiguous block of an update's prompts; gradients and metrics are averaged. All
ranks draw the same random numbers, so a run is the same on any number of ranks, up to rounding.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.advantages import reward_metrics
from agents.base import EngineAgent, split_observations
from agents.losses import Metrics, masked_mean, truncated_importance_weights
from agents.policy.adapters import adapter_off, has_adapter
from agents.policy.checks import try_sharing
from agents.policy.model import VLMPolicy
from agents.policy.sampling import evaluation_mode, sample
from agents.policy.scoring import TokenScores, score
from agents.rollout import Prompts, Rollout, join
from agents.screening import NOT_THE_IMAGE, require_usable
from agents.settings import OnPolicyConfig as OnPolicyConfig
from agents.training import make_engine
from agents.training.distributed import World, combine
from seg_env.envs.left_out import TRIES, LeftOut, OnError, first_usable, loading
from seg_env.envs.vector import ReferringSegmentationVectorEnv

PRICE_GAIN, PRICE_RESPONSE = 0.05, 0.5
"""How strongly the price of tokens reacts to answers over their budget, in units of reward when
answers are twice too long: accumulated per update, and immediate."""


class OnPolicyAgent(EngineAgent):
    """Collects groups of completions from a vector environment and learns from them.

    Subclasses define the advantage and the loss, a KL penalty included. The penalty's reference
    policy is not in checkpoints: build the agent on the policy that training started from, then
    load.

    Attributes:
        on_rollout: Called on every rank with its share of each rollout, once it is credited and
            learned from.
    """

    on_rollout: Callable[[Rollout], object] | None = None

    def __init__(
        self,
        policy: VLMPolicy,
        env: ReferringSegmentationVectorEnv,
        config: OnPolicyConfig,
        *,
        on_error: OnError = "skip",
    ) -> None:
        """Set up; the policy, which is trained in place, is now the reference of the KL penalty.

        ``env`` asks this rank's share of ``prompts_per_update * group_size`` questions at a time.
        Samples whose image is broken, or refused by the processor, are replaced, or are an error.
        """
        self.policy, self.env, self.config = policy, env, config
        self.left_out = LeftOut(on_error)
        self.world = World.current()
        if env.num_envs != (rows := config.rows_of(self.world)):
            raise ValueError(
                f"the environment asks {env.num_envs} questions at a time; prompts_per_update="
                f"{config.prompts_per_update} times group_size={config.group_size} needs {rows}"
                + (f" on each of {self.world.size} ranks" if self.world.size > 1 else "")
            )
        self.max_new_tokens = config.max_new_tokens
        self._questions = min(len(env.dataset), config.questions or len(env.dataset))
        if policy.needs_trial:
            first = np.arange(config.prompts_per_update) % self._questions
            try_sharing(policy, self._ask(first[config.prompts_of(self.world)]).inputs)
        self.kl_coefficient = config.kl_coefficient
        self._reference: VLMPolicy | None = None
        if config.kl_coefficient and has_adapter(policy.model):
            self._reference = policy  # with the adapter off
        elif config.kl_coefficient:  # copied before DeepSpeed shards the weights
            self._reference = policy.copy()
            self._reference.model.eval().requires_grad_(False)
        self.engine = make_engine(self.trained_module(), config)
        self.token_debt = 0.0
        """Sum over updates of how far answers exceeded the token budget, times `PRICE_GAIN`."""
        self._indices = np.random.default_rng(config.seed)
        self._generator = torch.Generator().manual_seed(config.seed)

    def trained_module(self) -> nn.Module:
        """What the optimizer trains; agents with a critic add it to the policy's model."""
        return self.policy.model

    @property
    def greedy_first(self) -> bool:
        """Whether the first answer of each group is sampled greedily."""
        return False

    def place_rewards(self, rollout: Rollout, texts: Sequence[str]) -> None:
        """Place rewards on tokens, right after the environment scored ``N`` answers.

        Agents that credit whole answers leave this as it is.
        """

    @abstractmethod
    def credit(self, rollout: Rollout) -> Metrics:
        """Fill in the advantages, and whatever else `loss` takes, before the first step."""

    def choose_answers(self, rollout: Rollout) -> Rollout:
        """The credited answers that are learned from; all of them by default."""
        return rollout

    @abstractmethod
    def loss(self, scores: TokenScores, part: Rollout) -> tuple[Tensor, Metrics]:
        """The policy loss of a part of a rollout, with metrics."""

    def improve(self, updates: int) -> Metrics:
        """Collect a rollout and learn from it."""
        start = time.perf_counter()
        rollout, metrics = self.collect()
        metrics |= self.price_tokens(rollout)
        collected = time.perf_counter()
        metrics |= self.train(rollout, self.config.rate_at(self.update, updates))
        now = time.perf_counter()
        if self.on_rollout is not None:
            self.on_rollout(rollout)
        return metrics | {"time/collect": collected - start, "time/train": now - collected}

    def collect(self) -> tuple[Rollout, Metrics]:
        """Ask this rank's prompts, sample a group of answers to each, and score them.

        In episodes of several turns, one answer of every group is carried on, and a group of
        answers is sampled in the next turn. Each is credited with what its turn earned. Metrics of
        later turns are named ``rollout/turn_2/...``.
        """
        config = self.config
        self.policy.model.eval()
        # Every rank draws all the prompts and takes its part.
        asked = self._indices.integers(self._questions, size=config.prompts_per_update)
        asked = asked[config.prompts_of(self.world)]
        prompts = self._ask(asked)
        whole: Rollout | None = None
        metrics: Metrics = {}
        turn = 0
        while True:
            turn += 1
            rollout, ended, found = self._answer(prompts)
            whole = rollout if whole is None else join(whole, rollout, self.policy)
            name = "rollout" if turn == 1 else f"rollout/turn_{turn}"
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            # All ranks go on together or not at all.
            if self.world.any(bool(ended.all())):
                return whole, self.world.reduce(metrics)
            draws = self._draw().numpy()
            observations = self.env.fork(choose_sources(ended, config.group_size, draws).tolist())
            prompts = self._prepare(observations)

    def _ask(self, asked: NDArray[np.int64]) -> Prompts:
        """Prompts about ``(B,)`` samples, one each; unusable samples are replaced.

        The replacement depends only on the seed, the update and the position, so that a resumed
        run asks the questions it would have asked without a break, on any number of ranks.
        """
        size = self.config.group_size
        try:
            return self._prepare(self._reset(asked.repeat(size)))
        except NOT_THE_IMAGE:
            raise
        except Exception:
            start = self.config.prompts_of(self.world).start
            usable = np.array([self._usable(int(x), start + i) for i, x in enumerate(asked)])
            if (usable == asked).all():
                raise
        return self._prepare(self._reset(usable.repeat(size)))

    def _usable(self, index: int, place: int) -> int:
        """The sample, or else the first usable one of those drawn for its place in the update."""
        dataset = self.env.unwrapped.dataset
        seeds = ([self.config.seed, self.update, attempt, place] for attempt in range(TRIES))
        others = (int(np.random.default_rng(seed).integers(self._questions)) for seed in seeds)
        return first_usable(chain([index], others), self._check, dataset, self.left_out)

    def _check(self, index: int) -> int:
        """The sample itself; raises unless its image loads and the processor takes it."""
        with loading():
            observations = self._reset(np.full(self.env.num_envs, index))
        images, prompts = split_observations(observations)
        require_usable(self.policy, images[0], prompts[0])
        return index

    def _reset(self, indices: NDArray[np.int64]) -> Mapping[str, Any]:
        options = {"indices": indices, "query_seed": self.update}
        return self.env.reset(options=options)[0]

    def _prepare(self, observations: Mapping[str, Any]) -> Prompts:
        """Prepare ``B`` prompts from ``B * G`` observations, one for each answer."""
        images, texts = split_observations(observations)
        size = self.config.group_size
        return Prompts.prepare(self.policy, images[::size], texts[::size])

    def _answer(self, prompts: Prompts) -> tuple[Rollout, NDArray[np.bool_], Metrics]:
        """One turn: a scored rollout, which episodes have ended ``(N,)``, and metrics."""
        config, policy = self.config, self.policy
        noise = self._draw(config.group_size, config.max_new_tokens).flatten(0, 1)
        with self.gathered_weights():
            answers = sample(
                policy,
                prompts.inputs,
                group_size=config.group_size,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                noise=noise.to(policy.device),
                greedy_first=self.greedy_first,
            )
            texts = policy.texts(answers.tokens, answers.mask)
            _, earned, terminated, truncated, infos = self.env.step(texts)
        rollout = Rollout(
            asked=prompts,
            tokens=answers.tokens,
            mask=answers.mask,
            choice_mask=answers.choice_mask,
            sampler_log_probs=answers.log_probs,
            old_log_probs=answers.log_probs,
            rewards=torch.as_tensor(earned, dtype=torch.float32, device=policy.device),
        )
        metrics = _rollout_metrics(rollout, infos)
        ends = torch.tensor(policy.end_ids, device=policy.device)
        ended = (torch.isin(rollout.tokens, ends) & rollout.mask.bool()).any(-1)
        metrics["truncated"] = 1 - ended.float().mean().item()
        rollout.infos = {
            **{name: np.asarray(each) for name, each in infos.items() if not name.startswith("_")},
            "text": np.array(texts, dtype=object),
            "ended": ended.cpu().numpy(),
        }
        self.place_rewards(rollout, texts)
        return rollout, terminated | truncated, metrics

    def _draw(self, *shape: int) -> Tensor:
        """Uniform noise in [0, 1) for each of this rank's prompts, ``(prompts, *shape)``."""
        whole = (self.config.prompts_per_update, *shape)
        share = self.config.prompts_of(self.world)
        return torch.rand(whole, generator=self._generator)[share]

    def train(self, rollout: Rollout, learning_rate: float) -> Metrics:
        """Learn from a rollout: ``epochs * minibatches`` optimizer steps; returns mean metrics."""
        config = self.config
        self.policy.model.train()
        found = self._check_sampler(rollout) if self.policy.precision != "float32" else {}
        found = self.world.reduce(found | self.credit(rollout))
        rollout = self.choose_answers(rollout)
        # Prompts are independent; this fixed split is the same on any number of ranks.
        everything = torch.arange(rollout.prompts, device=self.policy.device)
        parts = [everything[first :: config.minibatches] for first in range(config.minibatches)]
        collected: list[Metrics] = []
        for _ in range(config.epochs):
            collected += [self._step(rollout.select(part), learning_rate) for part in parts]
            if self.should_stop(collected[-1]):
                break
        found |= combine(collected)
        found["learning_rate"] = learning_rate
        return {f"train/{key}": value for key, value in found.items()}

    def price_tokens(self, rollout: Rollout) -> Metrics:
        """Subtract the cost of its tokens from every answer's reward, and adapt their price.

        The price is the multiplier of the constraint that answers use the budget on average. It
        grows with how far lengths have exceeded the budget so far and do now (the integral and
        proportional terms of a PID controller, arXiv 2007.03964, algorithm 2). It may be negative:
        longer answers then earn more.
        """
        if not (budget := self.config.token_budget):
            return {}
        lengths = rollout.mask.sum(-1)
        excess = self.mean_length(rollout.mask) / budget - 1
        self.token_debt += PRICE_GAIN * excess
        price = self.token_debt + PRICE_RESPONSE * excess
        costs = price * (lengths / budget - 1)
        rollout.rewards = rollout.rewards - costs
        if rollout.token_rewards is not None:
            rollout.token_rewards[torch.arange(len(lengths)), lengths - 1] -= costs
        return {"rollout/token_price": price}

    def should_stop(self, metrics: Metrics) -> bool:
        """Whether to leave out the remaining epochs on this rollout."""
        return False

    def mean_length(self, mask: Tensor) -> float:
        """Tokens per answer of a whole rollout, given the ``(N, T)`` mask of this rank's share."""
        return self.world.sum(mask.sum()).item() / (len(mask) * self.world.size)

    def _check_sampler(self, rollout: Rollout) -> Metrics:
        """Take the old log-probabilities from the scorer, and weight answers by the difference.

        Rounding makes sampler and scorer disagree; both sides of a ratio must come from the scorer.
        """
        rollout.old_log_probs = self._measure(
            rollout, lambda part: self._score(self.policy, part).log_probs
        )
        rollout.weights, metrics = truncated_importance_weights(
            rollout.old_log_probs,
            rollout.sampler_log_probs,
            rollout.choice_mask,
            self.config.importance_cap,
        )
        return metrics

    def _step(self, minibatch: Rollout, learning_rate: float) -> Metrics:
        found: list[Metrics] = []
        shares: list[float] = []
        for prompts in self._forward_parts(minibatch):
            found.append({})
            shares.append(len(prompts) / minibatch.prompts)
            part = minibatch.select(prompts)
            loss = self.engine.forward(partial(self._objective, part, found[-1]))
            self.engine.backward(loss * shares[-1])
        norm = self.step(learning_rate)
        return self.world.reduce(combine(found, shares)) | {"grad_norm": norm}

    def _objective(self, part: Rollout, metrics: Metrics) -> Tensor:
        """The loss on a part of a rollout; adds its metrics."""
        scores = self._score(self.policy, part)
        loss, found = self.loss(scores, part)
        metrics |= found
        metrics["entropy"] = masked_mean(scores.entropies, part.mask).mean().item()
        return loss

    def _forward_parts(self, rollout: Rollout) -> Iterator[Tensor]:
        """Prompts of each forward pass, sorted by length to save padding."""
        answers = rollout.mask.sum(-1).view(rollout.prompts, -1).amax(-1)
        asked = rollout.inputs["attention_mask"].sum(-1)
        order = (asked + rollout.group_size * answers).argsort(stable=True)
        yield from order.split(self.config.prompts_per_forward or rollout.prompts)

    @torch.no_grad()
    def _measure(self, rollout: Rollout, measure: Callable[[Rollout], Tensor]) -> Tensor:
        """Measure something of every token of a rollout, ``(N, T)``, in parts that fit memory."""
        found = torch.zeros_like(rollout.sampler_log_probs)
        for prompts in self._forward_parts(rollout):
            part = rollout.select(prompts)
            measured = self.engine.forward(partial(measure, part))
            found[rollout.rows(prompts), : part.tokens.shape[1]] = measured
        return found

    @torch.no_grad()
    def _reference_log_probs(self, part: Rollout) -> Tensor:
        """Log-probabilities ``(N, T)`` under the policy that training started from."""
        assert self._reference is not None
        model = self._reference.model
        with adapter_off(model), evaluation_mode(model):
            return self._score(self._reference, part).log_probs

    def _score(self, policy: VLMPolicy, part: Rollout) -> TokenScores:
        return score(policy, part.inputs, part.tokens, part.mask, self.config.temperature)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The states of both random number generators, and of the token price."""
        facts = {
            "indices": self._indices.bit_generator.state,
            "token_debt": self.token_debt,
        }
        return {"generator": self._generator.get_state()}, facts

    def load_state(self, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._generator.set_state(tensors["generator"].cpu())
        self._indices.bit_generator.state = facts["indices"]
        self.token_debt = facts.get("token_debt", 0.0)


def choose_sources(
    ended: NDArray[np.bool_], group_size: int, draws: NDArray[np.floating[Any]]
) -> NDArray[np.int64]:
    """Choose an open episode that each group continues from, ``(N,)``, the same ``G`` times.

    All completions of a group's next turn start from one state, so that they can be compared. A
    group whose episodes have all ended takes one of another group. ``(N / G,)`` draws in [0, 1)
    decide.
    """
    everywhere = np.flatnonzero(~ended)
    chosen = []
    for group, draw in enumerate(draws):
        own = everywhere[everywhere // group_size == group]
        candidates = own if len(own) else everywhere
        chosen.append(candidates[int(draw * len(candidates))])
    return np.repeat(np.array(chosen, dtype=np.int64), group_size)


def _rollout_metrics(rollout: Rollout, infos: Mapping[str, Any]) -> Metrics:
    metrics = reward_metrics(rollout.rewards, rollout.group_size) | {
        "iou": float(np.mean(infos["iou"])),
        "valid": float(np.mean(infos["valid"])),
        "vertices": float(np.mean(infos["num_vertices"])),
        "tokens": rollout.mask.sum(-1).float().mean().item(),
    }
    rewards = (key for key in infos if key.startswith("reward/"))
    return metrics | {key: float(np.mean(infos[key])) for key in rewards}
