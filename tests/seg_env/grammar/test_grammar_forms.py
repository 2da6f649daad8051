"""Answers in other notations, behind thoughts and among other numbers: what counts, and as what."""

import time

import numpy as np
import pytest

from rewards import Format, MaskIoU
from seg_env.frames import PERMILLE, ROW_FIRST, find_answer_frame
from seg_env.geometry.polygon import ring_area, roles
from seg_env.geometry.raster import rasterize_rle, ring_spans
from seg_env.grammar.answers import decode_answer, read_answer
from seg_env.types import IssueKind, Prediction, Target

A = "[[[0.1,0.1],[0.5,0.1],[0.5,0.5]]]"
B = "[[[0.2,0.2],[0.8,0.2],[0.8,0.8],[0.2,0.8]]]"
TRIANGLE = [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5]]
SQUARE = [[0.2, 0.2], [0.8, 0.2], [0.8, 0.8], [0.2, 0.8]]
BOX = [[0.1, 0.2], [0.5, 0.2], [0.5, 0.6], [0.1, 0.6]]


def places(read: Prediction) -> list[list[list[float]]]:
    if read.point is not None:
        return [[read.point.tolist()]]
    return [np.round(ring, 9).tolist() for ring in read.rings]


def other_form(read: Prediction) -> list[str]:
    return [issue.detail for issue in read.issues if issue.kind == IssueKind.OTHER_FORM]


@pytest.mark.parametrize(
    ("text", "form", "expected"),
    [
        (f"<think>near [0.5,0.5]</think><answer>{A}</answer>", "mask", [TRIANGLE]),
        (f"<think>{B}</think>\n{A}", "mask", [TRIANGLE]),
        (f"it was {B} </think><answer>{A}</answer>", "mask", [TRIANGLE]),
        ("<think>x</think><answer>[]</answer>", "mask", []),
        ("<think>[0.1,0.1]</think><answer>[0.5,0.4]</answer>", "point", [[[0.5, 0.4]]]),
        ("<think>[0,0,1,1]</think>[0.1,0.2,0.5,0.6]", "bbox", [BOX]),
    ],
)
def test_a_marked_answer_is_what_counts_and_is_well_formed(text, form, expected):
    read = decode_answer(text, form)
    assert places(read) == expected
    assert read.valid


def test_thoughts_cost_no_reward():
    target = Target(rasterize_rle([np.array(TRIANGLE)], (50, 60)))
    texts = A, f"<think>near [0.5,0.5]</think><answer>{A}</answer>", f"near [0.5,0.5]: {A}"
    read = [decode_answer(text) for text in texts]
    np.testing.assert_array_equal(MaskIoU()(read, [target] * 3), [1, 1, 1])
    np.testing.assert_array_equal(Format()(read, [target] * 3), [1, 1, 0])


@pytest.mark.parametrize(
    ("text", "form", "expected", "kind"),
    [
        (f"<think>{B}", "mask", [], IssueKind.TRUNCATED),
        ("<think>x</think>", "mask", [], IssueKind.TRUNCATED),
        (f"<answer>{A}", "mask", [TRIANGLE], IssueKind.TRUNCATED),
        (f"<think>{B}</think> so <answer>{A}</answer>", "mask", [TRIANGLE], "surrounding_text"),
        (f"{B} as\n```json\n{A}\n```\nand {B}", "mask", [TRIANGLE], "surrounding_text"),
        (f"the point [0.5,0.5] is in {A}", "mask", [TRIANGLE], "surrounding_text"),
        (f"{B} no wait, {A}", "mask", [TRIANGLE], "surrounding_text"),
        (f"{B} {A}", "mask", [TRIANGLE], "surrounding_text"),
        (f"{A} see [1] and [[0.3,0.4]]", "mask", [TRIANGLE], "surrounding_text"),
        (f"{A} in pixels [[[120,80],[300,80],[300,200]]]", "mask", [TRIANGLE], "surrounding_text"),
        ("from [0.1,0.1] to [0.5,0.4]", "point", [[[0.5, 0.4]]], "surrounding_text"),
        ("the object at [0.3,0.3] is in [0.1,0.2,0.5,0.6]", "bbox", [BOX], "surrounding_text"),
        ("of [0,0,1,1] it fills [0.1,0.2,0.5,0.6]", "bbox", [BOX], "surrounding_text"),
        (f"the object with polygon {A} is in [0.1,0.2,0.5,0.6]", "bbox", [BOX], "surrounding_text"),
    ],
)
def test_else_the_last_list_that_reads_as_what_was_asked_for(text, form, expected, kind):
    read = decode_answer(text, form)
    assert places(read) == expected
    assert kind in read.issue_kinds


