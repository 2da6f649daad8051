"""Built-in rewards and their weighted sum, on outlines whose scores are known by hand."""

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import CentroidDistance, Format, MaskIoU, Reward, RewardSum
from rewards.centroid_distance import prediction_centroids, target_centroid
from seg_env.geometry.polygon import ring_area
from seg_env.types import IssueKind, ParseIssue, Prediction, Target


def box(x0, y0, x1, y1, clockwise=True):
    ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)
    return ring if clockwise else ring[::-1]


def answer(*rings, issue=None):
    issues = () if issue is None else (ParseIssue(issue, 0),)
    return Prediction(tuple(rings), issues)


def target(rows=slice(0, 0), columns=slice(0, 0), size=(100, 200)):
    mask = np.zeros(size, dtype=bool)
    mask[rows, columns] = True
    return Target.from_mask(mask)


LEFT_HALF = target(slice(0, 100), slice(0, 100))
NOTHING = target()
NO_TARGET = answer()
GIBBERISH = answer(issue=IssueKind.NO_POLYGON)


class Echo(Reward):
    """Returns what it was built with, whatever the answers are."""

    name = "echo"

    def __init__(self, values):
        self.values = values

    def __call__(self, predictions, targets):
        return self.values


# mask_iou


def test_mask_iou_of_a_batch_with_mixed_targets():
    right_half = target(slice(0, 100), slice(100, 200))
    top_left = answer(box(0, 0, 0.5, 0.5))
    whole = answer(box(0, 0, 1, 1))
    scores = MaskIoU()(
        [top_left, top_left, whole, NO_TARGET, whole],
        [LEFT_HALF, right_half, LEFT_HALF, LEFT_HALF, right_half],
    )
    np.testing.assert_allclose(scores, [0.5, 0.0, 0.5, 0.0, 0.5])


def test_mask_iou_takes_holes_out():
    ring = answer(box(0, 0, 0.5, 1), box(0.1, 0.2, 0.4, 0.8, clockwise=False))
    np.testing.assert_allclose(MaskIoU()([ring], [LEFT_HALF]), [1 - 60 * 60 / (100 * 100)])


@pytest.mark.parametrize(
    ("prediction", "score"), [(NO_TARGET, 1.0), (GIBBERISH, 0.0), (answer(box(0, 0, 1, 1)), 0.0)]
)
def test_mask_iou_of_an_absent_object_wants_it_said(prediction, score):
    assert MaskIoU()([prediction], [NOTHING]) == [score]


def test_mask_iou_prepares_a_target_once_for_its_group():
    own = target(slice(10, 20), slice(10, 20))
    MaskIoU()([NO_TARGET] * 4, [own] * 4)
    prepared = own.cache["region"]
    MaskIoU()([NO_TARGET], [own])
    assert own.cache["region"] is prepared


# centroid_distance


def test_centroid_distance_is_one_at_the_centre_and_falls_linearly():
    # The target's centre is (0.25, 0.5).
    answers = [answer(box(x - 0.05, 0.45, x + 0.05, 0.55)) for x in (0.25, 0.35, 0.75)]
    scores = CentroidDistance()(answers, [LEFT_HALF] * 3)
    np.testing.assert_allclose(scores, [1.0, 0.9, 0.5])


def test_centroid_distance_tells_misses_apart_while_iou_is_zero():
    near, far = answer(box(0.55, 0.4, 0.65, 0.6)), answer(box(0.9, 0.4, 1.0, 0.6))
    assert MaskIoU()([near, far], [LEFT_HALF] * 2).tolist() == [0.0, 0.0]
    near_score, far_score = CentroidDistance()([near, far], [LEFT_HALF] * 2)
    assert near_score > far_score > 0


def test_centroid_distance_scale_is_where_the_reward_ends():
    miss = answer(box(0.7, 0.45, 0.8, 0.55))  # half the width away
    np.testing.assert_allclose(CentroidDistance(scale=2.0)([miss], [LEFT_HALF]), [0.75])
    assert CentroidDistance(scale=0.4)([miss], [LEFT_HALF]) == [0.0]
    with pytest.raises(ValueError, match=r"scale must be a positive number, got 0"):
        CentroidDistance(scale=0)


