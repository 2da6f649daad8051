"""One session of an environment as OpenEnv has them: typed actions and observations, and tasks."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import islice
from threading import Lock
from typing import Any
from uuid import uuid4

from gymnasium.error import ResetNeeded
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, EnvironmentMetadata, Observation, State
from pydantic import Field

from seg_env import __version__
from seg_env.data.images import data_url
from seg_env.envs.referring import ReferringSegmentationEnv

MOST_TASKS = 1000
"""Tasks that are listed at once."""


class OutlineAction(Action):
    """What the policy writes, whatever it is."""

    text: str = Field(description="An answer such as [[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]")


class OutlineObservation(Observation):
    """A question; ``metadata`` holds the environment's ``info``, and ``truncated``."""

    prompt: str = Field(description="The question")
    image: str = Field(description="The image as a PNG data URL; empty when the episode is done")
    outline: str = Field(default="", description="The answer so far, of episodes by vertices")


class OutlineEnvironment(Environment[OutlineAction, OutlineObservation, State]):
    """A session of `seg_env.envs.ReferringSegmentationEnv`, on one of its splits at a time."""

    SUPPORTS_CONCURRENT_SESSIONS = True

    def __init__(self, opened: Mapping[str, ReferringSegmentationEnv], reading: Lock) -> None:
        """Begin a session over environments that were never reset, whose data all sessions share.

        Args:
            opened: Environments by split; the first is the default.
            reading: Held while data are read.
        """
        super().__init__()
        # A copy has an episode and a random generator of its own: the original has neither.
        self._envs = {split: copy.copy(env) for split, env in opened.items()}
        self._reading = reading
        self._current: ReferringSegmentationEnv | None = None
        self._state = State()

    def reset(
        self,
        seed: int | None = None,
        episode_id: str | None = None,
        split: str | None = None,
        index: int | None = None,
        task: str | None = None,
        query_seed: int | None = None,
        **others: Any,
    ) -> OutlineObservation:
        """Ask a question; see the environment's ``reset`` for all but the split.

        Raises:
            ValueError: There is no such split, task or other argument.
        """
        if others:
            raise ValueError(f"unknown arguments of reset: {sorted(others)}")
        self._current = self._split(split)
        given = {"index": index, "task": task, "query_seed": query_seed}
        options = {name: value for name, value in given.items() if value is not None}
        with self._reading:
            observation, info = self._current.reset(seed=seed, options=options)
        self._state = State(episode_id=episode_id or str(uuid4()))
        return _observe(observation, info)

    def step(
        self, action: OutlineAction, timeout_s: float | None = None, **others: Any
    ) -> OutlineObservation:
        """Take an action.

        Raises:
            ResetNeeded: No question is open.
        """
        if self._current is None:
            raise ResetNeeded("no question is open: reset first")
        observation, reward, terminated, truncated, info = self._current.step(action.text)
        self._state.step_count += 1
        return _observe(
            observation,
            {**info, "truncated": truncated},
            reward=reward,
            done=terminated or truncated,
        )

    @property
    def state(self) -> State:
        """Which episode it is, and how many actions were taken."""
        return self._state

    def get_metadata(self) -> EnvironmentMetadata:
        """What the environment is about."""
        dataset = self._split(None).dataset
        return EnvironmentMetadata(
            name=dataset.name,
            description="Answer a question about an image with an outline, written as text",
            version=__version__,
        )

    def list_splits(self) -> list[str]:
        """Names of the splits."""
        return list(self._envs)

    def num_tasks(self, split: str) -> int:
        """Number of questions of a split."""
        return len(self._split(split).dataset)

    def get_task(self, split: str, index: int) -> dict[str, Any]:
        """What a question is about; ``reset(split=…, index=…)`` asks it.

        Raises:
            IndexError: There is no such question.
        """
        dataset = self._split(split).dataset
        if not 0 <= index < len(dataset):
            raise IndexError(f"{split} has {len(dataset)} tasks, and none of index {index}")
        with self._reading:
            sample = dataset[index]
        return {"split": split, "index": index, "id": sample.id, "expression": sample.expression}

    def get_task_range(
        self, split: str, start: int | None = None, stop: int | None = None
    ) -> list[dict[str, Any]]:
        """The questions of a slice, at most `MOST_TASKS`."""
        places = range(self.num_tasks(split))[start:stop]
        return [self.get_task(split, index) for index in islice(places, MOST_TASKS)]

    def list_tasks(self, split: str) -> list[dict[str, Any]]:
        """The first `MOST_TASKS` questions of a split."""
        return self.get_task_range(split)

    def _split(self, split: str | None) -> ReferringSegmentationEnv:
        if split is None:
            return next(iter(self._envs.values()))
        if split not in self._envs:
            raise ValueError(f"there is no split {split!r}; use one of {', '.join(self._envs)}")
        return self._envs[split]


def _observe(
    observation: Mapping[str, Any],
    info: dict[str, Any],
    reward: float | None = None,
    done: bool = False,
) -> OutlineObservation:
    return OutlineObservation(
        prompt=observation["prompt"],
        image="" if done else data_url(observation["image"]),
        outline=observation.get("outline", ""),
        reward=reward,
        done=done,
        metadata=info,
    )
