"""Questions and answers, drawn and as text."""

import io

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from seg_env.envs.referring import ReferringSegmentationEnv
from seg_env.envs.render import RENDER_MODES
from seg_env.geometry.drawing import ANSWER_COLOR, TARGET_COLOR, draw_overlay
from seg_env.grammar import decode, encode
from seg_env.tasks import point_of
from seg_env.types import Prediction, counted

SQUARE = "[[[0.25,0.25],[0.75,0.25],[0.75,0.75],[0.25,0.75]]]"


def close_to(image, color, tolerance=12):
    """``(H, W) bool``: where an image has a color."""
    return (np.abs(image.astype(int) - color) <= tolerance).all(axis=2)


@pytest.fixture
def black():
    return np.zeros((64, 96, 3), dtype=np.uint8)


def test_small_images_are_enlarged_and_large_ones_reduced(black):
    assert draw_overlay(black).shape == (384, 576, 3)
    assert draw_overlay(black, short_side=64).shape == (64, 96, 3)
    assert draw_overlay(np.zeros((1000, 4000, 3), np.uint8)).shape == (400, 1600, 3)
    assert draw_overlay(np.zeros((1, 3000, 3), np.uint8)).shape == (1, 1600, 3)


def test_an_image_alone_stays_as_it_is(scenes):
    image = scenes[0].image
    np.testing.assert_array_equal(draw_overlay(image, short_side=64), image)


def test_the_answer_is_drawn_where_it_is(black):
    drawn = draw_overlay(black, None, decode(SQUARE))
    line = close_to(drawn, ANSWER_COLOR)
    rows, columns = np.nonzero(line)
    assert abs(rows.min() - 96) <= 4
    assert abs(rows.max() - 288) <= 4
    assert abs(columns.min() - 144) <= 4
    assert abs(columns.max() - 432) <= 4
    inside, outside = drawn[192, 288], drawn[40, 40]
    assert inside.any()
    assert not outside.any()


def test_the_target_is_tinted_within_its_outline(scenes):
    sample = scenes[1]
    drawn = draw_overlay(np.zeros_like(sample.image), sample.target, short_side=64 * 8)
    tinted = drawn.reshape(64, 8, 64, 8, 3)[:, 4, :, 4].any(axis=2)
    np.testing.assert_array_equal(tinted & sample.target.mask(), sample.target.mask())
    assert close_to(drawn, TARGET_COLOR).any()


def test_holes_are_left_open(black):
    ring = "[[[0.1,0.1],[0.9,0.1],[0.9,0.9],[0.1,0.9]],[[0.3,0.3],[0.3,0.7],[0.7,0.7],[0.7,0.3]]]"
    drawn = draw_overlay(black, None, decode(ring))
    assert not drawn[192, 288].any()
    assert drawn[76, 288].any()


def test_drawing_changes_neither_image_nor_target(scenes):
    sample = scenes[2]
    before = sample.image.copy()
    draw_overlay(sample.image, sample.target, decode(SQUARE))
    np.testing.assert_array_equal(sample.image, before)


@pytest.mark.parametrize(
    "answer", ["", "[]", "[[[5,5],[900,5],[5,900]]]", "[[[-0.9,-0.9],[1.9,0],[1,1.9]]]"]
)
def test_any_answer_can_be_drawn(black, answer):
    assert draw_overlay(black, None, decode(answer)).shape == (384, 576, 3)


def test_an_answer_of_thousands_of_vertices_can_be_drawn(black):
    angles = np.linspace(0, 2 * np.pi, 4000, endpoint=False)
    ring = 0.5 + 0.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert draw_overlay(black, None, decode(encode([ring], decimals=6))).any()


def test_the_frame_before_the_answer_hides_the_truth_and_has_the_same_size(scenes):
    env = ReferringSegmentationEnv(scenes, render_mode="rgb_array")
    env.reset(options={"index": 1})
    before = env.render()
    np.testing.assert_array_equal(before[:384], draw_overlay(scenes[1].image))
    env.step(encode(scenes[1].target.outline(0.01)))
    after = env.render()
    assert before.shape == after.shape
    assert before.dtype == after.dtype == np.uint8
    assert close_to(after[:384], ANSWER_COLOR).any()
    assert not np.shares_memory(after, env.render())


