"""The strict grammar as a character automaton: which characters may come next in an answer.

The language is that of `seg_env.grammar.grammar_regex`, by default in compact writing (no spaces),
with limits on rings and vertices. Every complete answer is read by `seg_env.grammar.decode` without
an issue, and no prefix that is accepted leads into a dead end.

States come in two parts. A *core* state says where in the grammar the text stands; there are a few
dozen, and a table holds their transitions. Three counters (vertices of the open ring, vertices and
rings of the answer) are kept beside it, because states for every count would need millions of rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from seg_env.grammar.states import (
    ALPHABET,
    OUTSIDE_RINGS,
    OWES_RING,
    OWES_VERTEX,
    AnswerRules,
    Event,
    outline_graph,
)

__all__ = ["ALPHABET", "AnswerRules", "Event", "GrammarAutomaton", "Position"]


class Position(NamedTuple):
    """Where an answer stands after some characters."""

    core: int
    """Core state."""
    ring_vertices: int
    """Vertices of the open ring."""
    vertices: int
    """Vertices of the answer."""
    rings: int
    """Rings of the answer."""


class GrammarAutomaton:
    """Deterministic automaton over characters.

    Attributes:
        rules: Which answers are allowed.
        following: ``(S, A) int16``: core state after a character of `ALPHABET`, -1 if none.
        events: ``(S, A) int8``: the `Event` of that character.
        in_ring: ``(S,) bool``: a ring is open.
        owes_vertex: ``(S,) bool``: a vertex must follow in the open ring, whatever its count.
        owes_ring: ``(S,) bool``: a ring must follow (before the first, ``[]`` may come instead).
        start: Core state of the empty text.
        end: Core state of complete answers; nothing follows.
    """

    def __init__(self, rules: AnswerRules | None = None) -> None:
        """Build the tables."""
        self.rules = rules or AnswerRules()
        graph = outline_graph(self.rules)
        self.following, self.events = graph.tables()
        names = list(graph.numbers)
        self.start, self.end = graph.numbers["start"], graph.numbers["end"]
        self.in_ring = np.array([name not in OUTSIDE_RINGS for name in names])
        self.owes_vertex = np.array([name in OWES_VERTEX for name in names])
        self.owes_ring = np.array([name in OWES_RING for name in names])
        # Single entries of arrays are slow to read, and `step` reads nothing else.
        self._edges = [
            {letter: edge for letter, *edge in zip(ALPHABET, *rows, strict=True) if edge[0] >= 0}
            for rows in zip(self.following.tolist(), self.events.tolist(), strict=True)
        ]
        is_open = self.in_ring | self.owes_ring
        self._flags = list(
            zip(is_open.tolist(), self.owes_vertex.tolist(), self.owes_ring.tolist(), strict=True)
        )

    def begin(self) -> Position:
        """The position of the empty text."""
        return Position(self.start, 0, 0, 0)

    def step(self, position: Position, character: str) -> Position | None:
        """The position after one more character, or None where it is not allowed."""
        core_before, ring_vertices, vertices, rings = position
        edge = self._edges[core_before].get(character)
        if edge is None:
            return None
        core, event = edge
        if event == Event.CLOSE_RING:
            if ring_vertices < self.rules.min_vertices:
                return None
            ring_vertices = 0
        vertex, ring = int(event == Event.VERTEX), int(event == Event.OPEN_RING)
        after = Position(core, ring_vertices + vertex, vertices + vertex, rings + ring)
        return after if self._fits(after) else None

    def walk(self, text: str) -> Position | None:
        """The position after a text, or None if no answer begins with it."""
        position: Position | None = self.begin()
        for character in text:
            if position is None:
                break
            position = self.step(position, character)
        return position

    def accepts(self, text: str) -> bool:
        """True if the text is a complete answer."""
        position = self.walk(text)
        return position is not None and position.core == self.end

    def owed_vertices(self, position: Position) -> int:
        """Vertices that must still be written before the answer can end (``[]`` aside)."""
        is_open, owes_vertex, _ = self._flags[position.core]
        missing = self.rules.min_vertices - position.ring_vertices
        return max(missing, int(owes_vertex)) if is_open else 0

    def _fits(self, position: Position) -> bool:
        """True if what is written and what is owed stay within the limits."""
        owed = self.owed_vertices(position)
        return (
            position.ring_vertices + owed <= self.rules.max_ring_vertices
            and position.vertices + owed <= self.rules.max_vertices
            and position.rings + self._flags[position.core][2] <= self.rules.max_rings
        )
