"""PoLiS by hand and by shapely, vertices spent, and what text can express."""

import numpy as np
import pytest
import shapely

from seg_env.data.scenes import Scenes
from seg_env.metrics import (
    breakdown,
    ceiling,
    ceiling_class,
    measure,
    polis,
    vertex_counts,
    vertex_ratio,
)
from seg_env.types import Prediction, Target

SIZE = (100, 200)


def box(x0, y0, x1, y1):
    """A rectangle given in pixels of a 200 x 100 image."""
    ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)
    return ring / (SIZE[1], SIZE[0])


def random_rings(rng):
    return [rng.random((int(rng.integers(3, 12)), 2)) for _ in range(rng.integers(1, 4))]


def test_polis_by_hand():
    # A square of 10 and one moved 4 to the right: of each, the two vertices on the far side are 4
    # from the other; the two within its width lie on it.
    square, moved = [box(10, 10, 20, 20)], [box(14, 10, 24, 20)]
    assert polis(square, moved, SIZE) == pytest.approx(2.0)
    # Inside by 2 all around: vertices are 2 from the outer edges; outer ones √8 from the corners.
    inner = [box(12, 12, 18, 18)]
    assert polis(square, inner, SIZE) == pytest.approx((2 + 8**0.5) / 2)
    assert polis(inner, square, SIZE) == polis(square, inner, SIZE)


def test_polis_equals_shapely():
    rng = np.random.default_rng(0)
    scale = np.array([SIZE[1], SIZE[0]])
    for _ in range(100):
        first, second = random_rings(rng), random_rings(rng)

        def mean_distance(rings, others):
            line = shapely.multilinestrings([shapely.LinearRing(ring * scale) for ring in others])
            points = shapely.points(np.concatenate(rings) * scale)
            return shapely.distance(points, line).mean()

        expected = (mean_distance(first, second) + mean_distance(second, first)) / 2
        assert polis(first, second, SIZE) == pytest.approx(expected)


def test_polis_in_blocks_is_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    first, second = random_rings(rng), random_rings(rng)
    whole = polis(first, second, SIZE)
    monkeypatch.setattr("seg_env.metrics.outlines._PAIRS_AT_ONCE", 7)
    assert polis(first, second, SIZE) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("rings", "wanted", "score"),
    [
        ([], [], 0.0),
        ([], [box(0, 0, 9, 9)], 223.60679),
        ([box(0, 0, 9, 9)], [], 223.60679),
        ([np.full((3, 2), np.nan)], [box(0, 0, 9, 9)], 223.60679),
        ([box(-1e300, 0, 1e300, 1e300)], [box(0, 0, 9, 9)], 223.60679),
        ([np.full((3, 2), 0.5)], [np.full((4, 2), 0.5)], 0.0),
    ],
    ids=["both empty", "no answer", "no target", "nan", "huge", "points"],
)
def test_polis_of_outlines_that_are_none(rings, wanted, score):
    assert polis(rings, wanted, SIZE) == pytest.approx(score)


def test_polis_compares_with_the_simplified_outline():
    mask = np.zeros(SIZE, dtype=bool)
    mask[10:20, 10:20] = True
    target = Target.from_mask(mask)
    answers = [Prediction((box(10, 10, 20, 20),)), Prediction((box(14, 10, 24, 20),))]
    columns = measure(answers, [target] * 2, boundaries=False)
    assert columns["polis"] == pytest.approx([0.0, 2.0], abs=1e-6)
    assert columns["target_vertices"].tolist() == [4, 4]


def test_vertices_spent():
    answers = [[], [box(0, 0, 1, 1)], [box(0, 0, 1, 1), np.zeros((6, 2))]]
    assert vertex_counts(answers).tolist() == [0, 4, 10]
    ratios = vertex_ratio(vertex_counts(answers), [8, 8, 0])
    assert ratios[:2].tolist() == [0.0, 0.5]
    assert np.isnan(ratios[2])


def test_ceiling_of_a_data_set():
    scenes = Scenes(split="val", length=8, size=64)
    fine, coarse = ceiling(scenes, 0.001, 3), ceiling(scenes, 0.001, 1)
    assert fine.shape == (8,)
    assert (fine > 0.97).all()
    assert coarse.mean() < fine.mean()
    np.testing.assert_array_equal(fine, ceiling([sample.target for sample in scenes], 0.001, 3))
    nothing = Target.from_mask(np.zeros((3, 3), dtype=bool))
    assert ceiling([nothing]) == [1.0]
    assert ceiling([nothing], empty_union=0.0) == [0.0]


def test_scores_by_ceiling():
    classes = ceiling_class([0.89, 0.9, 0.97, 0.98, 1.0])
    assert classes.tolist() == ["0.00-0.90", "0.90-0.95", "0.95-0.98", "0.98-1.00", "0.98-1.00"]
    groups = breakdown([0.1, 0.2, 0.3, 0.4, 0.6], classes)
    assert list(groups) == ["0.00-0.90", "0.90-0.95", "0.95-0.98", "0.98-1.00"]
    assert groups["0.98-1.00"].samples == 2
    assert groups["0.98-1.00"].score.estimate == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"shape \(2,\) for groups of shape \(1,\)"):
        breakdown([0.1, 0.2], ["a"])
