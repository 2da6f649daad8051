"""Tasks: what is given, what is asked for, and how often."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sized_images import SizedImages

from seg_env.data.scenes import Scenes
from seg_env.frames import PERMILLE, UNIT, letterbox_frame
from seg_env.grammar import decode
from seg_env.grammar.answers import decode_answer
from seg_env.metrics import overlaps, points_inside, written_box_iou
from seg_env.tasks import (
    PROMPTS,
    TASKS,
    TaskMixture,
    answer,
    askable,
    box_of,
    centre_of,
    form_of,
    point_of,
    query_of,
    question,
)
from seg_env.tasks.queries import QueryStyle, draw_task, interior_point, jittered_box, refer_to
from seg_env.types import Sample, Target

HARD = Scenes("val", "hard", length=12, size=64)
GIVEN = [task for task in TASKS if query_of(task) != "text"]


def ring_target():
    y, x = np.mgrid[:40, :60]
    distance = np.hypot(x - 30, y - 20)
    return Target.from_mask((distance < 18) & (distance > 10))


def place_in(prompt):
    """The place that a question gives, as text."""
    return prompt[prompt.index("[") : prompt.rindex("]") + 1]


def test_the_questions_that_the_shipped_policy_knows_stay():
    assert PROMPTS == {
        "text->mask": "Output the polygon coordinates of {expression} in the image.",
        "text->bbox": "Output the bounding box of {expression} in the image.",
        "text->point": "Output the center point of {expression} in the image.",
    }


@pytest.mark.parametrize("task", TASKS)
def test_the_perfect_answer_is_read_without_complaint_and_scores_fully(task):
    for sample in HARD:
        read = decode_answer(answer(sample, task, epsilon=0.0), form_of(task))
        assert read.valid
        if form_of(task) == "mask":
            assert np.divide(*overlaps([read], [sample.target]))[0] > 0.98
        elif form_of(task) == "bbox":
            assert written_box_iou([read], [sample.target])[0] > 0.97
        else:
            assert points_inside([read], [sample.target])[0] == 1


def test_what_is_not_there_has_the_same_answer_in_every_form():
    nothing = Sample("none", "the unicorn", Target.from_mask(np.zeros((8, 8), bool)), None)
    assert {answer(nothing, task) for task in TASKS} == {"[]"}
    assert askable(nothing, "point->bbox") == "text->bbox"
    assert askable(HARD[0], "point->bbox") == "point->bbox"
    with pytest.raises(ValueError, match="there is no object whose place can be given"):
        refer_to(nothing, "point->mask")


def test_the_point_asked_for_is_the_middle_or_where_that_misses_on_the_object():
    square = SizedImages()[0].target
    np.testing.assert_array_equal(point_of(square), centre_of(square))
    ring = ring_target()
    assert not ring.contains(centre_of(ring))
    assert ring.contains(point_of(ring))
    for sample in HARD:
        assert sample.target.contains(point_of(sample.target))


def test_the_box_is_that_of_the_outline():
    for sample in HARD:
        points = np.concatenate(sample.target.rings)
        around = [*points.min(axis=0), *points.max(axis=0)]
        np.testing.assert_array_equal(box_of(sample.target), around)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), density=st.floats(0.01, 1.0))
def test_a_drawn_point_is_a_pixel_of_the_object_each_as_likely(seed, density):
    rng = np.random.default_rng(seed)
    mask = rng.random((7, 9)) < density
    mask[3, 4] = True
    target = Target.from_mask(mask)
    found = {tuple(interior_point(target, rng)) for _ in range(20 * mask.sum())}
    rows, columns = np.nonzero(mask)
    pixels = {((x + 0.5) / 9, (y + 0.5) / 7) for x, y in zip(columns, rows, strict=True)}
    assert found <= pixels
    assert len(found) > 0.8 * len(pixels)
    inside = [[target.contains(((x + 0.5) / 9, (y + 0.5) / 7)) for x in range(9)] for y in range(7)]
    np.testing.assert_array_equal(inside, mask)


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), jitter=st.floats(0, 0.49))
def test_a_drawn_box_has_its_sides_moved_by_no_more_than_the_jitter(seed, jitter):
    target = HARD[seed % len(HARD)].target
    box, drawn = box_of(target), jittered_box(target, jitter, np.random.default_rng(seed))
    width, height = box[2] - box[0], box[3] - box[1]
    assert (np.abs(drawn - box) <= jitter * np.array([width, height, width, height]) + 1e-9).all()
    assert (drawn >= 0).all()
    assert (drawn <= 1).all()
    assert (drawn[2:] > drawn[:2]).all()


@pytest.mark.parametrize("task", GIVEN)
@pytest.mark.parametrize(
    "frame", [UNIT, PERMILLE, letterbox_frame(UNIT, (64, 64), (48, 96))], ids=lambda f: f.name
)
def test_a_place_is_given_in_the_frame_of_the_answers(task, frame):
    for sample in HARD:
        prompt = question(sample, task, refer_to(sample, task, 3, frame=frame))
        read = decode_answer(place_in(prompt), query_of(task), frame)
        assert read.valid
        if query_of(task) == "point":
            assert sample.target.contains(read.point)
        elif query_of(task) == "bbox":
            assert written_box_iou([read], [sample.target])[0] > 0.7
        else:
            assert np.divide(*overlaps([read], [sample.target]))[0] > 0.8


@pytest.mark.parametrize("task", GIVEN)
def test_a_place_follows_from_sample_and_seed(task):
    sample = HARD[2]
    one, again = refer_to(sample, task, 5), refer_to(HARD[2], task, 5)
    assert one == again
    if query_of(task) != "mask":  # an outline leaves nothing to draw
        assert len({refer_to(sample, task, seed) for seed in range(8)}) > 4


def test_places_are_written_as_told():
    sample = HARD[0]
    text = place_in(refer_to(sample, "bbox->mask", style=QueryStyle(decimals=2, pad=True)))
    assert all(len(number) == 4 for number in text.strip("[]").split(","))
    exact = place_in(refer_to(sample, "bbox->mask", style=QueryStyle(decimals=9, jitter=0.0)))
    read = decode_answer(exact, "bbox").rings[0][[0, 2]].ravel()
    np.testing.assert_allclose(read, box_of(sample.target), atol=1e-8)
    fine = decode(place_in(refer_to(sample, "mask->bbox", style=QueryStyle(epsilon=0.0))))
    coarse = decode(place_in(refer_to(sample, "mask->bbox", style=QueryStyle(epsilon=0.05))))
    assert sum(map(len, fine.rings)) > sum(map(len, coarse.rings))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"decimals": 0}, "decimals=0; use a whole number from 1 to 9"),
        ({"jitter": 0.5}, "jitter=0.5; use a number from 0"),
        ({"epsilon": -1}, "epsilon=-1; use a number from 0"),
        ({"decimals": 2.5}, "decimals=2.5; use a whole number from 1 to 9"),
        ({"decimals": True}, "decimals=True; use a whole number"),
        ({"jitter": "a"}, "jitter='a'; use a number from 0"),
        ({"epsilon": float("nan")}, "epsilon=nan; use a number from 0"),
        ({"pad": "no"}, "pad='no'; use True or False"),
        (3, "queries=3; use a dictionary"),
        ({"digits": 2}, r"'digits': 2.*some of \['decimals'"),
    ],
)
def test_wrong_styles_are_explained(spec, message):
    with pytest.raises(ValueError, match=message):
        QueryStyle.from_spec(spec)


def test_tasks_that_give_a_place_need_one():
    with pytest.raises(ValueError, match="point->mask needs a reference"):
        question(HARD[0], "point->mask")


def test_mixtures_are_read_in_every_form():
    text = "text->mask=0.7 point->mask=0.3"
    mixture = TaskMixture.from_spec(text)
    assert mixture.tasks == ("text->mask", "point->mask")
    assert str(mixture) == text
    assert TaskMixture.from_spec({"point->mask": 0.3, "text->mask": 0.7}) == mixture
    assert TaskMixture.from_spec(mixture) is mixture
    assert TaskMixture.from_spec("text->mask=2 text->point=0") == TaskMixture.from_spec(
        "text->mask=2"
    )
    single = TaskMixture.from_spec("bbox->mask")
    assert (str(single), single.forms, single.is_random) == ("bbox->mask", ("mask",), True)
    assert not TaskMixture.from_spec("text->bbox").is_random
    every = TaskMixture.from_spec(dict.fromkeys(TASKS, 1.0))
    assert every.tasks == TASKS
    assert every.forms == ("mask", "bbox", "point")


def test_mixtures_are_written_as_they_are_read():
    for weights in ((1e6, 1.0), (1e-7, 0.123456789), (1 / 3, 2e22)):
        mixture = TaskMixture.from_spec(
            dict(zip(("text->mask", "text->bbox"), weights, strict=True))
        )
        assert tuple(weight for _, weight in mixture.weights) == weights
        assert TaskMixture.from_spec(str(mixture)) == mixture
    assert str(TaskMixture.from_spec("mask=1e0 bbox=2.")) == "text->mask=1 text->bbox=2"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("text->outline", r"task='text->outline' is unknown; use one of 'text->mask'.*weights"),
        ("text->mask point->mask", "'text->mask' is not a task with a weight"),
        ("text->mask=much", "'text->mask=much' is not a task with a weight"),
        ("mask=1 text->mask=2", "text->mask is named twice"),
        ("text->mask=0", "no task a weight above 0"),
        ("", "no task a weight above 0"),
        ("text->mask=1e400", "the weights of text->mask add up to inf"),
        ("mask=" + "9" * 400 + " bbox=1", "add up to inf"),
        ({"text->mask": 1e308, "text->bbox": 1e308}, "add up to inf"),
        ({"text->mask": float("nan")}, "'text->mask=nan' is not a task with a weight"),
        (None, "task=None is unknown; use one of"),
        (3, "task=3 is unknown; use one of"),
        (["text->mask", 3], r"task=\['text->mask', 3\] is unknown"),
    ],
)
def test_wrong_mixtures_are_explained(spec, message):
    with pytest.raises(ValueError, match=message):
        TaskMixture.from_spec(spec)


def test_tasks_are_drawn_by_weight_and_follow_from_sample_and_seed():
    mixture = TaskMixture.from_spec("text->mask=0.75 point->mask=0.25")
    sample = HARD[1]
    drawn = [draw_task(mixture, sample, seed) for seed in range(800)]
    assert drawn == [draw_task(mixture, sample, seed) for seed in range(800)]
    assert drawn.count("text->mask") / 800 == pytest.approx(0.75, abs=0.06)
