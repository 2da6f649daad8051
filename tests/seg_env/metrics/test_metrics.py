"""Scores on numbers that can be checked by hand, and what their intervals promise."""

import math

import numpy as np
import pycocotools.mask as coco
import pytest

from seg_env.geometry.polygon import roles
from seg_env.geometry.rle import Rle
from seg_env.metrics import (
    bootstrap_interval,
    ciou,
    giou,
    giou_gain,
    iou,
    iou_of_boxes,
    measure,
    overlaps,
    percentile_interval,
    precision_at,
    resampled_ratios,
    summarize,
)
from seg_env.types import IssueKind, ParseIssue, Prediction, Target

# A small object found exactly, a large one half found, one missed, one rightly "not there".
INTERSECTIONS = np.array([10, 500, 0, 0])
UNIONS = np.array([10, 1000, 190, 0])


def square(x0, y0, x1, y1):
    return Prediction((np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=float),))


def test_overlaps_count_pixels_at_the_targets_own_sizes():
    left = np.zeros((10, 20), dtype=bool)
    left[:, :10] = True
    targets = [Target.from_mask(left), Target.from_mask(np.zeros((4, 4), dtype=bool))]
    predictions = [square(0, 0, 0.5, 1), square(0.25, 0, 0.75, 1), Prediction(()), Prediction(())]
    counts = overlaps(predictions, [targets[0], targets[0], targets[0], targets[1]])
    assert counts.intersections.tolist() == [100, 50, 0, 0]
    assert counts.unions.tolist() == [100, 150, 100, 0]


def test_overlaps_wants_as_many_targets_as_predictions():
    with pytest.raises(ValueError, match="1 predictions for 0 targets"):
        overlaps([Prediction(())], [])


@pytest.mark.parametrize("empty_union", [1.0, 0.0])
def test_iou_of_two_empty_masks_is_the_declared_rule(empty_union):
    assert iou(INTERSECTIONS, UNIONS, empty_union).tolist() == [1.0, 0.5, 0.0, empty_union]


def test_giou_counts_samples_and_ciou_counts_pixels():
    assert giou(iou(INTERSECTIONS, UNIONS)) == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert ciou(INTERSECTIONS, UNIONS) == pytest.approx(510 / 1200)


def test_ciou_of_nothing_but_empty_unions_is_the_declared_rule():
    assert ciou([0, 0], [0, 0]) == 1.0
    assert ciou([0, 0], [0, 0], empty_union=0.0) == 0.0


def test_precision_counts_samples_that_reach_the_threshold():
    ious = [0.2, 0.5, 0.7, 0.9]
    assert precision_at(ious, 0.5) == 0.75
    assert precision_at(ious, 0.8) == 0.25
    with pytest.raises(ValueError, match="threshold 50 is no IoU"):
        precision_at(ious, 50)


def test_iou_of_samples_equals_pycocotools_on_polygon_and_rle_targets():
    rng = np.random.default_rng(0)
    predictions, targets, expected = [], [], []
    while len(expected) < 200:
        height, width = (int(side) for side in rng.integers(1, 120, 2))
        rings = [rng.uniform(-0.1, 1.1, (int(rng.integers(3, 20)), 2)) for _ in range(4)]
        answer, truth = rings[: rng.integers(1, 3)], rings[2:]
        if not roles(answer).all():
            continue  # COCO knows no holes.
        flat = [[(ring * (width, height)).ravel().tolist()] for ring in (*answer, *truth)]
        parts = [coco.frPyObjects(each, height, width)[0] for each in flat]
        theirs, truth_rle = coco.merge(parts[:-2]), coco.merge(parts[-2:])
        if len(expected) % 2:  # An uncompressed run-length target, speckled.
            speckled = np.asfortranarray(rng.random((height, width)) < 0.4)
            truth_rle = coco.encode(speckled.astype(np.uint8))
        predictions.append(Prediction(tuple(answer)))
        targets.append(Target(Rle.from_string((height, width), truth_rle["counts"])))
        expected.append(coco.iou([theirs], [truth_rle], [0])[0, 0])
    found = iou(*overlaps(predictions, targets), empty_union=0.0)
    np.testing.assert_array_equal(found, expected)


