"""Outlines kept as text, so that nothing is rounded, and the edits that correct them.

An edit is written ``move 3 0.5 0.2``, ``insert 3 0.5 0.2`` or ``delete 7``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from seg_env.types import Prediction

NUMBER = r"-?+[0-9]{1,6}+(?:\.[0-9]{1,17}+)?+"
"""Regular expression of a coordinate: a plain decimal below a million."""

RingText = tuple[tuple[str, str], ...]
"""The vertices of one ring, two numbers as written each."""

MAX_EDITS = 64
"""Most edits in one turn."""

_SEPARATOR = re.compile(r"[;\n]")
_EDIT = re.compile(
    rf"(?:(move|insert) ++([0-9]{{1,6}}+) ++({NUMBER}) ++({NUMBER})|(delete) ++([0-9]{{1,6}}+))"
)


def write_outline(rings: Sequence[RingText]) -> str:
    """Rings as an answer, ``[[[0.1,0.2],...],...]``, without spaces; ``[]`` for none."""
    texts = (",".join(f"[{x},{y}]" for x, y in ring) for ring in rings)
    return "[" + ",".join(f"[{text}]" for text in texts) + "]"


def split_outline(prediction: Prediction) -> tuple[RingText, ...]:
    """The numbers of a valid answer as its text writes them, ring by ring.

    Rings are as many and as long as ``prediction.rings``: a last vertex that only repeats the first
    is left out.
    """
    if not prediction.rings:
        return ()
    text = "".join(prediction.text.split())
    # What was read without issue has exactly these brackets, and words only before them.
    inside = text[text.index("[[[") + 3 : text.rindex("]]]")]
    found = []
    for part, ring in zip(inside.split("]],[["), prediction.rings, strict=True):
        pairs = [vertex.split(",") for vertex in part.split("],[")]
        found.append(tuple((x, y) for x, y in pairs[: len(ring)]))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Edit:
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
    pieces = _SEPARATOR.split(text, maxsplit=2 * MAX_EDITS)
    statements = [piece.strip() for piece in pieces if not piece.isspace() and piece]
    if not 1 <= len(statements) <= MAX_EDITS:
        return None
    edits = []
    for statement in statements:
        match = _EDIT.fullmatch(statement)
        if match is None:
            return None
        verb, vertex = match[1] or match[5], match[2] or match[6]
        edits.append(Edit(verb, int(vertex), match[3] or "", match[4] or ""))
    return tuple(edits)


def apply_edits(rings: Sequence[RingText], edits: Sequence[Edit]) -> tuple[RingText, ...] | None:
    """Correct an outline, one edit after the other; None if one names a vertex that is not there.

    ``insert`` also takes the number after the last vertex, to add to the last ring. A ring that is
    left with two vertices fills nothing and goes.
    """
    changed = [list(ring) for ring in rings]
    for edit in edits:
        place = _find(changed, edit.vertex, edit.verb == "insert")
        if place is None:
            return None
        number, index = place
        ring = changed[number]
        if edit.verb == "move":
            ring[index] = (edit.x, edit.y)
        elif edit.verb == "insert":
            ring.insert(index, (edit.x, edit.y))
        else:
            del ring[index]
            if len(ring) < 3:
                del changed[number]
    return tuple(tuple(ring) for ring in changed)


def _find(
    rings: Sequence[Sequence[object]], vertex: int, behind_last: bool
) -> tuple[int, int] | None:
    """Ring and place within it of a vertex; None if there is no such vertex."""
    for number, ring in enumerate(rings):
        last_ring = number == len(rings) - 1
        if vertex < len(ring) + (behind_last and last_ring):
            return number, vertex
        vertex -= len(ring)
    return None
