"""Spaces: samples are in the space and, for outlines, well-formed."""

import pickle
from copy import deepcopy

import numpy as np
import pytest
from gymnasium.vector.utils import batch_space, concatenate

from seg_env.envs.spaces import FreeText, ImageSpace, PolygonText
from seg_env.frames import PERMILLE, pixel_frame
from seg_env.geometry.polygon import ring_area
from seg_env.grammar import decode

FRAMES = [PolygonText(seed=0).frame, PERMILLE, pixel_frame(640, 480)]


@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.name)
def test_sampled_outlines_are_grammatical_clockwise_and_inside(frame):
    space = PolygonText(frame=frame, seed=7)
    for _ in range(300):
        prediction = decode(space.sample(), frame)
        assert prediction.issues == ()
        assert 1 <= len(prediction.rings) <= 2
        for ring in prediction.rings:
            assert 3 <= len(ring) <= 12
            assert ring_area(ring) > 0  # y points down: positive is clockwise on screen
            assert ring.min() >= 0
            assert ring.max() <= 1


def test_sampling_follows_the_seed():
    one, two, other = (PolygonText(seed=seed) for seed in (3, 3, 4))
    samples = [one.sample() for _ in range(5)]
    assert samples == [two.sample() for _ in range(5)]
    assert samples != [other.sample() for _ in range(5)]
    assert len(set(samples)) == 5


@pytest.mark.parametrize(
    "text", ["", "hello", "[[[0.1,", "\x00é中", "[" * 1_000_000, np.str_("[]")]
)
def test_any_string_is_an_answer(text):
    assert text in PolygonText()


@pytest.mark.parametrize("thing", [None, 3, b"[]", ["[]"], np.zeros(3)])
def test_nothing_but_a_string_is_an_answer(thing):
    assert thing not in PolygonText()
    assert thing not in FreeText()


def test_free_text_takes_any_character_but_not_any_length():
    space = FreeText(max_length=5)
    assert "né 中" in space
    assert "" in space
    assert "123456" not in space


def test_a_mask_for_sampling_is_refused():
    with pytest.raises(ValueError, match="takes no mask"):
        PolygonText().sample(mask=(3, None))


def test_image_space_takes_images_of_any_size():
    space = ImageSpace(seed=0)
    shapes = {sample.shape for sample in (space.sample() for _ in range(10)) if sample in space}
    assert len(shapes) == 10
    assert np.zeros((1, 500, 3), np.uint8) in space
    for wrong in (
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((5, 5), np.uint8),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((5, 5, 3), np.float32),
        [[0, 0, 0]],
    ):
        assert wrong not in space


@pytest.mark.parametrize("space", [PolygonText(), FreeText(20), ImageSpace()], ids=repr)
def test_spaces_can_be_copied_pickled_compared_and_batched(space):
    assert deepcopy(space) == space == pickle.loads(pickle.dumps(space))
    batched = batch_space(space, 3)
    samples = [space.sample() for _ in range(3)]
    assert concatenate(space, samples, None) in batched
    assert batched.sample() in batched


def test_spaces_that_differ_are_not_equal():
    assert PolygonText() != PolygonText(frame=PERMILLE)
    assert PolygonText() != PolygonText(forms=("bbox",))
    assert PolygonText(64) != FreeText(64)
    assert ImageSpace() != FreeText(64)
