"""Coordinate frames: every mapping has an exact inverse, and letterboxes are placed as declared."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_env.frames import (
    BINS,
    PERMILLE,
    ROW_FIRST,
    UNIT,
    Frame,
    letterbox_frame,
    letterbox_geometry,
    pixel_frame,
)

sides = st.integers(1, 5000)
sizes = st.tuples(sides, sides)
inner_frames = st.one_of(st.just(UNIT), st.just(PERMILLE), st.builds(pixel_frame, sides, sides))
unit_points = hnp.arrays(
    np.float64, st.tuples(st.integers(0, 20), st.just(2)), elements=st.floats(0, 1)
)


@given(inner_frames, unit_points)
def test_plain_frames_have_an_inverse(frame: Frame, points: np.ndarray) -> None:
    np.testing.assert_allclose(frame.to_unit(frame.from_unit(points)), points, rtol=0, atol=1e-12)


@given(inner_frames, sizes, st.integers(16, 5000), st.integers(16, 5000), unit_points)
def test_letterbox_has_an_inverse(
    inner: Frame, source: tuple[int, int], height: int, width: int, points: np.ndarray
) -> None:
    frame = letterbox_frame(inner, source, (height, width))
    numbers = frame.from_unit(points)
    np.testing.assert_allclose(frame.to_unit(numbers), points, rtol=0, atol=1e-9)
    assert np.all(numbers >= 0)
    assert np.all(numbers <= np.multiply(frame.limits, 1 + 1e-12))


@given(sizes, sizes)
def test_letterbox_geometry_fits_and_keeps_the_aspect(
    source: tuple[int, int], canvas: tuple[int, int]
) -> None:
    left, top, width, height = letterbox_geometry(source, canvas)
    assert 0 <= left <= canvas[1] - width
    assert 0 <= top <= canvas[0] - height
    assert abs(2 * left + width - canvas[1]) <= 1
    assert abs(2 * top + height - canvas[0]) <= 1
    assert width == canvas[1] or height == canvas[0]
    scale = min(canvas[0] / source[0], canvas[1] / source[1])
    assert width == pytest.approx(max(1, source[1] * scale), abs=0.5 + 1e-6)
    assert height == pytest.approx(max(1, source[0] * scale), abs=0.5 + 1e-6)


@pytest.mark.parametrize(
    ("source", "canvas", "box"),
    [
        ((480, 640), (224, 224), (0, 28, 224, 168)),
        ((640, 480), (224, 224), (28, 0, 168, 224)),
        ((333, 500), (128, 128), (0, 21, 128, 85)),
        ((100, 100), (128, 128), (0, 0, 128, 128)),
        ((1, 1000), (64, 64), (0, 31, 64, 1)),
        ((7, 3), (5, 9), (3, 0, 2, 5)),
    ],
)
def test_letterbox_geometry_examples(
    source: tuple[int, int], canvas: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert letterbox_geometry(source, canvas) == box
    frame = letterbox_frame(UNIT, source, canvas)
    assert (*frame.origin, *frame.size) == box


def test_letterbox_corners_are_the_corners_of_the_content_box() -> None:
    frame = letterbox_frame(pixel_frame(224, 224), (480, 640), (224, 224))
    corners = np.array([[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(frame.from_unit(corners), [[0, 28], [224, 196]], atol=1e-12)


def test_the_inner_frame_may_see_a_resized_canvas() -> None:
    frame = letterbox_frame(pixel_frame(448, 448), (480, 640), (224, 224))
    np.testing.assert_allclose(frame.to_unit(np.array([[224.0, 56.0]])), [[0.5, 0.0]], atol=1e-12)


def test_unit_frame_changes_nothing() -> None:
    points = np.array([[0.25, 0.75]])
    assert UNIT.to_unit(points) is points
    assert UNIT.from_unit(points) is points


def test_a_frame_of_one_bin_or_one_pixel_is_not_the_unit_frame() -> None:
    points = np.array([[0.25, 0.75]])
    one_bin = replace(BINS, limits=(0.0, 0.0), size=(1.0, 1.0))
    np.testing.assert_array_equal(one_bin.to_unit(points), [[0.75, 1.25]])
    rows = replace(ROW_FIRST, limits=(1.0, 1.0), size=(1.0, 1.0))
    np.testing.assert_array_equal(rows.to_unit(points), [[0.75, 0.25]])
    np.testing.assert_array_equal(pixel_frame(1, 1).to_unit(points), points)


@pytest.mark.parametrize(
    ("frame", "name", "limits", "integer"),
    [
        (UNIT, "unit", (1, 1), False),
        (PERMILLE, "permille", (1000, 1000), True),
        (pixel_frame(640, 480), "pixels-640x480", (640, 480), True),
        (
            letterbox_frame(PERMILLE, (480, 640), (224, 224)),
            "letterbox-640x480-in-224x224-permille",
            (1000, 1000),
            True,
        ),
    ],
)
def test_frames_describe_themselves(
    frame: Frame, name: str, limits: tuple[float, float], integer: bool
) -> None:
    assert (frame.name, frame.limits, frame.integer) == (name, limits, integer)
    assert pickle.loads(pickle.dumps(frame)) == frame
    assert hash(frame) == hash(pickle.loads(pickle.dumps(frame)))


def test_empty_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(0, 5\)"):
        pixel_frame(5, 0)
    with pytest.raises(ValueError, match=r"source_size.*\(0, 5\)"):
        letterbox_frame(UNIT, (0, 5), (8, 8))
    with pytest.raises(ValueError, match=r"canvas_size.*\(8, -1\)"):
        letterbox_geometry((5, 5), (8, -1))
