"""The automaton of the strict grammar: what it lets through is read without an issue."""

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_env.frames import PERMILLE, UNIT, Frame, letterbox_frame, pixel_frame
from seg_env.grammar import MAX_RINGS, MAX_VERTICES, decode, encode, grammar_regex
from seg_env.grammar.automaton import ALPHABET, AnswerRules, GrammarAutomaton, Position

FRAMES = [
    UNIT,
    PERMILLE,
    pixel_frame(640, 7),
    letterbox_frame(UNIT, (427, 640), (336, 336)),
    letterbox_frame(pixel_frame(448, 448), (427, 640), (224, 224)),
]
SMALL = {"max_vertices": 9, "max_ring_vertices": 5, "max_rings": 3}
"""Limits under which a random walk soon ends."""

coordinates = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 0.9996, 1.0])
rings = hnp.arrays(np.float64, st.tuples(st.integers(3, 12), st.just(2)), elements=coordinates)
frames = st.sampled_from(FRAMES)


def choices(automaton: GrammarAutomaton, position: Position) -> list[str]:
    return [letter for letter in ALPHABET if automaton.step(position, letter) is not None]


def random_answer(automaton: GrammarAutomaton, generator: random.Random) -> str:
    """Every character uniform over what is allowed; fails where nothing is."""
    text, position = "", automaton.begin()
    while position.core != automaton.end:
        letter = generator.choice(choices(automaton, position))
        text, position = text + letter, automaton.step(position, letter)
        assert position is not None
    assert choices(automaton, position) == []
    return text


def sizes_of(text: str) -> list[int]:
    """Vertices of each ring, counted in the text: reading may drop a vertex that closes a ring."""
    if text == "[]":
        return []
    return [len(ring.split("],[")) for ring in text.replace(" ", "").split("]],[[")]


@settings(deadline=None)
@given(
    frame=frames,
    decimals=st.integers(1, 17),
    pad=st.booleans(),
    spaces=st.booleans(),
    allow_empty=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
def test_whatever_it_writes_is_read_without_an_issue(seed: int, **rules: object) -> None:
    automaton = GrammarAutomaton(AnswerRules(**SMALL, **rules))
    text = random_answer(automaton, random.Random(seed))
    prediction = decode(text, automaton.rules.frame)
    assert prediction.issues == ()
    sizes = sizes_of(text)
    assert len(prediction.rings) == len(sizes) <= 3
    assert automaton.rules.allow_empty or sizes
    assert all(3 <= size <= 5 for size in sizes)
    assert sum(sizes) <= 9
    assert automaton.accepts(text)


def test_the_largest_answers_are_read_without_an_issue() -> None:
    rules = AnswerRules(decimals=17, pad=True)
    vertex = "[0.12345678901234567,0.12345678901234567]"
    fullest = "[[" + ",".join([vertex] * MAX_VERTICES) + "]]"
    assert GrammarAutomaton(rules).accepts(fullest)
    assert decode(fullest).valid
    assert not GrammarAutomaton(rules).accepts(fullest.replace("]]", f"],{vertex}]"))
    triangle = "[" + ",".join([vertex] * 3) + "]"
    most = "[" + ",".join([triangle] * MAX_RINGS) + "]"
    assert GrammarAutomaton(rules).accepts(most)
    assert decode(most).valid
    assert GrammarAutomaton(rules).walk(most[:-1] + ",") is None


@settings(deadline=None)
@given(st.lists(rings, max_size=4), frames, st.integers(1, 9), st.booleans())
def test_whatever_is_encoded_is_accepted(
    outlines: list[np.ndarray], frame: Frame, decimals: int, pad: bool
) -> None:
    text = encode(outlines, decimals, frame=frame, pad=pad)
    for padded in {pad, False}:
        automaton = GrammarAutomaton(AnswerRules(decimals=decimals, frame=frame, pad=padded))
        assert automaton.accepts(text)


@settings(max_examples=300, deadline=None)
@given(frames, st.integers(1, 4), st.integers(0, 1 << 30), st.data())
def test_it_accepts_the_language_of_the_regular_expression(
    frame: Frame, decimals: int, seed: int, data: st.DataObject
) -> None:
    rules = AnswerRules(decimals=decimals, frame=frame, spaces=True, **SMALL)
    text = random_answer(GrammarAutomaton(rules), random.Random(seed))
    pattern = re.compile(grammar_regex(decimals, frame))
    assert pattern.fullmatch(text)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 6)))
    mutated = text[:start] + data.draw(st.text("[],.01 ", max_size=6)) + text[stop:]
    matches = pattern.fullmatch(mutated) is not None
    unlimited = GrammarAutomaton(AnswerRules(decimals=decimals, frame=frame, spaces=True))
    compact = GrammarAutomaton(AnswerRules(decimals=decimals, frame=frame))
    assert unlimited.accepts(mutated) == matches
    assert compact.accepts(mutated) == (matches and " " not in mutated)


