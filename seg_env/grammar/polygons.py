"""The text grammar of outlines: the one place that knows how rings are written and read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from seg_env.frames import UNIT, Frame
from seg_env.grammar.export import GRAMMAR_EBNF, GRAMMAR_REGEX, grammar_ebnf, grammar_regex
from seg_env.grammar.salvage import (
    ANSWER_LEADS,
    MAX_CHARACTERS,
    MAX_RINGS,
    MAX_VERTICES,
    are_unit_numbers,
    close_ring,
    salvage,
)
from seg_env.types import ParseIssue, Prediction, Ring

__all__ = [
    "ANSWER_LEADS",
    "GRAMMAR_EBNF",
    "GRAMMAR_REGEX",
    "MAX_CHARACTERS",
    "MAX_DECIMALS",
    "MAX_RINGS",
    "MAX_VERTICES",
    "decode",
    "encode",
    "grammar_ebnf",
    "grammar_regex",
]

MAX_DECIMALS = 9
"""Most decimals `encode` writes; a step of 1e-9 is far below a pixel of any image."""

STRICT_NUMBER = r"(?:0|[1-9][0-9]{0,6}+)(?:\.[0-9]{1,17}+)?+"
"""Regular expression of a coordinate as `encode` writes it."""
_POINT = rf"\[{STRICT_NUMBER}, ?+{STRICT_NUMBER}\]"
_POINTS = rf"\[{_POINT}(?:, ?+{_POINT}){{2,}}+\]"
LEAD = rf"\s*+(?:(?:{'|'.join(ANSWER_LEADS)})\s*+)?+"
"""Regular expression of how an answer may begin."""
# Possessive throughout, so that a text that does not match is given up in linear time.
_RINGS = rf"\[{_POINTS}(?:, ?+{_POINTS})*+\]"
_WELL_FORMED = re.compile(rf"{LEAD}(?:({_RINGS})|\[\s*+\])\s*+\.?+\s*+")


def decode(text: str, frame: Frame = UNIT) -> Prediction:
    """Read an answer; never raises, whatever the text is.

    A list of rings is read as `encode` writes it, with any white space, alone or in one of the
    paper's answer sentences, with or without a full stop. Numbers are plain decimals of at most 32
    digits on either side of the point, optionally with a sign and an exponent of up to 3 digits
    (``.5``, ``1.``, ``5e-1``). A ring whose last vertex repeats the first is read without it.

    What is damaged is salvaged where its meaning is clear, and every kind of fault is reported
    once: a bad vertex is dropped, the complete vertices of a truncated ring are kept, wrong nesting
    is read as if right, of several lists the first with a vertex counts. A ring of fewer than three
    vertices is dropped. Numbers up to one image size outside are kept (``OUT_OF_RANGE``); any
    number further out, or fractions in a frame of whole numbers, mean that the answer is about
    another frame, and all rings are dropped (``WRONG_FRAME``).

    Time is linear in the length of the text up to `MAX_CHARACTERS`, beyond which nothing is read;
    at most `MAX_VERTICES` vertices and `MAX_RINGS` rings are kept.

    Args:
        text: Any string.
        frame: Frame the numbers are in.

    Returns:
        Rings in the unit frame of the image, issues, and the text. ``[]`` gives no ring and no
        issue: "no target".
    """
    rings = _read_well_formed(text, frame) if len(text) <= MAX_CHARACTERS else None
    issues: tuple[ParseIssue, ...] = ()
    if rings is None:
        rings, issues = salvage(text, frame)
    return Prediction(tuple(map(frame.to_unit, rings)), issues, text)


def _read_well_formed(text: str, frame: Frame) -> list[Ring] | None:
    """The rings as written, or None if there is anything to report."""
    match = _WELL_FORMED.fullmatch(text)
    if match is None:
        return None
    lists: list[list[list[float]]] = json.loads(match[1]) if match[1] else []
    if len(lists) > MAX_RINGS or sum(map(len, lists)) > MAX_VERTICES:
        return None
    rings = [close_ring(points) for points in lists]
    smaller_limit = min(frame.limits)
    for ring in rings:
        if ring.max() > smaller_limit and (ring > frame.limits).any():
            return None
    return None if frame.integer and are_unit_numbers(rings) else rings


def encode(
    rings: Sequence[Ring], decimals: int = 3, *, frame: Frame = UNIT, pad: bool = False
) -> str:
    """Write rings as text, ``[[[0.512,0.331],[0.51,0.34],...],...]``, in the order given.

    Coordinates are clipped to the image, rounded to ``10**-decimals`` (to whole numbers in a frame
    that writes integers), and consecutive vertices that became equal are written once. A ring whose
    rounded vertices all lie on one line would vanish when filled; it is written as that line made
    one step wide, in the same orientation, so that a thin object still has an answer.

    Args:
        rings: ``(V, 2)`` arrays in the unit frame, ``V >= 3``, first vertex not repeated.
        decimals: Digits after the point, 1 to 9; ignored in integer frames.
        frame: Frame the numbers are written in.
        pad: Write a fixed number of decimals (``0.50``) in place of dropping trailing zeros.

    Returns:
        The text, without spaces; ``"[]"`` for no ring, which means "no target".

    Raises:
        ValueError: if `decimals` or the shape of a ring is wrong, or a coordinate is not finite.
    """
    if not 1 <= decimals <= MAX_DECIMALS:
        raise ValueError(f"decimals={decimals}, but allowed are 1 to {MAX_DECIMALS}")
    places = 0 if frame.integer else decimals
    written = ",".join(_encode_ring(ring, places, frame, pad) for ring in rings)
    return f"[{written}]"


def _encode_ring(ring: Ring, places: int, frame: Frame, pad: bool) -> str:
    points = np.asarray(ring, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError(f"ring of shape {points.shape}, but (V, 2) with V >= 3 is needed")
    if not np.isfinite(points).all():
        raise ValueError("ring with a coordinate that is not finite; check where it came from")
    scale = 10**places
    limits = np.rint(np.multiply(frame.limits, scale))
    steps = np.rint(frame.from_unit(points.clip(0.0, 1.0)) * scale).clip(0.0, limits)
    vertices = [(int(x), int(y)) for x, y in steps.tolist()]
    if _on_one_line(vertices):
        corner = int(limits[0]), int(limits[1])
        vertices = _thin_outline(min(vertices), max(vertices), corner)
        if _signed_area(points) < 0:
            vertices = vertices[:1] + vertices[:0:-1]
    # Compared with the next one, so that of a closed ring the last vertex goes, not the start.
    pairs = zip(vertices, vertices[1:] + vertices[:1], strict=True)
    written = (
        f"[{_number(vertex[0], places, pad)},{_number(vertex[1], places, pad)}]"
        for vertex, following in pairs
        if vertex != following
    )
    return f"[{','.join(written)}]"


def _signed_area(points: Ring) -> float:
    """Shoelace area, positive for clockwise on screen (y down)."""
    x, y = points.T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _on_one_line(vertices: list[tuple[int, int]]) -> bool:
    """True if the vertices, in whole steps, enclose nothing because they are all collinear."""
    (x0, y0), (x1, y1) = min(vertices), max(vertices)
    return all((x1 - x0) * (y - y0) == (y1 - y0) * (x - x0) for x, y in vertices)


def _thin_outline(
    low: tuple[int, int], high: tuple[int, int], corner: tuple[int, int]
) -> list[tuple[int, int]]:
    """Outline, one step wide, of the line from `low` to `high` (``low <= high``), inside the image.

    Returns:
        Three or four vertices (some may be repeated), clockwise, topmost-then-leftmost first.
    """
    if low == high:
        x, y = min(low[0], corner[0] - 1), low[1]
        low, high = (x, y), (x + 1, y)
    if high[0] - low[0] >= abs(high[1] - low[1]):
        up = int(max(low[1], high[1]) == corner[1])
        ring = [(x, max(y - up, 0)) for x, y in (low, high)]
        ring += [(x, y - up + 1) for x, y in (high, low)]
    else:
        back = int(high[0] == corner[0])
        (x0, y0), (x1, y1) = sorted((low, high), key=lambda vertex: vertex[1])
        ring = [(max(x0 - back, 0), y0), (x0 - back + 1, y0)]
        ring += [(x1 - back + 1, y1), (max(x1 - back, 0), y1)]
    start = min(range(4), key=lambda index: (ring[index][1], ring[index][0]))
    return ring[start:] + ring[:start]


@lru_cache(maxsize=1 << 16)
def _number(steps: int, places: int, pad: bool) -> str:
    """Write ``steps / 10**places`` exactly."""
    if places == 0:
        return str(steps)
    whole, fraction = divmod(steps, 10**places)
    digits = f"{fraction:0{places}d}"
    if not pad:
        digits = digits.rstrip("0")
    return f"{whole}.{digits}" if digits else str(whole)
