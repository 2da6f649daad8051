"""Evaluation with the help of all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.base import Agent
from experiments.evaluation import Evaluation, evaluate_turns, join_turns
from seg_env.envs.core import ReferringCore
from seg_env.envs.episodes import AnswerRules, EpisodeRules


def evaluate_together(
    agent: Agent, core: ReferringCore, indices: NDArray[np.integer[Any]], **settings: Any
) -> Evaluation:
    """Questions that are answered once, as `play_together`."""
    return play_together(agent, AnswerRules(core), indices, **settings)[-1]


def play_together(
    agent: Agent, rules: EpisodeRules[Any], indices: NDArray[np.integer[Any]], **settings: Any
) -> list[Evaluation]:
    """`evaluate_turns` with the questions shared out; every rank gets the whole result.

    Args:
        agent: Whose policy answers.
        rules: Who asks and scores.
        indices: Which samples.
        **settings: Those of `evaluate_turns`.
    """
    mine = np.array_split(indices, agent.world.size)[agent.world.rank]
    with agent.whole_weights():
        found = evaluate_turns(agent.policy, rules, mine, **settings) if len(mine) else []
    return join_turns([part for part in agent.world.gather(found) if part])