def test_long_expressions_are_shortened(pictures):
    env = ReferringSegmentationEnv(pictures, render_mode="rgb_array")
    env.reset(options={"index": 2})
    short = env.render()
    pictures.wording = "the very " * 400 + "red star {}"
    env.reset(options={"index": 2})
    long = env.render()
    assert long.shape == short.shape
    assert (long != short).any()


def test_the_report_tells_what_the_image_shows(scenes):
    env = ReferringSegmentationEnv(scenes, render_mode="ansi", rewards="mask_iou=1 format=gate")
    _, info = env.reset(options={"index": 1})
    assert "waiting" in env.render()
    _, reward, _, _, result = env.step(encode(scenes[1].target.outline(0.01)))
    report = env.render()
    for expected in (
        scenes[1].expression,
        info["sample_id"],
        f"{result['num_vertices']} vertices, valid",
        f"{result['iou']:.3f}",
        f"{reward:.3f}",
        "gate",
    ):
        assert expected in report
    assert report.count("#") > 20


@pytest.mark.parametrize(
    ("answer", "shown", "marks"),
    [("[0.1,0.2]", "point [0.1,0.2], valid", 1), ("[]", "no point, ", 0)],
)
def test_the_report_shows_a_point(scenes, answer, shown, marks):
    env = ReferringSegmentationEnv(scenes, render_mode="ansi", task="text->point")
    env.reset(options={"index": 1})
    env.step(answer)
    lines = env.render().splitlines()
    assert f"answer: {shown}" in lines[1]
    rows = [line for line in lines if len(line) == 48 and set(line) <= set(".oX")]
    assert "".join(rows).count("X") == marks
    if marks:
        assert rows[int(0.2 * len(rows))][int(0.1 * 48)] == "X"


def test_without_a_mode_nothing_is_drawn(scenes):
    env = ReferringSegmentationEnv(scenes)
    env.reset()
    assert env.render() is None
    assert RENDER_MODES == ("rgb_array", "ansi")


@pytest.mark.parametrize("color", [TARGET_COLOR, ANSWER_COLOR, (0, 0, 0), (255, 255, 255)])
def test_the_colour_of_an_object_can_be_told_and_its_outline_shows(color, scenes):
    sample = scenes[1]
    image = np.full_like(sample.image, color)
    answer = Prediction(sample.target.outline(0.01))
    drawn = draw_overlay(image, sample.target, answer, short_side=64 * 8).astype(int)
    away = np.abs(drawn - color).max(axis=2)
    height, width = sample.target.size
    x, y = (point_of(sample.target) * (width * 8, height * 8)).astype(int)
    assert away[y, x] < 60
    # Of a light and a dark line one differs from any colour.
    assert (away > 120).sum() > 500


def test_one_is_no_plural():
    assert counted(1, "ring") == "1 ring"
    assert counted(0, "vertex", "vertices") == "0 vertices"


def test_samples_answers_and_environments_show_themselves_in_a_notebook():
    def size_of(shown):
        with Image.open(io.BytesIO(shown)) as picture:
            assert picture.format == "PNG"
            return picture.size

    env = gym.make("SimpleSeg-Scenes-v0", split="val").unwrapped
    assert env._repr_png_() is None
    env.reset(seed=0)
    waiting = env._repr_png_()
    sample = env.dataset[0]
    assert size_of(sample._repr_png_()) == (384, 384)
    assert size_of(decode("[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]")._repr_png_()) == (384, 384)
    assert size_of(decode("no outline")._repr_png_()) == (384, 384)
    env.step("[[[0.1,0.1],[0.6,0.1],[0.6,0.7]]]")
    assert size_of(env._repr_png_()) == size_of(waiting)
    assert env._repr_png_() != waiting
