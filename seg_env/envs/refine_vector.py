"""The environment of several turns, many questions at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from seg_env.data.base import Dataset
from seg_env.envs.credit import VertexCredit
from seg_env.envs.refine_rules import RefineRules, find_refine_rules
from seg_env.envs.vector import ReferringSegmentationVectorEnv


class RefineVectorEnv(ReferringSegmentationVectorEnv):
    """``N`` environments of `RefineEnv` whose outlines are scored together.

    Everything is as in `ReferringSegmentationVectorEnv`, but that episodes have several steps and
    end when they want. Trainers disable autoreset and step until all episodes have ended, with None
    in place of an action where one has:

    ```python
    >>> import gymnasium as gym
    >>> name = "seg_env:SimpleSegRefine-Scenes-v0"
    >>> envs = gym.make_vec(name, num_envs=2, autoreset_mode="Disabled")
    >>> observations, infos = envs.reset(options={"indices": [7, 8]})
    >>> triangle = "[[[0.1,0.1],[0.9,0.1],[0.5,0.8]]]"
    >>> observations, rewards, ended, truncated, infos = envs.step(["done", triangle])
    >>> ended.tolist()
    [True, False]
    >>> observations, rewards, ended, truncated, infos = envs.step([None, "done"])
    >>> ended.tolist(), infos["_iou"].tolist()
    ([True, True], [False, True])

    ```
    """

    def vertex_credit(self, texts: Sequence[str]) -> list[VertexCredit]:
        """Not to be told: a turn earns an improvement, and may be an edit.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "vertices of a turn have no rewards of their own, as a turn earns what it improved: "
            "credit whole answers here"
        )

    def _make_rules(self, dataset: str | Dataset, **arguments: Any) -> RefineRules:
        """What an episode consists of."""
        return find_refine_rules(dataset, **arguments)
