"""Boundary scores equal their definitions, computed independently with scipy on whole masks."""

import math

import numpy as np
import pytest
from scipy import ndimage

from seg_env.geometry.raster import rasterize
from seg_env.geometry.regions import Region
from seg_env.metrics import (
    band_radius,
    boundary_f,
    boundary_iou,
    match_tolerance,
    measure,
    summarize,
)
from seg_env.metrics.boundary import band_iou, edge_distances
from seg_env.metrics.scores import region_of
from seg_env.types import Prediction, Target

NOTHING = Prediction(())


def hausdorff95(predictions, targets):
    return measure(predictions, targets, outlines=False)["hd95"]


def box(x0, y0, x1, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64)


def random_ring(rng):
    vertices = int(rng.integers(3, 30))
    if rng.random() < 0.3:
        return rng.uniform(-0.2, 1.2, (vertices, 2))
    angles = np.sort(rng.uniform(0, 2 * np.pi, vertices))
    radii = rng.uniform(0.05, 0.5, (vertices, 1))
    return rng.random(2) + radii * np.stack((np.cos(angles), np.sin(angles)), axis=1)


def random_rings(rng):
    return tuple(random_ring(rng) for _ in range(rng.choice([0, 1, 1, 1, 1, 2, 3])))


def random_pair(rng):
    """An answer and a target mask: outlines that hit or miss, specks, or nothing at all."""
    size = (480, 640) if rng.random() < 0.02 else tuple(rng.integers(1, 140, 2).tolist())
    truth = rasterize(random_rings(rng), size)
    if rng.random() < 0.15:
        truth = rng.random(size) < rng.choice([0.01, 0.5, 0.97])
    return Prediction(random_rings(rng)), truth


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    return [random_pair(rng) for _ in range(500)]


def edges_of(mask):
    return mask & ~ndimage.binary_erosion(mask)


def test_boundary_iou_equals_iterated_erosion(pairs):
    def band(mask, width):
        padded = np.pad(mask, 1)
        inside = ndimage.binary_erosion(padded, np.ones((3, 3)), iterations=width)
        return mask & ~inside[1:-1, 1:-1]

    for prediction, truth in pairs:
        mask = rasterize(prediction.rings, truth.shape)
        for ratio in (0.02, 0.1):
            width = max(1, round(ratio * math.hypot(*truth.shape)))
            ours, theirs = band(mask, width), band(truth, width)
            union = (ours | theirs).sum()
            expected = (ours & theirs).sum() / union if union else 1.0
            target = Target.from_mask(truth)
            if ratio == 0.02:
                assert boundary_iou([prediction], [target]) == expected
            elif mask.any() and truth.any():
                region = Region.of_rings(prediction.rings, truth.shape)
                assert band_iou(region, region_of(target), width) == expected


def test_boundary_f_and_hd95_equal_distance_transforms(pairs):
    compared = 0
    for prediction, truth in pairs:
        mask = rasterize(prediction.rings, truth.shape)
        if not mask.any() or not truth.any():
            continue
        ours, theirs = edges_of(mask), edges_of(truth)
        to_truth = ndimage.distance_transform_edt(~theirs)[ours]
        to_answer = ndimage.distance_transform_edt(~ours)[theirs]
        tolerance = math.ceil(0.008 * math.hypot(*truth.shape))
        precision, recall = (to_truth <= tolerance).mean(), (to_answer <= tolerance).mean()
        f = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        target = Target.from_mask(truth)
        assert boundary_f([prediction], [target])[0] == pytest.approx(f, abs=1e-12)
        hd95 = max(np.percentile(to_truth, 95), np.percentile(to_answer, 95))
        assert hausdorff95([prediction], [target])[0] == pytest.approx(hd95, abs=1e-9)
        compared += 1
    assert compared > 300


def test_region_knows_its_pixels(pairs):
    for prediction, truth in pairs[:100]:
        region = Region.of_rings(prediction.rings, truth.shape)
        mask = rasterize(prediction.rings, truth.shape)
        rows, columns = np.nonzero(mask)
        assert region.area == np.bitwise_count(region.bits).sum() == len(rows)
        if len(rows):
            box_around = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            assert region.box == tuple(map(int, box_around))
        target = region_of(Target.from_mask(truth))
        assert target.intersections(region.starts, region.ends).sum() == (mask & truth).sum()


def test_width_and_tolerance_follow_the_diagonal():
    assert band_radius((480, 640)) == 16
    assert match_tolerance((480, 640)) == 7  # .008 * 800 = 6.4
    assert band_radius((10, 10)) == match_tolerance((10, 10)) == 1


