"""Every answer is good or fails in exactly one way."""

import numpy as np
import pytest

from seg_env.data.scenes import Scenes
from seg_env.geometry.rle import Rle
from seg_env.grammar import decode, encode
from seg_env.metrics import Failure, measure
from seg_env.types import IssueKind, ParseIssue, Prediction, Target


def box(x0, y0, x1, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)


def mask(columns):
    found = np.zeros((10, 40), dtype=bool)
    found[:, columns] = True
    return found


def failures(answers, targets, others=None):
    return measure(answers, targets, others=others, boundaries=False, outlines=False)["failure"]


TARGET = Target.from_mask(mask(slice(0, 10)))
ABSENT = Target.from_mask(np.zeros((10, 40), dtype=bool))
OTHER = Rle.from_mask(mask(slice(20, 30)))
ISSUE = (ParseIssue(IssueKind.TRUNCATED, 0),)

ON_TARGET = box(0, 0, 0.25, 1)
TOO_WIDE = box(0, 0, 0.55, 1)  # target .4545, other .0625
ON_OTHER = box(0.5, 0, 0.75, 1)
ACROSS = box(0.2, 0, 0.7, 1)  # target 2 of 28, other 8 of 22
ELSEWHERE = box(0.8, 0, 0.9, 1)


@pytest.mark.parametrize(
    ("rings", "issues", "target", "kind"),
    [
        ([ON_TARGET], (), TARGET, "good"),
        ([ON_TARGET], ISSUE, TARGET, "good"),
        ([TOO_WIDE], (), TARGET, "wrong_outline"),
        ([ON_OTHER], (), TARGET, "wrong_object"),
        ([ACROSS], (), TARGET, "wrong_object"),
        ([ELSEWHERE], (), TARGET, "no_object"),
        ([], (), TARGET, "missed"),
        ([np.full((3, 2), 0.5)], (), TARGET, "missed"),
        ([], ISSUE, TARGET, "malformed"),
        ([], (), ABSENT, "good"),
        ([], ISSUE, ABSENT, "malformed"),
        ([ON_OTHER], (), ABSENT, "false_alarm"),
    ],
)
def test_kinds(rings, issues, target, kind):
    found = failures([Prediction(tuple(rings), issues)], [target], [[OTHER, TARGET.rle]])
    assert found.tolist() == [kind]
    assert Failure(kind) == found[0]


def test_without_the_other_objects_no_answer_is_about_them():
    answers = [Prediction((ring,)) for ring in (ON_OTHER, ACROSS, TOO_WIDE)]
    expected = ["no_object", "wrong_outline", "wrong_outline"]
    assert failures(answers, [TARGET] * 3).tolist() == expected
    assert failures(answers, [TARGET] * 3, [None, [], [OTHER]]).tolist() == expected


def test_answers_about_each_object_of_a_scene():
    samples = Scenes(split="val", difficulty="medium", length=4, size=64).samples_of(1)
    masks = [sample.target.rle for sample in samples]
    answers = [decode(encode(sample.target.outline())) for sample in samples]
    asked = samples[0].target
    found = failures(answers, [asked] * len(answers), [masks] * len(answers))
    assert found.tolist() == ["good"] + ["wrong_object"] * (len(answers) - 1)


def test_arguments_of_unequal_length_or_size():
    answer = Prediction((ON_OTHER,))
    with pytest.raises(ValueError, match="1 predictions for 0 targets"):
        failures([answer], [])
    with pytest.raises(ValueError, match="other objects of 0 images for 1 targets"):
        failures([answer], [TARGET], [])
    small = Rle.from_mask(np.ones((5, 5), dtype=bool))
    with pytest.raises(ValueError, match=r"another object has the size \(5, 5\)"):
        failures([answer], [TARGET], [[small]])
    assert failures([], []).shape == (0,)
