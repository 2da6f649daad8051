"""Exact distances from pixels to the nearest pixel of a boundary."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from seg_env.metrics.regions import Pixels

_COLUMNS_AT_ONCE = 16  # Columns looked at on either side before asking who needs more.
_PIXELS_AT_ONCE = 1 << 14  # Bounds the memory of ragged boundaries of huge images.


def nearest_distances(
    pixels: Pixels, boundary: Pixels, limit: float = math.inf
) -> NDArray[np.float64]:
    """Euclidean distance from the centre of each pixel to the nearest centre of a boundary.

    A table holds how far it is to the boundary straight up or down; each pixel then looks sideways
    in it only as far as it can still find something nearer, which is near for good answers.

    Args:
        pixels: ``N`` pixels.
        boundary: ``M`` pixels, at least one.
        limit: Distances up to here are exact; others may come out too large.

    Returns:
        ``(N,)`` distances in pixels.
    """
    if not len(pixels.rows):
        return np.zeros(0)
    top = int(min(pixels.rows.min(), boundary.rows.min()))
    left = int(min(pixels.columns.min(), boundary.columns.min()))
    height = int(max(pixels.rows.max(), boundary.rows.max())) - top + 1
    width = int(max(pixels.columns.max(), boundary.columns.max())) - left + 1
    upright = _upright_distances(boundary.rows - top, boundary.columns - left, (height, width))
    rows, columns = pixels.rows - top, pixels.columns - left
    squares = [
        _look_sideways(upright, rows[begin : begin + _PIXELS_AT_ONCE], part, limit)
        for begin in range(0, len(rows), _PIXELS_AT_ONCE)
        for part in [columns[begin : begin + _PIXELS_AT_ONCE]]
    ]
    return np.sqrt(np.concatenate(squares))


def _upright_distances(
    rows: NDArray[np.int64], columns: NDArray[np.int64], size: tuple[int, int]
) -> NDArray[np.integer]:
    """``(H, W)`` rows to the nearest boundary pixel of the same column, large without one."""
    height, width = size
    far = height + width  # Larger than any distance within the window.
    dtype = np.int32 if (height + far) ** 2 + width**2 < 2**31 else np.int64
    here = np.arange(height, dtype=dtype)[:, None]
    above = np.full(size, -far, dtype=dtype)
    above[rows, columns] = rows
    # Along rows of the table, so that whole rows are compared at a time.
    np.maximum.accumulate(above, axis=0, out=above)
    below = np.full(size, height + far, dtype=dtype)
    below[rows, columns] = rows
    np.minimum.accumulate(below[::-1], axis=0, out=below[::-1])
    return np.asarray(np.minimum(here - above, below - here))


def _look_sideways(
    upright: NDArray[np.integer],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    limit: float,
) -> NDArray[np.integer]:
    """``(N,)`` squared distances of some pixels."""
    width = upright.shape[1]
    best = upright[rows, columns] ** 2
    farthest = int(min(width - 1, limit))
    for nearest in range(1, farthest + 1, _COLUMNS_AT_ONCE):
        unsure = np.flatnonzero(best > nearest**2)
        if not len(unsure):
            break
        steps = np.arange(nearest, min(nearest + _COLUMNS_AT_ONCE, farthest + 1))
        steps = np.concatenate((-steps, steps)).astype(upright.dtype)
        # Beyond the window its last column stands in: farther away than it is, so never too near.
        there = np.clip(columns[unsure, None] + steps, 0, width - 1)
        squares = upright[rows[unsure, None], there]
        squares *= squares
        squares += steps**2
        best[unsure] = np.minimum(best[unsure], squares.min(axis=1))
    return np.asarray(best)
