"""COCO's forms of a segmentation (polygons, run lengths) as targets."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seg_env.data.records import Fault, RecordError, describe, located
from seg_env.geometry.limits import check_limit, check_size
from seg_env.geometry.raster import toggles
from seg_env.geometry.rle import Rle
from seg_env.types import Target


def target_from_segmentation(
    segmentation: Any, size: tuple[int, int], *, inside: bool = False
) -> Target:
    """Build a target from the ``segmentation`` of a COCO annotation.

    That is a list of flat polygons ``[x0, y0, x1, y1, ...]`` in pixels, a run-length dictionary
    ``{"size": [H, W], "counts": str | list}``, or a list of such dictionaries. Parts are united. An
    empty list is an empty target; so is a polygon of fewer than three points.

    Raises:
        ValueError: Anything else, or with ``inside`` a polygon that `check_inside` refuses; names
            the part.
    """
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    if not isinstance(parts, list):
        raise ValueError(f"a segmentation is a list or a dictionary, got {describe(parts)}")
    check_size(size)

    def masks() -> Iterator[Rle]:
        for index, part in enumerate(parts):
            with located(f"part {index} of the segmentation"):
                yield _part(part, size, inside)

    return union(masks(), size, "the segmentation")


def union(masks: Iterable[Rle], size: tuple[int, int], where: str) -> Target:
    """The union of some masks as one target; of none, an empty target.

    Raises:
        RecordError: Together they have too many runs; no more of them are built then. The message
            starts with ``where``.
    """
    kept: list[Rle] = []
    runs = 0
    for mask in masks:
        runs += len(mask.counts)
        with located(where):
            check_limit("runs", runs, f"a mask of at least {runs} runs")
        kept.append(mask)
    if len(kept) == 1:
        return Target(kept[0])
    return Target(Rle.union_of(kept or [Rle(size, np.array([size[0] * size[1]]))]))


def object_target(
    segmentation: Any, size: tuple[int, int], where: str, box: object = None
) -> Target:
    """The target of an object that must be there, as `target_from_segmentation`.

    ``box`` is the annotated one, ``[x, y, width, height]`` in pixels. If it is not a box, or does
    not overlap the mask's, it is a placeholder and is ignored.

    Raises:
        RecordError: The segmentation is malformed, lies outside (see `check_inside`), or fills no
            pixel. The message starts with ``where``.
    """
    with located(where):
        target = target_from_segmentation(segmentation, size, inside=True)
        if not target.area:
            raise RecordError(
                "the segmentation is empty: it fills not one pixel of "
                f"{size[1]} x {size[0]} (width x height)",
                Fault.EMPTY,
            )
        return replace(target, box=_annotated_box(box, target))


def _annotated_box(box: object, target: Target) -> tuple[float, float, float, float] | None:
    try:
        x, y, width, height = map(float, box)  # type: ignore[call-overload]  # it may be anything
    except (TypeError, ValueError, OverflowError):
        return None
    if not (0 < width < math.inf and 0 < height < math.inf):
        return None
    x0, y0, x1, y1 = target.rle.bbox
    if not (x < x1 and y < y1 and x + width > x0 and y + height > y0):
        return None
    rows, columns = target.size
    return x / columns, y / rows, (x + width) / columns, (y + height) / rows


def box_around(targets: Sequence[Target]) -> tuple[float, float, float, float] | None:
    """The box around the annotated boxes of some targets; None unless each has one."""
    boxes = [target.box for target in targets if target.box is not None]
    if not boxes or len(boxes) < len(targets):
        return None
    low, high = np.array(boxes).min(axis=0), np.array(boxes).max(axis=0)
    return float(low[0]), float(low[1]), float(high[2]), float(high[3])


def check_inside(points: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Raise when a polygon, ``(V, 2)`` in pixels, cannot belong to an image of ``(H, W)``.

    COCO's fill rule cuts off what reaches out of the image. A polygon that lies beside the image,
    or reaches out by more than half its side, was drawn on another image or another size of it. A
    line along the edge is allowed: it fills nothing, and objects have such parts.

    Raises:
        RecordError: The polygon does not fit.
    """
    if not len(points):
        return
    sides = np.array([size[1], size[0]])
    lowest, highest = points.min(axis=0), points.max(axis=0)
    beside = ((highest <= 0) & (lowest < 0) | (lowest >= sides) & (highest > sides)).any()
    far_out = ((lowest < -0.5 * sides) | (highest > 1.5 * sides)).any()
    if beside or far_out:
        (x0, y0), (x1, y1) = lowest.tolist(), highest.tolist()
        raise RecordError(
            f"a polygon outside the image: x {x0:g} to {x1:g}, y {y0:g} to {y1:g} in an image of "
            f"{size[1]} x {size[0]} (width x height)",
            Fault.OUTSIDE,
        )


