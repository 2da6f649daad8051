"""Scores of segmentation answers and how sure they are, as plain functions of arrays.

Statistics work along the last axis, so that a bootstrap scores all its resamples in one call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.geometry.overlap import PreparedTarget, overlap_batch, prepare
from seg_env.types import Prediction, Target

Statistic: TypeAlias = Callable[..., NDArray[np.float64]]
"""Takes arrays ``(..., N)`` and returns ``(...,)``, like `giou` and `ciou`."""

_GATHERED_AT_ONCE = 1 << 20  # Resampled values held in memory at a time.


class Overlaps(NamedTuple):
    """Pixel counts of ``N`` answers filled over their targets."""

    intersections: NDArray[np.int64]
    """``(N,)`` pixels in both."""
    unions: NDArray[np.int64]
    """``(N,)`` pixels in either."""


class Interval(NamedTuple):
    """A score with its confidence interval."""

    estimate: float
    """The score of the samples themselves."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""


def overlaps(predictions: Sequence[Prediction], targets: Sequence[Target]) -> Overlaps:
    """Count the pixels shared by answers and targets, at the targets' own sizes.

    Args:
        predictions: ``N`` decoded answers.
        targets: ``N`` targets. Answers to one question should share one `Target` object: it is
            prepared once and keeps the preparation in its ``cache``.

    Raises:
        ValueError: The two differ in length.
    """
    if len(predictions) != len(targets):
        raise ValueError(f"{len(predictions)} predictions for {len(targets)} targets")
    groups: dict[int, list[int]] = {}
    for index, target in enumerate(targets):
        groups.setdefault(id(target), []).append(index)
    intersections = np.zeros(len(targets), dtype=np.int64)
    unions = np.zeros(len(targets), dtype=np.int64)
    for members in groups.values():
        prepared = _prepared(targets[members[0]])
        shared, areas = overlap_batch([predictions[index].rings for index in members], prepared)
        intersections[members] = shared
        unions[members] = areas + prepared.area - shared
    return Overlaps(intersections, unions)


def _prepared(target: Target) -> PreparedTarget:
    prepared: PreparedTarget | None = target.cache.get("overlap")
    if prepared is None:
        prepared = target.cache["overlap"] = prepare(target.rle)
    return prepared


