"""Episodes of several turns: answer, look at the outline drawn on the image, correct it.

An edit is written ``move 3 0.5 0.2``, ``insert 3 0.5 0.2`` or ``delete 7``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

from gymnasium import spaces

from seg_env.data.base import Dataset
from seg_env.envs.core import Episode, Move, Observation, Question, ReferringCore
from seg_env.envs.spaces import FreeText
from seg_env.envs.vertex import NUMBER, RingText, draw_written, write_outline
from seg_env.frames import find_marked
from seg_env.grammar import decode
from seg_env.types import Prediction

REFINE_PROMPT = (
    "{question} Your outline so far is drawn in the image: {outline}. Answer with a better "
    "outline, with edits (move i x y; insert i x y; delete i), or with done. "
    "Turn {turn} of {turns}."
)

MAX_EDITS = 64
"""Most edits in one turn."""

_PLACEHOLDER = re.compile(r"\{(question|outline|turns?)\}")
_EMPTY = Prediction((), (), "[]")
_SEPARATOR = re.compile(r"[;\n]")
_EDIT = re.compile(
    rf"(?:(move|insert) ++([0-9]{{1,6}}+) ++({NUMBER}) ++({NUMBER})|(delete) ++([0-9]{{1,6}}+))"
)


class TurnFault(StrEnum):
    """Why a turn left the outline as it was. Values are stable: ``info["fault"]`` has them."""

    NONE = ""
    TOO_LONG = "too_long"
    """The action, or the outline it leads to, has too many characters."""
    UNREADABLE = "unreadable"
    """Neither an outline (a text with a bracket), nor edits, nor ``done``."""
    MALFORMED = "malformed"
    """The outline, or what the edits made of it, has the faults that ``info["issues"]`` lists."""
    NO_SUCH_VERTEX = "no_such_vertex"
    """An edit names a vertex that is not there."""


@dataclass(frozen=True, eq=False)
class RefineEpisode(Episode):
    """An outline that is being improved."""

    turn: int = 0
    """Turns taken."""
    outline: Prediction | None = None
    """The last outline that was read, None before the first."""
    rings: tuple[RingText, ...] = ()
    """Its vertices as they are written."""

    @property
    def text(self) -> str:
        """The outline without spaces or words; empty before the first."""
        return "" if self.outline is None else write_outline(self.rings)


class RefineRules(ReferringCore):
    """Up to ``turns`` turns; each earns its improvement of the outline's reward."""

    last_action = "last turn"

    def __init__(
        self,
        dataset: str | Dataset = "scenes",
        *,
        turns: int = 3,
        max_characters: int = 1 << 14,
        refine_template: str = REFINE_PROMPT,
        **arguments: Any,
    ) -> None:
        """Set the limits; ``arguments`` are those of `ReferringCore`."""
        super().__init__(dataset, **arguments)
        self.require_outlines("improving an answer turn by turn", bracketed=True)
        limits = ("turns", turns, 64), ("max_characters", max_characters, 1 << 18)
        for name, value, most in limits:
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ValueError(f"{name}={value!r}; use a whole number from 1 to {most}")
        missing = [word for word in ("{question}", "{outline}") if word not in refine_template]
        if missing:
            raise ValueError(f"refine_template={refine_template!r} lacks {', '.join(missing)}")
        self.turns, self.max_characters = turns, max_characters
        self.refine_template = refine_template
        asked = self.observation_space["prompt"]
        longest = getattr(asked, "max_length", 0) + max_characters + len(refine_template)
        self.observation_space = spaces.Dict(
            {**self.observation_space.spaces, "prompt": FreeText(longest)}
        )

    def begin(self, question: Question) -> RefineEpisode:
        """Open an episode."""
        return RefineEpisode(question)

    def observe(self, episode: RefineEpisode) -> Observation:
        """Image and prompt, from the first outline on with the outline in both."""
        if episode.outline is None:
            return super().observe(episode)
        words = {
            "question": episode.question.prompt,
            "outline": episode.text,
            "turn": str(min(episode.turn + 1, self.turns)),
            "turns": str(self.turns),
        }
        return {
            "image": draw_written(self, episode.question, episode.rings),
            # All at once: an expression may contain what looks like a placeholder.
            "prompt": _PLACEHOLDER.sub(lambda match: words[match[1]], self.refine_template),
        }

    def reset_info(self, episode: RefineEpisode) -> dict[str, Any]:
        """What is asked, the outline so far, and how many turns there are."""
        return super().reset_info(episode) | {
            "outline": episode.text,
            "turn": episode.turn,
            "turns_left": self.turns - episode.turn,
        }

    def move(self, episode: RefineEpisode, action: str) -> Move:
        """Take a turn, which may leave the outline as it is."""
        after, issues, done = replace(episode, turn=episode.turn + 1), "", False
        text, fault = "", TurnFault.NONE
        if len(action) > self.max_characters:
            fault = TurnFault.TOO_LONG
        elif action.strip().removesuffix(".").lower() == "done":
            done = True
        else:
            text, fault = _new_outline(episode.rings, action)
        if len(text) > self.max_characters:
            fault = TurnFault.TOO_LONG
        elif text:
            outline = decode(text, episode.question.frame)
            if outline.valid:
                after = replace(after, outline=outline, rings=split_outline(outline))
            else:
                fault, issues = TurnFault.MALFORMED, ",".join(outline.issue_kinds)
        return Move(
            after,
            after.outline or _EMPTY,
            counts=after.outline is not episode.outline,
            terminated=done or after.turn == self.turns,
            said={"valid": not fault, "issues": issues, "fault": fault.value},
        )


