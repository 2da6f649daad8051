"""What every agent can do: act, learn, save, load."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.policy.checks import try_sharing
from agents.policy.finite import DivergedError
from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from agents.training.averaging import WeightAverage
from agents.training.checkpoints import read_checkpoint, require_whole, write_checkpoint
from agents.training.distributed import World
from agents.training.optim import Engine
from seg_env.envs.left_out import LeftOut

MOST_SKIPPED = 3
"""Training stops after so many steps in a row whose gradients are not finite."""

UpdateCallback = Callable[[int, dict[str, float]], None]
"""Called as ``callback(update, metrics)`` after each update, counted from 1."""


class Agent(ABC):
    """A policy and a way to improve it.

    Attributes:
        max_new_tokens: Longest completion, in tokens.
        update: Updates made so far.
        world: The processes that evaluate and save together.
        left_out: Samples that could not be learned from, and why.
        skipped: The latest steps in a row that were not applied, as gradients were not finite.
        applied: The last update whose step was applied; weights before it are known to work.
    """

    policy: VLMPolicy
    max_new_tokens: int
    update: int = 0
    world: World = World()
    left_out: LeftOut
    skipped: int = 0
    applied: int = 0

    def act(self, observations: Mapping[str, Any], *, temperature: float = 0.0) -> list[str]:
        """One completion for each observation of an environment, single or vector.

        Temperature 0 gives the likeliest completion, 1 samples from the policy. Where weights are
        sharded (ZeRO-3), all ranks must call this, inside `gathered_weights`.
        """
        images, prompts = split_observations(observations)
        inputs = self.policy.prepare(images, prompts)
        try_sharing(self.policy, inputs)
        completions = sample(
            self.policy, inputs, max_new_tokens=self.max_new_tokens, temperature=temperature
        )
        return self.policy.texts(completions.tokens, completions.mask)

    def gather_left_out(self) -> None:
        """Tell every rank what any of them has left out; all must call this."""
        for reasons in self.world.gather(self.left_out.reasons):
            self.left_out.update(reasons)

    def note_step(self, norm: float) -> None:
        """Count a step by the norm of its gradients; it was applied if that is finite.

        Raises:
            DivergedError: It is the third step in a row that was not applied.
        """
        if math.isfinite(norm):
            self.skipped, self.applied = 0, self.update + 1
            return
        self.skipped += 1
        if self.skipped == MOST_SKIPPED:
            self.require_applied()

    def require_applied(self) -> None:
        """Make sure that the last step was applied: a run does not end well otherwise.

        Raises:
            DivergedError: It was not.
        """
        if self.skipped:
            raise DivergedError(
                f"the gradients of the last {self.skipped} steps were not finite and were not "
                f"applied; the last step that was belongs to update {self.applied}"
            )

    def gathered_weights(self) -> AbstractContextManager[None]:
        """Hold all weights of the policy inside the block, not only this rank's shard."""
        return nullcontext()

    def measured_weights(self) -> AbstractContextManager[None]:
        """Inside the block, hold all the weights that are to be measured and saved."""
        return self.gathered_weights()

    @abstractmethod
    def learn(self, updates: int, on_update: UpdateCallback | None = None) -> None:
        """Train until ``updates`` updates are made in all, including those before a `load`."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write all that is needed to resume, with the policy as a transformers folder."""

    @abstractmethod
    def load(self, path: str | Path) -> None:
        """Resume from what `save` wrote."""


class EngineAgent(Agent):
    """An agent of this project, whose weights are updated by an engine of `agents.training`.

    Attributes:
        config: A dataclass of settings, written into checkpoints.
    """

    config: Any
    engine: Engine

    @cached_property
    def average(self) -> WeightAverage | None:
        """The averaged weights that are measured and saved in place of the last ones, if any."""
        if not self.config.average:
            return None
        return WeightAverage(self.engine.module, self.config.average)

    @contextmanager
    def measured_weights(self) -> Iterator[None]:
        """See `Agent.measured_weights`."""
        with self.gathered_weights(), self.average.applied() if self.average else nullcontext():
            yield

    @abstractmethod
    def improve(self, updates: int) -> dict[str, float]:
        """Make the next of ``updates`` updates in all; returns its metrics."""

    def learn(self, updates: int, on_update: UpdateCallback | None = None) -> None:
        """Train until ``updates`` updates have been made in all; the schedule spans them.

        Raises:
            DivergedError: Gradients were not finite three times in a row, or at the last step.
        """
        average = self.average  # starts from the first weights
        while self.update < updates:
            metrics = self.improve(updates)
            self.update += 1
            if average is not None:
                average.follow()
            if on_update is not None:
                on_update(self.update, metrics)
        self.require_applied()

    def step(self, learning_rate: float) -> float:
        """Apply the gradients accumulated in the engine; returns their norm before clipping."""
        norm = self.engine.step(learning_rate)
        self.note_step(norm)
        if 0 < norm < math.inf and learning_rate > 0:
            self.policy.mark_trained()
        return norm

    def gathered_weights(self) -> AbstractContextManager[None]:
        """See `Agent.gathered_weights`; all ranks must enter it."""
        return self.engine.gathered_weights()

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors and JSON-able values that this kind of agent adds to a checkpoint.

        It is called with all weights gathered.
        """
        return {}, {}

    def load_state(self, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
        """Inverse of `state`, given all that the checkpoint holds."""

    def save(self, path: str | Path) -> None:
        """Write policy, optimizer and progress, whole or not at all; every rank must call this.

        Any number of ranks can resume, with DeepSpeed or without.
        """
        self.gather_left_out()
        optimizer = self.engine.state_dict()
        facts = {
            "update": self.update,
            "config": asdict(self.config),
            "left_out": self.left_out.reasons,
        }
        with self.gathered_weights():
            tensors, more = self.state()
            tensors = {"optimizer": optimizer} | tensors
            if self.average is not None:
                tensors["average"] = self.average.state_dict()
            write_checkpoint(path, self.policy, tensors, facts | more, self.world)

    def load(self, path: str | Path) -> None:
        """Resume from `save` to the same numbers (up to rounding with another number of ranks).

        Raises:
            DamagedCheckpointError: The checkpoint is not what was written; nothing has changed.
        """
        require_whole(Path(path), self.world)
        with self.engine.gathered_weights(change=True):
            tensors, facts = read_checkpoint(path, self.policy)
            self.load_state(tensors, facts)
        if self.average is not None:
            self.average.load_state_dict(tensors["average"])
        self.engine.load_state_dict(tensors["optimizer"])
        self.left_out.update(facts.get("left_out", {}))
        self.update = self.applied = facts["update"]


def split_observations(
    observations: Mapping[str, Any],
) -> tuple[Sequence[NDArray[np.uint8]], Sequence[str]]:
    """Images and prompts of an observation, whether of one environment or of many."""
    images, prompts = observations["image"], observations["prompt"]
    return ([images], [prompts]) if isinstance(prompts, str) else (images, prompts)
