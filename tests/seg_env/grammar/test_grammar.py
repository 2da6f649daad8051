"""Outlines as text: `encode` and `decode` are inverses, and damage is named."""

import re

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from outline_strategies import encloses_something, kinds, lengths, ring_lists, rings

from seg_env.frames import PERMILLE, UNIT, Frame, letterbox_frame, pixel_frame
from seg_env.grammar import ANSWER_LEADS, decode, encode, grammar_regex
from seg_env.grammar.salvage import salvage
from seg_env.types import IssueKind

FRAMES = [
    UNIT,
    PERMILLE,
    pixel_frame(640, 427),
    letterbox_frame(UNIT, (427, 640), (336, 336)),
    letterbox_frame(pixel_frame(448, 448), (427, 640), (224, 224)),
]
TRIANGLE = "[[0.1,0.1],[0.5,0.1],[0.5,0.5]]"
OTHER = "[[0.2,0.3],[0.4,0.3],[0.4,0.4]]"


# ---------------------------------------------------------------- writing


def test_numbers_are_rounded_and_trailing_zeros_dropped() -> None:
    ring = np.array([[0.51234, 0.0], [0.5, 1.0], [0.1, 0.3999]])
    assert encode([ring]) == "[[[0.512,0],[0.5,1],[0.1,0.4]]]"
    assert encode([ring], 1) == "[[[0.5,0],[0.5,1],[0.1,0.4]]]"
    assert encode([ring], 2, pad=True) == "[[[0.51,0.00],[0.50,1.00],[0.10,0.40]]]"
    assert encode([ring], frame=PERMILLE) == "[[[512,0],[500,1000],[100,400]]]"
    assert encode([ring], frame=pixel_frame(640, 480)) == "[[[328,0],[320,480],[64,192]]]"


def test_rings_are_written_in_the_order_given_and_none_means_no_target() -> None:
    first, second = decode(f"[{OTHER},{TRIANGLE}]").rings
    assert encode([first, second]) == f"[{OTHER},{TRIANGLE}]"
    assert encode([second[::-1]]) == "[[[0.5,0.5],[0.5,0.1],[0.1,0.1]]]"
    assert encode([]) == "[]"


def test_vertices_outside_the_image_are_moved_to_its_border() -> None:
    ring = np.array([[-0.5, 0.2], [1.7, 0.2], [0.5, 30.0]])
    assert encode([ring]) == "[[[0,0.2],[1,0.2],[0.5,1]]]"
    letterbox = letterbox_frame(pixel_frame(100, 100), (50, 100), (100, 100))
    assert encode([ring], frame=letterbox) == "[[[0,35],[100,35],[50,75]]]"


def test_equal_neighbours_are_written_once_and_the_start_is_kept() -> None:
    ring = np.array([[0.1, 0.1], [0.5, 0.1], [0.5001, 0.1], [0.5, 0.5], [0.1, 0.1]])
    assert encode([ring]) == f"[{TRIANGLE}]"


@pytest.mark.parametrize(
    ("ring", "text"),
    [
        ([[0.2, 0.2]] * 3, "[[[0.2,0.2],[0.3,0.2],[0.3,0.3],[0.2,0.3]]]"),
        ([[1.0, 1.0]] * 3, "[[[0.9,0.9],[1,0.9],[1,1],[0.9,1]]]"),
        ([[0.2, 0.2], [0.6, 0.2], [0.6, 0.21], [0.2, 0.21]],
         "[[[0.2,0.2],[0.6,0.2],[0.6,0.3],[0.2,0.3]]]"),
        ([[0.2, 0.21], [0.6, 0.21], [0.6, 0.2], [0.2, 0.2]],  # counter-clockwise stays so
         "[[[0.2,0.2],[0.2,0.3],[0.6,0.3],[0.6,0.2]]]"),
        ([[0.2, 0.2], [0.21, 0.2], [0.21, 0.4], [0.21, 0.8], [0.2, 0.8]],
         "[[[0.2,0.2],[0.3,0.2],[0.3,0.8],[0.2,0.8]]]"),
        ([[0.0, 0.0], [0.01, 0.0], [1.0, 1.0]], "[[[0,0],[1,0.9],[1,1]]]"),
    ],
)  # fmt: skip
def test_a_ring_thinner_than_a_step_becomes_one_step_wide(
    ring: list[list[float]], text: str
) -> None:
    assert encode([np.array(ring)], decimals=1) == text


def test_wrong_arguments_are_refused() -> None:
    ring = np.array([[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]])
    with pytest.raises(ValueError, match="decimals=0"):
        encode([ring], decimals=0)
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        encode([ring[:2]])
    with pytest.raises(ValueError, match="not finite"):
        encode([ring * np.nan])


# ---------------------------------------------------------------- there and back


@given(ring_lists, st.integers(1, 9), st.booleans())
def test_whatever_is_written_is_read_without_issue(
    outlines: list[np.ndarray], decimals: int, pad: bool
) -> None:
    text = encode(outlines, decimals, pad=pad)
    assert re.fullmatch(grammar_regex(decimals), text)
    prediction = decode(text)
    assert prediction.valid
    assert len(prediction.rings) == len(outlines)
    assert encode(prediction.rings, decimals, pad=pad) == text


