"""Episodes in which each action is the next vertex of the outline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from gymnasium import spaces

from seg_env.envs.core import Observation, Question, ReferringCore
from seg_env.envs.edits import NUMBER, RingText, write_outline
from seg_env.envs.episodes import Episode, EpisodeRules, Outcome
from seg_env.envs.render import draw_outline
from seg_env.envs.spaces import FreeText, PolygonText
from seg_env.frames import UNIT, Frame
from seg_env.grammar import MAX_VERTICES
from seg_env.types import Ring

_ACTION = re.compile(rf"\s*+(?:\[\s*+({NUMBER})\s*+,\s*+({NUMBER})\s*+\]|(\]\s*+,\s*+\[)|(\]))\s*+")
_CHARACTERS_OF_A_VERTEX = 64  # At most: two numbers of 25 characters, brackets and commas.


class VertexFault(StrEnum):
    """Why an action changed nothing. Values are stable: they appear in ``info["fault"]``."""

    NONE = ""
    UNREADABLE = "unreadable"
    """Neither ``[x,y]`` with plain decimal numbers, nor ``],[``, nor ``]``."""
    NO_RING = "no_ring"
    """``],[`` where no ring is being drawn."""


@dataclass(frozen=True, eq=False)
class VertexEpisode(Episode):
    """An outline that is being drawn."""

    vertices_left: int
    """Actions left before the outline is closed by force."""
    rings: tuple[RingText, ...] = ()
    """Complete rings."""
    open_ring: RingText = ()
    """Vertices of the ring that is being drawn; none if the next vertex begins a ring."""
    value: float = 0.0
    """Reward of the outline so far, closed; 0 at the start."""

    @property
    def closed_text(self) -> str:
        """The outline so far as a whole answer."""
        return write_outline((*self.rings, self.open_ring) if self.open_ring else self.rings)

    @property
    def text(self) -> str:
        """The outline so far as the beginning of an answer, brackets open."""
        if self.open_ring:
            return self.closed_text[:-2]
        return self.closed_text[:-1] + ",[" if self.rings else ""


class VertexText(PolygonText):
    """Actions of ``step_mode="vertex"``: any string at all, sampled as legal actions.

    Most samples are vertices inside the image, some close the outline or a ring.
    """

    def __init__(self, *, frame: Frame = UNIT, decimals: int = 3, seed: int | None = None) -> None:
        """Describe the space by the frame and the decimals in which samples are written."""
        super().__init__(_CHARACTERS_OF_A_VERTEX, frame=frame, decimals=decimals, seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw ``[x,y]``, ``],[`` or ``]``."""
        if mask is not None or probability is not None:
            raise ValueError("VertexText.sample takes no mask and no probability; call sample()")
        kind = self.np_random.random()
        if kind < 0.15:
            return "]" if kind < 0.1 else "],["
        points = self.frame.from_unit(self.np_random.random((1, 2)))
        x, y = np.clip(points[0], 0.0, self.frame.limits).tolist()
        places = 0 if self.frame.integer else self.decimals
        return f"[{x:.{places}f},{y:.{places}f}]"


class VertexRules(EpisodeRules[VertexEpisode]):
    """One vertex after the other; each earns what it adds to the reward of the answer.

    With ``phi`` the weighted reward of the outline so far, closed, and 0 before the first action,
    an action earns ``phi(after) - phi(before)``. So an episode's return is the reward of the same
    text as one answer, whatever the rewards and gates are (potential-based rewards: Ng, Harada and
    Russell, ICML 1999).
    """

    last_action = "closing bracket or the last vertex allowed"

    def __init__(
        self, core: ReferringCore, *, max_vertices: int = 128, render_outline: bool = False
    ) -> None:
        """Set the limits.

        After ``max_vertices`` actions (vertices, ring ends and faults) an outline that is still
        open is closed by force. With ``render_outline`` it is drawn on the image observed.
        """
        super().__init__(core)
        core.require_outlines('step_mode="vertex"', bracketed=True)
        if isinstance(max_vertices, bool) or not isinstance(max_vertices, int):
            raise ValueError(f"max_vertices={max_vertices!r}; use a whole number")
        if not 3 <= max_vertices <= MAX_VERTICES:
            raise ValueError(f"max_vertices={max_vertices}; use 3 to {MAX_VERTICES}")
        self.max_vertices, self.render_outline = max_vertices, render_outline
        outline = FreeText(_CHARACTERS_OF_A_VERTEX * max_vertices)
        self.observation_space = spaces.Dict({**core.observation_space.spaces, "outline": outline})
        self.action_space = VertexText(frame=core.typical_frame)

    def begin(self, question: Question) -> VertexEpisode:
        """Open an episode."""
        return VertexEpisode(question, self.max_vertices)

    def observe(self, episode: VertexEpisode) -> Observation:
        """Image, question, and the outline so far."""
        observation = super().observe(episode) | {"outline": episode.text}
        if self.render_outline:
            seen = self.core.answer_frame.for_view(episode.question.sample.target.size)
            rings = [_points(ring, seen) for ring in episode.rings]
            open_ring = _points(episode.open_ring, seen) if episode.open_ring else None
            observation["image"] = draw_outline(episode.question.image, rings, open_ring)
        return observation

    def reset_info(self, episode: VertexEpisode) -> dict[str, Any]:
        """What is asked, and which actions make sense."""
        return super().reset_info(episode) | _legal_actions(episode)

    def step(
        self, episodes: Sequence[VertexEpisode], actions: Sequence[str]
    ) -> list[Outcome[VertexEpisode]]:
        """Take ``N`` actions; all outlines are scored in one call."""
        drawn = [_apply(*pair) for pair in zip(episodes, actions, strict=True)]
        scores = self.core.score(
            [after.closed_text for after, _, _ in drawn], [before.question for before in episodes]
        )
        outcomes = []
        for row, (before, (after, fault, closed)) in enumerate(zip(episodes, drawn, strict=True)):
            answer = scores.answer(row)
            # What changed nothing earns nothing, whatever "[]" is worth.
            value = before.value if fault else answer.total
            after = replace(after, value=value)
            info = self.core.answer_info(after.question, answer)
            outcomes.append(
                Outcome(
                    after,
                    value - before.value,
                    terminated=closed,
                    truncated=not closed and after.vertices_left == 0,
                    info={**info, "fault": fault.value, **_legal_actions(after)},
                    answer=answer,
                )
            )
        return outcomes


def _points(ring: RingText, seen: Frame) -> Ring:
    """A ring in the unit frame of the image seen."""
    return seen.to_unit(np.array(ring, dtype=np.float64))


def _apply(episode: VertexEpisode, action: str) -> tuple[VertexEpisode, VertexFault, bool]:
    """The outline after an action, the action's fault, and whether the outline is closed."""
    match = _ACTION.fullmatch(action)
    if match is not None and match[4]:
        return episode, VertexFault.NONE, True
    episode = replace(episode, vertices_left=episode.vertices_left - 1)
    if match is None:
        return episode, VertexFault.UNREADABLE, False
    if match[1]:
        open_ring = (*episode.open_ring, (match[1], match[2]))
        return replace(episode, open_ring=open_ring), VertexFault.NONE, False
    if not episode.open_ring:
        return episode, VertexFault.NO_RING, False
    rings = (*episode.rings, episode.open_ring)
    return replace(episode, rings=rings, open_ring=()), VertexFault.NONE, False


def _legal_actions(episode: VertexEpisode) -> dict[str, Any]:
    """Which actions lead to a well-formed answer."""
    return {
        "can_close": len(episode.open_ring) not in (1, 2),
        "can_start_ring": len(episode.open_ring) >= 3,
        "vertices_left": episode.vertices_left,
    }
