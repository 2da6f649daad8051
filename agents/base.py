"""What every agent can do: act, learn, save, load."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.policy.checks import try_sharing
from agents.policy.model import VLMPolicy
from agents.policy.sampling import sample
from agents.training.distributed import World
from seg_env.envs.left_out import LeftOut

UpdateCallback = Callable[[int, dict[str, float]], None]
"""Called as ``callback(update, metrics)`` after each update, counted from 1."""


class Agent(ABC):
    """A policy and a way to improve it.

    Attributes:
        max_new_tokens: Longest completion, in tokens.
        update: Updates made so far.
        world: The processes that evaluate and save together.
        left_out: Samples that could not be learned from, and why.
    """

    policy: VLMPolicy
    max_new_tokens: int
    update: int
    world: World = World()
    left_out: LeftOut

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

    def gathered_weights(self) -> AbstractContextManager[None]:
        """Hold all weights of the policy inside the block, not only this rank's shard."""
        return nullcontext()

    @abstractmethod
    def learn(self, updates: int, on_update: UpdateCallback | None = None) -> None:
        """Train until ``updates`` updates have been made in all, those before a `load` counted."""

    @abstractmethod
    def save(self, path: str | Path) -> None:
        """Write everything needed to go on; the policy is an ordinary transformers folder in it."""

    @abstractmethod
    def load(self, path: str | Path) -> None:
        """Go on from what `save` wrote."""


def split_observations(
    observations: Mapping[str, Any],
) -> tuple[Sequence[NDArray[np.uint8]], Sequence[str]]:
    """Images and prompts of an observation, whether of one environment or of many."""
    images, prompts = observations["image"], observations["prompt"]
    return ([images], [prompts]) if isinstance(prompts, str) else (images, prompts)
