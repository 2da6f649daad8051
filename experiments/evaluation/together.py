"""Evaluation with the help of all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.base import Agent
from experiments.evaluation.loop import Evaluation, evaluate_turns, join_turns
from seg_env.envs.core import ReferringCore
from seg_env.envs.episodes import AnswerRules, EpisodeRules
from seg_env.envs.left_out import LeftOut, UnusableSampleError


def evaluate_together(
    agent: Agent, core: ReferringCore, indices: NDArray[np.integer[Any]], **settings: Any
) -> Evaluation:
    """Questions that are answered once, as `play_together`."""
    return play_together(agent, AnswerRules(core), indices, **settings)[-1]


def play_together(
    agent: Agent,
    rules: EpisodeRules[Any],
    indices: NDArray[np.integer[Any]],
    *,
    left_out: LeftOut | None = None,
    **settings: Any,
) -> list[Evaluation]:
    """`evaluate_turns` with the questions shared out; every rank gets the whole result.

    Args:
        agent: Whose policy answers.
        rules: Who asks and scores.
        indices: Which samples.
        left_out: Gets what any rank leaves out; by default nothing is.
        **settings: Those of `evaluate_turns`.

    Raises:
        UnusableSampleError: No sample can be asked about, or one cannot and is not to be left out.
    """
    mine = np.array_split(indices, agent.world.size)[agent.world.rank]
    left_out = LeftOut("error") if left_out is None else left_out
    settings["left_out"] = left_out
    with agent.whole_weights():
        found = evaluate_turns(agent.policy, rules, mine, **settings) if len(mine) else []
    for reasons in agent.world.gather(left_out.reasons):
        left_out.update(reasons)
    parts = [part for part in agent.world.gather(found) if part]
    if not parts:
        raise UnusableSampleError(f"no sample can be asked about: {left_out.summary()}")
    return join_turns(parts)