def test_box_iou_is_that_of_what_is_filled():
    left = np.zeros((10, 20), dtype=bool)
    left[:, :10] = True
    target = Target.from_mask(left)
    # An L fills little of its box; the upper half; a neighbour; nothing.
    corner = [[0.0, 0.0], [0.5, 0.0], [0.5, 0.2], [0.1, 0.2], [0.1, 1.0], [0.0, 1.0]]
    corner = Prediction((np.array(corner),))
    answers = [corner, square(0, 0, 0.5, 0.5), square(0.5, 0, 1, 1), Prediction(())]

    def box_iou(answers, targets, empty_union=1.0):
        columns = measure(
            answers, targets, boundaries=False, outlines=False, empty_union=empty_union
        )
        return columns["box_iou"]

    assert box_iou(answers, [target] * 4).tolist() == [1.0, 0.5, 0.0, 0.0]
    nothing = Target.from_mask(np.zeros((10, 20), dtype=bool))
    assert box_iou([Prediction(()), corner], [nothing] * 2).tolist() == [1.0, 0.0]
    assert box_iou([Prediction(())], [nothing], empty_union=0.0) == [0.0]
    assert box_iou([], []).shape == (0,)


def test_iou_of_boxes_by_hand():
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 4, 4], [5, 5, 5, 5]]
    others = [[5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 0, 0], [5, 5, 5, 5]]
    assert iou_of_boxes(boxes, others).tolist() == [50 / 150, 0.0, 0.0, 1.0]


def test_absence_is_said_by_a_wellformed_answer_without_pixels():
    target = Target.from_mask(np.ones((4, 4), dtype=bool))
    gibberish = Prediction((), (ParseIssue(IssueKind.NO_POLYGON, 0),))
    point = Prediction((np.full((3, 2), 0.5),))
    for answer, says_absent in (
        (Prediction(()), True),
        (point, True),
        (gibberish, False),
        (square(0, 0, 1, 1), False),
    ):
        columns = measure([answer], [target], boundaries=False, outlines=False)
        assert summarize(columns, resamples=0)["t_acc"] == 1 - says_absent


@pytest.mark.parametrize(
    "score",
    [
        lambda: giou([]),
        lambda: ciou([], []),
        lambda: precision_at([], 0.5),
        lambda: resampled_ratios(np.zeros((0, 1)), np.zeros((0, 1))),
    ],
)
def test_no_sample_has_no_score(score):
    with pytest.raises(ValueError, match="at least one sample"):
        score()


def test_interval_of_equal_values_has_no_width():
    assert bootstrap_interval(giou, np.full(50, 0.25)) == (0.25, 0.25, 0.25)
    assert bootstrap_interval(giou, [0.25]) == (0.25, 0.25, 0.25)
    assert bootstrap_interval(ciou, [1], [4]) == (0.25, 0.25, 0.25)
    assert (resampled_ratios(np.ones((1, 2)), np.full((1, 2), 4.0)) == 0.25).all()


def test_interval_of_a_mean_matches_the_normal_approximation():
    values = np.random.default_rng(3).normal(0.5, 0.1, 400)
    estimate, low, high = bootstrap_interval(giou, values)
    assert estimate == values.mean()
    half = 1.96 * values.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((estimate - half, estimate + half), abs=0.1 * half)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    generator = np.random.default_rng(0)
    intervals = [bootstrap_interval(giou, generator.random(100), resamples=400) for _ in range(200)]
    covered = np.mean([interval.low <= 0.5 <= interval.high for interval in intervals])
    assert 0.90 <= covered <= 0.99


