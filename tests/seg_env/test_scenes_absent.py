"""Scenes that ask about objects that are not there."""

import numpy as np
import pytest

from seg_env.data.scenes import Scenes
from seg_env.data.sources import open_dataset


@pytest.mark.parametrize("difficulty", ["easy", "medium", "hard"])
def test_nothing_in_the_picture_fits_an_absent_expression(difficulty):
    scenes = Scenes("val", difficulty, length=40, size=48, negatives=1.0)
    near = 0
    for index, sample in enumerate(scenes):
        assert sample.target.area == 0
        _, color, shape = sample.expression.split()
        things = scenes.scene(index).objects
        assert all((thing.color, thing.shape) != (color, shape) for thing in things)
        near += any(thing.color == color or thing.shape == shape for thing in things)
        assert {color, shape} <= set(scenes.vocabulary)
        assert len(scenes.others(index)) == len(things) == len(sample.metadata["others"])
    assert near > 24


def test_about_the_share_asked_for_is_absent_and_all_else_stays():
    plain, some = (
        Scenes("val", length=300, size=48),
        Scenes("val", length=300, size=48, negatives=0.2),
    )
    absent = 0
    for one, other in zip(plain, some, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        if other.target.area:
            assert (one.id, one.expression) == (other.id, other.expression)
            np.testing.assert_array_equal(one.target.rle.counts, other.target.rle.counts)
        else:
            absent += 1
            assert other.id == f"{one.id}-absent"
    assert absent / 300 == pytest.approx(0.2, abs=0.08)


def test_an_absent_question_comes_after_those_about_the_objects():
    scenes = Scenes("val", length=4, size=48, negatives=1.0)
    samples = scenes.samples_of(2)
    assert [bool(sample.target.area) for sample in samples] == [True] * (len(samples) - 1) + [False]
    assert samples[-1].id == scenes[2].id
    assert len({sample.id for sample in samples}) == len(samples)


def test_the_share_is_an_argument_of_scenes_alone():
    assert open_dataset("scenes", negatives=0.5).negatives == 0.5
    with pytest.raises(ValueError, match=r"negatives=1.5 is no share; use a number from 0 to 1"):
        Scenes(negatives=1.5)
    for wrong in ("x", True, None, float("nan")):
        with pytest.raises(ValueError, match=rf"negatives='?{wrong}'? is no share"):
            Scenes(negatives=wrong)
    with pytest.raises(ValueError, match=r"negatives=0.1 cannot be used with dataset='refcoco'"):
        open_dataset("refcoco", negatives=0.1)
