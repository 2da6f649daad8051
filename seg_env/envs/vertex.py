"""Outlines vertex by vertex: drawn one in each step, and what each one of an answer earned."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seg_env.data.base import Dataset
from seg_env.envs.core import Episode, Move, Observation, Question, ReferringCore
from seg_env.envs.spaces import FreeText, PolygonText
from seg_env.frames import Frame
from seg_env.geometry.drawing import draw_outline
from seg_env.grammar import MAX_VERTICES, decode

NUMBER = r"-?+[0-9]{1,6}+(?:\.[0-9]{1,17}+)?+"
"""Regular expression of a coordinate: a plain decimal below a million."""

RingText = tuple[tuple[str, str], ...]
"""The vertices of one ring, two numbers as written each, so that nothing is rounded."""

MAX_ENTRIES = 256
"""Most entries of `VertexCredit`; vertices of longer answers are credited several at a time."""

_VERTEX = re.compile(r"\[[^\[\]]*+\]")
_ACTION = re.compile(rf"\s*+(?:\[\s*+({NUMBER})\s*+,\s*+({NUMBER})\s*+\]|(\]\s*+,\s*+\[)|(\]))\s*+")
_CHARACTERS_OF_A_VERTEX = 64  # At most: two numbers of 25 characters, brackets and commas.


def write_outline(rings: Sequence[RingText]) -> str:
    """Rings as an answer, ``[[[0.1,0.2],...],...]``, without spaces; ``[]`` for none."""
    texts = (",".join(f"[{x},{y}]" for x, y in ring) for ring in rings)
    return "[" + ",".join(f"[{text}]" for text in texts) + "]"


def draw_written(
    core: ReferringCore,
    question: Question,
    rings: Sequence[RingText],
    open_ring: RingText = (),
) -> NDArray[np.uint8]:
    """The image of a question with an outline drawn on it, see `draw_outline`."""
    seen = core.answer_frame.for_view(question.sample.target.size)
    written = [*rings, open_ring] if open_ring else rings
    drawn = [seen.to_unit(np.array(ring, dtype=np.float64)) for ring in written]
    return draw_outline(question.image, drawn, len(rings))


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

    vertices_left: int = 0
    """Actions left before the outline is closed by force."""
    rings: tuple[RingText, ...] = ()
    """Complete rings."""
    open_ring: RingText = ()
    """Vertices of the ring that is being drawn; none if the next vertex begins a ring."""

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

    def _draw(self) -> str:
        kind = self.np_random.random()
        if kind < 0.15:
            return "]" if kind < 0.1 else "],["
        points = self.frame.from_unit(self.np_random.random((1, 2)))
        x, y = np.clip(points[0], 0.0, self.frame.limits).tolist()
        places = 0 if self.frame.integer else 3
        return f"[{x:.{places}f},{y:.{places}f}]"


class VertexRules(ReferringCore):
    """One vertex after the other; each earns what it adds to the reward of the answer.

    With ``phi`` the weighted reward of the outline so far, closed, and 0 before the first action,
    an action earns ``phi(after) - phi(before)``. So an episode's return is the reward of the same
    text as one answer, whatever the rewards and gates are (potential-based rewards: Ng, Harada and
    Russell, ICML 1999).
    """

    last_action = "closing bracket or the last vertex allowed"

    def __init__(
        self,
        dataset: str | Dataset = "scenes",
        *,
        max_vertices: int = 128,
        render_outline: bool = False,
        **arguments: Any,
    ) -> None:
        """Set the limits; ``arguments`` are those of `ReferringCore`.

        After ``max_vertices`` actions (vertices, ring ends and faults) an outline that is still
        open is closed by force. With ``render_outline`` it is drawn on the image observed.
        """
        super().__init__(dataset, **arguments)
        self.require_outlines('step_mode="vertex"', bracketed=True)
        if isinstance(max_vertices, bool) or not isinstance(max_vertices, int):
            raise ValueError(f"max_vertices={max_vertices!r}; use a whole number")
        if not 3 <= max_vertices <= MAX_VERTICES:
            raise ValueError(f"max_vertices={max_vertices}; use 3 to {MAX_VERTICES}")
        self.max_vertices, self.render_outline = max_vertices, render_outline
        outline = FreeText(_CHARACTERS_OF_A_VERTEX * max_vertices)
        self.observation_space = spaces.Dict({**self.observation_space.spaces, "outline": outline})
        self.action_space = VertexText(_CHARACTERS_OF_A_VERTEX, frame=self.action_space.frame)

    def begin(self, question: Question) -> VertexEpisode:
        """Open an episode."""
        return VertexEpisode(question, vertices_left=self.max_vertices)

    def observe(self, episode: VertexEpisode) -> Observation:
        """Image, question, and the outline so far."""
        observation = super().observe(episode) | {"outline": episode.text}
        if self.render_outline:
            drawn = draw_written(self, episode.question, episode.rings, episode.open_ring)
            observation["image"] = drawn
        return observation

    def reset_info(self, episode: VertexEpisode) -> dict[str, Any]:
        """What is asked, and which actions lead to a well-formed answer."""
        return super().reset_info(episode) | {
            "can_close": len(episode.open_ring) not in (1, 2),
            "can_start_ring": len(episode.open_ring) >= 3,
            "vertices_left": episode.vertices_left,
        }

    def move(self, episode: VertexEpisode, action: str) -> Move:
        """Add a vertex, or end a ring or the outline."""
        match = _ACTION.fullmatch(action)
        closes, fault = match is not None and match[4] is not None, VertexFault.NONE
        after = replace(episode, vertices_left=episode.vertices_left - (not closes))
        if match is None:
            fault = VertexFault.UNREADABLE
        elif match[1]:
            after = replace(after, open_ring=(*after.open_ring, (match[1], match[2])))
        elif not closes and after.open_ring:
            after = replace(after, rings=(*after.rings, after.open_ring), open_ring=())
        elif not closes:
            fault = VertexFault.NO_RING
        return Move(
            after,
            self.decode(after.closed_text, episode.question),
            counts=not fault,  # what changed nothing earns nothing, whatever "[]" is worth
            terminated=closes,
            truncated=not closes and after.vertices_left == 0,
            said={"fault": fault.value},
        )


@dataclass(frozen=True, eq=False)
class VertexCredit:
    """The reward of one answer, taken apart into ``K`` entries: its vertices, then its closing."""

    ends: NDArray[np.int64]
    """``(K,)`` index behind the last character of each entry; the last is the text's length."""
    rewards: NDArray[np.float64]
    """``(K,)`` what the weighted reward grew by."""
    iou: NDArray[np.float64]
    """``(K,)`` what the mask IoU grew by."""


