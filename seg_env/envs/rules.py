"""The rules of an environment from its arguments, or by its id."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from seg_env.data.base import Dataset
from seg_env.envs.core import ReferringCore
from seg_env.envs.episodes import AnswerRules, EpisodeRules
from seg_env.envs.refine_rules import DEFAULT_MAX_CHARACTERS, REFINE_PROMPT, RefineRules
from seg_env.envs.vertex import DEFAULT_MAX_VERTICES, VertexRules
from seg_env.registration import REFINE_IDS

STEP_MODES = ("answer", "vertex")
"""What one action is: a whole answer, or its next vertex."""


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

    Raises:
        ValueError: There is no such mode, or an argument belongs to another one.
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


def find_refine_rules(
    dataset: str | Dataset = "scenes",
    *,
    turns: int = 3,
    max_characters: int = DEFAULT_MAX_CHARACTERS,
    refine_template: str = REFINE_PROMPT,
    **arguments: Any,
) -> RefineRules:
    """The rules of improving an outline over several turns.

    Args:
        dataset: Name of a data set, or a data set object.
        turns: See `RefineRules`, also for the next two.
        max_characters: Of actions and outlines.
        refine_template: From the second turn on.
        **arguments: Those of `ReferringCore`.
    """
    return RefineRules(
        ReferringCore(dataset, **arguments),
        turns=turns,
        max_characters=max_characters,
        refine_template=refine_template,
    )


def open_rules(env_id: str, **arguments: Any) -> EpisodeRules[Any]:
    """What an episode of a registered environment consists of, with its questions."""
    find = find_refine_rules if env_id in REFINE_IDS else find_rules
    return find(**{**gym.spec(env_id).kwargs, **arguments})


def open_questions(env_id: str, **arguments: Any) -> ReferringCore:
    """The questions of a registered environment, without its episodes."""
    return ReferringCore(**{**gym.spec(env_id).kwargs, **arguments})
