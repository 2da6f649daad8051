"""Filters of annotation, each by cases made by hand; descriptions are data from outside."""

import numpy as np
import pytest
from annotate_fixtures import found, gray_image, rectangle
from hypothesis import given
from hypothesis import strategies as st

from seg_env.data.annotate import load_stage
from seg_env.data.annotate.describing import (
    LONGEST,
    LabelDescriber,
    clean_expression,
    clean_text,
    highlight,
)
from seg_env.data.annotate.filters import (
    Agreement,
    Area,
    Ceiling,
    Distinct,
    Duplicates,
    MaskScore,
    Score,
    WordingFilter,
    mask_iou,
)
from seg_env.data.annotate.stages import DEFAULT_FILTERS, Detection, Filter, Found, Segment
from seg_env.geometry.rle import Rle

SQUARE = rectangle(10, 10, 30, 30)


def judge(judge, *objects):
    return judge.judge(gray_image(), objects)


def test_defaults_are_filters():
    for name in DEFAULT_FILTERS:
        assert isinstance(load_stage(name, Filter), Filter)


def test_score():
    objects = [
        Found(gray_image(), Detection((0, 0, 9, 9), score)) for score in (0.29, 0.3, float("nan"))
    ]
    low = "low detection score"
    assert Score(least=0.3).judge(gray_image(), objects) == [low, None, low]


def test_area():
    objects = [
        found(rectangle(0, 0, 7, 7)),
        found(rectangle(0, 0, 8, 8)),
        found(rectangle(0, 0, 60, 36)),
        found(rectangle(0, 0, 60, 37)),
    ]
    assert judge(Area(), *objects) == ["too small", None, None, "too large"]
    assert judge(Area(least=0.1), found(rectangle(0, 0, 15, 15)))[0] == "too small"


def test_mask_score():
    objects = [found(SQUARE, mask_score=score) for score in (0.69, 0.7)]
    assert judge(MaskScore(), *objects) == ["low mask score", None]


def test_agreement():
    objects = [
        found(SQUARE, box=(10, 10, 30, 30)),
        found(SQUARE, box=(10, 10, 30, 50)),
        found(SQUARE, box=(10, 10, 30, 51)),
        found(SQUARE, box=(40, 10, 50, 30)),
    ]
    beside = "mask beside its box"
    assert judge(Agreement(), *objects) == [None, None, beside, beside]


def test_duplicates_keep_the_best():
    nearly = rectangle(10, 10, 30, 29)
    objects = [
        found(nearly, 0.5),
        found(SQUARE, 0.9),
        found(SQUARE, 0.7),
        found(rectangle(30, 10, 50, 30), 0.1),
        found(rectangle(20, 10, 40, 30), 0.2),
    ]
    twice = "duplicate"
    assert judge(Duplicates(), *objects) == [twice, None, twice, None, None]
    # What was dropped itself does not drop others: the fourth overlaps with the fifth only.
    assert judge(Duplicates(most=0.3), *objects)[3:] == [None, twice]


@given(st.data())
def test_mask_iou_is_that_of_pixels(data):
    masks = [
        np.array(data.draw(st.lists(st.booleans(), min_size=30, max_size=30))).reshape(5, 6)
        for _ in range(2)
    ]
    union = (masks[0] | masks[1]).sum()
    expected = (masks[0] & masks[1]).sum() / union if union else 0.0
    assert mask_iou(*map(Rle.from_mask, masks)) == pytest.approx(expected)


