"""The step modes of the ``SimpleSeg-*`` environments by name."""

from __future__ import annotations

from typing import Any

from seg_env.data.base import Dataset
from seg_env.envs.core import ReferringCore
from seg_env.envs.episodes import AnswerRules, EpisodeRules
from seg_env.envs.vertex import DEFAULT_MAX_VERTICES, VertexRules

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
