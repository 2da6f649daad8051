"""Outlines as they are written: rings of numbers kept as text, so that nothing is rounded."""

from __future__ import annotations

from collections.abc import Sequence

from seg_env.types import Prediction

NUMBER = r"-?+[0-9]{1,6}+(?:\.[0-9]{1,17}+)?+"
"""Regular expression of a coordinate: a plain decimal below a million."""

WrittenVertex = tuple[str, str]
"""The two numbers of a vertex as written."""
WrittenRing = tuple[WrittenVertex, ...]
"""The vertices of one ring as written."""


def write_outline(rings: Sequence[WrittenRing]) -> str:
    """Rings as an answer, ``[[[0.1,0.2],...],...]``, without spaces; ``[]`` for none."""
    return "[" + ",".join(write_ring(ring) for ring in rings) + "]"


def write_ring(ring: WrittenRing) -> str:
    """One ring, ``[[0.1,0.2],...]``."""
    return "[" + ",".join(f"[{x},{y}]" for x, y in ring) + "]"


def as_written(prediction: Prediction) -> tuple[WrittenRing, ...]:
    """The numbers of a valid answer as its text writes them, ring by ring.

    Args:
        prediction: An answer that was read without any issue.

    Returns:
        As many rings as ``prediction.rings``, each of the same length: a last vertex that only
        repeats the first is left out.
    """
    if not prediction.rings:
        return ()
    text = "".join(prediction.text.split())
    # What was read without issue has exactly these brackets, and words only before them.
    inside = text[text.index("[[[") + 3 : text.rindex("]]]")]
    found = []
    for written, ring in zip(inside.split("]],[["), prediction.rings, strict=True):
        pairs = [vertex.split(",") for vertex in written.split("],[")]
        found.append(tuple((x, y) for x, y in pairs[: len(ring)]))
    return tuple(found)
