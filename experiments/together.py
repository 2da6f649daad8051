"""Evaluation with the help of all ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.base import Agent
from experiments.evaluation import Evaluation, evaluate, join
from seg_env.envs.core import ReferringCore


def evaluate_together(
    agent: Agent, core: ReferringCore, indices: NDArray[np.integer[Any]], **settings: Any
) -> Evaluation:
    """`evaluate` with the questions shared out; every rank gets the whole result.

    Args:
        agent: Whose policy answers.
        core: Who asks and scores.
        indices: Which samples.
        **settings: Those of `evaluate`.
    """
    mine = np.array_split(indices, agent.world.size)[agent.world.rank]
    with agent.whole_weights():
        found = evaluate(agent.policy, core, mine, **settings) if len(mine) else None
    return join([part for part in agent.world.gather(found) if part is not None])
