"""How sure a score is: percentile bootstrap intervals of scores and of gains."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from seg_env.metrics.scores import samples

CONFIDENCE = 0.95
"""Probability that an interval should cover, where nothing else is asked for."""

_DRAWN_AT_ONCE = 1 << 20  # Resampled values held in memory at a time.


class Interval(NamedTuple):
    """A score with its confidence interval."""

    estimate: float
    """The score of the samples themselves."""
    low: float
    high: float


def bootstrap_interval(
    statistic: Callable[..., NDArray[np.float64]],
    *columns: ArrayLike,
    resamples: int = 2000,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic (Efron 1979), samples drawn with replacement.

    The statistic takes arrays ``(..., N)`` and returns ``(...,)``, as `giou` and `ciou` do.
    The ``(N,)`` columns are resampled together: ``ious`` for `giou`, ``intersections, unions`` for
    `ciou`, ``before, after`` for `giou_gain`, where what is hard for both cancels out.
    ``confidence`` is the probability that the interval should cover, between 0 and 1.

    Raises:
        ValueError: There is no sample, the columns differ in length, or ``resamples`` or
            ``confidence`` is out of range.
    """
    arrays = [samples(column) for column in columns]
    shapes = sorted({array.shape for array in arrays})
    if len(shapes) != 1 or len(shapes[0]) != 1:
        raise ValueError(f"columns must be (N,) arrays of one length, got shapes {shapes}")
    scores = _resample(
        lambda drawn: statistic(*(array[drawn] for array in arrays)),
        len(arrays[0]),
        resamples,
        seed,
    )
    return percentile_interval(float(statistic(*arrays)), scores, confidence)


def resampled_ratios(
    numerators: NDArray[np.float64],
    denominators: NDArray[np.float64],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """``K`` scores of the same samples, each a quotient of sums, over ``R`` shared resamples.

    ``numerators`` and ``denominators`` are ``(N, K)``, what each sample adds to the sums. A mean is
    a sum over the number of samples, cIoU a sum of intersections over one of unions. Equal seeds
    draw equal samples, so that scores of two models can be compared.

    Returns:
        ``(R, K)``, NaN where the denominators of a resample sum to 0.
    """
    count = samples(numerators.T).shape[-1]
    both = np.concatenate((numerators, denominators), axis=1)

    def ratios(drawn: NDArray[np.int64]) -> NDArray[np.float64]:
        # How often each sample was drawn, so that one product sums up all the scores.
        rows = len(drawn)
        places = drawn + np.arange(rows)[:, None] * count
        times = np.bincount(places.ravel(), minlength=rows * count).reshape(rows, count)
        above, below = np.split((times.astype(np.float64) @ both).T, 2)
        return np.where(below != 0, above / np.where(below != 0, below, 1.0), np.nan)

    return _resample(ratios, count, resamples, seed).T


def percentile_interval(
    estimate: float, values: NDArray[np.float64], confidence: float = CONFIDENCE
) -> Interval:
    """Interval between percentiles of resampled values ``(R,)``; NaN among them is left out.

    The ends are NaN where no value is defined.
    """
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence!r}")
    values = values[~np.isnan(values)]
    if not len(values):
        return Interval(estimate, float("nan"), float("nan"))
    low, high = np.quantile(values, [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0])
    return Interval(estimate, float(low), float(high))


def _resample(
    statistic: Callable[[NDArray[np.int64]], NDArray[np.float64]],
    count: int,
    resamples: int,
    seed: int,
) -> NDArray[np.float64]:
    """Values ``(..., R)`` of a statistic that takes indices ``(R, N)`` of the samples drawn."""
    from scipy import stats  # Slow to import, and only reports need it.

    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if count == 1:  # SciPy wants two samples; of one, every resample is the same.
        return np.repeat(statistic(np.zeros((1, 1), dtype=np.int64)), resamples, axis=-1)
    with warnings.catch_warnings():
        # About undefined values among the resamples, which `percentile_interval` leaves out.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            (np.arange(count),),
            lambda drawn, axis: statistic(drawn),
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _DRAWN_AT_ONCE // count),
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return np.asarray(found.bootstrap_distribution, dtype=np.float64)
