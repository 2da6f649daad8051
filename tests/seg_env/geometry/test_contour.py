"""Tracing along pixel edges is exact; simplifying keeps parts and holes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_env.geometry.contour import trace
from seg_env.geometry.overlap import iou_batch
from seg_env.geometry.polygon import is_simple, ring_area, roles
from seg_env.geometry.raster import rasterize
from seg_env.geometry.rle import Rle
from seg_env.geometry.simplify import simplify_rings

masks = hnp.arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12)))


def drawn(*rows):
    """A mask from rows of text, ``#`` being foreground."""
    return np.array([[character == "#" for character in row] for row in rows])


def assert_exact(mask):
    np.testing.assert_array_equal(rasterize(trace(mask), mask.shape), mask)


@given(masks)
def test_filling_the_outline_gives_the_mask_back(mask):
    assert_exact(mask)


@given(masks)
def test_no_ring_touches_itself_and_orientation_tells_holes(mask):
    rings = trace(mask)
    assert all(is_simple(ring) for ring in rings)
    assert roles(rings).tolist() == [ring_area(ring) > 0 for ring in rings]
    signed = sum(ring_area(ring) for ring in rings)
    assert signed * mask.size == pytest.approx(mask.sum())


@given(masks, st.floats(0, 1))
def test_simplifying_keeps_every_ring_and_its_role(mask, epsilon):
    rings = trace(mask)
    simpler = simplify_rings(rings, mask.shape, epsilon)
    assert len(simpler) == len(rings)
    assert roles(simpler).sum() == roles(rings).sum()
    assert sum(map(len, simpler)) <= sum(map(len, rings))
    assert all(is_simple(ring) for ring in simpler)


@given(masks)
def test_tolerance_zero_changes_nothing(mask):
    rings = trace(mask)
    for ring, same in zip(rings, simplify_rings(rings, mask.shape, 0.0), strict=True):
        np.testing.assert_array_equal(ring, same)


def test_two_thousand_random_masks():
    rng = np.random.default_rng(0)
    for index in range(2000):
        density = (0.02, 0.3, 0.5, 0.7, 0.98)[index % 5]
        assert_exact(rng.random(rng.integers(1, 18, 2)) < density)


def test_large_smooth_masks_with_holes_and_parts():
    y, x = np.mgrid[:479, :641]
    for phase in range(4):
        assert_exact(np.sin(x / 37 + phase) * np.cos(y / 29) + np.sin((x + y) / 90) > 0.2)


@pytest.mark.parametrize(
    ("mask", "ring_count", "hole_count"),
    [
        (drawn("#"), 1, 0),
        (drawn("."), 0, 0),
        (drawn("####", "####"), 1, 0),
        (drawn("#.", ".#"), 2, 0),  # two pixels touching at a corner
        (drawn(".#", "#."), 2, 0),
        (drawn("###", "#.#", "###"), 2, 1),
        (drawn("###.", "#.##", "##.#", ".###"), 3, 2),  # two holes touching at a corner
        (drawn("###", "#.#", "##."), 2, 1),  # a hole open only at a corner
        (drawn("#####", "#...#", "#.#.#", "#...#", "#####"), 3, 1),  # an island in a hole
        (drawn("#.#", ".#.", "#.#"), 5, 0),
        (drawn(*["#.#.#.#"] * 3), 4, 0),
    ],
)
def test_special_masks(mask, ring_count, hole_count):
    rings = trace(mask)
    assert len(rings) == ring_count
    assert (~roles(rings)).sum() == hole_count
    assert_exact(mask)


def test_outline_of_one_pixel():
    (ring,) = trace(drawn("....", "..#.", "...."))
    np.testing.assert_array_equal(
        ring * (4, 3),  # clockwise on screen from the top left corner
        [[2, 1], [3, 1], [3, 2], [2, 2]],
    )


def test_masks_without_pixels_and_of_other_types():
    assert trace(np.zeros((0, 5), dtype=bool)) == ()
    assert trace(np.zeros((5, 5), dtype=np.uint8)) == ()
    assert len(trace(np.full((2, 2), 255, dtype=np.uint8))) == 1
    with pytest.raises(ValueError, match=r"\(H, W\), got \(4,\)"):
        trace(np.ones(4, dtype=bool))


def test_simplified_circle_is_short_and_close():
    y, x = np.mgrid[:480, :640] + 0.5
    disc = np.hypot(x - 320, y - 240) < 150
    rings = trace(disc)
    counts, ious = [], []
    for epsilon in (0.001, 0.005, 0.02):
        simpler = simplify_rings(rings, disc.shape, epsilon)
        counts.append(len(simpler[0]))
        ious.append(iou_batch([simpler], Rle.from_mask(disc))[0])
    assert len(rings[0]) > 400
    assert counts[0] < 60
    assert counts[1] < 30
    assert counts[2] < 14
    assert ious[0] > 0.99
    assert ious[1] > 0.97
    assert ious[2] > 0.9


def test_vertices_lie_where_the_sides_of_a_shape_meet():
    y, x = np.mgrid[:200, :200] + 0.5
    corners = np.array([[100, 20], [180, 150], [40, 170]])  # clockwise, its sides not along pixels
    inside = np.ones((200, 200), dtype=bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        inside &= (x1 - x0) * (y - y0) - (y1 - y0) * (x - x0) >= 0
    (triangle,) = simplify_rings(trace(inside), inside.shape, 0.01)
    distances = np.hypot(*(triangle[:, None] * 200 - corners).transpose(2, 0, 1))
    assert len(triangle) <= 4
    assert distances.min(axis=0).max() < 0.5
    assert iou_batch([[triangle]], Rle.from_mask(inside))[0] > 0.997


def test_a_thin_part_survives_any_tolerance():
    mask = np.zeros((40, 40), dtype=bool)
    mask[3:30, 3:30] = True
    mask[10:12, 10:25] = False
    mask[35, 2:38] = True
    simpler = simplify_rings(trace(mask), mask.shape, 10.0)
    assert roles(simpler).tolist() == [True, True, False]
    assert rasterize(simpler, mask.shape)[35].any()


def test_simplifying_unusable_rings_and_tolerances():
    point = np.array([[0.5, 0.5]])
    broken = np.array([[0, 0], [np.nan, 1], [1, 1]])
    assert simplify_rings([point, broken], (10, 10), 0.01) == ()
    for epsilon in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epsilon"):
            simplify_rings([], (10, 10), epsilon)
