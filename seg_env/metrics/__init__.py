"""Scores of segmentation answers, how sure they are, and why answers fail."""

from seg_env.metrics.boundary import (
    band_radius,
    boundary_f,
    boundary_iou,
    match_tolerance,
)
from seg_env.metrics.intervals import (
    Interval,
    bootstrap_interval,
    percentile_interval,
    resampled_ratios,
)
from seg_env.metrics.outlines import ceiling, polis, vertex_counts, vertex_ratio
from seg_env.metrics.records import (
    Columns,
    Failure,
    apply_empty_union,
    join_columns,
    measure,
    size_class,
)
from seg_env.metrics.reports import breakdown, ceiling_class, compare, summarize
from seg_env.metrics.scores import (
    PRECISION_THRESHOLDS,
    Overlaps,
    ciou,
    giou,
    giou_gain,
    iou,
    iou_of_boxes,
    overlaps,
    point_distances,
    points_inside,
    precision_at,
    written_box_iou,
)

__all__ = [
    "PRECISION_THRESHOLDS",
    "Columns",
    "Failure",
    "Interval",
    "Overlaps",
    "apply_empty_union",
    "band_radius",
    "bootstrap_interval",
    "boundary_f",
    "boundary_iou",
    "breakdown",
    "ceiling",
    "ceiling_class",
    "ciou",
    "compare",
    "giou",
    "giou_gain",
    "iou",
    "iou_of_boxes",
    "join_columns",
    "match_tolerance",
    "measure",
    "overlaps",
    "percentile_interval",
    "point_distances",
    "points_inside",
    "polis",
    "precision_at",
    "resampled_ratios",
    "size_class",
    "summarize",
    "vertex_counts",
    "vertex_ratio",
    "written_box_iou",
]
