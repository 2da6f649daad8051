"""Everything measured about each answer, as columns: its scores, and how it failed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.geometry.overlap import iou_batch
from seg_env.geometry.regions import Region
from seg_env.geometry.rle import Rle
from seg_env.metrics.boundary import (
    band_iou,
    band_radius,
    edge_distances,
    f_score,
    hd95_of,
    match_tolerance,
)
from seg_env.metrics.outlines import REFERENCE_EPSILON, polis_distance, vertex_counts
from seg_env.metrics.scores import (
    Overlaps,
    answer_areas,
    check_lengths,
    groups_of,
    iou,
    iou_of_boxes,
    overlaps,
    point_distances,
    points_inside,
    region_of,
    written_box_iou,
)
from seg_env.types import Prediction, Target

Columns: TypeAlias = dict[str, NDArray[Any]]
"""One ``(N,)`` array for each thing measured; no objects, so ``np.savez`` needs no pickle."""

_ANSWERS_AT_ONCE = 256  # Bitmaps held at a time, however many answers one target has.


class Failure(StrEnum):
    """What became of an answer. Every answer is exactly one of these, the first that applies."""

    MALFORMED = "malformed"
    """The text had issues, and not one pixel is filled: no usable ring came of it."""
    FALSE_ALARM = "false_alarm"
    """Pixels are filled though the object asked for is not there."""
    MISSED = "missed"
    """The object is there, and a well-formed answer fills nothing: ``[]``, or a mere line."""
    GOOD = "good"
    """Mask IoU with the target (box IoU of boxes) is at least the threshold, the point is on the
    target, or the absence was recognised."""
    WRONG_OBJECT = "wrong_object"
    """Another known object of the image is overlapped better (higher IoU) than the target."""
    WRONG_OUTLINE = "wrong_outline"
    """The target is overlapped, and no other object better: the right one, badly outlined."""
    NO_OBJECT = "no_object"
    """Neither the target nor any other known object is overlapped at all."""


def measure(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    *,
    others: Sequence[Sequence[Rle] | None] | None = None,
    boundaries: bool = True,
    outlines: bool = True,
    empty_union: float = 1.0,
) -> Columns:
    """Measure every answer; targets are worked through one by one, so memory stays flat.

    Answers to one question should share one `Target` object; ``others`` are as for `failures`, and
    ``empty_union`` as for `apply_empty_union`.

    Returns:
        Columns ``(N,)``: ``intersection``, ``union``, ``target_area``, ``answer_area`` (pixels),
        ``iou``, ``box_iou`` (of boxes as written where boxes were asked for), ``vertices``,
        ``valid`` (read without issue), ``issues`` (kinds, joined by commas), ``size`` (see
        `size_class`), ``failure`` (see `Failure`); with ``boundaries`` also ``boundary_iou``,
        ``boundary_f`` and ``hd95``; with ``outlines`` also ``polis`` and ``target_vertices``; if
        points were asked for, also ``given`` (there is a point), ``inside`` (see `points_inside`)
        and ``distance`` (see `point_distances`).
    """
    check_lengths(predictions, targets)
    if others is not None and len(others) != len(targets):
        raise ValueError(f"other objects of {len(others)} images for {len(targets)} targets")
    measured = partial(
        _measure_group,
        boundaries=boundaries,
        outlines=outlines,
        points=any(prediction.form == "point" for prediction in predictions),
    )
    if not predictions:  # The same columns, without rows.
        nothing = Target.from_mask(np.zeros((1, 1), dtype=np.bool_))
        columns = measured([Prediction(())], nothing, None)
        return {name: column[:0] for name, column in columns.items()}
    groups = [
        members[begin : begin + _ANSWERS_AT_ONCE]
        for members in groups_of(targets)
        for begin in range(0, len(members), _ANSWERS_AT_ONCE)
    ]
    parts = []
    for members in groups:
        answers = [predictions[index] for index in members]
        around = None if others is None else [others[index] for index in members]
        parts.append(measured(answers, targets[members[0]], around))
    back = np.argsort(np.concatenate(groups))
    joined = {name: column[back] for name, column in join_columns(parts).items()}
    return apply_empty_union(joined, empty_union)


def _measure_group(
    answers: Sequence[Prediction],
    target: Target,
    others: Sequence[Sequence[Rle] | None] | None,
    *,
    boundaries: bool,
    outlines: bool,
    points: bool,
) -> Columns:
    """Columns of the answers to one target, by the rule that an empty union counts 1."""
    with _restoring_cache(target):
        regions = [Region.of_rings(answer.rings, target.size) for answer in answers]
        columns = _measure_masks(answers, regions, target, others)
        if points:
            targets = [target] * len(answers)
            given = [answer.point is not None for answer in answers]
            columns["given"] = np.array(given, dtype=np.bool_)
            columns["inside"] = points_inside(answers, targets)
            columns["distance"] = point_distances(answers, targets)
        if boundaries:
            columns |= _measure_boundaries(regions, target)
        if outlines:
            reference = target.outline(REFERENCE_EPSILON)
            distances = [polis_distance(each.rings, reference, target.size) for each in answers]
            columns["polis"] = np.array(distances)
            columns["target_vertices"] = np.repeat(vertex_counts([reference]), len(answers))
    return columns


def _measure_masks(
    answers: Sequence[Prediction],
    regions: Sequence[Region],
    target: Target,
    others: Sequence[Sequence[Rle] | None] | None,
) -> Columns:
    targets = [target] * len(answers)
    counts = overlaps(answers, targets)
    boxes = [region.box for region in regions], [region_of(target).box] * len(answers)
    box_ious = iou_of_boxes(*boxes)
    written = np.array([answer.form == "bbox" for answer in answers])
    if written.any():
        box_ious = np.where(written, written_box_iou(answers, targets), box_ious)
    target_areas = np.full(len(answers), target.area)
    return {
        "intersection": counts.intersections,
        "union": counts.unions,
        "target_area": target_areas,
        "answer_area": answer_areas(counts, targets),
        "iou": iou(*counts),
        "box_iou": box_ious,
        "vertices": vertex_counts(answer.rings for answer in answers),
        "valid": np.array([answer.valid for answer in answers], dtype=np.bool_),
        "issues": np.array([",".join(answer.issue_kinds) for answer in answers], dtype=np.str_),
        "size": size_class(target_areas),
        "failure": failures(answers, targets, others, counts=counts),
    }


def _measure_boundaries(regions: Sequence[Region], target: Target) -> Columns:
    truth = region_of(target)
    radius, tolerance = band_radius(target.size), match_tolerance(target.size)
    scores = np.ones((3, len(regions)))
    for index, answer in enumerate(regions):
        distances = edge_distances(answer, truth)
        scores[:, index] = (
            band_iou(answer, truth, radius),
            0.0 if distances is None else f_score(distances, tolerance),
            hd95_of(distances, answer, truth),
        )
    return dict(zip(("boundary_iou", "boundary_f", "hd95"), scores, strict=True))


@contextmanager
def _restoring_cache(target: Target) -> Iterator[None]:
    """Forget what was prepared in the block: there may be 100,000 targets in memory."""
    known = set(target.cache)
    try:
        yield
    finally:
        for key in target.cache.keys() - known:
            del target.cache[key]


def join_columns(parts: Sequence[Columns]) -> Columns:
    """The columns of several calls of `measure`, joined."""
    if len({frozenset(part) for part in parts}) != 1:
        raise ValueError(
            f"columns of {len(parts)} calls of measure do not go together; give at least one, all "
            f"measured with the same options"
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def apply_empty_union(columns: Columns, empty_union: float) -> Columns:
    """The same columns under another rule for samples where answer and target are both empty.

    Their IoU, box IoU, boundary IoU and boundary F become ``empty_union`` if the answer was read
    without issue, as ``[]``, and 0 otherwise: text that could not be read does not say that nothing
    is there (`rewards.MaskIoU` counts the same way). Text4Seg and LISA count 1, VisionReasoner 0.
    """
    score = np.where(columns["valid"], empty_union, 0.0)
    nothing = columns["union"] == 0
    decided = columns.keys() & {"iou", "box_iou", "boundary_iou", "boundary_f"}
    return columns | {name: np.where(nothing, score, columns[name]) for name in decided}


def size_class(areas: ArrayLike) -> NDArray[np.str_]:
    """COCO's size class of targets of so many pixels at native size; "none" for 0."""
    names = np.array(["none", "small", "medium", "large"])
    return np.asarray(names[np.searchsorted([1, 32**2, 96**2], np.asarray(areas), side="right")])