XY = '{"x":0.1,"y":0.1},{"x":0.5,"y":0.1},{"x":0.5,"y":0.5}'
FLAT = "0.1,0.1,0.5,0.1,0.5,0.5"
FORMS = [
    (f"[{FLAT}]", "mask", [TRIANGLE], "flat ring"),
    (f"[[{FLAT}],[0.2,0.2,0.8,0.2,0.8,0.8,0.2,0.8]]", "mask", [TRIANGLE, SQUARE], "flat ring"),
    ("(0.1,0.1),(0.5,0.1),(0.5,0.5)", "mask", [TRIANGLE], "round brackets"),
    ("[(0.1, 0.1), (0.5, 0.1), (0.5, 0.5)]", "mask", [TRIANGLE], "round brackets"),
    ('{"quad_2d": [0.2,0.2,0.8,0.2,0.8,0.8,0.2,0.8]}', "mask", [SQUARE], "quad_2d"),
    ('{"point_2d": [0.5,0.4], "label": "dog"}', "point", [[[0.5, 0.4]]], "point_2d"),
    (f"[{XY}]", "mask", [TRIANGLE], "x,y"),
    (f'{{"polygon": [{XY}]}}', "mask", [TRIANGLE], "polygon"),
    ('{"x": 0.5, "y": 0.4}', "point", [[[0.5, 0.4]]], "x,y"),
    ("[[[10%,10%],[50%,10%],[50%,50%]]]", "mask", [TRIANGLE], "per cent"),
    ("[10%,10%,50%,10%,50%,50%]", "mask", [TRIANGLE], "per cent, flat ring"),
    ("[50 %, 40 %]", "point", [[[0.5, 0.4]]], "per cent"),
    ('<point x="50" y="40">dog</point>', "point", [[[0.5, 0.4]]],
     "x and y as attributes of a tag, per cent"),
    (f'[{{"label":"a [1]","polygon":{A}}},{{"polygon":{B[1:-1]}}}]', "mask", [TRIANGLE, SQUARE],
     "polygon"),
    (f'{{"polygon":{A}}}\n{{"polygon":{B}}}', "mask", [TRIANGLE, SQUARE], "polygon"),
    ("{'polygon': [" + FLAT + "]}", "mask", [TRIANGLE], "polygon"),
    ('{"bbox_2d": [0.1,0.2,0.5,0.6]}', "bbox", [BOX], "bbox_2d"),
    ('[{"bbox_2d":[0.1,0.2,0.3,0.4]},{"bbox_2d":[0.2,0.3,0.5,0.6]}]', "bbox", [BOX], "2 objects"),
    ("<box>(0.1,0.2),(0.5,0.6)</box>", "bbox", [BOX], "round brackets"),
    ('{"x1":0.1,"y1":0.2,"x2":0.5,"y2":0.6}', "bbox", [BOX], "x1,y1,x2,y2"),
    ('{"x":0.1,"y":0.2,"width":0.4,"height":0.4}', "bbox", [BOX], "x,y"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "form", "expected", "name"), FORMS)
@pytest.mark.parametrize("around", ["{}", "<answer>{}</answer>", "```json\n{}\n```"])
def test_forms_that_models_write_are_read_and_named(text, form, expected, name, around):
    read = decode_answer(around.format(text), form)
    assert places(read) == expected
    assert other_form(read) == [name]
    target = Target(rasterize_rle([np.array(SQUARE)], (50, 60)))
    assert Format()([read], [target]).tolist() == [0]


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ('[{"point_2d":[0.5,0.4]},{"point_2d":[0.1,0.2]}]', "point"),
        ('[{"x":0.5,"y":0.4},{"x":0.6,"y":0.4}]', "point"),
        ('{"bbox_2d":[0.1,0.2,0.5,0.6]}', "mask"),
        ('{"point_2d":[0.5,0.4]}', "bbox"),
        ('{"x":0.1,"y":0.2,"width":0.4,"height":0.4}', "point"),
        ('{"polygon":[[NaN,0.1],[0.5,Infinity],[0.5,0.5]]}', "mask"),
        (f"[{FLAT},0.7]", "mask"),
    ],
)
def test_what_is_of_another_form_gives_nothing(text, form):
    read = decode_answer(text, form)
    assert read.is_empty
    assert not read.valid


