"""The grammar's character automaton compiled against a vocabulary.

For every core state and token there is at most one *effect*: the core state behind the token and
what its characters do to the counters. Few effects are different, so a table of small numbers
(core states × tokens of the grammar) and a short list of effects per core state hold everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from agents.policy.token_grammar_texts import TokenTexts
from seg_env.grammar.automaton import ALPHABET, Event, GrammarAutomaton


class Effect(NamedTuple):
    """What a token does, given the core state in front of it."""

    core: int
    """Core state behind the token, -1 for no effect at all: the token is not allowed."""
    before: int
    """Vertices that begin before a ring is closed; of the whole token if none is."""
    closes: int
    """1 if a ring is closed that was open in front of the token, or opened by it."""
    after: int
    """Vertices that begin after the last ring was closed; 0 if none is."""
    vertices: int
    """Vertices that begin, all together."""
    rings: int
    """Rings that begin."""


NO_EFFECT = Effect(-1, 0, 0, 0, 0, 0)


@dataclass(frozen=True)
class CompiledGrammar:
    """Tables for ``S`` core states, ``L`` tokens of the grammar and at most ``M`` effects each.

    The last core state is one that characters do not have: tokens were written, but no text. Some
    tokenizers begin every text with a space of its own that decoding drops.
    """

    tokens: NDArray[np.int64]
    """``(L,)`` token ids, ascending."""
    table: NDArray[np.int16]
    """``(S, L)`` index of the effect of a token; 0 where it is not allowed."""
    effects: NDArray[np.int32]
    """``(S, M, 6)`` the `Effect` of that index; number 0 is `NO_EFFECT`."""


def compile_grammar(automaton: GrammarAutomaton, texts: TokenTexts) -> CompiledGrammar:
    """Walk a trie of the tokens over the automaton, from every core state."""
    tokens = np.array(sorted(texts.first.keys() | texts.later.keys()), dtype=np.int64)
    column = {token: index for index, token in enumerate(tokens.tolist())}
    first, later = _trie(texts.first, column), _trie(texts.later, column)
    no_text = len(automaton.in_ring)
    table = np.zeros((no_text + 1, len(tokens)), dtype=np.int16)
    lists: list[list[Effect]] = []
    for core in range(no_text + 1):
        numbers = {NO_EFFECT: 0}
        start = automaton.start if core == no_text else core
        for columns, effect in _walk(automaton, start, first if core == automaton.start else later):
            if effect.core == automaton.start:
                effect = effect._replace(core=no_text)
            table[core, columns] = numbers.setdefault(effect, len(numbers))
        lists.append(list(numbers))
    width = max(map(len, lists))
    effects = np.array([[*some, *[NO_EFFECT] * (width - len(some))] for some in lists], np.int32)
    return CompiledGrammar(tokens, table, effects)


class _Node:
    """A node of the trie."""

    __slots__ = ("children", "columns")

    def __init__(self) -> None:
        self.children: dict[str, _Node] = {}
        self.columns: list[int] = []


def _trie(texts: dict[int, str], column: dict[int, int]) -> _Node:
    root = _Node()
    for token, text in texts.items():
        node = root
        for character in text:
            node = node.children.setdefault(character, _Node())
        node.columns.append(column[token])
    return root


def _walk(
    automaton: GrammarAutomaton, core: int, root: _Node
) -> Iterator[tuple[list[int], Effect]]:
    """Effects of all tokens that are possible behind a core state."""
    following, events = automaton.following.tolist(), automaton.events.tolist()
    waiting = [(root, Effect(core, 0, 0, 0, 0, 0))]
    while waiting:
        node, effect = waiting.pop()
        if node.columns:
            yield node.columns, effect
        for character, child in node.children.items():
            letter = ALPHABET.index(character)
            target = following[effect.core][letter]
            changed = _extend(automaton, effect, target, events[effect.core][letter])
            if changed is not None:
                waiting.append((child, changed))


def _extend(automaton: GrammarAutomaton, effect: Effect, core: int, event: int) -> Effect | None:
    """The effect of one more character, or None if no state of the counters allows it."""
    if core < 0:
        return None
    _, before, closes, after, vertices, rings = effect
    if event == Event.VERTEX:
        vertices += 1
        before, after = (before, after + 1) if closes else (before + 1, after)
    elif event == Event.OPEN_RING:
        rings += 1
    elif event == Event.CLOSE_RING:
        rules = automaton.rules
        if closes and not rules.min_vertices <= after <= rules.max_ring_vertices:
            return None
        closes, after = 1, 0
    return Effect(core, before, closes, after, vertices, rings)
