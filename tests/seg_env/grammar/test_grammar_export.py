"""The grammar that constrained decoding uses: strict, and the same as regex and as EBNF."""

import re

import numpy as np
import pytest
from ebnf import ebnf_to_regex
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_env.frames import PERMILLE, UNIT, Frame, letterbox_frame, pixel_frame
from seg_env.grammar import (
    decode,
    encode,
    grammar_ebnf,
    grammar_regex,
)

GRAMMAR_EBNF, GRAMMAR_REGEX = grammar_ebnf(), grammar_regex()
TRIANGLE = "[[0.1,0.1],[0.5,0.1],[0.5,0.5]]"

numbers = st.sampled_from(["0", "1", "0.5", "0.123", "0.00", "1.0", "1.000"])
commas = st.sampled_from([",", ", "])


def written_list(items: st.SearchStrategy[str], smallest: int) -> st.SearchStrategy[str]:
    """Lists of at least `smallest` items with any mixture of separators."""
    pairs = st.lists(st.tuples(items, commas), min_size=smallest, max_size=5)
    return pairs.map(lambda pairs: "[" + "".join(map("".join, pairs)).rstrip(", ") + "]")


FRAMES = [
    UNIT,
    PERMILLE,
    pixel_frame(640, 7),
    letterbox_frame(UNIT, (427, 640), (336, 336)),
    letterbox_frame(pixel_frame(448, 448), (427, 640), (224, 224)),
]
coordinates = st.floats(0, 1) | st.sampled_from([0.0, 0.5, 0.9996, 1.0])
rings = hnp.arrays(np.float64, st.tuples(st.integers(3, 12), st.just(2)), elements=coordinates)
frames = st.sampled_from(FRAMES)

vertices = st.builds("[{}{}{}]".format, numbers, commas, numbers)
strict_answers = written_list(written_list(vertices, 3), 0)


@settings(max_examples=20, deadline=None)
@given(st.from_regex(GRAMMAR_REGEX, fullmatch=True))
def test_the_exported_grammar_admits_nothing_with_an_issue(text: str) -> None:
    assert decode(text).valid


@pytest.mark.parametrize("frame", [PERMILLE, pixel_frame(640, 7)], ids=lambda f: f.name)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_so_does_the_grammar_of_another_frame(frame: Frame, data: st.DataObject) -> None:
    text = data.draw(st.from_regex(grammar_regex(frame=frame), fullmatch=True))
    assert decode(text, frame).valid


@pytest.mark.parametrize(
    "text",
    ["", "[[]]", TRIANGLE, f"[{TRIANGLE}].", f"[{TRIANGLE}", "[[[0,0],[1,0]]]",
     "[[[0,0],[1,0],[1,1.001]]]", "[[[0,0],[1,0],[1,0.1234]]]", "[[[0,0],[1,0],[1,01]]]",
     "[[[0,0],[1,0],[1,-0]]]", "[[[0,0],[1,0],[1,.5]]]", "[[[0,0],[1,0],[1,1]],]"],
)  # fmt: skip
def test_the_exported_grammar_is_strict(text: str) -> None:
    assert re.fullmatch(GRAMMAR_REGEX, text) is None
    assert re.fullmatch(ebnf_to_regex(GRAMMAR_EBNF), text) is None


@pytest.mark.parametrize("limit", [1, 7, 9, 10, 11, 99, 100, 101, 640, 999, 1000, 1344])
def test_whole_numbers_are_admitted_exactly_up_to_the_limit(limit: int) -> None:
    frame = pixel_frame(limit, 2000)
    for expression in (grammar_regex(frame=frame), ebnf_to_regex(grammar_ebnf(frame=frame))):
        pattern = re.compile(expression)
        admitted = [n for n in range(1500) if pattern.fullmatch(f"[[[{n},0],[0,0],[0,1]]]")]
        assert admitted == list(range(limit + 1))
        assert not pattern.fullmatch("[[[00,0],[0,0],[0,1]]]")


@given(strict_answers, st.data())
def test_regex_and_ebnf_describe_the_same_language(text: str, data: st.DataObject) -> None:
    pattern = ebnf_to_regex(GRAMMAR_EBNF)
    assert re.fullmatch(pattern, text)
    assert re.fullmatch(GRAMMAR_REGEX, text)
    index = data.draw(st.integers(0, len(text)))
    mutated = text[:index] + data.draw(st.sampled_from(["", *"[],.01 "])) + text[index + 1 :]
    assert bool(re.fullmatch(pattern, mutated)) == bool(re.fullmatch(GRAMMAR_REGEX, mutated))


@pytest.mark.parametrize(
    ("number", "padded", "plain"),
    [("0", False, True), ("0.5", False, True), ("0.50", True, True), ("0.500", False, False),
     ("1", False, True), ("1.00", True, True), ("1.01", False, False), ("1.0", False, True),
     (".50", False, False), ("0.", False, False), ("00.50", False, False), ("-0.50", False, False)],
)  # fmt: skip
def test_padded_numbers_have_a_fixed_width(number: str, padded: bool, plain: bool) -> None:
    text = f"[[[{number},0.00],[0.00,0.00],[0.00,0.00]]]"
    for pad, wanted in ((True, padded), (False, plain)):
        pattern = ebnf_to_regex(grammar_ebnf(2, pad=pad))
        assert (re.fullmatch(pattern, text) is not None) == wanted


@given(st.lists(st.integers(2, 7), min_size=1, max_size=4), st.integers(3, 6))
def test_the_limit_of_vertices_is_that_of_every_ring(sizes: list[int], limit: int) -> None:
    text = "[" + ",".join("[" + ",".join(["[0,0.5]"] * size) + "]" for size in sizes) + "]"
    within = all(3 <= size <= limit for size in sizes)
    pattern = ebnf_to_regex(grammar_ebnf(max_vertices=limit))
    assert (re.fullmatch(pattern, text) is not None) == within


@given(strict_answers)
def test_without_spaces_it_is_the_same_but_for_spaces(text: str) -> None:
    compact = ebnf_to_regex(grammar_ebnf(spaces=False))
    assert (re.fullmatch(compact, text) is not None) == (" " not in text)


@settings(deadline=None)
@given(st.lists(rings, max_size=4), frames, st.integers(1, 9), st.booleans())
def test_whatever_is_encoded_is_admitted(
    outlines: list[np.ndarray], frame: Frame, decimals: int, pad: bool
) -> None:
    text = encode(outlines, decimals, frame=frame, pad=pad)
    for padded in {pad, False}:
        grammar = grammar_ebnf(decimals, frame, pad=padded, spaces=False)
        assert re.fullmatch(ebnf_to_regex(grammar), text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"decimals": 0}, "decimals=0"),
        ({"decimals": 18}, "allowed are 1 to 17"),
        ({"max_vertices": 2}, "max_vertices=2"),
        ({"max_vertices": 4097}, "max_vertices=4097, but allowed are 3 to 4096"),
        ({"frame": pixel_frame(5_000_000, 5)}, "limit 5000000 of the frame"),
    ],
)
def test_a_grammar_that_no_answer_could_follow_is_refused(
    wrong: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        grammar_ebnf(**wrong)
