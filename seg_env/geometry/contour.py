"""From masks to outlines along pixel edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seg_env.geometry.limits import check_limit, limits
from seg_env.geometry.polygon import Ring, order_rings, start_topmost

# What happens at a corner of the pixel grid, by its four pixels (top left 1, top right 2, bottom
# left 4, bottom right 8). The outline keeps the object on its right. Value: does it leave
# horizontally? Two diagonal pixels (6 and 9) make two corners, handled apart.
_LEAVES_HORIZONTALLY = np.zeros(16, dtype=np.bool_)
_LEAVES_HORIZONTALLY[[1, 8, 11, 13]] = True
_IS_CORNER = np.zeros(16, dtype=np.uint8)
_IS_CORNER[[1, 2, 4, 8, 7, 11, 13, 14]] = 1
_IS_CORNER[[6, 9]] = 2


def trace(mask: NDArray[np.bool_]) -> tuple[Ring, ...]:
    """Outline a mask exactly along pixel edges.

    Parts are 4-connected, so that two pixels which touch only at a corner belong to two rings; no
    ring touches itself. Filling the result by `seg_env.geometry.raster.rasterize` gives the mask
    back, pixel for pixel. Any non-zero value of the ``(H, W)`` mask is foreground.

    Returns:
        Rings in the unit frame in canonical order (see `seg_env.geometry.polygon.canonical`), only
        vertices where the direction changes. Empty for an empty mask.

    Raises:
        LimitError: The mask has too many rings.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask has shape (H, W), got {mask.shape}")
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return ()
    top, left = int(rows[0]), int(columns[0])
    crop = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1] != 0
    scale = np.array([mask.shape[1], mask.shape[0]], dtype=np.float64)
    rings = []
    for loop in _loops(crop):
        pixels = np.add(loop, (left, top), dtype=np.float64)
        rings.append(start_topmost(pixels / scale))
    return order_rings(rings)


def _loops(crop: NDArray[np.bool_]) -> list[list[tuple[int, int]]]:
    """Closed loops of ``(x, y)`` pixel-grid corners around the pixels of a mask."""
    padded = np.zeros((crop.shape[0] + 2, crop.shape[1] + 2), dtype=np.uint8)
    padded[1:-1, 1:-1] = crop
    code = padded[:-1, :-1] + 2 * padded[:-1, 1:] + 4 * padded[1:, :-1] + 8 * padded[1:, 1:]
    y, x = np.nonzero(_IS_CORNER[code])
    kind = code[y, x]
    times = _IS_CORNER[kind]
    # Each run of a mask has at most four corners, each ring at least one run.
    check_limit("runs", len(kind) // 4, f"a mask whose outline has {len(kind)} corners")
    x, y, kind = np.repeat(x, times), np.repeat(y, times), np.repeat(kind, times)
    double = np.flatnonzero((kind == 6) | (kind == 9))
    # In reading order the corner whose horizontal edge lies to the left comes first.
    pairs = double.reshape(-1, 2)
    is_six = kind[pairs[:, 0]] == 6
    kind[pairs[:, 0]] = np.where(is_six, 4, 1)
    kind[pairs[:, 1]] = np.where(is_six, 2, 8)
    # Edges along one grid line join its corners two by two.
    index = np.arange(len(x))
    across = index ^ 1
    # Down a grid column, the corner whose vertical edge lies above comes first.
    below = (kind == 4) | (kind == 8) | (kind == 7) | (kind == 11)
    order = np.lexsort((below, y, x))
    along = np.empty_like(index)
    along[order] = order[index ^ 1]
    following = np.where(_LEAVES_HORIZONTALLY[kind], across, along).tolist()
    places = list(zip(x.tolist(), y.tolist(), strict=True))
    shared = {places[i] for i in double.tolist()}
    unseen = [True] * len(places)
    loops = []
    for start in range(len(places)):
        if unseen[start]:
            loop = []
            at = start
            while unseen[at]:
                unseen[at] = False
                loop.append(places[at])
                at = following[at]
            loops.extend(_split(loop, shared) if shared else [loop])
            if len(loops) > limits().rings:
                check_limit("rings", len(loops), f"an outline of at least {len(loops)} rings")
    return loops


def _split(
    loop: list[tuple[int, int]], shared: set[tuple[int, int]]
) -> list[list[tuple[int, int]]]:
    """Cut a loop at the corners it visits twice, so that no piece touches itself."""
    pieces = []
    path: list[tuple[int, int]] = []
    position: dict[tuple[int, int], int] = {}
    for place in loop:
        if place in shared:
            if place in position:
                begin = position[place]
                pieces.append(path[begin:])
                for dropped in path[begin:]:
                    position.pop(dropped, None)
                del path[begin:]
            position[place] = len(path)
        path.append(place)
    return [*pieces, path]
