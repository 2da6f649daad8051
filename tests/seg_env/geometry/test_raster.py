"""The fill rule is pycocotools' to the last bit; hostile rings have a defined, cheap result."""

import time

import numpy as np
import pycocotools.mask as coco
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from seg_env.geometry.overlap import iou_batch, overlap_batch
from seg_env.geometry.polygon import ring_area, roles
from seg_env.geometry.raster import rasterize, rasterize_rle
from seg_env.geometry.regions import Region
from seg_env.geometry.rle import Rle

SQUARE = np.array([[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]])


def random_ring(rng, size):
    """A ring of one of many kinds, most of them crossing themselves."""
    vertices = int(rng.integers(3, 26))
    kind = rng.integers(7)
    if kind == 0:
        ring = rng.random((vertices, 2))
    elif kind == 1:
        ring = rng.uniform(-1, 2, (vertices, 2))
    elif kind == 2:  # as written in an answer
        ring = rng.uniform(-0.1, 1.1, (vertices, 2)).round(3)
    elif kind == 3:  # coarse: repeated vertices, horizontal, vertical and diagonal edges
        ring = rng.integers(-1, 6, (vertices, 2)) / 5
    elif kind == 4:  # on the pixel grid
        ring = rng.integers(-2, max(size) + 2, (vertices, 2)) / (size[1], size[0])
    elif kind == 5:  # on the five times finer grid, where ties are frequent
        ring = rng.integers(-9, 5 * max(size) + 9, (vertices, 2)) / (5 * size[1], 5 * size[0])
    else:  # star-shaped, like an object
        angles = np.sort(rng.uniform(0, 2 * np.pi, vertices))
        radii = rng.uniform(0.05, 0.4, (vertices, 1))
        ring = rng.random(2) + radii * np.stack((np.cos(angles), np.sin(angles)), axis=1)
        ring = ring.round(3)
    return ring


def random_prediction(rng, size):
    """One to four rings, all of one orientation half of the time."""
    rings = [random_ring(rng, size) for _ in range(rng.choice([1, 1, 1, 2, 3, 4]))]
    if rng.random() < 0.5:
        rings = [ring if ring_area(ring) >= 0 else ring[::-1] for ring in rings]
    return rings


def coco_rle(rings, size):
    flat = [(ring * (float(size[1]), float(size[0]))).ravel().tolist() for ring in rings]
    return coco.merge(coco.frPyObjects(flat, *size))


def test_ten_thousand_predictions_equal_pycocotools():
    rng = np.random.default_rng(0)
    compared = differing = 0
    while compared < 10_000:
        size = (480, 640) if rng.random() < 0.2 else tuple(rng.integers(1, 90, 2).tolist())
        truth = coco_rle(random_prediction(rng, size), size)
        group = [random_prediction(rng, size) for _ in range(16)]
        group = [rings for rings in group if roles(rings).all()]
        if not group:
            continue
        theirs = coco.iou([coco_rle(rings, size) for rings in group], [truth], [0])[:, 0]
        ours = iou_batch(group, Rle.from_string(size, truth["counts"]), empty_union=0.0)
        assert ours.dtype == np.float64
        differing += int((ours != theirs).sum())
        compared += len(group)
    assert differing == 0


def test_masks_equal_pycocotools():
    rng = np.random.default_rng(1)
    for _ in range(1000):
        size = tuple(rng.integers(1, 40, 2).tolist())
        rings = random_prediction(rng, size)
        if roles(rings).all():
            assert rasterize_rle(rings, size).to_string() == coco_rle(rings, size)["counts"]


def test_vertices_far_outside_equal_pycocotools():
    rng = np.random.default_rng(2)
    size = (48, 64)
    for exponent in range(1, 5):
        for _ in range(10):
            ring = rng.uniform(-1, 1, (5, 2)) * 10.0**exponent
            assert rasterize_rle([ring], size).to_string() == coco_rle([ring], size)["counts"]


def painted(rings, size):
    """The rule of holes said with masks: from the largest ring to the smallest."""
    mask = np.zeros(size, dtype=bool)
    filled = roles(rings)
    for index in sorted(range(len(rings)), key=lambda index: -abs(ring_area(rings[index]))):
        mask = (
            mask | rasterize([rings[index]], size)
            if filled[index]
            else mask & ~rasterize([rings[index]], size)
        )
    return mask


rectangles = st.lists(
    st.tuples(*[st.integers(0, 10)] * 4, st.booleans()).map(
        lambda s: (
            np.array(
                [[s[0], s[1]], [s[0] + s[2], s[1]], [s[0] + s[2], s[1] + s[3]], [s[0], s[1] + s[3]]]
            )
            / 16.0
        )[:: 1 if s[4] else -1]
    ),
    max_size=6,
)


@given(rectangles)
def test_holes_are_taken_out_of_what_contains_them(rings):
    np.testing.assert_array_equal(rasterize(rings, (16, 16)), painted(rings, (16, 16)))


@given(st.lists(rectangles, max_size=5), hnp.arrays(np.bool_, (16, 16)))
def test_overlap_is_what_counting_pixels_gives(predictions, truth):
    intersections, areas = overlap_batch(predictions, Rle.from_mask(truth))
    masks = [rasterize(rings, truth.shape) for rings in predictions]
    assert areas.tolist() == [mask.sum() for mask in masks]
    assert intersections.tolist() == [(mask & truth).sum() for mask in masks]


