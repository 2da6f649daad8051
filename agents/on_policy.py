"""The loop every on-policy agent shares: collect groups, compute advantages, learn from them.

With several ranks (`agents.training.distributed`) each of them has a contiguous block of an
update's prompts and does with them what a single process would; gradients and metrics are averaged.
Choices are drawn alike everywhere, so that a run is the same however many ranks share it, up to
rounding.
"""

from __future__ import annotations

import copy
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from agents.base import Agent, UpdateCallback, split_observations
from agents.collect import answer_groups, choose_sources
from agents.losses import Metrics, kl_penalty, masked_mean, truncated_importance_weights
from agents.on_policy_config import OnPolicyConfig as OnPolicyConfig
from agents.policy.checks import try_sharing
from agents.policy.model import VLMPolicy
from agents.policy.scoring import TokenScores, score
from agents.rollout import Rollout, join
from agents.screening import require_usable
from agents.training.checkpoints import read_checkpoint, write_checkpoint
from agents.training.distributed import World, combine
from agents.training.engine import OptimizerSettings, make_engine
from agents.training.optim import cosine_with_warmup
from seg_env.envs.left_out import (
    TRIES,
    LeftOut,
    OnError,
    UnusableSampleError,
    loading,
    name_of,
)
from seg_env.envs.vector import ReferringSegmentationVectorEnv
from seg_env.errors import ExplainedError


