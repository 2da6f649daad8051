"""Rings: area, orientation, holes, and the one canonical way of writing them."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_env.geometry.contour import trace
from seg_env.geometry.polygon import (
    canonical,
    is_simple,
    reorder,
    ring_area,
    ring_perimeter,
    roles,
)
from seg_env.geometry.raster import rasterize


def square(x0, y0, x1, y1, clockwise=True):
    """An axis-parallel rectangle, clockwise as seen on screen (y down)."""
    ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)
    return ring if clockwise else ring[::-1]


rings_on_grid = st.lists(
    st.tuples(
        st.integers(0, 9), st.integers(0, 9), st.integers(1, 9), st.integers(1, 9), st.booleans()
    ).map(lambda s: square(s[0] / 18, s[1] / 18, (s[0] + s[2]) / 18, (s[1] + s[3]) / 18, s[4])),
    max_size=5,
)


def test_area_is_positive_clockwise_on_screen():
    assert ring_area(square(0, 0, 2, 3)) == 6
    assert ring_area(square(0, 0, 2, 3, clockwise=False)) == -6
    assert ring_area(np.zeros((2, 2))) == 0
    assert ring_area(np.zeros((0, 2))) == 0


def test_perimeter_is_that_of_the_closed_ring():
    assert ring_perimeter(square(1, 2, 3, 6)) == 12


def test_is_simple():
    assert is_simple(square(0, 0, 1, 1))
    assert not is_simple(square(0, 0, 1, 1)[[0, 2, 1, 3]])
    assert not is_simple(square(0, 0, 0, 1))
    assert not is_simple(square(0, 0, 1, 1)[:2])
    assert not is_simple(square(0, 0, 1, np.nan))
    assert not is_simple(square(0, 0, 1, 1e300))


@pytest.mark.parametrize("outer_clockwise", [True, False])
def test_a_hole_runs_against_its_container(outer_clockwise):
    outer = square(0, 0, 0.9, 0.9, outer_clockwise)
    hole = square(0.1, 0.1, 0.8, 0.8, not outer_clockwise)
    island = square(0.2, 0.2, 0.7, 0.7, outer_clockwise)
    apart = square(0.92, 0.92, 1, 1, not outer_clockwise)
    assert roles([island, apart, outer, hole]).tolist() == [True, True, True, False]


def test_same_orientation_means_same_role():
    outer, inner = square(0, 0, 0.9, 0.9), square(0.2, 0.2, 0.5, 0.5)
    assert roles([outer, inner]).tolist() == [True, True]
    hole = square(0.1, 0.1, 0.8, 0.8, clockwise=False)
    hole_in_hole = inner[::-1]
    assert roles([outer, hole, hole_in_hole]).tolist() == [True, False, False]


def test_a_hole_may_stick_out_by_rounding_only():
    outer = square(0, 0, 1, 1)
    assert not roles([outer, square(0.5, 0.2, 1.004, 0.8, clockwise=False)])[1]
    assert roles([outer, square(0.5, 0.2, 1.1, 0.8, clockwise=False)])[1]
    assert not roles([outer, square(0.5, 0.2, 1, 0.8, clockwise=False)])[1]  # touching


def test_of_two_equal_rings_the_first_contains_the_second():
    assert roles([square(0, 0, 1, 1), square(0, 0, 1, 1, False)]).tolist() == [True, False]


def test_rings_that_cross_themselves_take_no_part():
    bow = np.array([[0, 0], [1, 1], [1, 0], [0, 0.9]])
    inside = square(0.4, 0.1, 0.6, 0.2)
    assert roles([bow, inside, inside[::-1]]).tolist() == [True, True, False]


def test_canonical_form():
    outer = square(0.1, 0.1, 0.9, 0.9, clockwise=False)[[2, 3, 0, 1]]
    hole = square(0.2, 0.2, 0.5, 0.5)
    part = square(0, 0, 0.05, 0.05, clockwise=False)
    first, second, third = canonical([part, hole, outer])
    np.testing.assert_array_equal(first, square(0.1, 0.1, 0.9, 0.9))
    np.testing.assert_array_equal(second, [[0.2, 0.2], [0.2, 0.5], [0.5, 0.5], [0.5, 0.2]])
    np.testing.assert_array_equal(third, square(0, 0, 0.05, 0.05))


@given(rings_on_grid)
def test_canonical_fills_the_same_pixels_and_is_stable(rings):
    written = canonical(rings)
    np.testing.assert_array_equal(rasterize(written, (18, 18)), rasterize(rings, (18, 18)))
    again = canonical(written)
    assert all(np.array_equal(a, b) for a, b in zip(written, again, strict=True))


@given(hnp.arrays(np.bool_, (7, 8)))
def test_traced_outlines_are_canonical(mask):
    rings = trace(mask)
    for ring, again in zip(rings, canonical(rings), strict=True):
        np.testing.assert_array_equal(ring, again)


def test_tangled_and_monstrous_rings_take_bounded_time():
    rng = np.random.default_rng(0)
    tangled = [rng.random((16, 2)) for _ in range(256)]
    stars = []
    angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    for index in range(256):
        radius = 0.3 + 0.0005 * index + 0.1 * (-1.0) ** np.arange(16)
        turned = angles + 0.01 * index
        star = 0.5 + radius[:, None] * np.stack((np.cos(turned), np.sin(turned)), axis=1)
        stars.append(star if index % 2 else star[::-1])
    huge = [np.array(ring) * 1e308 for ring in tangled]
    start = time.process_time()
    for rings in (tangled, stars, huge, [ring * np.nan for ring in tangled]):
        assert roles(rings).shape == (256,)
    assert time.process_time() - start < 5


@given(rings_on_grid, st.integers(0, 5))
@pytest.mark.parametrize("order", ["canonical", "random-start", "either-direction", "unordered"])
def test_another_order_has_the_same_vertices(order, rings, seed):
    found = reorder(canonical(rings), order, np.random.default_rng(seed))
    for ring, other in zip(canonical(rings), found, strict=True):
        assert sorted(ring.tolist()) == sorted(other.tolist())
    if order != "unordered":
        size = (18, 18)
        assert (rasterize(found, size) == rasterize(canonical(rings), size)).all()


def test_orders_are_what_they_say():
    ring = np.array([[0.1, 0.1], [0.9, 0.1], [0.9, 0.9], [0.5, 0.95], [0.1, 0.9]])
    draws = range(60)

    def drawn(order):
        return [reorder([ring], order, np.random.default_rng(seed))[0] for seed in draws]

    assert all((each == ring).all() for each in drawn("canonical"))
    assert {
        int(np.flatnonzero((each == ring[0]).all(axis=1))[0]) for each in drawn("random-start")
    } == {*range(5)}
    assert all(ring_area(each) > 0 for each in drawn("random-start"))
    backwards = sum(ring_area(each) < 0 for each in drawn("either-direction"))
    assert 15 < backwards < 45
    assert any(not is_simple(each) for each in drawn("unordered"))