@given(rings.filter(encloses_something))
def test_reading_gives_the_rounded_coordinates(ring: np.ndarray) -> None:
    (read,) = decode(encode([ring])).rings
    steps = np.rint(ring * 1000)
    expected = steps[(steps != np.roll(steps, -1, axis=0)).any(axis=1)] / 1000
    np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.name)
@given(data=st.data())
def test_a_round_trip_moves_a_vertex_by_half_a_step_at_most(
    frame: Frame, data: st.DataObject
) -> None:
    # A zigzag of far apart vertices, so that none of them is merged with its neighbour.
    count = data.draw(st.integers(3, 12))
    x = data.draw(hnp.arrays(np.float64, count, elements=st.floats(0, 1)))
    ring = np.stack([x, np.linspace(0, 1, count)], axis=1)
    ring[1, 0] = (ring[0, 0] + 0.5) % 1
    step = 1.0 if frame.integer else 0.001
    steps = np.rint(frame.from_unit(ring) / step)
    assume(np.linalg.matrix_rank(steps - steps[0]) == 2)  # a line is written as a thin ring
    text = encode([ring], frame=frame)
    assert re.fullmatch(grammar_regex(frame=frame), text)
    prediction = decode(text, frame)
    assert prediction.valid
    written = frame.from_unit(prediction.rings[0])
    assert np.abs(written - frame.from_unit(ring)).max() <= step / 2 + 1e-9


@given(ring_lists, st.sampled_from(FRAMES))
def test_both_readers_agree(outlines: list[np.ndarray], frame: Frame) -> None:
    text = encode(outlines, frame=frame)
    prediction = decode(text, frame)
    if outlines:  # the slow reader is never asked about "[]"
        read, issues = salvage(text, frame)
        assert issues == prediction.issues == ()
        for ours, theirs in zip(read, prediction.rings, strict=True):
            np.testing.assert_array_equal(frame.to_unit(np.array(ours)), theirs)


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("lead", ["", *ANSWER_LEADS])
@pytest.mark.parametrize("end", ["", ".", " .", ".\n"])
def test_answer_sentences_are_read_without_issue(lead: str, end: str) -> None:
    for answer, expected in [(f"[{TRIANGLE}]", [3]), ("[]", []), ("[[[.1,0],[1,0],[1,1]]]", [3])]:
        prediction = decode(f"{lead} {answer}{end}")
        assert prediction.valid, prediction.issues
        assert lengths(prediction) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"[{TRIANGLE}]",
        "[[[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]]",
        "\n[ [\n [0.1 ,\t0.1],[ 0.5,0.1 ]\r\n, [0.5,0.5] ] ]\n",
        "[[[.1,1e-1],[5.e-1,+0.1],[0.5,50E-2]]]",
        "[[[0.1,0.1],[0.5,0.1],[0.5,0.5],[0.1,0.1]]]",
        "[[[0.10000000000000000000000,0.1],[0.50,00.1],[0.5,0.500]]]",
    ],
)
def test_one_triangle_written_in_many_ways(text: str) -> None:
    prediction = decode(text)
    assert prediction.valid, prediction.issues
    np.testing.assert_array_equal(prediction.rings[0], [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]])