class OnPolicyAgent(Agent):
    """Collects groups of answers from a vector environment and learns from them.

    Subclasses say what an advantage is and what the loss is.

    Attributes:
        env: Vector environment of ``prompts_per_update * group_size`` questions, of this rank's
            share of them if there are several.
        world: The processes that train together.
        engine: Makes the optimizer steps.
        update: Updates made so far.
    """

    kl_in_loss: ClassVar[bool] = True
    """Whether the KL penalty is part of the loss; agents that put it into the reward say False."""

    def __init__(
        self,
        policy: VLMPolicy,
        env: ReferringSegmentationVectorEnv,
        config: OnPolicyConfig,
        *,
        on_error: OnError = "skip",
    ) -> None:
        """Set up; the policy as it is now is the reference of the KL penalty.

        Args:
            policy: Trained in place.
            env: Asks and scores.
            config: Settings.
            on_error: Whether samples whose image is broken, or refused by the processor, are
                replaced by others and counted, or are an error.

        Raises:
            ValueError: The environment has another number of questions than this rank's share, or
                prompts cannot be shared out among ranks and minibatches.
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
        self.update = 0
        if policy.needs_trial:
            first = np.arange(config.prompts_per_update) % len(env.dataset)
            try_sharing(policy, self._ask(first[config.prompts_of(self.world)]))
        self._reference: VLMPolicy | None = None
        if config.kl_coefficient:  # copied before DeepSpeed cuts the weights up
            model = copy.deepcopy(policy.model).eval().requires_grad_(False)
            self._reference = VLMPolicy(model, policy.processor, precision=policy.precision)
            self._reference.constraint = policy.constraint
            self._reference.sharing_trial = policy.sharing_trial
        settings = OptimizerSettings(
            config.learning_rate,
            config.weight_decay,
            config.max_grad_norm,
            config.muon,
            config.muon_precision,
            config.adam_epsilon,
        )
        self.engine = make_engine(self.trained_module(), settings, config.deepspeed)
        self._indices = np.random.default_rng(config.seed)
        self._generator = torch.Generator().manual_seed(config.seed)

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

    def extra_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of an agent besides the policy and its optimizer."""
        return {}

    def load_extra_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `extra_tensors`."""

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
        """Ask this rank's prompts, sample a group of answers to each, and let them be scored.

        Where episodes have several turns, one answer of every group is carried on to the next turn,
        in which a group of answers to what came of it is sampled; and so on. A turn's answers are
        credited with what the turn earned. The rollout has the groups of all turns.

        Returns:
            The rollout, and metrics; those of later turns are named ``rollout/turn_2/...``.
        """
        config = self.config
        self.policy.model.eval()
        # Every rank draws for all of them and takes its part.
        asked = self._indices.integers(len(self.env.dataset), size=config.prompts_per_update)
        asked = asked[config.prompts_of(self.world)]
        inputs = self._ask(asked)
        whole: Rollout | None = None
        metrics: Metrics = {}
        turn = 0
        while True:
            turn += 1
            rollout, ended, found = self._answer(inputs)
            whole = rollout if whole is None else join(whole, rollout, self.policy.pad_id)
            name = "rollout" if turn == 1 else f"rollout/turn_{turn}"
            metrics |= {f"{name}/{key}": value for key, value in found.items()}
            # All ranks go on together or not at all.
            if self.world.any(bool(ended.all())):
                return whole, self.world.reduce(metrics)
            draws = self._draw().numpy()
            observations = self.env.fork(choose_sources(ended, config.group_size, draws).tolist())
            inputs = self._prepare(observations)

    def _ask(self, asked: NDArray[np.int64]) -> dict[str, Tensor]:
        """Ask about samples, one prompt each; those that cannot be used give way to others.

        What takes the place of a sample follows from the seed, the update and the place, so that
        an interrupted run goes on with the questions it would have had, on any number of ranks.

        Args:
            asked: ``(B,)`` samples, this rank's share.

        Returns:
            The model's inputs, ``B`` prompts.

        Raises:
            UnusableSampleError: One cannot be used and is not to be left out, or none can be.
        """
        asked, dataset = asked.copy(), self.env.unwrapped.dataset
        start = self.config.prompts_of(self.world).start
        for attempt in range(TRIES):
            try:
                return self._prepare(self._reset(asked.repeat(self.config.group_size)))
            except (MemoryError, torch.OutOfMemoryError, ExplainedError):
                raise
            except Exception:
                faults = {
                    place: fault
                    for place, index in enumerate(asked.tolist())
                    if (fault := self._fault(index)) is not None
                }
                if not faults:
                    raise
            for place, fault in faults.items():
                self.left_out.add(name_of(dataset, int(asked[place])), fault)
                seeds = [self.config.seed, self.update, attempt, start + place]
                asked[place] = np.random.default_rng(seeds).integers(len(dataset))
        raise UnusableSampleError(
            f"samples that cannot be used were replaced {TRIES} times over, and there still are "
            f"some; {self.left_out.summary()}"
        )

    def _fault(self, index: int) -> UnusableSampleError | None:
        """Why a sample cannot be used, None if it can be."""
        try:
            with loading():
                observations = self._reset(np.full(self.env.num_envs, index))
            images, prompts = split_observations(observations)
            require_usable(self.policy.prepare, images[0], prompts[0])
        except UnusableSampleError as error:
            return error
        return None

    def _reset(self, indices: NDArray[np.int64]) -> Mapping[str, Any]:
        options = {"indices": indices, "query_seed": self.update}
        return self.env.reset(options=options)[0]

    def _prepare(self, observations: Mapping[str, Any]) -> dict[str, Tensor]:
        """Model inputs of ``B`` prompts from observations of their ``B * G`` answers."""
        images, prompts = split_observations(observations)
        size = self.config.group_size
        return self.policy.prepare(images[::size], prompts[::size])

    def _answer(self, inputs: dict[str, Tensor]) -> tuple[Rollout, NDArray[Any], Metrics]:
        """One turn: groups of answers to prepared prompts, and which episodes have ended."""
        config = self.config
        noise = self._draw(config.group_size, config.max_new_tokens).flatten(0, 1)
        with self.whole_weights():
            rollout, texts, ended, metrics = answer_groups(
                self.policy,
                self.env,
                inputs,
                config.group_size,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                noise=noise.to(self.policy.device),
            )
        self.place_rewards(rollout, texts)
        return rollout, ended, metrics

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
        collected: list[Metrics] = []
        for _ in range(config.epochs):
            for part in self._minibatches(rollout):
                collected.append(self._step(part, learning_rate))
            if self.should_stop(collected[-1]):
                break
        found |= combine(collected)
        found["learning_rate"] = learning_rate
        return {f"train/{key}": value for key, value in found.items()}

    def should_stop(self, metrics: Metrics) -> bool:
        """Whether to leave out the remaining epochs on this rollout."""
        return False

    def mean_length(self, mask: Tensor) -> float:
        """Tokens per answer of a whole rollout, given the ``(N, T)`` mask of this rank's share."""
        return self.world.sum(mask.sum()).item() / (len(mask) * self.world.size)

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
        rollout.old_log_probs = self._measure(
            rollout, lambda part: self._score(self.policy, part).log_probs
        )
        rollout.weights, metrics = truncated_importance_weights(
            rollout.old_log_probs,
            rollout.sampler_log_probs,
            rollout.free,
            self.config.importance_cap,
        )
        return metrics

    def _step(self, minibatch: Rollout, learning_rate: float) -> Metrics:
        """One optimizer step; its metrics are those of all ranks."""
        found: list[Metrics] = []
        shares: list[float] = []
        for prompts in self._forward_parts(minibatch):
            found.append({})
            shares.append(len(prompts) / minibatch.prompts)
            part = minibatch.select(prompts)
            loss = self.engine.forward(partial(self._objective, part, found[-1]))
            self.engine.backward(loss * shares[-1])
        norm = self.engine.step(learning_rate)
        if norm > 0 and learning_rate > 0:
            self.policy.mark_trained()
        return self.world.reduce(combine(found, shares)) | {"grad_norm": norm}

    def _objective(self, part: Rollout, metrics: Metrics) -> Tensor:
        """What is minimised on a part of a rollout; adds its metrics."""
        scores = self._score(self.policy, part)
        loss, found = self.loss(scores, part)
        metrics |= found
        metrics["entropy"] = masked_mean(scores.entropies, part.mask).mean().item()
        if self._reference is not None and self.kl_in_loss:
            with torch.no_grad():
                reference = self._score(self._reference, part).log_probs
            penalty = kl_penalty(scores.log_probs, reference, part.free)
            loss = loss + self.config.kl_coefficient * penalty
            metrics["reference_kl"] = penalty.item()
        return loss

    def _forward_parts(self, rollout: Rollout) -> Iterator[Tensor]:
        """Prompts few enough for one forward pass; those of like length, with answers, together.

        All are computed to the length of the longest beside them, so this spares padding.
        """
        answers = rollout.mask.sum(-1).view(rollout.prompts, -1).amax(-1)
        asked = rollout.inputs["attention_mask"].sum(-1)
        order = (asked + rollout.group_size * answers).argsort(stable=True)
        yield from order.split(self.config.prompts_per_forward or rollout.prompts)

    @torch.no_grad()
    def _measure(self, rollout: Rollout, measure: Callable[[Rollout], Tensor]) -> Tensor:
        """Something of every token of a rollout, ``(N, T)``, found in parts that fit memory."""
        found = torch.zeros_like(rollout.sampler_log_probs)
        for prompts in self._forward_parts(rollout):
            part = rollout.select(prompts)
            measured = self.engine.forward(partial(measure, part))
            found[rollout.rows(prompts), : part.tokens.shape[1]] = measured
        return found

    def _score(self, policy: VLMPolicy, part: Rollout) -> TokenScores:
        return score(policy, part.inputs, part.tokens, part.mask, self.config.temperature)

    def _schedule(self, updates: int) -> float:
        config = self.config
        return cosine_with_warmup(
            self.update,
            updates,
            config.learning_rate,
            warmup=config.warmup,
            final=config.final_rate,
        )

    def whole_weights(self) -> AbstractContextManager[None]:
        """See `Agent.whole_weights`; all ranks must enter it."""
        return self.engine.whole_weights()

    def save(self, path: str | Path) -> None:
        """Write policy, optimizer, random states and counters; see `write_checkpoint`.

        Every rank must call this; the main one writes. A checkpoint can be resumed by any number of
        ranks, with DeepSpeed or without.
        """
        self.gather_left_out()
        tensors = {"optimizer": self.engine.state_dict(), "generator": self._generator.get_state()}
        facts = {
            "update": self.update,
            "indices": self._indices.bit_generator.state,
            "config": asdict(self.config),
            "left_out": self.left_out.reasons,
        }
        with self.whole_weights():
            tensors["extra"] = self.extra_tensors()
            write_checkpoint(path, self.policy, tensors, facts, self.world)

    def load(self, path: str | Path) -> None:
        """Go on from `save` to the same numbers as if nothing had happened.

        With another number of ranks they are the same up to rounding. The reference policy of the
        KL penalty is not in a checkpoint: build the agent on the policy that training started from,
        then load.
        """
        with self.engine.whole_weights(change=True):
            tensors, facts = read_checkpoint(path, self.policy)
            self.load_extra_tensors(tensors["extra"])
        self.engine.load_state_dict(tensors["optimizer"])
        self._generator.set_state(tensors["generator"].cpu())
        self._indices.bit_generator.state = facts["indices"]
        self.left_out.update(facts.get("left_out", {}))
        self.update = facts["update"]
