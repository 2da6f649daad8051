"""Rewards and metrics measure an answer in the way that fits what was asked for."""

import numpy as np
import pytest

from rewards import NoTarget, Reward, RewardSum, known_rewards
from rewards.centroid_distance import CentroidDistance
from rewards.format import Format
from rewards.mask_iou import MaskIoU, outline_iou
from seg_env.grammar.answers import decode_answer
from seg_env.metrics import Failure, measure, point_distances, summarize
from seg_env.types import Target

OUTLINE = "[[[0.2,0.2],[0.6,0.2],[0.6,0.6],[0.2,0.6]]]"


def square(low=0.2, high=0.6, side=50):
    mask = np.zeros((side, side), dtype=bool)
    mask[round(low * side) : round(high * side), round(low * side) : round(high * side)] = True
    return Target.from_mask(mask)


THERE, ABSENT = square(), Target.from_mask(np.zeros((50, 50), dtype=bool))


def score(reward, text, form, target=THERE):
    return float(reward([decode_answer(text, form)], [target])[0])


def test_a_box_is_scored_by_its_iou():
    assert score(MaskIoU(), "[0.2,0.2,0.6,0.6]", "bbox") == 1
    assert score(MaskIoU(), "[0.2,0.2,0.6,0.4]", "bbox") == pytest.approx(0.5)
    assert score(MaskIoU(), "[0.7,0.7,0.9,0.9]", "bbox") == 0
    assert score(MaskIoU(), OUTLINE, "bbox") == 0
    # Between the pixels too, where the filled mask does not change.
    assert 0 < score(MaskIoU(), "[0.2,0.2,0.601,0.6]", "bbox") < 1


def test_a_point_is_scored_by_lying_inside_and_by_its_distance():
    assert score(MaskIoU(), "[0.21,0.59]", "point") == 1
    assert score(MaskIoU(), "[0.61,0.59]", "point") == 0
    assert score(MaskIoU(), "[1.4,0.4]", "point") == 0
    assert score(CentroidDistance(), "[0.4,0.4]", "point") == pytest.approx(1)
    assert score(CentroidDistance(), "[0.4,0.1]", "point") == pytest.approx(0.7)
    assert score(CentroidDistance(), OUTLINE, "point") == 0
    assert score(CentroidDistance(), "[0.2,0.2,0.6,0.4]", "bbox") == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("[0.3,0.3]", "point"), ("[0.2,0.2,0.6,0.6]", "bbox"), (OUTLINE, "mask")],
)
def test_well_formed_is_what_was_asked_for(text, fits):
    for form in ("mask", "bbox", "point"):
        assert score(Format(), text, form) == (form == fits)
        assert score(Format(), "[]", form) == 0
        assert score(Format(), "[]", form, ABSENT) == 1


@pytest.mark.parametrize(
    ("form", "place"), [("mask", OUTLINE), ("bbox", "[0.2,0.2,0.6,0.6]"), ("point", "[0.3,0.3]")]
)
def test_absence_is_answered_by_an_empty_list(form, place):
    for reward in (MaskIoU(), CentroidDistance(), NoTarget()):
        assert score(reward, "[]", form, ABSENT) == 1
        assert score(reward, place, form, ABSENT) == 0
        assert score(reward, "I see none", form, ABSENT) == 0
        assert score(reward, "[]", form) == 0
    assert score(NoTarget(), place, form) == 1
    assert score(NoTarget(), "I see none", form) == 0
    assert "no_target" in known_rewards()


def test_a_mixture_of_forms_is_scored_answer_by_answer():
    answers = [
        ("[0.3,0.3]", "point"),
        (OUTLINE, "mask"),
        ("[0.2,0.2,0.6,0.4]", "bbox"),
        ("[0.9,0.9]", "point"),
        ("[]", "mask"),
    ]
    read = [decode_answer(text, form) for text, form in answers]
    for reward in (MaskIoU(), CentroidDistance(), Format(), NoTarget()):
        together = reward(read, [THERE] * len(read))
        assert together.tolist() == [score(reward, text, form) for text, form in answers]
    assert outline_iou(read, [THERE] * 5).tolist() == [0, 1, 0.5, 0, 0]


def test_a_reward_that_knows_only_rings_goes_on_working():
    class Corners(Reward):
        def __call__(self, predictions, targets):
            return np.array([sum(map(len, answer.rings)) for answer in predictions], dtype=float)

    read = [
        decode_answer("[0.3,0.3]", "point"),
        decode_answer("[0.2,0.2,0.6,0.4]", "bbox"),
        decode_answer(OUTLINE),
    ]
    total = RewardSum.from_spec([(Corners(), 0.5)]).score(read, [THERE] * 3).total
    assert total.tolist() == [0, 2, 2]


def test_points_are_counted_by_the_pointing_game():
    texts = ["[0.3,0.3]", "[0.7,0.3]", "words", "[]"]
    read = [decode_answer(text, "point") for text in texts]
    targets = [THERE, THERE, THERE, ABSENT]
    others = [[square(0.64, 0.9).rle]] * 2 + [None, None]
    columns = measure(read, targets, others=others, boundaries=False, outlines=False)
    assert columns["inside"].tolist() == [1, 0, 0, 1]
    assert columns["failure"].tolist() == [
        Failure.GOOD,
        Failure.NO_OBJECT,
        Failure.MALFORMED,
        Failure.GOOD,
    ]
    found = summarize(columns, resamples=200)
    assert found["pointing_accuracy"] == columns["inside"].mean() == 0.5
    low, high = found["intervals"]["pointing_accuracy"]
    assert 0 <= low < 0.5 < high <= 1
    assert (found["n_acc"], found["t_acc"]) == (1, 1)
    distance = np.hypot(0.1, 0.1), np.hypot(0.3, 0.1)
    assert found["point_distance"] == pytest.approx(np.mean(distance))
    assert np.isnan(point_distances(read, targets)[2:]).all()
    on_other = decode_answer("[0.7,0.7]", "point")
    columns = measure([on_other], [THERE], others=others[:1], boundaries=False, outlines=False)
    assert columns["failure"].tolist() == [Failure.WRONG_OBJECT]


def test_a_point_where_nothing_is_is_a_false_alarm():
    read = [decode_answer("[0.3,0.3]", "point"), decode_answer("[]", "point")]
    columns = measure(read, [ABSENT, THERE], boundaries=False, outlines=False)
    assert columns["failure"].tolist() == [Failure.FALSE_ALARM, Failure.MISSED]
    found = summarize(columns, resamples=0)
    assert (found["n_acc"], found["t_acc"]) == (0, 0)


def test_boxes_are_counted_as_written():
    read = [decode_answer(text, "bbox") for text in ("[0.2,0.2,0.6,0.41]", "[0.2,0.2,0.6,0.39]")]
    columns = measure(read, [THERE] * 2, boundaries=False, outlines=False)
    np.testing.assert_allclose(columns["box_iou"], [0.525, 0.475])
    assert summarize(columns, resamples=0)["rec_accuracy"] == 0.5
    assert columns["failure"].tolist() == [Failure.GOOD, Failure.WRONG_OUTLINE]
