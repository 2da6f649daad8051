"""Core states of the strict grammar: rules for answers, and the graph that spells them out."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from seg_env.frames import UNIT, Frame
from seg_env.grammar.salvage import MAX_MAGNITUDE, MAX_RINGS, MAX_VERTICES

ALPHABET = "[],.0123456789 "
"""Every character of the language."""
MOST_DECIMALS = 17
"""Most digits behind a point that `decode` reads without closer inspection."""
OWES_VERTEX = ("next vertex", "next vertex, spaced")
"""States behind a comma that a vertex must follow."""
OWES_RING = ("start", "list", "next ring", "next ring, spaced")
"""States that a ring must follow; behind the first bracket the answer may end instead."""
OUTSIDE_RINGS = (*OWES_RING, "ring end", "end")
"""States in which no ring is open."""


class Event(IntEnum):
    """What a character does to the counters."""

    NONE = 0
    OPEN_RING = 1
    CLOSE_RING = 2
    VERTEX = 3
    """A vertex begins; it is counted at its opening bracket."""


@dataclass(frozen=True)
class AnswerRules:
    """Which answers are allowed.

    Raises:
        ValueError: if a field is out of range, or no ring fits the limits.
    """

    decimals: int = 3
    """Most digits after the point, 1 to 17; ignored in integer frames."""
    frame: Frame = UNIT
    """Frame of the numbers; its limits must be whole numbers."""
    pad: bool = False
    """Every number has `decimals` digits after the point, as ``encode(pad=True)`` writes."""
    spaces: bool = False
    """A comma may be followed by one space."""
    allow_empty: bool = True
    """``[]``, "no target", is an answer."""
    min_vertices: int = 3
    """Fewest vertices of a ring, at least 3."""
    max_ring_vertices: int = MAX_VERTICES
    """Most vertices of a ring."""
    max_vertices: int = MAX_VERTICES
    """Most vertices of an answer, at most what `decode` reads."""
    max_rings: int = MAX_RINGS
    """Most rings of an answer, at most what `decode` reads."""

    def __post_init__(self) -> None:
        """Reject rules under which an answer would be read with an issue, or none exists."""
        if not 1 <= self.decimals <= MOST_DECIMALS:
            raise ValueError(f"decimals={self.decimals}, but allowed are 1 to {MOST_DECIMALS}")
        if not 3 <= self.min_vertices <= min(self.max_ring_vertices, self.max_vertices):
            raise ValueError(
                f"min_vertices={self.min_vertices}, but allowed are 3 up to "
                f"max_ring_vertices={self.max_ring_vertices} and max_vertices={self.max_vertices}"
            )
        for name, most in (("max_vertices", MAX_VERTICES), ("max_rings", MAX_RINGS)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name}={getattr(self, name)}, but allowed are 1 to {most}")
        for limit in self.frame.limits:
            if limit != int(limit) or not 1 <= limit <= MAX_MAGNITUDE:
                raise ValueError(
                    f"limit {limit} of frame {self.frame.name}, but a whole number from 1 to "
                    f"{MAX_MAGNITUDE:.0f} is needed"
                )


class StateGraph:
    """Named states and the edges between them, while the automaton is put together."""

    def __init__(self) -> None:
        """Begin without any state."""
        self.numbers: dict[Hashable, int] = {}
        self._edges: list[tuple[int, int, int, Event]] = []

    def edge(
        self, source: Hashable, characters: str, target: Hashable, event: Event = Event.NONE
    ) -> None:
        """Add an edge for each of the characters."""
        for name in (source, target):
            self.numbers.setdefault(name, len(self.numbers))
        for character in characters:
            column = ALPHABET.index(character)
            self._edges.append((self.numbers[source], column, self.numbers[target], event))

    def comma(self, source: Hashable, target: str, spaces: bool) -> str:
        """Add a comma that leads to `target`, from where an optional space may follow.

        Returns:
            The state behind that space; without `spaces` it is `target` itself.
        """
        self.edge(source, ",", target)
        if not spaces:
            return target
        self.edge(target, " ", f"{target}, spaced")
        return f"{target}, spaced"

    def tables(self) -> tuple[NDArray[np.int16], NDArray[np.int8]]:
        """Transitions and events of all states, ``(S, A)`` each."""
        shape = len(self.numbers), len(ALPHABET)
        following, events = np.full(shape, -1, np.int16), np.zeros(shape, np.int8)
        for source, column, target, event in self._edges:
            following[source, column], events[source, column] = target, event
        return following, events


def outline_graph(rules: AnswerRules) -> StateGraph:
    """All states of answers by the rules."""
    graph = StateGraph()
    graph.edge("start", "[", "list")
    graph.edge("list", "[", "ring", Event.OPEN_RING)
    if rules.allow_empty:
        graph.edge("list", "]", "end")
    graph.edge("ring", "[", "x", Event.VERTEX)
    for name in _add_number(graph, "x", "x", rules, rules.frame.limits[0]):
        spaced = graph.comma(name, "y", rules.spaces)
    for source in dict.fromkeys(("y", spaced)):
        for name in _add_number(graph, source, "y", rules, rules.frame.limits[1]):
            graph.edge(name, "]", "vertex end")
    spaced = graph.comma("vertex end", "next vertex", rules.spaces)
    for source in dict.fromkeys(("next vertex", spaced)):
        graph.edge(source, "[", "x", Event.VERTEX)
    graph.edge("vertex end", "]", "ring end", Event.CLOSE_RING)
    spaced = graph.comma("ring end", "next ring", rules.spaces)
    for source in dict.fromkeys(("next ring", spaced)):
        graph.edge(source, "[", "ring", Event.OPEN_RING)
    graph.edge("ring end", "]", "end")
    return graph


def _add_number(
    graph: StateGraph, source: str, axis: str, rules: AnswerRules, limit: float
) -> list[Hashable]:
    """Add the numbers from 0 to `limit` behind a state.

    States of whole numbers are ``(axis, digits, sign)``, where the sign says whether those digits
    are less than, equal to or greater than as many leading digits of the limit.

    Returns:
        The states in which a number may end.
    """
    top = str(int(limit))
    _add_whole_numbers(graph, source, axis, top)
    zero, whole = (axis, "zero"), (axis, len(top), 0)
    signs = [(axis, digits, sign) for digits in range(1, len(top) + 1) for sign in (-1, 0, 1)]
    wholes: list[Hashable] = [name for name in [zero, *signs] if name in graph.numbers]
    if rules.frame.integer:
        return wholes
    ends = [] if rules.pad else list(wholes)
    for name in wholes:
        kind, digits = ("zeros", "0") if name == whole else ("digits", "0123456789")
        graph.edge(name, ".", (axis, kind, 0))
        for place in range(rules.decimals):
            graph.edge((axis, kind, place), digits, (axis, kind, place + 1))
    places = range(rules.decimals if rules.pad else 1, rules.decimals + 1)
    kinds = [kind for kind in ("zeros", "digits") if (axis, kind, 0) in graph.numbers]
    return ends + [(axis, kind, place) for kind in kinds for place in places]


def _add_whole_numbers(graph: StateGraph, source: str, axis: str, top: str) -> None:
    """Add the digits of whole numbers up to `top`, without leading zeros."""
    graph.edge(source, "0", (axis, "zero"))
    waiting: list[tuple[Hashable, int, int, str]] = [(source, 0, 0, "123456789")]
    while waiting:
        name, count, sign, digits = waiting.pop()
        for digit in digits:
            # What is greater so far is still smaller in the end, if it stays shorter.
            order = sign or (digit > top[count]) - (digit < top[count])
            if count + 1 == len(top) and order > 0:
                continue
            target = (axis, count + 1, order)
            is_new = target not in graph.numbers
            graph.edge(name, digit, target)
            if is_new and count + 1 < len(top):
                waiting.append((target, count + 1, order, "0123456789"))