@pytest.mark.parametrize(
    ("prediction", "score"),
    [(NO_TARGET, 1.0), (GIBBERISH, 0.0), (answer(box(0, 0, 1, 1)), 0.0)],
)
def test_centroid_distance_of_an_absent_object_wants_it_said(prediction, score):
    assert CentroidDistance()([prediction], [NOTHING]) == [score]


@pytest.mark.parametrize(
    "rings",
    [(), (np.zeros((2, 2)),), (np.full((3, 2), np.nan),), (box(0, 0, np.inf, 1),)],
    ids=["none", "two vertices", "nan", "infinite"],
)
def test_centroid_distance_without_a_usable_ring_is_zero(rings):
    assert CentroidDistance()([answer(*rings)], [LEFT_HALF]) == [0.0]


def test_prediction_centroid_takes_holes_out_and_joins_parts():
    # A 4 x 4 square without its right 2 x 2 quarter-height hole: (16*2 - 4*3) / 12 = 5/3.
    with_hole = [box(0, 0, 0.4, 0.4), box(0.2, 0.1, 0.4, 0.3, clockwise=False)]
    two_parts = [box(0.0, 0.0, 0.2, 0.2), box(0.8, 0.0, 1.0, 0.2)]
    np.testing.assert_allclose(
        prediction_centroids([with_hole, [], two_parts]),
        [[1 / 6, 0.2], [np.nan, np.nan], [0.5, 0.1]],
    )


def test_prediction_centroid_of_a_line_is_its_mean_vertex():
    line = np.array([[0.1, 0.1], [0.3, 0.3], [0.8, 0.8]])
    np.testing.assert_allclose(prediction_centroids([[line]]), [[0.4, 0.4]])


def test_prediction_centroid_stays_in_the_box_of_a_crossing_ring():
    bow_tie = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.999]])
    assert (
        (prediction_centroids([[bow_tie]]) >= 0) & (prediction_centroids([[bow_tie]]) <= 1)
    ).all()


def ring_centroid(ring):
    """Centroid of the enclosed area by the shoelace formula, the mean vertex without area."""
    area, local = ring_area(ring), ring - ring[0]
    if abs(area) <= 1e-12 * np.abs(local).max() ** 2:
        return ring.mean(axis=0)
    cross = local[:-1, 0] * local[1:, 1] - local[1:, 0] * local[:-1, 1]
    return ring[0] + ((local[:-1] + local[1:]) * cross[:, None]).sum(axis=0) / (6 * area)


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=3, max_size=8),
        min_size=1,
        max_size=4,
    )
)
def test_prediction_centroids_of_a_batch_equal_those_one_by_one(outlines):
    rings = [np.array(outline, dtype=np.float64) / 1000 for outline in outlines]
    batched = prediction_centroids([[ring] for ring in rings])
    one_by_one = [ring_centroid(ring).clip(ring.min(axis=0), ring.max(axis=0)) for ring in rings]
    np.testing.assert_allclose(batched, one_by_one, atol=1e-6)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_target_centroid_equals_the_mean_pixel_centre(height, width, seed):
    mask = np.random.default_rng(seed).random((height, width)) < 0.4
    mask[-1, -1] = True
    rows, columns = np.nonzero(mask)
    wanted = ((columns.mean() + 0.5) / width, (rows.mean() + 0.5) / height)
    np.testing.assert_allclose(target_centroid(Target.from_mask(mask)), wanted)


# format


@pytest.mark.parametrize(
    ("prediction", "asked", "score"),
    [
        (answer(box(0, 0, 1, 1)), LEFT_HALF, 1.0),
        (answer(box(0, 0, 1, 1)), NOTHING, 1.0),
        (answer(box(0, 0, 1, 1), issue=IssueKind.TRUNCATED), LEFT_HALF, 0.0),
        (answer(np.full((3, 2), 0.5)), LEFT_HALF, 0.0),
        (NO_TARGET, LEFT_HALF, 0.0),
        (NO_TARGET, NOTHING, 1.0),
        (GIBBERISH, NOTHING, 0.0),
    ],
    ids=["outline", "outline of nothing", "truncated", "point", "missed", "absent", "gibberish"],
)
def test_format(prediction, asked, score):
    assert Format()([prediction], [asked]) == [score]


