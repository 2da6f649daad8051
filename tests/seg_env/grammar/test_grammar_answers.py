"""Points and boxes as text: what is written is read back, and nothing that is read does harm."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seg_env.frames import BINS, PERMILLE, ROW_FIRST, UNIT, letterbox_frame, pixel_frame
from seg_env.grammar import decode, encode
from seg_env.grammar.answers import decode_answer, encode_numbers
from seg_env.tasks import TASKS
from seg_env.types import IssueKind

OUTLINE = "[[[0.1,0.1],[0.9,0.1],[0.5,0.8]]]"
FRAMES = (UNIT, PERMILLE, pixel_frame(640, 480), BINS, ROW_FIRST)
unit = st.floats(0, 1)


def kinds(text, form, frame=UNIT):
    return [issue.kind for issue in decode_answer(text, form, frame).issues]


@pytest.mark.parametrize("form", ["point", "bbox"])
@pytest.mark.parametrize("words", ["{}", "{}.", "It is at {}.", "Sure, you can find it at {}.\n"])
def test_an_answer_is_read_alone_or_in_the_papers_sentences(form, words):
    numbers = "[0.25, 0.5]" if form == "point" else "[0.25,0.5,0.75,0.625]"
    read = decode_answer(words.format(numbers), form)
    assert read.valid
    assert read.form == form
    if form == "point":
        assert read.point.tolist() == [0.25, 0.5]
        assert read.rings == ()
    else:
        assert read.point is None
        corners = [[0.25, 0.5], [0.75, 0.5], [0.75, 0.625], [0.25, 0.625]]
        assert [ring.tolist() for ring in read.rings] == [corners]


@pytest.mark.parametrize("form", ["mask", "point", "bbox"])
def test_no_target_is_an_answer_to_every_question(form):
    read = decode_answer("[]", form)
    assert read.valid
    assert read.is_empty


def test_what_asks_for_an_outline_is_read_as_ever():
    for text in (OUTLINE, "[0.1,0.2]", "", "[[0.1,0.2],[0.3"):
        ours, theirs = decode_answer(text), decode(text)
        assert ours.issues == theirs.issues
        assert [ring.tolist() for ring in ours.rings] == [ring.tolist() for ring in theirs.rings]


@pytest.mark.parametrize(
    ("text", "form", "kind"),
    [
        (OUTLINE, "point", IssueKind.BAD_NESTING),
        (OUTLINE, "bbox", IssueKind.BAD_NESTING),
        ("[0.1,0.2],[0.3,0.4]", "point", IssueKind.BAD_NESTING),
        ("[0.1,0.2,0.3,0.4]", "point", IssueKind.BAD_VERTEX),
        ("[0.1,0.2]", "bbox", IssueKind.BAD_VERTEX),
        ("[0.1,0.2", "point", IssueKind.TRUNCATED),
        ("[nan,0.2]", "point", IssueKind.BAD_NUMBER),
        ("[1e308,0.2]", "point", IssueKind.BAD_NUMBER),
        ("[320,240]", "point", IssueKind.WRONG_FRAME),
        ("[0.2,0.2,0.2,0.5]", "bbox", IssueKind.BAD_BOX),
        ("the star", "point", IssueKind.NO_POLYGON),
        (" \n", "bbox", IssueKind.EMPTY),
    ],
)
def test_what_is_no_such_answer_gives_nothing_and_says_why(text, form, kind):
    read = decode_answer(text, form)
    assert read.is_empty
    assert kind in kinds(text, form)


def test_clear_damage_is_salvaged_and_reported():
    assert decode_answer("see [1]: [[0.5,0.25]]", "point").point.tolist() == [0.5, 0.25]
    assert set(kinds("see [1]: [[0.5,0.25]]", "point")) == {
        IssueKind.SURROUNDING_TEXT,
        IssueKind.BAD_NESTING,
    }
    upright = decode_answer("[0.1,0.2,0.5,0.6]", "bbox").rings[0]
    for text, kind in (
        ("[0.5,0.6,0.1,0.2]", IssueKind.BAD_BOX),
        ("[[0.1,0.2],[0.5,0.6]]", IssueKind.BAD_NESTING),
    ):
        assert decode_answer(text, "bbox").rings[0].tolist() == upright.tolist()
        assert kinds(text, "bbox") == [kind]
    assert decode_answer("[-0.1,1.2]", "point").point.tolist() == [-0.1, 1.2]
    assert kinds("[-0.1,1.2]", "point") == [IssueKind.OUT_OF_RANGE]


def test_fractions_are_not_whole_numbers():
    assert kinds("[0.5,0.5]", "point", PERMILLE) == [IssueKind.WRONG_FRAME]
    assert decode_answer("[500,1]", "point", PERMILLE).valid


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.name)
@settings(max_examples=30)
@given(numbers=st.lists(unit, min_size=4, max_size=4), pad=st.booleans())
def test_what_is_written_in_a_frame_is_read_at_the_same_place(frame, numbers, pad):
    points = np.sort(np.array(numbers).reshape(2, 2), axis=0)
    step = 0.51 / (1000 if not frame.integer else min(frame.limits))
    point = decode_answer(encode_numbers(points[:1], frame=frame, pad=pad), "point", frame)
    assert point.valid
    np.testing.assert_allclose(point.point, points[0], atol=2 * step)
    box = decode_answer(encode_numbers(points, frame=frame, pad=pad), "bbox", frame)
    if box.rings:
        assert box.valid
        np.testing.assert_allclose(box.rings[0][[0, 2]], points, atol=2 * step)
    else:
        assert [issue.kind for issue in box.issues] == [IssueKind.BAD_BOX]


def test_a_letterboxed_place_is_read_at_the_same_place():
    frame = letterbox_frame(UNIT, (40, 80), (64, 64))
    points = np.array([[0.25, 0.125], [0.75, 0.875]])
    read = decode_answer(encode_numbers(points, 6, frame=frame), "bbox", frame)
    np.testing.assert_allclose(read.rings[0][[0, 2]], points, atol=1e-5)


pieces = st.sampled_from(
    ["[", "]", ",", "[]", "0.5", "1e400", "-", "nan", "٣", " ", "[0.1,0.2]", "It is at", "\ud800"]
)
hostile = st.one_of(st.text(max_size=60), st.lists(pieces, max_size=40).map("".join))


@settings(max_examples=100)
@given(text=hostile, form=st.sampled_from(["point", "bbox"]), frame=st.sampled_from(FRAMES))
def test_any_text_is_read(text, form, frame):
    read = decode_answer(text, form, frame)
    assert read.text == text
    assert read.form == form
    assert read.point is None or form == "point"
    assert len(read.rings) <= (form == "bbox")
    for ring in (*read.rings, *(() if read.point is None else (read.point,))):
        assert np.isfinite(ring).all()
        assert np.abs(ring).max() < 4
    assert all(len(issue.detail) <= 80 for issue in read.issues)
    if read.is_empty and read.valid:
        assert "[" in text


@pytest.mark.parametrize("form", ["point", "bbox"])
@pytest.mark.parametrize("text", ["[", "]", "[0.1,", "[0.1,0.2],", "[[", "1", "[a,", ",", " ["])
def test_long_texts_take_time_in_proportion(text, form):
    decode_answer(text * 10, form)
    start = time.process_time()
    decode_answer(text * (1_000_000 // len(text)), form)
    assert time.process_time() - start < 2.0


def test_wrong_decimals_and_numbers_are_explained():
    with pytest.raises(ValueError, match="decimals=0, but allowed are 1 to 9"):
        encode_numbers(np.zeros((1, 2)), 0)
    with pytest.raises(ValueError, match="not finite"):
        encode_numbers(np.full((1, 2), np.nan))


def test_every_task_asks_for_a_form_that_is_read():
    assert {task.split("->")[1] for task in TASKS} == {"mask", "bbox", "point"}
    assert encode([]) == "[]"
