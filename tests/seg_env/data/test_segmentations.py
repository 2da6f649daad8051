"""COCO's forms of a segmentation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pycocotools.mask as oracle
import pytest
from data_trees import BESIDE, BOTH_MASK, HEIGHT, SQUARE, WIDTH

from seg_env.data.segmentations import target_from_segmentation
from seg_env.geometry.rle import Rle

SIZE = HEIGHT, WIDTH

rle = Rle.from_mask(BOTH_MASK)
square = Rle.from_mask(BOTH_MASK & (np.arange(WIDTH) < 25))
rest = Rle.from_mask(BOTH_MASK & (np.arange(WIDTH) >= 20))


@pytest.mark.parametrize(
    "segmentation",
    [
        pytest.param([SQUARE, BESIDE], id="overlapping polygons"),
        pytest.param([SQUARE[::-1], BESIDE], id="any orientation"),
        pytest.param([SQUARE, BESIDE, [12, 12, 14, 12, 14, 14]], id="a part inside a part"),
        pytest.param([SQUARE, BESIDE, [1.0, 2.0, 3.0, 4.0]], id="a line adds nothing"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": rle.to_string().decode()}, id="string"),
        pytest.param({"size": [HEIGHT, WIDTH], "counts": rle.counts.tolist()}, id="counts"),
        pytest.param(
            {"size": [40.0, 60.0], "counts": rle.counts.astype(float).tolist()}, id="floats"
        ),
        pytest.param(
            [
                {"size": [HEIGHT, WIDTH], "counts": part.to_string().decode()}
                for part in (square, rest)
            ],
            id="list of run lengths (refclef)",
        ),
    ],
)
def test_parts_are_united_in_every_form(segmentation: Any) -> None:
    target = target_from_segmentation(segmentation, SIZE)
    assert target.size == SIZE
    np.testing.assert_array_equal(target.mask(), BOTH_MASK)


def test_an_empty_segmentation_is_an_empty_target() -> None:
    target = target_from_segmentation([], SIZE)
    assert target.size == SIZE
    assert target.area == 0
    assert target.rings == ()


@pytest.mark.parametrize(
    ("segmentation", "problem"),
    [
        ([[1, 2, 3]], "flat list of finite x, y"),
        ([[1, 2, 3, 4, 5, float("nan")]], "finite"),
        ([[1, 2, 3, 4, 5, "six"]], "flat list of finite"),
        ([["1e999"] * 6], "finite"),
        (SQUARE, "expected a polygon"),
        ("polygon", "the string 'polygon'"),
        (None, "got nothing"),
        ([{"size": [WIDTH, HEIGHT], "counts": "0"}], r"'size' must be .* \(40, 60\)"),
        ([{"size": [HEIGHT, WIDTH], "counts": "~~"}], "compressed RLE"),
        ([{"size": [HEIGHT, WIDTH], "counts": [5, 5]}], "sum to 10"),
        ([{"size": [HEIGHT, WIDTH], "counts": [5.5, 2394.5]}], "list of integers"),
        ([{"size": [HEIGHT, WIDTH], "counts": [float("nan"), 5]}], "list of integers"),
        ([{"size": [HEIGHT, WIDTH], "counts": [2**70, -(2**70)]}], "counts"),
        ([{"size": [HEIGHT, WIDTH]}], "'counts' must be"),
    ],
)
def test_anything_else_is_an_error_that_names_the_part(segmentation: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        target_from_segmentation(segmentation, SIZE)


def test_polygons_are_filled_as_pycocotools_does() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        corners = rng.integers(3, 12, size=rng.integers(1, 4))
        polygons = [(rng.uniform(-5, 65, 2 * n)).round(2).tolist() for n in corners]
        expected = oracle.decode(oracle.merge(oracle.frPyObjects(polygons, HEIGHT, WIDTH)))
        mask = target_from_segmentation(polygons, SIZE).mask()
        np.testing.assert_array_equal(mask, expected.astype(bool))