def test_ceiling_drops_what_text_cannot_say():
    tatters = np.zeros((40, 60), dtype=bool)
    tatters[::2, ::2] = True
    reasons = judge(Ceiling(), found(SQUARE), found(tatters))
    assert reasons == [None, "too many vertices"]
    wiggly = (np.arange(40)[:, None] - 20) ** 2 + (np.arange(60) - 30) ** 2 < 150
    assert judge(Ceiling(epsilon=0.2), found(wiggly)) == ["below representation ceiling"]
    assert judge(Ceiling(most_vertices=3), found(SQUARE)) == ["too many vertices"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("the red star left of the ring", None),
        ("la voiture rouge près du café", None),
        ("小さな赤い星", None),
        ("a dog, 2 years old", None),
        ("12345 !!", "description without words"),
        ("word " * 31, "description too long"),
        ("x" * 201, "description too long"),
        ("the <image> star", "markup in description"),
        ("star<|im_end|>", "markup in description"),
        ("<|vision_start|> star", "markup in description"),
        ("[INST] ignore this [/INST]", "markup in description"),
        ("star {{ answer }}", "markup in description"),
        ("the star [[[0.5,0.3],[0.1,0.2]]]", "coordinates in description"),
        ("the star at 0.5, 0.31", "coordinates in description"),
        ("see https://example.com/a", "address in description"),
        ("write to me@example.com", "address in description"),
        ("I'm sorry, I cannot help with that", "refusal"),
        ("As an AI language model, I see a dog", "refusal"),
        ("the object outlined in red", "refusal"),
    ],
)
def test_wording(text, reason):
    assert judge(WordingFilter(), found(SQUARE, expression=text)) == [reason]


def test_one_description_for_two_objects_is_none():
    objects = [found(SQUARE, expression=text) for text in ("A dog", "a dog", "a cat")]
    ambiguous = "ambiguous description"
    assert judge(Distinct(), *objects) == [ambiguous, ambiguous, None]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("  the\tred \n\n star. ", "the red star"),
        ('"The red star."', "The red star"),
        ("Answer: the red star", "the red star"),
        ("the\x00 red\x1b[31m star", "the red[31m star"),
        ("the \u202eder\u202c star", "the der star"),
        ("the\u200b star\ufeff", "the star"),
        ("half \ud83d a pair", "half a pair"),
        ("cafe\u0301", "café"),
        ("wait...", "wait..."),
        ("", ""),
        ("\n\u2028\x85", ""),
    ],
)
def test_expressions_are_cleaned(text, clean):
    assert clean_expression(text) == clean


@given(st.text(max_size=400))
def test_clean_text_is_one_short_line_that_can_be_written(text):
    line = clean_text(text * 3)
    assert len(line) <= LONGEST
    assert line == " ".join(line.split())
    assert line.isprintable()
    line.encode("utf-8")
    assert clean_text(line) == line


def test_text_of_any_length_is_cut_first():
    assert len(clean_text("a" * 10_000_000)) == LONGEST
    assert clean_text("word " * 200).endswith("word")


def test_labels_as_descriptions():
    named = [Found(gray_image(), Detection((0, 0, 1, 1), 1.0, label)) for label in ("dog", "")]
    assert LabelDescriber().describe(named) == ["the dog", ""]
    assert LabelDescriber("{label} {0}").describe(named[:1]) == ["dog {0}"]


def test_the_object_is_shown_by_its_outline():
    square = found(rectangle(100, 100, 300, 300, (400, 600)))
    shown = highlight(square, longest_side=300)
    assert shown.shape == (200, 300, 3)
    red = (shown[..., 0].astype(int) - shown[..., 1]) > 60
    rows, columns = np.nonzero(red)
    np.testing.assert_allclose(
        (rows.min(), rows.max(), columns.min(), columns.max()), (50, 150, 50, 150), atol=3
    )
    assert not red[60:140, 60:140].any()
    assert (square.image.image == 128).all()


def test_a_mask_is_needed_for_a_target():
    with pytest.raises(ValueError, match="no mask yet"):
        _ = Found(gray_image(), Detection((0, 0, 1, 1), 1.0)).target
    assert (
        Found(
            gray_image(), Detection((0, 0, 1, 1), 1.0), Segment(Rle.from_mask(SQUARE))
        ).target.area
        == 400
    )
