"""The rules of an episode: what is observed, what an action does and what it earns.

The single and the vector environment do the bookkeeping. Rules hold no state: that of an episode is
a value that goes in and comes out, so a batch of episodes is stepped in one reward call.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from gymnasium import Space

from seg_env.envs.core import Observation, Question, ReferringCore
from seg_env.envs.scoring import ScoredAnswer


@dataclass(frozen=True, eq=False)
class Episode:
    """Where an episode stands; rules that need to know more add fields."""

    question: Question


EpisodeType = TypeVar("EpisodeType", bound=Episode)


@dataclass(frozen=True, eq=False)
class Outcome(Generic[EpisodeType]):
    """What one action led to."""

    episode: EpisodeType
    """Where the episode stands now."""
    reward: float
    terminated: bool
    truncated: bool
    info: dict[str, Any]
    """Strings, bools, ints and floats; the same keys for every action of these rules."""
    answer: ScoredAnswer
    """The outline as it stands, scored; for drawing."""


class EpisodeRules(ABC, Generic[EpisodeType]):
    """How episodes begin, go on and end.

    Its spaces are those of a single answer; rules of several steps set their own.
    """

    last_action = "one answer"
    """What ends an episode, in words."""
    turns = 1
    """Most prompts of an episode."""

    def __init__(self, core: ReferringCore) -> None:
        """Keep who asks and scores."""
        self.core = core
        self.observation_space: Space[Observation] = core.observation_space
        self.action_space: Space[str] = core.action_space

    @abstractmethod
    def begin(self, question: Question) -> EpisodeType:
        """Open an episode."""

    @abstractmethod
    def step(
        self, episodes: Sequence[EpisodeType], actions: Sequence[str]
    ) -> list[Outcome[EpisodeType]]:
        """Take one action in each of ``N`` open episodes, scored together."""

    def observe(self, episode: EpisodeType) -> Observation:
        """What the agent sees; arrays may be shared, whoever hands them out makes copies."""
        return {"image": episode.question.image, "prompt": episode.question.prompt}

    def reset_info(self, episode: EpisodeType) -> dict[str, Any]:
        """What ``info`` says when an episode begins."""
        return self.core.reset_info(episode.question)


def copy_observation(observation: Observation) -> Observation:
    """An observation that shares no memory with any other."""
    return {
        key: value.copy() if isinstance(value, np.ndarray) else value
        for key, value in observation.items()
    }


class AnswerRules(EpisodeRules[Episode]):
    """One whole answer ends the episode: a contextual bandit."""

    def begin(self, question: Question) -> Episode:
        """Open an episode."""
        return Episode(question)

    def step(self, episodes: Sequence[Episode], actions: Sequence[str]) -> list[Outcome[Episode]]:
        """Score ``N`` answers; every episode ends."""
        scores = self.core.score(actions, [episode.question for episode in episodes])
        outcomes = []
        for row, episode in enumerate(episodes):
            answer = scores.answer(row)
            info = self.core.answer_info(episode.question, answer)
            outcome = Outcome(
                episode, answer.total, terminated=True, truncated=False, info=info, answer=answer
            )
            outcomes.append(outcome)
        return outcomes
