"""Columns of measured answers agree with the single scores; reports agree with the columns."""

import io
import json
import math

import numpy as np
import pytest

from rewards import MaskIoU
from seg_env.data.scenes import Scenes
from seg_env.grammar import decode, encode
from seg_env.metrics import (
    apply_empty_union,
    boundary_f,
    boundary_iou,
    breakdown,
    compare,
    giou,
    join_columns,
    measure,
    overlaps,
    size_class,
    summarize,
)
from seg_env.types import Prediction, Target

ABSENT = Target.from_mask(np.zeros((64, 64), dtype=bool))


@pytest.fixture(scope="module")
def answered():
    """Answers good and bad to some questions, two of them about nothing; targets in any order."""
    rng = np.random.default_rng(0)
    predictions, targets = [], []
    for sample in Scenes(split="val", difficulty="medium", length=8, size=64):
        outline = sample.target.outline(0.01)
        texts = [encode(outline), encode(outline)[:-2], "[]", "no idea"]
        moved = [ring + rng.normal(0, 0.05, ring.shape) for ring in outline]
        predictions += [decode(text) for text in (*texts, encode(moved))]
        targets += [sample.target] * 5
    predictions += [decode("[]"), decode("?"), decode("[[[0,0],[1,0],[1,1]]]")]
    targets += [ABSENT] * 3
    order = rng.permutation(len(targets))
    return [predictions[i] for i in order], [targets[i] for i in order]


def test_columns_are_the_single_scores(answered):
    columns = measure(*answered)
    counts = overlaps(*answered)
    np.testing.assert_array_equal(columns["intersection"], counts.intersections)
    np.testing.assert_array_equal(columns["union"], counts.unions)
    np.testing.assert_array_equal(columns["iou"], MaskIoU()(*answered))
    read = columns["valid"] | (columns["union"] > 0)
    for name, score in (
        ("boundary_iou", boundary_iou),
        ("boundary_f", boundary_f),
    ):
        np.testing.assert_array_equal(columns[name], np.where(read, score(*answered), 0.0))
    assert {len(column) for column in columns.values()} == {len(answered[0])}


def test_issues_vertices_and_sizes_are_columns(answered):
    columns = measure(*answered)
    for index, (prediction, target) in enumerate(zip(*answered, strict=True)):
        assert columns["valid"][index] == prediction.valid == (columns["issues"][index] == "")
        assert columns["vertices"][index] == sum(map(len, prediction.rings))
        assert columns["target_area"][index] == target.area
        assert columns["size"][index] == size_class([target.area])[0]
    assert "truncated" in columns["issues"].tolist()


def test_measuring_leaves_no_preparation_behind():
    targets = [sample.target for sample in Scenes(split="val", length=3, size=64)]
    targets[0].cache["own"] = 1
    measure([Prediction(())] * 3, targets)
    assert [set(target.cache) for target in targets] == [{"own"}, set(), set()]


def test_many_answers_to_one_target_are_measured_in_parts(answered, monkeypatch):
    at_once = measure(*answered)
    monkeypatch.setattr("seg_env.metrics.records._ANSWERS_AT_ONCE", 2)
    for name, column in measure(*answered).items():
        np.testing.assert_array_equal(column, at_once[name])


def test_columns_can_be_left_out_and_stored_without_pickle(answered):
    full, few = measure(*answered), measure(*answered, boundaries=False, outlines=False)
    left_out = {"boundary_iou", "boundary_f", "hd95", "polis", "target_vertices"}
    assert full.keys() - few.keys() == left_out
    stored = io.BytesIO()
    np.savez(stored, **full)
    stored.seek(0)
    with np.load(stored, allow_pickle=False) as loaded:
        for name, column in full.items():
            np.testing.assert_array_equal(loaded[name], column)


def test_no_answers_give_the_same_columns_without_rows(answered):
    nothing = measure([], [])
    assert nothing.keys() == measure(*answered).keys()
    assert {len(column) for column in nothing.values()} == {0}


def test_parts_are_joined_in_order(answered):
    predictions, targets = answered
    parts = [measure(predictions[:9], targets[:9]), measure(predictions[9:], targets[9:])]
    for name, column in measure(*answered).items():
        np.testing.assert_array_equal(join_columns(parts)[name], column)
    with pytest.raises(ValueError, match="same options"):
        join_columns([parts[0], measure(predictions, targets, outlines=False)])
    with pytest.raises(ValueError, match="at least one"):
        join_columns([])


@pytest.mark.parametrize(("rule", "scores"), [(1.0, [1, 0, 0]), (0.0, [0, 0, 0])])
def test_the_rule_for_empty_unions_can_be_changed_afterwards(rule, scores):
    answers = [decode("[]"), decode("?"), decode("[[[0,0],[1,0],[1,1]]]")]
    columns = measure(answers, [ABSENT] * 3, empty_union=0.5)
    assert columns["iou"].tolist() == [0.5, 0, 0]
    changed = apply_empty_union(columns, rule)
    for name in ("iou", "box_iou", "boundary_iou", "boundary_f"):
        assert changed[name].tolist() == scores


def test_size_classes_are_cocos():
    areas = [0, 1, 32**2 - 1, 32**2, 96**2 - 1, 96**2]
    expected = ["none", "small", "small", "medium", "medium", "large"]
    assert size_class(areas).tolist() == expected


def test_scores_by_size():
    groups = breakdown([0.5, 0.7, 0.9], size_class([100, 100, 10_000]))
    assert groups["small"].samples == 2
    assert groups["small"].score.estimate == pytest.approx(0.6)
    assert groups["large"].score.estimate == 0.9


