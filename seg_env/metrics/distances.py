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

    A table holds, for every place, the nearest row of the boundary in the same column; each pixel
    then looks sideways in it only as far as there can be something nearer still, which is not far
    for good answers.

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
    bottom = int(max(pixels.rows.max(), boundary.rows.max()))
    left, right = int(boundary.columns[0]), int(boundary.columns[-1])
    width = max(right, int(pixels.columns.max())) - min(left, int(pixels.columns.min())) + 1
    far = bottom - top + width  # More than any distance here.
    shifted = Pixels(boundary.rows - top, boundary.columns - left)
    nearest_rows = _nearest_rows(shifted, bottom - top + 1, right - left + 1, far)
    rows, columns = pixels.rows - top, pixels.columns - left
    squares = [
        _look_sideways(nearest_rows, rows[part], columns[part], min(limit, width))
        for begin in range(0, len(rows), _PIXELS_AT_ONCE)
        for part in [slice(begin, begin + _PIXELS_AT_ONCE)]
    ]
    return np.sqrt(np.concatenate(squares))


def _nearest_rows(boundary: Pixels, height: int, width: int, far: int) -> NDArray[np.int64]:
    """``(W, H)`` nearest row of a boundary in each place's column, ``-far`` if it has none there.

    Within a column each boundary pixel stands for the places up to the middle between it and the
    next, so that the table is a list of repetitions.
    """
    rows, columns = boundary
    bare = np.flatnonzero(np.bincount(columns, minlength=width) == 0)
    if len(bare):
        rows = np.concatenate((rows, np.full(len(bare), -far)))
        columns = np.concatenate((columns, bare))
        order = np.argsort(columns, kind="stable")
        rows, columns = rows[order], columns[order]
    ends = columns * height + height
    together = columns[1:] == columns[:-1]
    middles = columns[:-1] * height + (rows[1:] + rows[:-1]) // 2 + 1
    ends[:-1] = np.where(together, middles, ends[:-1])
    return np.repeat(rows, np.diff(ends, prepend=0)).reshape(width, height)


def _look_sideways(
    nearest_rows: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    limit: float,
) -> NDArray[np.int64]:
    """``(N,)`` squared distances of some pixels."""
    last = len(nearest_rows) - 1
    # Columns beyond the table are the table's last ones, looked at from where the pixel is.
    inside = np.clip(columns, 0, last)
    best = (nearest_rows[inside, rows] - rows) ** 2 + (inside - columns) ** 2
    for step in range(1, int(limit) + 1, _COLUMNS_AT_ONCE):
        unsure = np.flatnonzero(best > step**2)
        if not len(unsure):
            break
        steps = np.arange(step, min(step + _COLUMNS_AT_ONCE, int(limit) + 1))
        column, row = columns[unsure, None], rows[unsure, None]
        there = np.clip(column + np.concatenate((-steps, steps)), 0, last)
        squares = nearest_rows[there, row] - row
        squares *= squares
        there -= column
        squares += there * there
        best[unsure] = np.minimum(best[unsure], squares.min(axis=1))
    return np.asarray(best)
