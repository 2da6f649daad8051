"""Everything measured about each answer, as columns: its scores, and how it failed."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.geometry.overlap import iou_batch
from seg_env.geometry.regions import Region
from seg_env.geometry.rle import Rle
from seg_env.metrics.boundary import boundary_scores
from seg_env.metrics.outlines import REFERENCE_EPSILON, polis, vertex_counts
from seg_env.metrics.scores import (
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
from seg_env.tasks import box_of
from seg_env.types import Prediction, Target

Columns: TypeAlias = dict[str, NDArray[Any]]
"""One ``(N,)`` array for each thing measured; no objects, so ``np.savez`` needs no pickle."""

GOOD_FIT = 0.5
"""IoU from which an answer counts as good."""

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
    """Mask IoU with the target (box IoU of boxes) is at least `GOOD_FIT`, the point is on the
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

    Answers to one question should share one `Target` object. ``others`` are the masks of the other
    objects in each image, at the target's size, or None where they are not known:
    `Failure.WRONG_OBJECT` is then never returned. The target itself may be among them.
    ``empty_union`` is as for `apply_empty_union`.

    Returns:
        Columns ``(N,)``: ``intersection``, ``union``, ``target_area``, ``answer_area`` (pixels),
        ``iou``, ``box_iou`` (of boxes as written where boxes were asked for, else of those along
        pixel edges around what is filled; the true box is that of `seg_env.tasks.box_of`),
        ``annotated_box`` (whether it was annotated), ``vertices``, ``valid`` (read without issue),
        ``issues`` (kinds, joined by commas), ``size`` (see `size_class`), ``failure`` (see
        `Failure`); with ``boundaries`` also ``boundary_iou``, ``boundary_f`` and ``hd95`` (see
        `boundary_scores`); with ``outlines`` also ``polis`` (see the function) and
        ``target_vertices``; if points were asked for, also ``given`` (there is a point),
        ``inside`` (see `points_inside`) and ``distance`` (see `point_distances`).
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
        columns = measured([Prediction(())], nothing, [None])
        return {name: column[:0] for name, column in columns.items()}
    groups = [
        members[begin : begin + _ANSWERS_AT_ONCE]
        for members in groups_of(targets)
        for begin in range(0, len(members), _ANSWERS_AT_ONCE)
    ]
    parts = []
    for members in groups:
        answers, target = [predictions[index] for index in members], targets[members[0]]
        around = [None if others is None else others[index] for index in members]
        known = set(target.cache)
        parts.append(measured(answers, target, around))
        for key in target.cache.keys() - known:  # There may be 100,000 targets in memory.
            del target.cache[key]
    back = np.argsort(np.concatenate(groups))
    joined = {name: column[back] for name, column in join_columns(parts).items()}
    return apply_empty_union(joined, empty_union)


def _measure_group(
    answers: Sequence[Prediction],
    target: Target,
    others: Sequence[Sequence[Rle] | None],
    *,
    boundaries: bool,
    outlines: bool,
    points: bool,
) -> Columns:
    """Columns of the answers to one target, by the rule that an empty union counts 1."""
    targets = [target] * len(answers)
    regions = [Region.of_rings(answer.rings, target.size) for answer in answers]
    truth = region_of(target)
    counts = overlaps(answers, targets)
    areas, target_areas = answer_areas(counts, targets), np.full(len(answers), target.area)
    ious = iou(*counts)
    # That of the mask in whole pixels: shares of the side are rounded.
    scaled = box_of(target) * (target.size[::-1] * 2)
    true_box = np.array(truth.box) if target.box is None else scaled
    box_ious = iou_of_boxes([region.box for region in regions], [true_box] * len(answers))
    as_boxes = np.array([answer.form == "bbox" for answer in answers])
    if as_boxes.any():
        box_ious = np.where(as_boxes, written_box_iou(answers, targets), box_ious)
    rows = zip(answers, others, areas, ious, np.where(as_boxes, box_ious, ious), strict=True)
    kinds = [_failure(answer, target, *row) for answer, *row in rows]
    columns = {
        "intersection": counts.intersections,
        "union": counts.unions,
        "target_area": target_areas,
        "answer_area": areas,
        "iou": ious,
        "box_iou": box_ious,
        "annotated_box": np.full(len(answers), target.box is not None),
        "vertices": vertex_counts(answer.rings for answer in answers),
        "valid": np.array([answer.valid for answer in answers], dtype=np.bool_),
        "issues": np.array([",".join(answer.issue_kinds) for answer in answers], dtype=np.str_),
        "size": size_class(target_areas),
        "failure": np.array(kinds, dtype=f"<U{max(map(len, Failure))}"),
    }
    if points:
        columns["given"] = np.array([answer.point is not None for answer in answers])
        columns["inside"] = points_inside(answers, targets)
        columns["distance"] = point_distances(answers, targets)
    if boundaries:
        scores = np.array([boundary_scores(region, truth) for region in regions])
        columns |= dict(zip(("boundary_iou", "boundary_f", "hd95"), scores.T, strict=True))
    if outlines:
        reference = target.outline(REFERENCE_EPSILON)
        distances = [polis(answer.rings, reference, target.size) for answer in answers]
        columns["polis"] = np.array(distances)
        columns["target_vertices"] = np.repeat(vertex_counts([reference]), len(answers))
    return columns


def _failure(
    answer: Prediction,
    target: Target,
    others: Sequence[Rle] | None,
    area: int,
    score: float,
    fit: float,
) -> Failure:
    """What became of an answer, by its pixels ``area``, its mask IoU and the IoU of its form."""
    if answer.point is None and not area:
        if not answer.valid:
            return Failure.MALFORMED
        return Failure.MISSED if target.area else Failure.GOOD
    if not target.area:
        return Failure.FALSE_ALARM
    if answer.point is not None:
        if target.contains(answer.point):
            return Failure.GOOD
        on_other = any(Target(other).contains(answer.point) for other in others or ())
        return Failure.WRONG_OBJECT if on_other else Failure.NO_OBJECT
    if fit >= GOOD_FIT:
        return Failure.GOOD
    for other in others or ():
        if other.size != target.size:
            raise ValueError(
                f"another object has the size {other.size} and the target {target.size}; give "
                f"masks of the same image"
            )
        if iou_batch([answer.rings], other, empty_union=0.0)[0] > score:
            return Failure.WRONG_OBJECT
    return Failure.WRONG_OUTLINE if score > 0 else Failure.NO_OBJECT


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
