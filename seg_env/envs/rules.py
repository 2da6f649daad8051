"""The rules of an environment from its arguments, or by its id."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from seg_env.data.base import Dataset
from seg_env.envs.core import ReferringCore
from seg_env.envs.episodes import AnswerRules, EpisodeRules
from seg_env.envs.refine_rules import RefineRules
from seg_env.envs.vertex import DEFAULT_MAX_VERTICES, VertexRules
from seg_env.registration import REFINE_IDS

STEP_MODES = ("answer", "vertex")
"""What one action is: a whole answer, or its next vertex."""
REFINE_ARGUMENTS = ("turns", "max_characters", "refine_template")
"""Arguments of an environment of several turns that are those of `RefineRules`."""


def find_rules(
    dataset: str | Dataset = "scenes",
    *,
    step_mode: str = "answer",
    max_vertices: int | None = None,
    render_outline: bool | None = None,
    **arguments: Any,
) -> EpisodeRules[Any]:
    """The rules of a step mode.

    Args:
        dataset: Name of a data set, or a data set object.
        step_mode: ``"answer"`` or ``"vertex"``.
        max_vertices: See `VertexRules`; for ``"vertex"`` only.
        render_outline: See `VertexRules`; for ``"vertex"`` only.
        **arguments: Those of `ReferringCore`.
    """
    if step_mode == "vertex":
        return VertexRules(
            ReferringCore(dataset, **arguments),
            max_vertices=DEFAULT_MAX_VERTICES if max_vertices is None else max_vertices,
            render_outline=bool(render_outline),
        )
    if step_mode != "answer":
        raise ValueError(f"step_mode={step_mode!r} is unknown; use one of {STEP_MODES}")
    for name, value in (("max_vertices", max_vertices), ("render_outline", render_outline)):
        if value is not None:
            raise ValueError(f"{name}={value!r} needs step_mode='vertex'; leave it out")
    return AnswerRules(ReferringCore(dataset, **arguments))


def find_refine_rules(dataset: str | Dataset = "scenes", **arguments: Any) -> RefineRules:
    """The rules of improving an outline over several turns.

    Args:
        dataset: Name of a data set, or a data set object.
        **arguments: Those of `RefineRules` and of `ReferringCore`.
    """
    limits = {name: arguments.pop(name) for name in REFINE_ARGUMENTS if name in arguments}
    return RefineRules(ReferringCore(dataset, **arguments), **limits)


def open_rules(env_id: str, **arguments: Any) -> EpisodeRules[Any]:
    """What an episode of a registered environment consists of, with its questions."""
    find = find_refine_rules if env_id in REFINE_IDS else find_rules
    return find(**{**gym.spec(env_id).kwargs, **arguments})


def open_questions(env_id: str, **arguments: Any) -> ReferringCore:
    """The questions of a registered environment, without its episodes."""
    return ReferringCore(**{**gym.spec(env_id).kwargs, **arguments})