@pytest.mark.parametrize(
    ("text", "expected_kinds", "expected_lengths"),
    [
        ("", ["empty"], []),
        (" \n", ["empty"], []),
        ("I cannot see it.", ["no_polygon"], []),
        ("an array [of words", ["no_polygon"], []),
        ("\x00\ud800", ["no_polygon"], []),
        ("[[]]", ["too_few_vertices"], []),
        ("[[[0.1,0.1],[0.5,0.1]]]", ["too_few_vertices"], []),
        (f"[[],{TRIANGLE}]", ["too_few_vertices"], [3]),
        (f"[{TRIANGLE},[],{OTHER}]", ["too_few_vertices"], [3, 3]),
        # cut off
        ("[[[", ["truncated"], []),
        ("[[[0.1,0.", ["truncated"], []),
        (f"[{TRIANGLE}", ["truncated"], [3]),
        (f"[{TRIANGLE[:-1]},[0.3", ["truncated"], [3]),
        (f"It is at [{TRIANGLE},{OTHER[:-1]}, [0.3, 0.", ["truncated"], [3, 3]),
        (f"[{TRIANGLE},[[0.2,0.2],[0.4,0.", ["too_few_vertices", "truncated"], [3]),
        # words around
        (f"The dragon: [{TRIANGLE}]", ["surrounding_text"], [3]),
        (f"it is at [{TRIANGLE}]", ["surrounding_text"], [3]),
        (f"[{TRIANGLE}] and so on", ["surrounding_text"], [3]),
        (f"```\n[{TRIANGLE}]\n```", ["surrounding_text"], [3]),
        (f"See [1]. It is at [{TRIANGLE}].", ["surrounding_text"], [3]),
        (f"[{TRIANGLE}] [{OTHER}]", ["surrounding_text"], [3]),
        ("No target: []", ["surrounding_text"], []),
        (f"[] [{TRIANGLE}]", ["surrounding_text"], [3]),
        # nesting
        (TRIANGLE, ["bad_nesting"], [3]),
        (TRIANGLE[1:-1], ["bad_nesting"], [3]),
        (f"{TRIANGLE},{OTHER}", ["bad_nesting"], [3, 3]),
        (f"[[{TRIANGLE}],[{OTHER}]]", ["bad_nesting"], [3, 3]),
        (f"[{TRIANGLE}],[{OTHER}]", ["bad_nesting"], [3, 3]),
        (f"[{TRIANGLE}{OTHER}]", ["bad_nesting"], [3, 3]),
        (f"[{TRIANGLE}]]", ["bad_nesting"], [3]),
        (f"[{TRIANGLE},]", ["bad_nesting"], [3]),
        ("[[[0.1,0.1][0.5,0.1],,[0.5,0.5]]]", ["bad_nesting"], [3]),
        (
            '{"polygon": [[0.1,0.1],[0.5,0.1],[0.5,0.5]]}',
            ["surrounding_text", "bad_nesting", "other_form"],
            [3],
        ),
        # vertices: the bad one is dropped
        (f"[[[0.1,0.2,0.3],{TRIANGLE[1:]}]", ["bad_vertex"], [3]),
        (f"[[[0.3],{TRIANGLE[1:]}]", ["bad_vertex"], [3]),
        (f"[[[],{TRIANGLE[1:]}]", ["bad_vertex"], [3]),
        ("[[[0.1,0.1],[0.5,0.1],oops,[0.5,0.5]]]", ["bad_vertex"], [3]),
        ("[[[0.1,0.1],[0.5,0.1],[0.3,[0.5,0.5]]]", ["bad_vertex"], [3]),
        ("[[[0.1,0.1],[0.5,0.1],0.3,0.3],[0.5,0.5]]]", ["bad_vertex"], [3]),
        # numbers
        (f"[[[1.5,-0.2],{TRIANGLE[1:]}]", ["out_of_range"], [4]),
        ("[[[120,80],[300,80],[300,200]]]", ["wrong_frame"], []),
        (f"[{TRIANGLE},[[0.5,-2],[0.2,0.2],[0.3,0.2]]]", ["wrong_frame"], []),
    ],
)
def test_damage_is_named_and_the_rest_is_salvaged(
    text: str, expected_kinds: list[str], expected_lengths: list[int]
) -> None:
    prediction = decode(text)
    assert sorted(kinds(prediction)) == sorted(expected_kinds), prediction.issues
    assert lengths(prediction) == expected_lengths


@pytest.mark.parametrize(
    "number",
    ["nan", "NaN", "inf", "-inf", "Infinity", "1e308", "-1e308", "1e999", "1e6666", "0x1", "1_0",
     "٣", "１", "−0.5", "0.5.1", "--1", "1e", ".", "", "None", "1" * 33, "9" * 5000, "1\x000",
     "0.1\xa0", "\ud800", "'0.1'", "1 2"],
)  # fmt: skip
def test_only_finite_plain_decimals_are_numbers(number: str) -> None:
    for vertex in (f"[{number},0.3]", f"[0.3,{number}]"):
        prediction = decode(f"[[{vertex},{TRIANGLE[1:]}]")
        assert kinds(prediction) == ["bad_number"]
        assert lengths(prediction) == [3]


def test_issues_say_where() -> None:
    prediction = decode("Look: [[[0.1,0.1],[0.5,x],[0.5,0.1],[0.5,1.5]]")
    found = [(issue.kind, issue.position, issue.detail) for issue in prediction.issues]
    assert found == [
        (IssueKind.SURROUNDING_TEXT, 0, "'Look:'"),
        (IssueKind.BAD_NUMBER, 18, "'0.5,x'"),
        (IssueKind.OUT_OF_RANGE, 36, "'0.5, 1.5'"),
        (IssueKind.TRUNCATED, 46, "brackets still open: 1"),
    ]


def test_numbers_of_another_frame_are_not_accepted() -> None:
    pixels = pixel_frame(640, 480)
    text = encode(decode(f"[{TRIANGLE}]").rings, frame=pixels)
    assert decode(text, pixels).valid
    assert kinds(decode(text)) == ["wrong_frame"]
    for frame in (pixels, PERMILLE):
        prediction = decode(f"[{TRIANGLE}]", frame)
        assert kinds(prediction) == ["wrong_frame"]
        assert prediction.rings == ()
        assert decode("[[[0,0],[1,0],[1,1]]]", frame).valid
    assert decode("[[[0,0],[640,0],[640,480]]]", pixels).valid
    assert kinds(decode("[[[0,0],[640,0],[640,481]]]", pixels)) == ["out_of_range"]


def test_numbers_in_the_padding_of_a_letterbox_are_legal() -> None:
    frame = letterbox_frame(UNIT, (50, 100), (100, 100))
    prediction = decode("[[[0,0],[1,0],[1,0.75]]]", frame)
    assert prediction.valid
    np.testing.assert_allclose(prediction.rings[0], [[0, -0.5], [1, -0.5], [1, 1]])
