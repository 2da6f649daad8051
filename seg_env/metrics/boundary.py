"""How well boundaries agree: boundary IoU, boundary F and the 95 % Hausdorff distance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.regions import Region
from seg_env.metrics.scores import check_lengths, region_of
from seg_env.types import Prediction, Target

DILATION_RATIO = 0.02
"""Width of the band of boundary IoU as a share of the image diagonal (Cheng et al. 2021)."""
TOLERANCE_RATIO = 0.008
"""Tolerance of boundary F as a share of the image diagonal (Perazzi et al. 2016, DAVIS)."""


def boundary_iou(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    *,
    dilation_ratio: float = DILATION_RATIO,
    empty_union: float = 1.0,
) -> NDArray[np.float64]:
    """Boundary IoU: IoU of the bands within ``d`` pixels inside of the two boundaries.

    Source: Cheng et al., "Boundary IoU" (CVPR 2021), with ``d = max(1, round(dilation_ratio *
    diagonal))``; the band is what ``d`` erosions by 3 x 3 pixels take away, beyond the border of
    the image counting as background. Those erosions are one by ``(2 d + 1)`` squared, which is how
    it is computed.

    A thick band does not see a hole deep inside an object, nor a filled one; COCO's boundary AP
    therefore takes ``min(mask IoU, boundary IoU)``. Where answer and target are both empty, it is
    ``empty_union``; where one is, 0.
    """

    def score(answer: Region, target: Region) -> float:
        return band_iou(answer, target, band_radius(target.size, dilation_ratio))

    return _score_pairs(score, predictions, targets, empty_union)


def boundary_f(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    *,
    tolerance_ratio: float = TOLERANCE_RATIO,
    empty_union: float = 1.0,
) -> NDArray[np.float64]:
    """Boundary F: harmonic mean of the shares of either boundary that lie near the other.

    Source: the contour accuracy F of DAVIS (Perazzi et al. 2016): ``F = 2 P R / (P + R)``, with the
    precision ``P`` the share of the answer's boundary pixels at most ``ceil(tolerance_ratio *
    diagonal)`` pixels from the target's boundary, the recall ``R`` the reverse.
    Boundary pixels are those of the mask of which one of the four neighbours is outside (the border
    of the image is a boundary); DAVIS's own script marks instead, also outside of the mask, pixels
    that differ from the next one to the right or below. Where answer and target are both empty, the
    score is ``empty_union``; where one is, 0.
    """

    def score(answer: Region, target: Region) -> float:
        tolerance = match_tolerance(target.size, tolerance_ratio)
        return f_score(edge_distances(answer, target, limit=tolerance), tolerance)

    return _score_pairs(score, predictions, targets, empty_union)


def boundary_scores(answer: Region, target: Region) -> tuple[float, float, float]:
    """Boundary IoU, boundary F and HD95 of what an answer fills.

    HD95, in pixels, is the larger of the two directed distances that 95 % of a boundary stay below.
    Distances run between centres of one-pixel boundaries, as for `boundary_f`; the percentile is
    interpolated linearly. (The plain Hausdorff distance takes the maximum, which one stray pixel
    decides. Some tools pool both directions before taking the percentile; this does not.) Where
    only one of the two is empty it is the image diagonal, and the others are 0; where both are, it
    is 0, and the others are NaN.
    """
    if not answer.area or not target.area:
        one_is = bool(answer.area or target.area)
        return (0.0, 0.0, math.hypot(*target.size)) if one_is else (math.nan, math.nan, 0.0)
    distances = edge_distances(answer, target)
    return (
        band_iou(answer, target, band_radius(target.size)),
        f_score(distances, match_tolerance(target.size)),
        float(max(np.percentile(each, 95) for each in distances)),
    )


def band_radius(size: tuple[int, int], ratio: float = DILATION_RATIO) -> int:
    """Width in pixels of the band of boundary IoU in an image of ``(H, W)``."""
    return max(1, round(_pixels(ratio, size)))


def match_tolerance(size: tuple[int, int], ratio: float = TOLERANCE_RATIO) -> int:
    """Tolerance in pixels of boundary F in an image of ``(H, W)``."""
    return math.ceil(_pixels(ratio, size))


def _pixels(ratio: float, size: tuple[int, int]) -> float:
    if not 0 < ratio < math.inf:
        raise ValueError(f"a share of the image diagonal is a positive number, got {ratio!r}")
    return ratio * math.hypot(*size)


def band_iou(answer: Region, target: Region, radius: int) -> float:
    """IoU of the bands of two regions, neither of them empty."""
    mine, theirs = answer.band(radius), target.band(radius)
    offset = target.box[0] - answer.box[0]
    left, right = mine[max(offset, 0) :], theirs[max(-offset, 0) :]
    width = min(len(left), len(right))
    both = left[:width] & right[:width]
    common, *areas = (int(np.bitwise_count(bits).sum()) for bits in (both, mine, theirs))
    return common / (sum(areas) - common)


def edge_distances(
    answer: Region, target: Region, limit: float = math.inf
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distances in pixels between two one-pixel boundaries, exact up to ``limit``.

    They are ``(P,)`` from each boundary pixel of the answer to the target's boundary and ``(Q,)``
    from each of the target to the answer's. Neither region is empty.
    """
    bound = np.nextafter(limit, math.inf)  # SciPy finds what is nearer than its bound.
    return (
        target.edge_tree.query(answer.edge, distance_upper_bound=bound)[0],
        answer.edge_tree.query(target.edge, distance_upper_bound=bound)[0],
    )


def f_score(distances: tuple[NDArray[np.float64], NDArray[np.float64]], tolerance: float) -> float:
    """Boundary F from distances that are exact up to the tolerance."""
    precision, recall = (float((each <= tolerance).mean()) for each in distances)
    return 2.0 * precision * recall / (precision + recall) if precision + recall else 0.0


def _score_pairs(
    score: Callable[[Region, Region], float],
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    empty_union: float,
) -> NDArray[np.float64]:
    """Scores of answers and targets that both have pixels; one alone scores 0."""
    check_lengths(predictions, targets)
    scores = np.zeros(len(predictions))
    for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        regions = Region.of_rings(prediction.rings, target.size), region_of(target)
        if all(region.area for region in regions):
            scores[index] = score(*regions)
        elif not any(region.area for region in regions):
            scores[index] = empty_union
    return scores