def _new_outline(rings: Sequence[RingText], action: str) -> tuple[str, TurnFault]:
    """The text of the outline that an answer or edits lead to, empty with a fault."""
    if "[" in action:
        return action, TurnFault.NONE
    edits = parse_edits(action)
    if edits is None:
        return "", TurnFault.UNREADABLE
    edited = apply_edits(rings, edits)
    if edited is None:
        return "", TurnFault.NO_SUCH_VERTEX
    return write_outline(edited), TurnFault.NONE


def split_outline(prediction: Prediction) -> tuple[RingText, ...]:
    """The numbers of a valid answer as its text writes them, ring by ring.

    Rings are as many and as long as ``prediction.rings``: a last vertex that only repeats the first
    is left out.
    """
    if not prediction.rings:
        return ()
    marked = find_marked(prediction.text)
    answer = prediction.text[marked.start : marked.end] if marked else prediction.text
    text = "".join(answer.split())
    # What was read without issue has exactly these brackets, and words only before them.
    inside = text[text.index("[[[") + 3 : text.rindex("]]]")]
    found = []
    for part, ring in zip(inside.split("]],[["), prediction.rings, strict=True):
        pairs = [vertex.split(",") for vertex in part.split("],[")]
        found.append(tuple((x, y) for x, y in pairs[: len(ring)]))
    return tuple(found)


class Edit(NamedTuple):
    """One correction of an outline. Vertices are numbered from 0 through all rings in order."""

    verb: str
    """``"move"``, ``"insert"`` (before the vertex of this number) or ``"delete"``."""
    vertex: int
    x: str = ""
    """As written; empty for ``"delete"``, like ``y``."""
    y: str = ""


def parse_edits(text: str) -> tuple[Edit, ...] | None:
    """Read one to `MAX_EDITS` edits separated by ``;`` or line breaks; None if there is more."""
    # One more piece than allowed shows that there are too many, however long the text is.
    pieces = map(str.strip, _SEPARATOR.split(text, maxsplit=2 * MAX_EDITS))
    found = [_EDIT.fullmatch(piece) for piece in pieces if piece]
    edits = tuple(
        Edit(match[1] or match[5], int(match[2] or match[6]), match[3] or "", match[4] or "")
        for match in found
        if match is not None
    )
    return edits if 1 <= len(edits) == len(found) <= MAX_EDITS else None


def apply_edits(rings: Sequence[RingText], edits: Sequence[Edit]) -> tuple[RingText, ...] | None:
    """Correct an outline, one edit after the other; None if one names a vertex that is not there.

    ``insert`` also takes the number after the last vertex, to add to the last ring. A ring that is
    left with two vertices fills nothing and is removed.
    """
    vertices = [(number, vertex) for number, ring in enumerate(rings) for vertex in ring]
    for verb, index, x, y in edits:
        if not vertices or index >= len(vertices) + (verb == "insert"):
            return None
        number = vertices[min(index, len(vertices) - 1)][0]
        if verb == "insert":
            vertices.insert(index, (number, (x, y)))
        elif verb == "move":
            vertices[index] = (number, (x, y))
        else:
            del vertices[index]
            if sum(ring == number for ring, _ in vertices) < 3:
                vertices = [each for each in vertices if each[0] != number]
    return tuple(
        tuple(vertex for _, vertex in ring) for _, ring in groupby(vertices, key=itemgetter(0))
    )