def vertex_credit(
    core: ReferringCore, questions: Sequence[Question], texts: Sequence[str]
) -> list[VertexCredit]:
    """Take the rewards of ``N`` answers apart by vertex, scored in one call of each reward.

    A vertex is credited with the difference that it made to the reward of the text so far, brackets
    closed, as in ``step_mode="vertex"`` (see `VertexRules`); that of no text is 0. So the credits
    sum to the reward of the answer. The last entry has what the end of the text changed: nothing,
    as a rule. A text with any issue, or without a ring, gets a single entry at its end; any other
    at most `MAX_ENTRIES` + 1.
    """
    other = next((question.task for question in questions if question.form != "mask"), None)
    if other is not None:
        raise ValueError(f"only outlines have vertices to credit; task={other!r} asks for none")
    if core.answer_frame.writes_tokens:
        raise ValueError(
            f"vertices are credited where they are written in brackets; frame "
            f"{core.answer_frame.family!r} writes location tokens"
        )
    if len(questions) != len(texts):
        raise ValueError(f"{len(texts)} answers to {len(questions)} questions; give one each")
    ends = [_ends(text, each.frame) for text, each in zip(texts, questions, strict=True)]
    prefixes = [
        text[:end] + "]]" * (end < len(text))
        for text, own in zip(texts, ends, strict=True)
        for end in own
    ]
    asked = [question for question, own in zip(questions, ends, strict=True) for _ in own]
    scores, bounds = core.score(prefixes, asked), np.cumsum([len(own) for own in ends], dtype=int)
    parts = zip(ends, np.split(scores.total, bounds), np.split(scores.iou, bounds), strict=False)
    return [
        VertexCredit(
            np.array(own, dtype=np.int64), np.diff(total, prepend=0.0), np.diff(iou, prepend=0.0)
        )
        for own, total, iou in parts
    ]


def _ends(text: str, frame: Frame) -> list[int]:
    """Where the entries of one answer end."""
    whole = decode(text, frame)
    if not whole.valid or not whole.rings:
        return [len(text)]
    ends = [match.end() for match in _VERTEX.finditer(text)]
    stride = 1 + (len(ends) - 1) // MAX_ENTRIES
    return [*ends[(len(ends) - 1) % stride :: stride], len(text)]  # with the last vertex