@pytest.mark.parametrize("limit", [1, 7, 9, 10, 11, 99, 100, 101, 640, 999, 1000, 1344])
def test_whole_numbers_are_admitted_exactly_up_to_the_limit(limit: int) -> None:
    automaton = GrammarAutomaton(AnswerRules(frame=pixel_frame(2000, limit)))
    admitted = [n for n in range(1500) if automaton.accepts(f"[[[0,{n}],[0,0],[0,1]]]")]
    assert admitted == list(range(limit + 1))
    assert automaton.walk("[[[0,00") is None


@pytest.mark.parametrize(
    ("number", "padded", "plain"),
    [("0", False, True), ("0.5", False, True), ("0.50", True, True), ("0.500", False, False),
     ("1", False, True), ("1.00", True, True), ("1.01", False, False), ("1.0", False, True),
     (".50", False, False), ("0.", False, False), ("00.50", False, False), ("-0.50", False, False)],
)  # fmt: skip
def test_padded_numbers_have_a_fixed_width(number: str, padded: bool, plain: bool) -> None:
    text = f"[[[{number},0.00],[0.00,0.00],[0.00,0.00]]]"
    assert GrammarAutomaton(AnswerRules(decimals=2, pad=True)).accepts(text) == padded
    assert GrammarAutomaton(AnswerRules(decimals=2)).accepts(text) == plain


@given(
    sizes=st.lists(st.integers(2, 7), max_size=4),
    fewest=st.integers(3, 5),
    ring_limit=st.integers(5, 7),
    limit=st.integers(5, 20),
    ring_count=st.integers(1, 4),
)
def test_limits_are_exact(
    sizes: list[int], fewest: int, ring_limit: int, limit: int, ring_count: int
) -> None:
    rules = AnswerRules(
        min_vertices=fewest,
        max_ring_vertices=ring_limit,
        max_vertices=limit,
        max_rings=ring_count,
    )
    text = "[" + ",".join("[" + ",".join(["[0,0.5]"] * size) + "]" for size in sizes) + "]"
    within = all(fewest <= size <= ring_limit for size in sizes)
    within = within and sum(sizes) <= limit and len(sizes) <= ring_count
    assert GrammarAutomaton(rules).accepts(text) == within


def test_nothing_is_begun_that_the_limits_would_not_let_end() -> None:
    square = "[[[0,0],[1,0],[1,1],[0,1]"
    automaton = GrammarAutomaton(AnswerRules(max_vertices=6, max_ring_vertices=4))
    assert automaton.walk(f"{square},") is None  # a fifth vertex
    assert automaton.walk(f"{square}],") is None  # a second ring needs three more, of two left
    assert GrammarAutomaton(AnswerRules(max_vertices=7)).walk(f"{square}],") is not None


def test_no_target_can_be_excluded() -> None:
    assert GrammarAutomaton().accepts("[]")
    assert GrammarAutomaton(AnswerRules(allow_empty=False)).walk("[]") is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decimals": 0}, "decimals=0"),
        ({"decimals": 18}, "allowed are 1 to 17"),
        ({"min_vertices": 2}, "min_vertices=2"),
        ({"min_vertices": 5, "max_ring_vertices": 4}, "max_ring_vertices=4"),
        ({"max_vertices": 2}, "max_vertices=2"),
        ({"max_vertices": 4097}, "max_vertices=4097, but allowed are 1 to 4096"),
        ({"max_rings": 0}, "max_rings=0"),
        ({"max_rings": 257}, "allowed are 1 to 256"),
        ({"frame": pixel_frame(5_000_000, 5)}, "limit 5000000.0 of frame pixels-5000000x5"),
    ],
)
def test_rules_that_no_answer_could_follow_are_refused(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        AnswerRules(**wrong)
