"""Any text at all: `decode` never raises, keeps its promises and takes linear time."""

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outline_strategies import encloses_something, kinds, lengths, ring_lists, rings

from seg_env.frames import PERMILLE, UNIT, letterbox_frame, pixel_frame
from seg_env.grammar import (
    ANSWER_LEADS,
    MAX_CHARACTERS,
    MAX_RINGS,
    MAX_VERTICES,
    decode,
    encode,
)
from seg_env.types import Prediction

FRAMES = [UNIT, PERMILLE, letterbox_frame(pixel_frame(448, 448), (427, 640), (224, 224))]
TRIANGLE = "[[0.1,0.1],[0.5,0.1],[0.5,0.5]]"


def check_promises(prediction: Prediction, text: str) -> None:
    """What holds for the reading of any text whatever."""
    assert prediction.text is text
    for ring in prediction.rings:
        assert ring.dtype == np.float64
        assert ring.ndim == 2
        assert ring.shape[1] == 2
        assert len(ring) >= 3
        assert np.isfinite(ring).all()
    assert len(prediction.rings) <= MAX_RINGS
    assert sum(lengths(prediction)) <= MAX_VERTICES
    issues = prediction.issues
    assert len({issue.kind for issue in issues}) == len(issues)
    assert all(0 <= issue.position <= len(text) for issue in issues)
    assert all(len(issue.detail) <= 80 and issue.detail.isascii() for issue in issues)
    empty_list = rf"\s*({'|'.join(ANSWER_LEADS)})?\s*\[\s*\]\s*\.?\s*"
    assert prediction.rings or issues or re.fullmatch(empty_list, text)


@given(st.text() | st.text(alphabet="[],.0123456789e- \n") | st.text(alphabet="[],1 \x0b\xa0."))
def test_decode_never_raises(text: str) -> None:
    for frame in FRAMES:
        check_promises(decode(text, frame), text)


surrogates = st.characters(categories=["Cs", "Nd", "Zs", "Cc", "Po"])


@settings(max_examples=300, deadline=None)
@given(ring_lists, st.data())
def test_decode_survives_mutated_answers(outlines: list[np.ndarray], data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(["", "It is at "])) + encode(outlines) + "."
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        stop = data.draw(st.integers(start, min(len(text), start + 8)))
        text = text[:start] + data.draw(st.text("[],.1 -e") | st.text(surrogates)) + text[stop:]
    check_promises(decode(text), text)


@given(rings.filter(encloses_something), st.data())
def test_one_lost_bracket_costs_one_vertex(ring: np.ndarray, data: st.DataObject) -> None:
    text = encode([ring, np.array([[0, 0], [1, 0], [1, 1], [0, 1]])])
    whole = lengths(decode(text))
    lost = data.draw(st.sampled_from([i for i, character in enumerate(text) if character in "[]"]))
    prediction = decode(text[:lost] + text[lost + 1 :])
    assert not prediction.valid
    # A triangle that loses a vertex is gone; a ring without its last one may happen to be closed.
    assert sum(whole) - sum(lengths(prediction)) <= (3 if 3 in whole else 2)


@given(ring_lists)
@settings(max_examples=30, deadline=None)
def test_every_prefix_of_an_answer_is_truncated_and_keeps_whole_vertices(
    outlines: list[np.ndarray],
) -> None:
    text = encode(outlines)
    whole = np.concatenate([np.empty((0, 2)), *decode(text).rings])
    for stop in range(1, len(text)):
        prediction = decode(text[:stop])
        assert "truncated" in kinds(prediction)
        read = np.concatenate([np.empty((0, 2)), *prediction.rings])
        # A cut ring may end where it began, and then reads as closed: compare up to that.
        assert len(read) <= len(whole)
        if not outlines[1:]:
            np.testing.assert_array_equal(read, whole[: len(read)])


HOSTILE = [
    "[", "]", "[]", "0", "-", ",", ".", " ", "\x00", "\ud800", "[[[0.1,0.1],", "[0.1,0.1],",
    "[0.1,0.1]", "[0.1,0.1]x],[", "[1e9,1e9],", "[,]", "[ ", "],[", f"{TRIANGLE},",
    f"[{TRIANGLE}] ",    "It is at ", "It is at [", "1e", "[0", "0.1,", "[[[a,b]]] ",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE)
@pytest.mark.parametrize("start", ["", "[[[", "[[[0.1,0.1],[0.", "It is at "])
def test_a_megabyte_of_anything_is_read_in_linear_time(start: str, piece: str) -> None:
    text = (start + piece * (1_000_000 // len(piece)))[:1_000_000]
    began = time.thread_time()
    prediction = decode(text)
    assert time.thread_time() - began < 1  # about 0.02 s; quadratic time would be minutes
    assert not prediction.valid
    check_promises(prediction, text)


def test_vertices_and_rings_are_capped() -> None:
    vertices = ",".join(f"[{i % 7}e-1,0.{i:05d}]" for i in range(MAX_VERTICES + 5))
    prediction = decode(f"[[{vertices}]]")
    assert kinds(prediction) == ["too_many_vertices"]
    assert lengths(prediction) == [MAX_VERTICES]
    exact = encode([np.random.default_rng(0).random((MAX_VERTICES, 2))], 6)
    assert lengths(decode(exact)) == [MAX_VERTICES]
    assert decode(exact).valid
    prediction = decode("[" + ",".join([TRIANGLE] * (MAX_RINGS + 1)) + "]")
    assert kinds(prediction) == ["too_many_vertices"]
    assert len(prediction.rings) == MAX_RINGS
    assert decode("[" + ",".join([TRIANGLE] * MAX_RINGS) + "]").valid


def test_the_text_behind_the_last_character_read_is_reported() -> None:
    prediction = decode(f"[{TRIANGLE}]" + " " * MAX_CHARACTERS)
    assert kinds(prediction) == ["surrounding_text"]
    assert lengths(prediction) == [3]
    assert kinds(decode(" " * MAX_CHARACTERS + f"[{TRIANGLE}]")) == [
        "no_polygon",
        "surrounding_text",
    ]