# reports


def table(**columns):
    """Columns of answers that are all read well, with what a test wants to know."""
    count = len(next(iter(columns.values())))
    plain = {
        "target_area": np.full(count, 100),
        "answer_area": np.full(count, 100),
        "iou": np.zeros(count),
        "box_iou": np.zeros(count),
        "intersection": np.zeros(count, dtype=int),
        "union": np.ones(count, dtype=int),
        "vertices": np.full(count, 4),
        "valid": np.ones(count, dtype=bool),
        "issues": np.full(count, ""),
        "failure": np.full(count, "good"),
        "size": np.full(count, "small"),
    }
    return plain | {name: np.array(column) for name, column in columns.items()}


def test_summary_by_hand():
    columns = table(
        iou=[1.0, 0.5, 0.0, 1.0, 0.0],
        box_iou=[1.0, 0.5, 0.0, 1.0, 0.0],
        intersection=[10, 500, 0, 0, 0],
        union=[10, 1000, 190, 0, 30],
        target_area=[10, 700, 90, 0, 0],
        answer_area=[10, 800, 100, 0, 30],
        boundary_iou=[0.5, 0.7, 0.0, 1.0, 0.0],
        vertices=[4, 12, 4, 0, 3],
        target_vertices=[4, 6, 4, 0, 0],
        valid=[True, True, False, True, True],
        issues=["", "", "truncated,bad_number", "", ""],
        failure=["good", "good", "no_object", "good", "false_alarm"],
        size=["small", "small", "small", "none", "none"],
    )
    summary = summarize(columns, resamples=100)
    assert summary["giou"] == pytest.approx(2.5 / 5)
    assert summary["ciou"] == pytest.approx(510 / 1230)
    assert summary["precision@0.5"] == pytest.approx(3 / 5)
    assert summary["precision@0.6"] == pytest.approx(2 / 5)
    assert summary["rec_accuracy"] == pytest.approx(2 / 5)
    assert summary["boundary_iou"] == pytest.approx(2.2 / 5)
    assert summary["boundary_iou_limited"] == pytest.approx(2.0 / 5)
    assert summary["vertex_ratio"] == pytest.approx((1 + 2 + 1) / 3)
    assert summary["n_acc"] == 0.5
    assert summary["t_acc"] == 1.0
    assert summary["well_formed"] == pytest.approx(4 / 5)
    assert summary["failures"] == {"good": 3, "no_object": 1, "false_alarm": 1}
    assert summary["issues"] == {"truncated": 1, "bad_number": 1}
    assert summary["sizes"] == {"none": 0.5, "small": 0.5}
    strict = summarize(columns, empty_union=0.0, resamples=0)
    assert (strict["giou"], strict["empty_union"]) == (pytest.approx(1.5 / 5), 0.0)
    assert strict["boundary_iou"] == pytest.approx(1.2 / 5)
    assert strict["intervals"] == {}


def test_no_target_and_target_accuracy_by_hand():
    columns = table(target_area=[0, 0, 0, 100, 100], answer_area=[0, 0, 30, 0, 30], iou=[0] * 5)
    summary = summarize(columns, resamples=0)
    assert summary["n_acc"] == pytest.approx(2 / 3)
    assert summary["t_acc"] == pytest.approx(1 / 2)
    unreadable = columns | {"valid": np.zeros(5, dtype=bool)}
    assert summarize(unreadable, resamples=0)["n_acc"] == 0.0
    assert summarize(table(target_area=[0, 0]), resamples=0)["t_acc"] is None


def test_rec_wants_more_than_the_threshold():
    assert summarize(table(box_iou=[0.2, 0.5, 0.51, 1.0]), resamples=0)["rec_accuracy"] == 0.5


def test_a_summary_of_measured_answers_is_json(answered):
    columns = measure(*answered)
    summary = json.loads(json.dumps(summarize(columns, resamples=200), allow_nan=False))
    assert summary["samples"] == len(answered[0])
    assert summary["giou"] == pytest.approx(giou(MaskIoU()(*answered)))
    for name, (low, high) in summary["intervals"].items():
        assert low <= summary[name] <= high
    assert sum(summary["failures"].values()) == len(answered[0])


def test_scores_without_a_sample_to_decide_them_are_none():
    summary = summarize(table(iou=[0.2, 0.4]), resamples=10)
    assert summary["n_acc"] is None
    assert summary["intervals"]["n_acc"] == [None, None]
    assert summary["t_acc"] == 1.0
    only_absent = table(iou=[1.0], union=[0], target_area=[0], answer_area=[0])
    assert summarize(only_absent, resamples=10)["ciou"] == 1.0
    assert summarize(only_absent, empty_union=0.0, resamples=10)["intervals"]["ciou"] == [0, 0]
    with pytest.raises(ValueError, match="at least one sample"):
        summarize(table(iou=[]), resamples=0)


def test_two_models_are_compared_sample_by_sample():
    before = np.random.default_rng(0).random(200)
    gains = compare(table(iou=before), table(iou=before + 0.01), resamples=200)
    assert gains["giou"] == pytest.approx((0.01, 0.01, 0.01))
    assert gains["well_formed"] == (0.0, 0.0, 0.0)
    assert math.isnan(gains["n_acc"].estimate)
    with pytest.raises(ValueError, match="200 samples before and 1 after"):
        compare(table(iou=before), table(iou=[0.5]))


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 predictions for 0 targets"):
        measure([Prediction(())], [])
    with pytest.raises(ValueError, match="other objects of 2 images for 1 targets"):
        measure([Prediction(())], [ABSENT], others=[None, None])
