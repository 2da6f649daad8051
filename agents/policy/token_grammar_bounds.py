"""Under which counts a token is allowed: limits, what an answer still owes, and the budget."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from agents.policy.token_grammar_compile import CompiledGrammar
from seg_env.grammar.automaton import GrammarAutomaton

UNREACHABLE = 1 << 40
"""Tokens until the end where no sequence of tokens leads to it, and a bound that never binds."""


Count = TypeVar("Count")


class Counts(NamedTuple, Generic[Count]):
    """What is counted of an answer; as many bounds decide whether a token is allowed."""

    ring: Count
    """Vertices of the open ring."""
    vertices: Count
    """Vertices of the answer."""
    earlier: Count
    """Vertices of the rings that are closed."""
    rings: Count
    """Rings of the answer."""
    tokens: Count
    """Tokens of the answer."""


class _Effects:
    """Fields of the effects for every count of vertices in the open ring, ``(S, Q, M)`` each.

    ``Q - 1`` is `min_vertices`, and stands for more vertices, too: beyond, the count changes
    nothing about what is owed.
    """

    def __init__(self, automaton: GrammarAutomaton, compiled: CompiledGrammar) -> None:
        fewest = automaton.rules.min_vertices
        is_open = automaton.in_ring | automaton.owes_ring
        flags = (is_open, automaton.owes_vertex, automaton.owes_ring)
        # The last core state, in which no text is written yet, owes what the first one does.
        rows = [np.append(flag, flag[automaton.start])[:, None, None] for flag in flags]
        is_open, owes_vertex, owes_ring = (row.astype(np.int64) for row in rows)  # (S, 1, 1)
        count = np.arange(fewest + 1)[None, :, None]
        fields = np.moveaxis(compiled.effects[:, None].astype(np.int64), -1, 0)
        shape = (len(compiled.effects), fewest + 1, compiled.effects.shape[1])
        core, before, closes, after, vertices, rings = (np.broadcast_to(f, shape) for f in fields)
        self.core, self.before, self.closes, self.after = core, before, closes > 0, after
        self.vertices, self.rings = vertices, rings
        self.owes_vertex, self.owes_ring = owes_vertex[core, 0, 0], owes_ring[core, 0, 0]
        self.is_open = is_open[core, 0, 0]
        ring = np.where(self.closes, after, count + before)
        self.possible = (core >= 0) & (~self.closes | (count + before >= fewest))
        self.ring = np.minimum(ring, fewest)
        """Vertices of the open ring behind the token, in steps of ``Q``."""
        self.owed = self.is_open * np.maximum(fewest - ring, self.owes_vertex)
        """Vertices owed behind the token."""
        self.owed_before = is_open * np.maximum(fewest - count, owes_vertex)  # (S, Q, 1)
        self.owes_ring_before = owes_ring


def token_distances(automaton: GrammarAutomaton, compiled: CompiledGrammar) -> NDArray[np.int64]:
    """Fewest tokens to a complete answer on paths that write nothing but what is owed.

    Such a path stays open whatever the limits are, as room for what is owed is always kept. Where a
    token that writes more than that leads to the end sooner, this is an upper bound.

    Returns:
        ``(S, Q)``, by core state and vertices of the open ring; the last column stands for
        `min_vertices` and more. `UNREACHABLE` if no tokens lead there.
    """
    effects = _Effects(automaton, compiled)
    minimal = effects.possible & (effects.vertices + effects.owed <= effects.owed_before)
    minimal &= effects.rings + effects.owes_ring <= effects.owes_ring_before
    distance = np.full(effects.core.shape[:2], UNREACHABLE, dtype=np.int64)
    distance[automaton.end] = 0
    while True:
        behind = np.where(minimal, distance[effects.core, effects.ring], UNREACHABLE).min(axis=2)
        closer = np.minimum(distance, np.minimum(behind + 1, UNREACHABLE))
        if (closer == distance).all():
            return distance
        distance = closer


def token_bounds(
    automaton: GrammarAutomaton, compiled: CompiledGrammar, token_budget: int | None
) -> NDArray[np.int64]:
    """Largest counts in front of a token under which it is allowed.

    Args:
        automaton: The grammar, whose rules hold the limits.
        compiled: Effects of the tokens.
        token_budget: Most tokens of an answer, the end token included, or None.

    Returns:
        ``(S, Q, M, 5)``, the fields of `Counts`, by core state, vertices of the open ring and
        number of the effect; -1 where it is never allowed.
    """
    rules, effects = automaton.rules, _Effects(automaton, compiled)
    distance = token_distances(automaton, compiled)[effects.core, effects.ring]
    # Behind this token come those to a complete answer, and the end token.
    last = (UNREACHABLE if token_budget is None else token_budget) - 2 - distance
    in_token = np.where(effects.closes, effects.owed, effects.owes_vertex)
    # The counts of a ring that stays open do not say what it owes, those of earlier rings do.
    room = rules.max_vertices - rules.min_vertices * ~effects.closes * effects.is_open
    bounds = Counts[NDArray[np.int64]](
        ring=rules.max_ring_vertices - effects.before - effects.owes_vertex * ~effects.closes,
        vertices=rules.max_vertices - effects.vertices - in_token,
        earlier=room,
        rings=rules.max_rings - effects.rings - effects.owes_ring,
        tokens=last,
    )
    fits = effects.possible & (distance < UNREACHABLE)
    fits &= ~effects.closes | (effects.after + effects.owes_vertex <= rules.max_ring_vertices)
    return np.where(fits[..., None], np.stack(bounds, axis=-1), -1)