def parse_points(value: object, *, flat: bool = False) -> NDArray[np.float64]:
    """``(V, 2)`` points from finite numbers, in pairs or, with ``flat``, one after another.

    Raises:
        ValueError: It is something else.
    """
    try:
        points = np.array(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        points = np.zeros(())  # of no dimension
    fits = points.size % 2 == 0 if flat else points.shape[1:] == (2,)
    if points.ndim != (1 if flat else 2) or not fits or not np.isfinite(points).all():
        form = "flat list of finite x, y, x, y, ..." if flat else "list of finite pairs [x, y]"
        raise ValueError(f"expected a {form}, got {_first_fault(value, flat)}")
    return points.reshape(-1, 2)


def _first_fault(value: object, flat: bool) -> str:
    """What is wrong with points, for error messages."""
    if not isinstance(value, list | array):
        return describe(value)
    for place, each in enumerate(value):
        numbers = [each] if flat else each
        if not isinstance(numbers, list | tuple) or len(numbers) != (1 if flat else 2):
            return f"{describe(each)} at place {place}"
        for number in numbers:
            if not isinstance(number, int | float) or not abs(number) < math.inf:
                return f"{describe(number)} at place {place}"
    return f"{len(value)} values"


def _part(part: Any, size: tuple[int, int], inside: bool) -> Rle:
    if isinstance(part, list | array):
        points = parse_points(part, flat=True)
        if inside:
            check_inside(points, size)
        return fill_polygon(points, size)
    if not isinstance(part, dict):
        raise ValueError(
            "expected a polygon [x0, y0, x1, y1, ...] or {'size', 'counts'}, got " + describe(part)
        )
    counts, stated = part.get("counts"), part.get("size")
    if not isinstance(stated, list | tuple) or tuple(stated) != size:
        raise ValueError(f"'size' must be the (height, width) of the image, {size}")
    if isinstance(counts, str | bytes):
        return Rle.from_string(size, counts)
    if isinstance(counts, list):
        if float in map(type, counts):  # 60.0 is as good as 60
            counts = [int(c) if isinstance(c, float) and c.is_integer() else c for c in counts]
        return Rle.from_counts(size, counts)
    raise ValueError(f"'counts' must be a string or a list of integers, got {describe(counts)}")


def check_crossings(points: NDArray[np.float64], size: tuple[int, int]) -> None:
    """Raise when the edges of a polygon, ``(V, 2)`` in pixels, pass too many columns.

    Raises:
        LimitError: They do; filling it would take time and memory in proportion.
    """
    columns = np.clip(points[:, 0], -1, size[1] + 1)
    crossings = int(np.abs(np.diff(columns, append=columns[:1])).sum())
    check_limit("crossings", crossings, f"a polygon whose edges pass {crossings} columns")


def fill_polygon(points: NDArray[np.float64], size: tuple[int, int]) -> Rle:
    """Fill a polygon, ``(V, 2)`` in pixels, by COCO's even-odd rule in an image of ``(H, W)``.

    Coordinates are not converted to the unit frame: a rounding error there can shift the result of
    COCO's rule, which counts in fifths of a pixel, by a whole pixel.

    Raises:
        LimitError: Its edges pass too many columns.
    """
    height, width = size
    check_crossings(points, size)
    keys = np.zeros(0, dtype=np.int64)
    if len(points) >= 3:
        keys = toggles(points, np.array([len(points)]), size)[0].astype(np.int64)
    edges = keys - keys // (height + 1)  # column * (H + 1) + row -> column * H + row
    return Rle(size, np.diff(edges, prepend=0, append=height * width))