def failures(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    others: Sequence[Sequence[Rle] | None] | None = None,
    *,
    counts: Overlaps | None = None,
    threshold: float = 0.5,
) -> NDArray[np.str_]:
    """Split answers into good ones and kinds of failure, the values of `Failure`.

    An answer with issues that still fills pixels is judged by those pixels; it is good from an IoU
    of ``threshold``. ``others`` are the masks of the other objects in each image, at the target's
    size, or None where they are not known: `Failure.WRONG_OBJECT` is then never returned. The
    target itself may be among them. ``counts`` are the `overlaps`, if known already.
    """
    check_lengths(predictions, targets)
    others = [None] * len(targets) if others is None else others
    if len(others) != len(targets):
        raise ValueError(f"other objects of {len(others)} images for {len(targets)} targets")
    counts = counts or overlaps(predictions, targets)
    areas, scores = answer_areas(counts, targets).tolist(), iou(*counts).tolist()
    boxes = [index for index, answer in enumerate(predictions) if answer.form == "bbox"]
    fits = np.array(scores)
    fits[boxes] = written_box_iou(
        [predictions[index] for index in boxes], [targets[index] for index in boxes]
    )
    judged = []
    for index, (prediction, target) in enumerate(zip(predictions, targets, strict=True)):
        if prediction.point is not None:
            judged.append(_judge_point(prediction.point, target, others[index] or ()))
        elif not areas[index] and not prediction.valid:
            judged.append(Failure.MALFORMED)
        elif not areas[index]:
            judged.append(Failure.MISSED if target.area else Failure.GOOD)
        elif not target.area:
            judged.append(Failure.FALSE_ALARM)
        elif fits[index] >= threshold:
            judged.append(Failure.GOOD)
        else:
            judged.append(_judge_bad(prediction, target, others[index] or (), scores[index]))
    return np.array(judged, dtype=f"<U{max(map(len, Failure))}")


def _judge_point(point: NDArray[np.float64], target: Target, others: Sequence[Rle]) -> Failure:
    """A point on the target, on something else, or on nothing known."""
    if not target.area:
        return Failure.FALSE_ALARM
    if target.contains(point):
        return Failure.GOOD
    on_other = any(Target(other).contains(point) for other in others)
    return Failure.WRONG_OBJECT if on_other else Failure.NO_OBJECT


def _judge_bad(
    prediction: Prediction, target: Target, others: Sequence[Rle], score: float
) -> Failure:
    """An answer that fills something else than the target."""
    for other in others:
        if other.size != target.size:
            raise ValueError(
                f"another object has the size {other.size} and the target {target.size}; give "
                f"masks of the same image"
            )
        if iou_batch([prediction.rings], other, empty_union=0.0)[0] > score:
            return Failure.WRONG_OBJECT
    return Failure.WRONG_OUTLINE if score > 0 else Failure.NO_OBJECT