# the weighted sum


def test_sum_weighs_terms_and_reports_them_unweighted():
    rewards = RewardSum.from_spec("mask_iou=2 format=0.5 centroid_distance=0")
    scores = rewards.score([answer(box(0, 0, 0.5, 0.5))], [LEFT_HALF])
    assert list(scores.terms) == ["mask_iou", "format", "centroid_distance"]
    np.testing.assert_allclose(scores.total, [2 * 0.5 + 0.5 * 1.0])
    np.testing.assert_allclose(scores.terms["centroid_distance"], [0.75])


def test_gate_multiplies_the_sum_of_the_others():
    rewards = RewardSum.from_spec("mask_iou=1.0 centroid_distance=1.0 format=gate")
    right = box(0, 0, 0.5, 1)
    scores = rewards.score(
        [answer(right), answer(right, issue=IssueKind.TRUNCATED)], [LEFT_HALF] * 2
    )
    np.testing.assert_allclose(scores.total, [2.0, 0.0])
    np.testing.assert_allclose(scores.terms["mask_iou"], [1.0, 1.0])


def test_gate_outside_zero_to_one_is_an_error():
    rewards = RewardSum.from_spec([("mask_iou", 1.0), (Echo([1.5]), "gate")])
    with pytest.raises(ValueError, match=r"'echo' is used as a gate and returned 1\.5"):
        rewards.score([NO_TARGET], [LEFT_HALF])


@pytest.mark.parametrize("spec", ["mask_iou=1.0 centroid_distance=0.2 format=0.1"])
def test_no_answers_give_no_scores(spec):
    scores = RewardSum.from_spec(spec).score([], [])
    assert scores.total.shape == (0,)
    assert {values.shape for values in scores.terms.values()} == {(0,)}


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (np.zeros((2, 1)), r"shape \(2, 1\)"),
        (np.zeros(3), r"shape \(3,\)"),
        (0.5, r"shape \(\)"),
        (np.array([0.5, np.nan]), r"got nan for prediction 1"),
        (np.array([np.inf, 0.5]), r"got inf for prediction 0"),
        (np.array([1j, 0.5]), "complex128"),
        (np.array([0.5, None]), "object"),
        (["0.5", "1"], "<U3"),
        ([[0.5], [0.5, 1.0]], r"got \[\[0\.5\]"),
        (None, "got None"),
    ],
)
def test_a_reward_that_returns_anything_else_is_named(returned, complaint):
    rewards = RewardSum.from_spec([(Echo(returned), 0.0)])
    with pytest.raises(ValueError, match=rf"reward 'echo': expected \(2,\) finite.*{complaint}"):
        rewards.score([NO_TARGET] * 2, [LEFT_HALF] * 2)


def test_scores_do_not_share_memory_with_the_reward():
    own = np.array([0.5])
    scores = RewardSum.from_spec([(Echo(own), 1.0)]).score([NO_TARGET], [LEFT_HALF])
    own[0] = 9.0
    assert scores.terms["echo"] == [0.5]


def test_exceptions_in_a_reward_reach_the_caller():
    class Broken(Reward):
        def __call__(self, predictions, targets):
            raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        RewardSum.from_spec([(Broken(), 1.0)]).score([NO_TARGET], [LEFT_HALF])


def test_as_many_targets_as_predictions():
    with pytest.raises(ValueError, match="2 predictions for 1 targets"):
        RewardSum.from_spec("format=1").score([NO_TARGET] * 2, [LEFT_HALF])


def test_reward_sum_survives_pickling():
    rewards = RewardSum.from_spec("mask_iou=1.0 centroid_distance=0.2 format=gate")
    copy = pickle.loads(pickle.dumps(rewards))
    answers = [answer(box(0, 0, 0.3, 0.5))]
    np.testing.assert_array_equal(
        copy.score(answers, [LEFT_HALF]).total, rewards.score(answers, [LEFT_HALF]).total
    )
    assert repr(copy) == repr(rewards)