def iou(
    intersections: ArrayLike, unions: ArrayLike, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """Intersection over union of each sample.

    Args:
        intersections: ``(...)`` pixels in both masks.
        unions: ``(...)`` pixels in either mask.
        empty_union: Score where both masks are empty. Text4Seg and LISA count 1, VisionReasoner 0;
            a published score should say which.

    Returns:
        ``(...)`` in ``[0, 1]``.
    """
    intersections, unions = np.asarray(intersections), np.asarray(unions)
    return np.where(unions == 0, empty_union, intersections / np.maximum(unions, 1))


def giou(ious: ArrayLike) -> NDArray[np.float64]:
    """Mean IoU per sample (the "gIoU" of referring segmentation, not of box regression).

    Args:
        ious: ``(..., N)`` IoU of each sample.

    Returns:
        ``(...,)`` in ``[0, 1]``.

    Raises:
        ValueError: There is no sample.
    """
    return np.asarray(_samples(ious).mean(axis=-1))


def ciou(
    intersections: ArrayLike, unions: ArrayLike, empty_union: float = 1.0
) -> NDArray[np.float64]:
    """Cumulative IoU, all intersections over all unions: large objects count more.

    Args:
        intersections: ``(..., N)`` pixels in both masks of each sample.
        unions: ``(..., N)`` pixels in either mask.
        empty_union: Score when every union is empty. A single empty one adds nothing to either sum.

    Returns:
        ``(...,)`` in ``[0, 1]``.

    Raises:
        ValueError: There is no sample.
    """
    totals = _samples(intersections).sum(axis=-1), _samples(unions).sum(axis=-1)
    return iou(*totals, empty_union=empty_union)


def precision_at(ious: ArrayLike, threshold: float) -> NDArray[np.float64]:
    """Share of samples whose IoU reaches a threshold ("Pr@0.5"); exactly the threshold counts.

    Args:
        ious: ``(..., N)`` IoU of each sample.
        threshold: IoU in ``[0, 1]``.

    Returns:
        ``(...,)`` in ``[0, 1]``.

    Raises:
        ValueError: There is no sample, or the threshold is outside ``[0, 1]``.
    """
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold {threshold!r} is no IoU; it lies in [0, 1], as 0.5")
    return np.asarray((_samples(ious) >= threshold).mean(axis=-1))


def well_formed_share(predictions: Sequence[Prediction]) -> float:
    """Share of answers that were read without a single issue.

    Raises:
        ValueError: There is no answer.
    """
    return float(_samples([prediction.valid for prediction in predictions]).mean())


def bootstrap_interval(
    statistic: Statistic,
    *columns: ArrayLike,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic (Efron 1979), samples drawn with replacement.

    Args:
        statistic: For example `giou`, called with ``ious``, or `ciou`, called with
            ``intersections, unions``.
        *columns: ``(N,)`` arrays that are resampled together.
        resamples: Number of resamples.
        confidence: Probability the interval should cover, between 0 and 1.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: There is no sample, the columns differ in length, or ``resamples`` or
            ``confidence`` is out of range.
    """
    arrays = _columns(columns)
    scores = _resampled(statistic, arrays, resamples, seed)
    return _interval(float(statistic(*arrays)), scores, confidence)


def paired_bootstrap_interval(
    statistic: Statistic,
    before: Sequence[ArrayLike],
    after: Sequence[ArrayLike],
    *,
    resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Interval of the gain ``statistic(after) - statistic(before)`` on the same samples.

    Each resample draws the same samples for both, so what is hard for both cancels out. An interval
    that excludes 0 tells a gain from luck of the draw.

    Args:
        statistic: As for `bootstrap_interval`.
        before: Its ``(N,)`` columns before, for example ``[ious]``.
        after: The columns after, sample by sample in the same order.
        resamples: Number of resamples.
        confidence: Probability the interval should cover, between 0 and 1.
        seed: Equal seeds give equal intervals.

    Raises:
        ValueError: As for `bootstrap_interval`, or ``before`` and ``after`` differ in form.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} columns before and {len(after)} after; give the same")
    arrays = _columns([*before, *after])

    def gain(*columns: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(statistic(*columns[len(before) :]) - statistic(*columns[: len(before)]))

    return _interval(float(gain(*arrays)), _resampled(gain, arrays, resamples, seed), confidence)


def _resampled(
    statistic: Statistic, arrays: Sequence[NDArray[np.float64]], resamples: int, seed: int
) -> NDArray[np.float64]:
    """``(resamples,)`` values of a statistic."""
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    count = len(arrays[0])
    generator = np.random.default_rng(seed)
    block = max(1, _GATHERED_AT_ONCE // count)
    values = []
    for done in range(0, resamples, block):
        drawn = generator.integers(0, count, (min(block, resamples - done), count))
        values.append(statistic(*(array[drawn] for array in arrays)))
    return np.concatenate(values)


def _interval(estimate: float, values: NDArray[np.float64], confidence: float) -> Interval:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}")
    low, high = np.quantile(values, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(estimate, float(low), float(high))


def _columns(columns: Sequence[ArrayLike]) -> list[NDArray[np.float64]]:
    arrays = [_samples(column) for column in columns]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"columns must be (N,) arrays of one length, got shapes {shapes}")
    return arrays


def _samples(values: ArrayLike) -> NDArray[np.float64]:
    """Values as an array with at least one sample along its last axis."""
    array = np.asarray(values)
    if array.ndim == 0 or not array.shape[-1]:
        raise ValueError(f"a score needs at least one sample, got shape {array.shape}")
    return array
