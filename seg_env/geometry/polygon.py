"""Rings as plain arrays: area, centroid, orientation, and which ring is a hole in which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import shapely
from numpy.typing import NDArray

Ring = NDArray[np.float64]

CONTAINMENT_SLACK = 0.01
"""Share of a ring's area that may stick out of its container; rounding moves outlines a little."""

MAX_NEAR_PAIRS = 1000
"""Most pairs of crossing rings whose common area is measured; bounds the time of tangled rings."""

MAX_COORDINATE = 1e6
"""Rings that reach farther (or to infinity) can neither contain a ring nor be contained."""


VertexOrder = Literal["canonical", "random-start", "either-direction", "unordered"]
"""``"canonical"``: see `canonical`. ``"random-start"``: from any vertex, in the same direction.
``"either-direction"``: from any vertex, clockwise or not. ``"unordered"``: in any order at all."""


def ring_area(ring: Ring) -> float:
    """Signed area by the shoelace formula, positive when clockwise on screen (y down)."""
    if len(ring) < 3:
        return 0.0
    x, y = ring[:, 0] - ring[0, 0], ring[:, 1] - ring[0, 1]
    return 0.5 * float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1]))


def ring_perimeter(ring: Ring) -> float:
    """Length of the closed ring, in the units of its coordinates."""
    steps = np.diff(ring, axis=0, append=ring[:1])
    return float(np.hypot(steps[:, 0], steps[:, 1]).sum())


def is_simple(ring: Ring) -> bool:
    """True when the outline encloses an area and does not touch or cross itself.

    Rings with a coordinate beyond `MAX_COORDINATE` (or not finite) do not count as simple.
    """
    if len(ring) < 3 or not (np.abs(ring) <= MAX_COORDINATE).all():
        return False
    return ring_area(ring) != 0.0 and bool(shapely.is_valid(shapely.Polygon(ring)))


@np.errstate(over="ignore", invalid="ignore")
def roles(rings: Sequence[Ring]) -> NDArray[np.bool_]:
    """Tell filled rings from holes.

    A ring's container is the ring of smallest area that contains it; only rings that do not touch
    or cross themselves take part. Up to `CONTAINMENT_SLACK` of the inner ring's area may stick out
    (among more than `MAX_NEAR_PAIRS` pairs of rings that cross, nothing may). A ring without a
    container is filled. A ring of the same orientation as its container has the container's role;
    of opposite orientation, the opposite role. So rings may be written in either orientation.

    Returns:
        ``(R,)`` bool, True where the ring is filled, False where it is a hole.
    """
    filled = np.ones(len(rings), dtype=np.bool_)
    if len(rings) < 2:
        return filled
    areas = np.array([ring_area(ring) for ring in rings])
    if not ((areas > 0).any() and (areas < 0).any()):
        return filled  # All of one orientation: every role is "filled", whatever contains what.
    container = _containers(rings, areas)
    for index in np.argsort(-np.abs(areas), kind="stable"):
        parent = container[index]
        if parent >= 0:
            same = (areas[index] > 0) == (areas[parent] > 0)
            filled[index] = filled[parent] if same else not filled[parent]
    return filled


def _containers(rings: Sequence[Ring], areas: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the smallest ring that contains each ring, or -1."""
    container = np.full(len(rings), -1, dtype=np.int64)
    # From the largest to the smallest; of equal ones, the first counts as the larger.
    order = np.argsort(-np.abs(areas), kind="stable")
    usable = np.array([index for index in order if is_simple(rings[index])], dtype=np.int64)
    if len(usable) < 2:
        return container
    polygons = shapely.polygons([shapely.linearrings(rings[index]) for index in usable])
    shapely.prepare(polygons)
    inner, outer = shapely.STRtree(polygons).query(polygons, predicate="intersects")
    inner, outer = inner[outer < inner], outer[outer < inner]
    inside = shapely.covers(polygons[outer], polygons[inner])
    near = np.flatnonzero(~inside)
    if len(near) <= MAX_NEAR_PAIRS:
        common = shapely.area(shapely.intersection(polygons[outer[near]], polygons[inner[near]]))
        sizes = np.abs(areas[usable[inner[near]]])
        inside[near] = common >= (1.0 - CONTAINMENT_SLACK) * sizes
    # The largest position is the smallest container.
    position = np.full(len(usable), -1, dtype=np.int64)
    np.maximum.at(position, inner[inside], outer[inside])
    found = np.flatnonzero(position >= 0)
    container[usable[found]] = usable[position[found]]
    return container


def canonical(rings: Sequence[Ring]) -> tuple[Ring, ...]:
    """Bring rings into the one canonical writing order.

    Filled rings run clockwise as seen on screen (y down), holes counter-clockwise; a ring starts at
    its topmost, then leftmost vertex; rings are ordered by area, largest first, then by their first
    vertex. What the rings fill is unchanged.
    """
    written = []
    for ring, filled in zip(rings, roles(rings), strict=True):
        clockwise = ring_area(ring) >= 0
        written.append(start_topmost(ring if clockwise == bool(filled) else ring[::-1]))
    return order_rings(written)


def start_topmost(ring: Ring) -> Ring:
    """The same ring, beginning at its topmost, then leftmost vertex."""
    if not len(ring):
        return ring
    first = int(np.lexsort((ring[:, 0], ring[:, 1]))[0])
    return np.concatenate((ring[first:], ring[:first]))


def reorder(rings: Sequence[Ring], order: VertexOrder, rng: np.random.Generator) -> list[Ring]:
    """Rings in canonical order with their vertices in another order, see `VertexOrder`.

    Only ``"unordered"`` changes what the rings fill.
    """
    found = []
    backwards = order == "either-direction" and rng.random() < 0.5  # all, or holes would be filled
    for ring in rings:
        if order == "unordered":
            ring = ring[rng.permutation(len(ring))]
        elif order != "canonical":
            ring = np.roll(ring, int(rng.integers(max(1, len(ring)))), axis=0)
        found.append(ring[::-1] if backwards else ring)
    return found


def order_rings(rings: Sequence[Ring]) -> tuple[Ring, ...]:
    """Sort rings by area, largest first, ties by first vertex (y, then x)."""

    def key(ring: Ring) -> tuple[float, float, float]:
        area = float(f"{abs(ring_area(ring)):.9e}")  # Equal rings differ by rounding errors.
        return (-area, float(ring[0, 1]), float(ring[0, 0])) if len(ring) else (0.0, 0.0, 0.0)

    return tuple(sorted(rings, key=key))