@pytest.mark.parametrize("rows_of_stripes", [1, 4, 40])
def test_targets_with_many_runs_in_a_column(rows_of_stripes):
    rng = np.random.default_rng(0)
    truth = np.zeros((100, 50), dtype=bool)
    for row in range(0, 100, 100 // rows_of_stripes):
        truth[row : row + 1, : rng.integers(1, 51)] = True
    predictions = [[random_ring(rng, truth.shape)] for _ in range(50)]
    intersections, _ = overlap_batch(predictions, Region.of_rle(Rle.from_mask(truth)))
    expected = [(rasterize(rings, truth.shape) & truth).sum() for rings in predictions]
    assert intersections.tolist() == expected


def test_a_circle_wound_twice_is_empty():
    angles = np.linspace(0, 4 * np.pi, 40, endpoint=False)
    ring = 0.5 + 0.3 * np.stack((np.cos(angles), np.sin(angles)), axis=1)
    assert not rasterize([ring], (50, 50)).any()


def test_empty_union_is_scored_as_asked():
    nothing, something = Rle.from_counts((9, 9), [81]), Rle.from_counts((9, 9), [80, 1])
    assert iou_batch([[]], nothing).tolist() == [1.0]
    assert iou_batch([[]], nothing, empty_union=0.0).tolist() == [0.0]
    assert iou_batch([[SQUARE], []], nothing).tolist() == [0.0, 1.0]
    assert iou_batch([[]], something).tolist() == [0.0]
    assert iou_batch([], something).shape == (0,)


@pytest.mark.parametrize(
    "ring",
    [
        np.zeros((0, 2)),
        SQUARE[:1],
        SQUARE[:2],
        SQUARE * np.nan,
        np.where(SQUARE > 0.5, np.inf, SQUARE),
        np.array([[0.1, 0.1], [0.5, np.nan], [0.1, 0.9]]),
    ],
    ids=["empty", "point", "line", "nan", "inf", "one nan"],
)
def test_rings_that_enclose_nothing(ring):
    truth = Rle.from_mask(rasterize([SQUARE], (40, 60)))
    assert not rasterize([ring], (40, 60)).any()
    assert iou_batch([[ring], [ring, SQUARE], [SQUARE, ring[::-1]]], truth).tolist() == [0, 1, 1]
    assert iou_batch([[ring], [SQUARE, SQUARE]], truth).tolist() == [0, 1]
    assert iou_batch([[ring], [ring]], truth).tolist() == [0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (0, 5), (5, 0), (0, 0)])
def test_smallest_images(size):
    whole = np.array([[0, 0], [1, 0], [1, 1], [0, 1.0]])
    mask = rasterize([whole], size)
    assert mask.shape == size
    assert mask.all()
    assert iou_batch([[whole]], Rle.from_mask(mask)).tolist() == [1.0]


@pytest.mark.parametrize("huge", [1e6, 1e18, 1e155, 1.7e308])
def test_huge_coordinates_cover_the_frame(huge):
    around = (SQUARE - 0.5) * huge
    truth = Rle.from_counts((40, 60), [0, 2400])
    assert iou_batch([[around], [around, SQUARE[::-1] - huge]], truth).tolist() == [1.0, 1.0]
    assert not rasterize([SQUARE + huge], (40, 60)).any()


def test_hostile_outlines_take_bounded_time():
    rng = np.random.default_rng(0)
    zigzag = rng.random((4096, 2))
    zigzag[:, 0] = np.arange(4096) % 2
    truth = Rle.from_mask(rng.random((480, 640)) < 0.5)
    start = time.process_time()
    iou_batch([[zigzag]] * 4, truth)
    iou_batch([list(np.split(zigzag, 256))] * 2, truth)
    iou_batch([[part[:: (-1) ** i] for i, part in enumerate(np.split(zigzag, 256))]], truth)
    rasterize([zigzag * 1e6], (480, 640))
    assert time.process_time() - start < 10


def test_many_crossings_equal_pycocotools():
    rng = np.random.default_rng(4)
    zigzag = rng.random((3000, 2)).round(3)
    zigzag[:, 0] = np.arange(3000) % 2
    assert rasterize_rle([zigzag], (80, 640)).to_string() == coco_rle([zigzag], (80, 640))["counts"]


def test_keys_beyond_32_bits_equal_pycocotools():
    rng = np.random.default_rng(5)
    size = (3000, 4000)
    rings = [rng.random(2) + rng.random((3, 2)) * 0.01 for _ in range(256)]
    rings = [ring if ring_area(ring) > 0 else ring[::-1] for ring in rings]
    theirs = coco_rle(rings, size)
    truth = Rle.from_string(size, theirs["counts"])
    assert rasterize_rle(rings, size) == truth
    assert iou_batch([rings], truth).tolist() == [1.0]


def test_many_predictions_in_blocks_equal_one_by_one():
    rng = np.random.default_rng(3)
    size = (120, 4000)
    predictions = [[rng.random((200, 2))] for _ in range(12)]
    truth = Region.of_rle(rasterize_rle([SQUARE], size))
    one_by_one = [overlap_batch([rings], truth)[0][0] for rings in predictions]
    assert overlap_batch(predictions, truth)[0].tolist() == one_by_one