def test_boundary_iou_by_hand():
    # Diagonal 50: bands of one pixel, and a tolerance of one. Squares of 10 and, inside, 8 pixels.
    mask = np.zeros((30, 40), dtype=bool)
    mask[10:20, 10:20] = True
    same, inner = box(10 / 40, 10 / 30, 20 / 40, 20 / 30), box(11 / 40, 11 / 30, 19 / 40, 19 / 30)
    target = Target.from_mask(mask)
    scores = boundary_iou([Prediction((same,)), Prediction((inner,))], [target, target])
    assert scores.tolist() == [1.0, 0.0]
    # Everything is one pixel from the other boundary but the target's 4 corners, of 36 pixels.
    precision, recall = 1.0, 32 / 36
    expected = 2 * precision * recall / (precision + recall)
    assert boundary_f([Prediction((inner,))], [target]) == [pytest.approx(expected)]
    assert hausdorff95([Prediction((inner,))], [target]) == [pytest.approx(2**0.5)]


def test_a_large_hole_costs_the_limited_form_more():
    # A square of 400 pixels, answered with a hole of 300; bands are 16 wide.
    truth = np.zeros((480, 640), dtype=bool)
    truth[40:440, 100:500] = True
    outer, hole = box(100 / 640, 40 / 480, 500 / 640, 440 / 480), (150 / 640, 90 / 480)
    inner = box(*hole, hole[0] + 300 / 640, hole[1] + 300 / 480)[::-1]
    answer, target = [Prediction((outer, inner))], [Target.from_mask(truth)]
    around, inside = 400**2 - 368**2, 332**2 - 300**2
    assert boundary_iou(answer, target) == [around / (around + inside)]
    columns = measure(answer, target)
    assert columns["iou"] == [1 - 300**2 / 400**2]
    assert summarize(columns, resamples=0)["boundary_iou_limited"] == columns["iou"]


@pytest.mark.parametrize(
    ("answer_is_empty", "target_is_empty", "scores", "distance"),
    [(True, True, 1.0, 0.0), (True, False, 0.0, 50.0), (False, True, 0.0, 50.0)],
)
def test_empty_masks(answer_is_empty, target_is_empty, scores, distance):
    answer = NOTHING if answer_is_empty else Prediction((box(0.1, 0.1, 0.5, 0.5),))
    target = Target.from_mask(np.full((30, 40), not target_is_empty))
    assert boundary_iou([answer], [target]) == [scores]
    assert boundary_f([answer], [target]) == [scores]
    assert hausdorff95([answer], [target]) == [distance]
    assert boundary_iou([NOTHING], [Target.from_mask(np.zeros((3, 4), bool))], empty_union=0) == [0]
    assert boundary_f([NOTHING], [Target.from_mask(np.zeros((3, 4), bool))], empty_union=0) == [0]


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (1, 1), (64, 3), (63, 3), (128, 2)])
def test_images_of_awkward_sizes(size):
    full = Prediction((box(0, 0, 1, 1),))
    target = Target.from_mask(np.ones(size, dtype=bool))
    assert boundary_iou([full], [target]) == [1.0]
    assert boundary_f([full], [target]) == [1.0]
    assert hausdorff95([full], [target]) == [0.0]


@pytest.mark.parametrize("score", [boundary_iou, boundary_f, hausdorff95])
def test_no_answers_and_too_few_targets(score):
    assert score([], []).shape == (0,)
    with pytest.raises(ValueError, match="1 predictions for 0 targets"):
        score([NOTHING], [])


def test_hostile_rings_have_a_score():
    target = Target.from_mask(np.ones((30, 40), dtype=bool))
    for ring in (np.full((3, 2), np.nan), box(0, 0, np.inf, 1), box(-1e300, -1e300, 1e300, 1e300)):
        for score in (boundary_iou, boundary_f, hausdorff95):
            assert np.isfinite(score([Prediction((ring,))], [target])).all()


def test_the_band_of_a_target_is_made_once():
    target = Target.from_mask(np.ones((30, 40), dtype=bool))
    boundary_iou([NOTHING, Prediction((box(0, 0, 1, 1),))], [target, target])
    region = target.cache["region"]
    assert region.band(1) is region.band(1)
    boundary_f([NOTHING], [target])
    assert target.cache["region"] is region


def test_distances_within_a_limit_are_those_without():
    rng = np.random.default_rng(0)
    answer, target = (region_of(Target.from_mask(rng.random((50, 60)) < 0.01)) for _ in range(2))
    exact, near = edge_distances(answer, target), edge_distances(answer, target, limit=5)
    for pixels, boundary, all_found, found in (
        (answer.edge, target.edge, exact[0], near[0]),
        (target.edge, answer.edge, exact[1], near[1]),
    ):
        expected = np.hypot(*(pixels[:, None] - boundary).transpose(2, 0, 1)).min(axis=1)
        np.testing.assert_allclose(all_found, expected)
        np.testing.assert_array_equal(found <= 5, expected <= 5)
        np.testing.assert_array_equal(found[found <= 5], all_found[found <= 5])
    assert 5 in exact[0]
