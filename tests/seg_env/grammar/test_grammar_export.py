"""The grammar that constrained decoding uses: strict, and the same as regex and as EBNF."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seg_env.frames import PERMILLE, Frame, pixel_frame
from seg_env.grammar import GRAMMAR_EBNF, GRAMMAR_REGEX, decode, grammar_ebnf, grammar_regex

TRIANGLE = "[[0.1,0.1],[0.5,0.1],[0.5,0.5]]"

numbers = st.sampled_from(["0", "1", "0.5", "0.123", "0.00", "1.0", "1.000"])
commas = st.sampled_from([",", ", "])


def written_list(items: st.SearchStrategy[str], smallest: int) -> st.SearchStrategy[str]:
    """Lists of at least `smallest` items with any mixture of separators."""
    pairs = st.lists(st.tuples(items, commas), min_size=smallest, max_size=5)
    return pairs.map(lambda pairs: "[" + "".join(map("".join, pairs)).rstrip(", ") + "]")


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


def ebnf_to_regex(grammar: str) -> str:
    """Substitute the rules of a GBNF grammar without recursion into each other."""
    rules = dict(line.split(" ::= ") for line in grammar.splitlines())

    def expand(rule: str) -> str:
        token = r'"([^"]*)"|(\[[^\]]*\])|([a-z]+)| '
        return "(?:" + re.sub(token, translate, rules[rule]) + ")"

    def translate(match: re.Match[str]) -> str:
        literal, character_class, rule = match.groups()
        if literal is not None:
            return f"(?:{re.escape(literal)})"
        return character_class or (expand(rule) if rule else "")

    return expand("root")