def test_numbers_keep_their_frame():
    read = decode_answer("[[[10%,10%],[50%,10%],[50%,50%]]]", "mask", PERMILLE)
    assert places(read) == [TRIANGLE]
    assert places(decode_answer('{"x":1023,"y":0}', "point", ROW_FIRST)) == [[[1, 0]]]
    assert "wrong_frame" in decode_answer("[100,100,500,100,500,500]").issue_kinds


@pytest.mark.parametrize("family", ["florence", "paligemma"])
def test_location_tokens_are_read_as_what_was_asked_for(family):
    frame = find_answer_frame(family)
    token = ("<loc_{}>" if family == "florence" else "<loc{:0>4}>").format

    def read(text: str, form: str) -> Prediction:
        return read_answer(text, (480, 640), frame, form)

    first, second = (
        "".join(map(token, box)) for box in ((100, 200, 300, 400), (200, 300, 500, 600))
    )
    around = read("".join(map(token, (100, 200, 500, 600))), "bbox")
    assert around.valid
    point = read("".join(map(token, (100, 200))), "point")
    assert point.valid
    assert point.point is not None
    for text in (first + second, f"cat{first}dog{second}", f"{first} ; {second}"):
        both = read(text, "bbox")
        assert places(both) == places(around)
        assert other_form(both) == ["2 objects"]
    thought = f"<think>{token(1)}{token(2)}</think><answer>cat{first}</answer>"
    assert places(read(thought, "bbox")) == places(read(first, "bbox"))
    assert read(thought, "bbox").valid
    assert len(read(f"{first}<sep>{second}", "mask").rings) == 2
    several = read("".join(map(token, (1, 2))) * 3, "point")
    assert several.is_empty
    assert "bad_nesting" in several.issue_kinds


@pytest.mark.parametrize(
    "piece",
    ["{", "}", '{"a":', '{"a":[', "{}", "{},", '"', "```", "```[", "<think>", "</think>",
     "<answer>", "(0.1,", "(0.1,0.2)", "(0.1,0.2),", "1%,", '{"x":0.1,"y":0.2},', f"{A} x ",
     "[0.1,0.2] a ", 'x="1" ', '{"polygon":[0.1,0.1,0.5,0.1,0.5,0.5]},', "[" * 17 + "]" * 17],
)  # fmt: skip
@pytest.mark.parametrize("form", ["mask", "bbox", "point"])
def test_long_texts_of_any_form_take_time_in_proportion(piece, form):
    began = time.thread_time()
    for start in ("", "["):
        read = decode_answer(start + piece * (300_000 // len(piece)), form)
        assert sum(map(len, read.rings)) <= 4096
        assert len(read.rings) <= 256
    assert time.thread_time() - began < 4


def test_a_zigzag_and_nested_rings_are_filled_in_bounded_time():
    side = 4096
    rows = np.arange(side) / side
    zigzag = np.stack([np.where(np.arange(side) % 2, 1.0, 0.0), rows], axis=1)
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    nested = [0.5 + (circle * (0.5 - k / 512))[:: 1 - 2 * (k % 2)] for k in range(256)]
    for rings in ([zigzag], nested):
        began = time.thread_time()
        ring_spans(rings, (side, side))
        assert time.thread_time() - began < 2.5


def test_painting_in_pairs_is_painting_one_after_another():
    random, size = np.random.default_rng(0), (37, 53)
    for _ in range(50):
        rings = []
        for scale in np.linspace(1.0, 0.1, 9):
            angles = np.sort(random.random(12)) * 2 * np.pi
            circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
            rings.append((0.5 + 0.5 * scale * circle)[:: random.choice([1, -1])])
        mask = np.zeros(size, dtype=bool)
        filled = roles(rings)
        for index in sorted(range(9), key=lambda index: -abs(ring_area(rings[index]))):
            mask[rasterize_rle([rings[index]], size).to_mask()] = filled[index]
        np.testing.assert_array_equal(rasterize_rle(rings, size).to_mask(), mask)


def test_a_frame_without_tokens_reads_forms_too():
    for form, text in (("mask", f"[{FLAT}]"), ("bbox", '{"bbox_2d":[0.1,0.2,0.5,0.6]}')):
        assert read_answer(text, (10, 10), find_answer_frame("unit"), form).rings
