"""The rules of an environment from its arguments, or by its id."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from seg_env.data.base import Dataset
from seg_env.envs.core import ReferringCore
from seg_env.envs.episodes import AnswerRules, EpisodeRules
from seg_env.envs.refine_rules import RefineRules
from seg_env.envs.vertex import VertexRules
from seg_env.registration import REFINE_IDS


def find_rules(
    dataset: str | Dataset = "scenes",
    *,
    step_mode: str = "answer",
    max_vertices: int | None = None,
    render_outline: bool | None = None,
    **arguments: Any,
) -> EpisodeRules[Any]:
    """The rules of a step mode; ``arguments`` are those of `ReferringCore`.

    ``max_vertices`` and ``render_outline`` are those of `VertexRules`, for ``"vertex"`` only.
    """
    options: dict[str, Any] = {"max_vertices": max_vertices, "render_outline": render_outline}
    given = {name: value for name, value in options.items() if value is not None}
    if step_mode == "vertex":
        return VertexRules(ReferringCore(dataset, **arguments), **given)
    if step_mode != "answer":
        raise ValueError(f"step_mode={step_mode!r} is unknown; use one of ('answer', 'vertex')")
    for name, value in given.items():
        raise ValueError(f"{name}={value!r} needs step_mode='vertex'; leave it out")
    return AnswerRules(ReferringCore(dataset, **arguments))


def find_refine_rules(dataset: str | Dataset = "scenes", **arguments: Any) -> RefineRules:
    """The rules of several turns; ``arguments`` are those of `RefineRules` and `ReferringCore`."""
    own = ("turns", "max_characters", "refine_template")
    limits = {name: arguments.pop(name) for name in own if name in arguments}
    return RefineRules(ReferringCore(dataset, **arguments), **limits)


def open_rules(env_id: str, **arguments: Any) -> EpisodeRules[Any]:
    """The rules of a registered environment."""
    find = find_refine_rules if env_id in REFINE_IDS else find_rules
    return find(**{**gym.spec(env_id).kwargs, **arguments})


def open_questions(env_id: str, **arguments: Any) -> ReferringCore:
    """The questions of a registered environment, without its episodes."""
    return ReferringCore(**{**gym.spec(env_id).kwargs, **arguments})
