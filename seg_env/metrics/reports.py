"""From measured columns to scores with intervals: one model, two models, or groups of samples."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.metrics.intervals import (
    CONFIDENCE,
    Interval,
    bootstrap_interval,
    percentile_interval,
    resampled_ratios,
)
from seg_env.metrics.outlines import vertex_ratio
from seg_env.metrics.records import Columns, apply_empty_union
from seg_env.metrics.scores import PRECISION_THRESHOLDS, giou, samples

Ratios: TypeAlias = dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Each score as ``(N,)`` numerators and denominators; it is the quotient of their sums."""


class Group(NamedTuple):
    """A score of some of the samples."""

    samples: int
    score: Interval


def summarize(
    columns: Columns,
    *,
    empty_union: float = 1.0,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores of a model with bootstrap intervals over samples.

    ``columns`` are those of `measure`, or more. ``empty_union`` is the score where answer and
    target are both empty. Without ``resamples`` there are no intervals.

    Returns:
        JSON-able: ``samples``, ``empty_union``, ``confidence``; the scores ``giou``, ``ciou``,
        ``precision@0.5`` to ``precision@0.9``, ``box_giou`` (mean IoU of boxes), ``rec_accuracy``,
        ``pointing_accuracy``, ``point_distance`` (mean, unit frame), ``boundary_iou``,
        ``boundary_iou_limited`` (the mean of ``min(IoU, boundary IoU)``), ``boundary_f``,
        ``hd95``, ``polis`` (pixels), ``vertices``, ``vertex_ratio``, ``n_acc``, ``t_acc``,
        ``well_formed``, each as far as it was measured, and None where no sample decides it, as
        ``n_acc`` without absent objects; ``intervals`` with ``[low, high]`` by score; ``failures``
        and ``issues`` with counts by kind, and ``sizes`` with the gIoU by size class.
        N-acc and T-acc are those of gRefCOCO (Liu et al., "GRES", CVPR 2023): the shares of absent
        objects answered with "nothing there" (well-formed, no pixel filled, no point given), and
        of present objects not answered so.
    """
    columns = apply_empty_union(columns, empty_union)
    ratios = score_ratios(columns)
    estimates = _estimates(ratios, empty_union)
    issues = Counter(kind for kinds in columns["issues"].tolist() for kind in kinds.split(","))
    summary: dict[str, Any] = {
        "samples": samples(columns["iou"]).size,
        "empty_union": empty_union,
        "confidence": CONFIDENCE,
        **{name: _number(value) for name, value in estimates.items()},
        "intervals": {},
        "failures": dict(Counter(columns["failure"].tolist()).most_common()),
        "issues": {kind: count for kind, count in issues.most_common() if kind},
        "sizes": {
            str(size): float(columns["iou"][columns["size"] == size].mean())
            for size in np.unique(columns["size"])
        },
    }
    if resamples:
        draws = _draws(ratios, empty_union, resamples, seed)
        summary["intervals"] = {
            name: [_number(end) for end in percentile_interval(value, draws[name])[1:]]
            for name, value in estimates.items()
        }
    return summary


def compare(
    before: Columns,
    after: Columns,
    *,
    empty_union: float = 1.0,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Interval]:
    """Gains of a model over another on the same samples, with paired bootstrap intervals.

    They are ``after - before`` for each score of `summarize` that both have; NaN where undefined.

    Raises:
        ValueError: The two are not about the same targets.
    """
    if not np.array_equal(before["target_area"], after["target_area"]):
        raise ValueError(
            f"{len(before['iou'])} samples before and {len(after['iou'])} after are not about the "
            f"same targets; measure both models on the same samples in the same order"
        )
    sides = [score_ratios(apply_empty_union(each, empty_union)) for each in (before, after)]
    shared = [name for name in sides[0] if name in sides[1]]
    first, second = [_estimates(side, empty_union) for side in sides]
    # Equal seeds: each resample draws the same samples for both.
    one, two = [_draws(side, empty_union, resamples, seed) for side in sides]
    return {
        name: percentile_interval(second[name] - first[name], two[name] - one[name])
        for name in shared
    }


def breakdown(values: ArrayLike, groups: ArrayLike, *, seed: int = 0) -> dict[str, Group]:
    """Means of values ``(N,)``, such as IoUs, by labels ``(N,)`` such as `size_class`, sorted."""
    values, groups = np.asarray(values), np.asarray(groups)
    if values.shape != groups.shape or values.ndim != 1:
        raise ValueError(f"values of shape {values.shape} for groups of shape {groups.shape}")
    found = {}
    for label in np.unique(groups):
        members = values[groups == label]
        found[str(label)] = Group(len(members), bootstrap_interval(giou, members, seed=seed))
    return found


def ceiling_class(
    ceilings: ArrayLike, edges: tuple[float, ...] = (0.9, 0.95, 0.98)
) -> NDArray[np.str_]:
    """Labels such as ``"0.90-0.95"``, the range in which a representation's best IoU is.

    A value on an edge belongs to the range above it.
    """
    ends = (0.0, *edges, 1.0)
    names = [f"{low:.2f}-{high:.2f}" for low, high in pairwise(ends)]
    return np.asarray(np.array(names)[np.searchsorted(edges, np.asarray(ceilings), side="right")])


def score_ratios(columns: Columns) -> Ratios:
    """Every score of `summarize`, as numerators and denominators of its samples."""
    each = np.ones(len(columns["iou"]))
    present = columns["target_area"] > 0
    silent = columns["valid"] & (columns["answer_area"] == 0)
    means = {"giou": columns["iou"]}
    if "inside" in columns:
        silent &= ~columns["given"]
        means["pointing_accuracy"] = columns["inside"]
    means |= {f"precision@{limit}": columns["iou"] >= limit for limit in PRECISION_THRESHOLDS}
    means["box_giou"] = columns["box_iou"]
    means["rec_accuracy"] = columns["box_iou"] > 0.5
    for name in ("boundary_iou", "boundary_f", "hd95", "polis", "vertices"):
        if name in columns:
            means[name] = columns[name]
    if "boundary_iou" in columns:
        means["boundary_iou_limited"] = np.minimum(columns["iou"], columns["boundary_iou"])
    means["well_formed"] = columns["valid"]
    pairs: dict[str, tuple[NDArray[Any], NDArray[Any]]]
    pairs = {name: (values, each) for name, values in means.items()}
    pairs["ciou"] = (columns["intersection"], columns["union"])
    pairs["n_acc"] = (silent & ~present, ~present)
    pairs["t_acc"] = (~silent & present, present)
    if "distance" in columns:
        measured = ~np.isnan(columns["distance"])
        pairs["point_distance"] = (np.nan_to_num(columns["distance"]), measured)
    if "target_vertices" in columns:
        ratio = vertex_ratio(columns["vertices"], columns["target_vertices"])
        pairs["vertex_ratio"] = (np.nan_to_num(ratio), ~np.isnan(ratio))
    return {
        name: (above.astype(np.float64), below.astype(np.float64))
        for name, (above, below) in pairs.items()
    }


def _estimates(ratios: Ratios, empty_union: float) -> dict[str, float]:
    """The scores of the samples themselves."""
    return {
        name: float(above.sum() / below.sum()) if below.any() else _undefined(name, empty_union)
        for name, (above, below) in ratios.items()
    }


def _draws(
    ratios: Ratios, empty_union: float, resamples: int, seed: int
) -> dict[str, NDArray[np.float64]]:
    """``(R,)`` values of each score over resamples that all scores share."""
    above, below = (np.stack(side, axis=1) for side in zip(*ratios.values(), strict=True))
    draws = resampled_ratios(above, below, resamples=resamples, seed=seed)
    return {
        name: np.where(np.isnan(column), _undefined(name, empty_union), column)
        for name, column in zip(ratios, draws.T, strict=True)
    }


def _undefined(name: str, empty_union: float) -> float:
    """A score that no sample decides; only for cIoU is there a rule."""
    return empty_union if name == "ciou" else float("nan")


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return None if np.isnan(value) else float(value)