def test_wider_confidence_gives_a_wider_interval():
    values = np.linspace(0, 1, 30)
    narrow = bootstrap_interval(giou, values, confidence=0.5)
    wide = bootstrap_interval(giou, values, confidence=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_equal_seeds_give_equal_intervals():
    values = np.random.default_rng(0).random(50)
    first, again, other = (bootstrap_interval(giou, values, seed=seed) for seed in (1, 1, 2))
    assert first == again != other


def test_resampling_in_blocks_changes_nothing_but_memory(monkeypatch):
    values = np.linspace(0, 1, 30)
    at_once = bootstrap_interval(giou, values, resamples=100)
    monkeypatch.setattr("seg_env.metrics.intervals._DRAWN_AT_ONCE", 7 * 30)
    assert bootstrap_interval(giou, values, resamples=100) == pytest.approx(at_once)


def test_paired_interval_sees_a_gain_that_single_intervals_hide():
    before = np.random.default_rng(0).random(200)
    after = before + 0.01
    gain = bootstrap_interval(giou_gain, before, after)
    assert gain == pytest.approx((0.01, 0.01, 0.01))
    assert bootstrap_interval(giou, before).high > bootstrap_interval(giou, after).low


def test_shared_resamples_give_the_same_intervals_as_single_ones():
    rng = np.random.default_rng(0)
    values, shares, unions = rng.random(300), rng.random(300), rng.integers(1, 9, 300)
    above = np.stack((values, shares * unions), axis=1)
    below = np.stack((np.ones(300), unions), axis=1)
    mean, ratio = resampled_ratios(above, below, resamples=1000).T
    for found, single in (
        (percentile_interval(values.mean(), mean), bootstrap_interval(giou, values)),
        (percentile_interval(0.5, ratio), bootstrap_interval(ciou, shares * unions, unions)),
    ):
        width = single.high - single.low
        assert (found.low, found.high) == pytest.approx((single.low, single.high), abs=0.1 * width)


def test_shared_resamples_without_a_denominator_are_undefined():
    draws = resampled_ratios(np.array([[1.0], [0.0]]), np.array([[1.0], [0.0]]), resamples=64)
    assert np.isnan(draws).any()
    assert np.nanmin(draws) == 1.0
    assert percentile_interval(1.0, draws[:, 0]) == (1.0, 1.0, 1.0)
    assert math.isnan(percentile_interval(1.0, np.full(3, np.nan)).low)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: bootstrap_interval(ciou, [1], [1, 2]), r"shapes \[\(1,\), \(2,\)\]"),
        (lambda: bootstrap_interval(giou, [[0.1], [0.2]]), r"got shapes \[\(2, 1\)\]"),
        (lambda: bootstrap_interval(giou, [0.1], resamples=0), "at least 1, got 0"),
        (lambda: bootstrap_interval(giou, [0.1], confidence=95), "between 0 and 1, got 95"),
        (lambda: resampled_ratios(np.ones((1, 1)), np.ones((1, 1)), resamples=0), "1, got 0"),
        (lambda: bootstrap_interval(giou_gain, [1], [1, 2]), "arrays of one length"),
    ],
)
def test_malformed_requests(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


def test_void_pixels_count_neither_for_nor_against_an_answer():
    mask, void = np.zeros((10, 10), dtype=bool), np.zeros((10, 10), dtype=bool)
    mask[:, :4], void[:, 4:6] = True, True
    target = Target(Rle.from_mask(mask), ignore=Rle.from_mask(void))
    over_the_void = np.array([[0, 0], [0.6, 0], [0.6, 1], [0, 1]])
    too_far = np.array([[0, 0], [0.8, 0], [0.8, 1], [0, 1]])
    answers = [Prediction((over_the_void,)), Prediction((too_far,))]
    intersections, unions = overlaps(answers, [target, target])
    assert intersections.tolist() == [40, 40]
    assert unions.tolist() == [40, 60]
