"""Everything measured about each answer, as columns, and the report made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.geometry.rle import Rle
from seg_env.metrics.boundary import (
    band_iou,
    band_radius,
    edge_distances,
    f_score,
    hd95_of,
    match_tolerance,
)
from seg_env.metrics.failures import failures
from seg_env.metrics.outlines import (
    REFERENCE_EPSILON,
    polis_distance,
    reference_outline,
    vertex_counts,
)
from seg_env.metrics.regions import Region, check_lengths
from seg_env.metrics.scores import answer_areas, box_iou, groups_of, iou, overlaps
from seg_env.types import Prediction, Target

Columns: TypeAlias = dict[str, NDArray[Any]]
"""One ``(N,)`` array for each thing measured; no objects, so ``np.savez`` needs no pickle."""

SIZE_LIMITS = {"small": 32**2, "medium": 96**2}
"""COCO's size classes: areas below these many pixels; anything else is large."""

UNION_SCORES = ("iou", "box_iou", "boundary_iou", "boundary_f")
"""Columns that the rule for empty unions decides where answer and target are both empty."""


def measure(
    predictions: Sequence[Prediction],
    targets: Sequence[Target],
    *,
    others: Sequence[Sequence[Rle] | None] | None = None,
    boundaries: bool = True,
    outlines: bool = True,
    reference_epsilon: float = REFERENCE_EPSILON,
    empty_union: float = 1.0,
) -> Columns:
    """Measure every answer; targets are worked through one by one, so memory stays flat.

    Args:
        predictions: ``N`` answers.
        targets: ``N`` targets. Answers to one question should share one `Target` object.
        others: Masks of the other objects in each image, as for `failures`.
        boundaries: Add ``boundary_iou``, ``boundary_f`` and ``hd95``.
        outlines: Add ``polis`` and ``target_vertices``.
        reference_epsilon: Tolerance of the targets' outlines for those two.
        empty_union: Score where answer and target are both empty, see `apply_empty_union`.

    Returns:
        Columns ``(N,)``: ``intersection``, ``union``, ``target_area``, ``answer_area`` (pixels),
        ``iou``, ``box_iou``, ``vertices``, ``valid`` (read without issue), ``issues`` (kinds,
        joined by commas), ``size`` (see `size_class`), ``failure`` (see `Failure`), and what
        ``boundaries`` and ``outlines`` add.

    Raises:
        ValueError: The arguments differ in length.
    """
    check_lengths(predictions, targets)
    if others is not None:
        check_lengths(predictions, targets=others)
    parts, order = [], []
    for members in groups_of(targets):
        answers = [predictions[index] for index in members]
        target = targets[members[0]]
        around = None if others is None else [others[index] for index in members]
        with _leaving_cache(target):
            columns = _measure_group(answers, target, around)
            if boundaries:
                columns |= _measure_boundaries(answers, target)
            if outlines:
                columns |= _measure_outlines(answers, target, reference_epsilon)
        parts.append(columns)
        order.extend(members)
    if not parts:
        return _no_columns(boundaries, outlines)
    joined = join_columns(parts)
    back = np.argsort(np.array(order))
    return apply_empty_union({name: column[back] for name, column in joined.items()}, empty_union)
