"""The text of answers: a list of rings, a point ``[x,y]``, or a box ``[x0,y0,x1,y1]``.

Whatever the text is, it is read: never recursively, in time linear in its length. What is well
formed is read here, anything else by `seg_env.grammar.salvage`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from seg_env.frames import UNIT, AnswerFrame, Frame
from seg_env.grammar.forms import Vertices
from seg_env.grammar.salvage import (
    ANSWER_LEADS,
    MAX_CHARACTERS,
    MAX_RINGS,
    MAX_VERTICES,
    salvage,
)
from seg_env.types import Form, IssueKind, ParseIssue, Prediction, Ring

MAX_DECIMALS = 9
"""Most decimals that are written; a step of 1e-9 is far below a pixel of any image."""

_STRICT_NUMBER = r"(?:0|[1-9][0-9]{0,6}+)(?:\.[0-9]{1,17}+)?+"
_POINT = rf"\[{_STRICT_NUMBER}, ?+{_STRICT_NUMBER}\]"
_POINTS = rf"\[{_POINT}(?:, ?+{_POINT}){{2,}}+\]"
_LEAD = rf"\s*+(?:(?:{'|'.join(ANSWER_LEADS)})\s*+)?+"
# Possessive throughout, so that a text that does not match is given up in linear time.
_RINGS = rf"\[{_POINTS}(?:, ?+{_POINTS})*+\]"
_WELL_FORMED = re.compile(rf"{_LEAD}(?:({_RINGS})|\[\s*+\])\s*+\.?+\s*+")


def decode(text: str, frame: Frame = UNIT) -> Prediction:
    """Read an answer; never raises, whatever the text is.

    A list of rings is read as `encode` writes it, with any white space, alone or in one of the
    paper's answer sentences, with or without a full stop. Numbers are plain decimals of at most 32
    digits on either side of the point, optionally with a sign and an exponent of up to 3 digits
    (``.5``, ``1.``, ``5e-1``). A ring whose last vertex repeats the first is read without it.

    What is damaged is salvaged where its meaning is clear, and every kind of fault is reported
    once: a bad vertex is dropped, the complete vertices of a truncated ring are kept, wrong nesting
    is read as if right. Of a text that marks its answer (behind ``</think>``, in ``<answer>``, in a
    fenced block) only that counts, else the last list that gives a ring. Other notations, such as
    flat rings and JSON objects, are read and named (``OTHER_FORM``; docs/tasks.md has the table). A
    ring of fewer than three vertices is dropped. Numbers up to one image size outside are kept
    (``OUT_OF_RANGE``); any number further out, or fractions in a frame of whole numbers, mean that
    the answer is about another frame, and all rings are dropped (``WRONG_FRAME``).

    Time is linear in the length of the text up to `MAX_CHARACTERS`, beyond which nothing is read;
    at most `MAX_VERTICES` vertices and `MAX_RINGS` rings are kept. ``[]`` gives no ring and no
    issue: "no target".
    """
    return decode_answer(text, "mask", frame)


def decode_answer(text: str, form: Form = "mask", frame: Frame = UNIT) -> Prediction:
    """Read an answer as what was asked for; never raises, whatever the text is.

    A point is ``[x,y]`` and a box ``[x0,y0,x1,y1]`` with the top left corner first; both may stand
    in one of the paper's answer sentences, and ``[]`` means "no target". Where the meaning is
    clear, damage is salvaged and reported: words around the numbers, brackets too many, a box as
    two corners or with its corners the other way round (``BAD_BOX``). What is of another form, such
    as an outline where a point was asked for, gives nothing but the issue (``BAD_NESTING`` for a
    list, ``BAD_VERTEX`` for another number of numbers). Numbers outside the image are treated as in
    `decode`, which reads outlines.

    Returns:
        For a box, its corners as one ring, clockwise from the top left; for a point, no ring and
        ``point``.
    """
    rings = _read_well_formed(text, frame) if form == "mask" else None
    issues: tuple[ParseIssue, ...] = ()
    if rings is None:
        salvaged, issues = salvage(text, frame, form)
        rings = list(map(_close, salvaged))
    if frame.integer and _are_fractions(rings):
        issue = ParseIssue(IssueKind.WRONG_FRAME, 0, "fractions in a frame of whole numbers")
        rings, issues = [], tuple(sorted((*issues, issue), key=attrgetter("position")))
    places = tuple(map(frame.to_unit, rings))
    if form == "mask" or not places:
        return Prediction(places, issues, text, form)
    if form == "point":
        return Prediction((), issues, text, form, places[0][0])
    return _as_box(places[0], issues, text)


def read_answer(
    text: str, image_size: tuple[int, int], frame: AnswerFrame, form: Form = "mask"
) -> Prediction:
    """Read an answer about an image of ``(H, W)`` as its policy writes them, in tokens or not."""
    return decode_answer(frame.normalize(text, form), form, frame.for_image(image_size))


def encode(
    rings: Sequence[Ring], decimals: int = 3, *, frame: Frame = UNIT, pad: bool = False
) -> str:
    """Write rings as text, ``[[[0.512,0.331],[0.51,0.34],...],...]``, in the order given.

    Coordinates are clipped to the image, rounded to ``10**-decimals`` (to whole numbers in a frame
    that writes integers), and consecutive vertices that became equal are written once. A ring whose
    rounded vertices all lie on one line would vanish when filled; it is written as that line made
    one step wide, in the same orientation, so that a thin object still has an answer.

    Args:
        rings: ``(V, 2)`` arrays in the unit frame, ``V >= 3``, first vertex not repeated. None
            means "no target" and gives ``"[]"``.
        decimals: Digits after the point, 1 to 9; ignored in integer frames.
        frame: Frame the numbers are written in.
        pad: Write a fixed number of decimals (``0.50``) in place of dropping trailing zeros.

    Raises:
        ValueError: `decimals` or the shape of a ring is wrong, or a coordinate is not finite.
    """
    places = _places(decimals, frame)
    written = ",".join(_encode_ring(ring, places, frame, pad) for ring in rings)
    return f"[{written}]"


def encode_numbers(
    points: NDArray[np.float64], decimals: int = 3, *, frame: Frame = UNIT, pad: bool = False
) -> str:
    """Write a point ``[x,y]``, or the two corners of a box ``[x0,y0,x1,y1]``, as `encode` does.

    Args:
        points: ``(1, 2)`` or ``(2, 2)`` in the unit frame; clipped to the image.
        decimals: See `encode`, also for what follows.
        frame: Frame of the numbers.
        pad: Write all decimals.
    """
    places = _places(decimals, frame)
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not finite; check where it came from")
    numbers = frame.from_unit(points.clip(0.0, 1.0)).clip(0.0, frame.limits)
    return f"[{','.join(_number(number, places, pad) for number in numbers.ravel().tolist())}]"


def _places(decimals: int, frame: Frame) -> int:
    """Digits behind the point of numbers in this frame."""
    if not 1 <= decimals <= MAX_DECIMALS:
        raise ValueError(f"decimals={decimals}, but allowed are 1 to {MAX_DECIMALS}")
    return 0 if frame.integer else decimals


def _read_well_formed(text: str, frame: Frame) -> list[Ring] | None:
    """The rings as written, or None if there is anything to report."""
    match = _WELL_FORMED.fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None:
        return None
    lists: list[Vertices] = json.loads(match[1]) if match[1] else []
    if len(lists) > MAX_RINGS or sum(map(len, lists)) > MAX_VERTICES:
        return None
    rings = list(map(_close, lists))
    smaller_limit = min(frame.limits)
    for ring in rings:
        if ring.max() > smaller_limit and (ring > frame.limits).any():
            return None
    return rings


def _close(vertices: Vertices) -> Ring:
    """The ``(V, 2)`` array of one ring; many models repeat the first vertex at the end."""
    if len(vertices) > 3 and vertices[0] == vertices[-1]:
        vertices.pop()
    return np.array(vertices, dtype=np.float64)


def _are_fractions(rings: list[Ring]) -> bool:
    """Whether all numbers are at most 1 and not all are whole.

    In a frame of whole numbers such an outline would lie within a single pixel.
    """
    if not rings or max(ring.max() for ring in rings) > 1.0:
        return False
    return any((ring % 1.0).any() for ring in rings)


def _as_box(corners: NDArray[np.float64], issues: tuple[ParseIssue, ...], text: str) -> Prediction:
    """A box from two opposite corners ``(2, 2)`` in the unit frame."""
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    if x1 <= x0 or y1 <= y0:
        issue = ParseIssue(IssueKind.BAD_BOX, 0, "a box without area")
        return Prediction((), (*issues, issue), text, "bbox")
    if (corners[0] > corners[1]).any():
        issue = ParseIssue(IssueKind.BAD_BOX, 0, "the top left corner is not the first")
        issues = (*issues, issue)
    ring = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])
    return Prediction((ring,), issues, text, "bbox")


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
        x, y = points.T
        if x @ np.roll(y, -1) < y @ np.roll(x, -1):  # counter-clockwise on screen (y down)
            vertices = vertices[:1] + vertices[:0:-1]
    # Compared with the next one, so that of a closed ring the last vertex goes, not the start.
    pairs = zip(vertices, vertices[1:] + vertices[:1], strict=True)
    written = (
        f"[{_whole_steps(vertex[0], places, pad)},{_whole_steps(vertex[1], places, pad)}]"
        for vertex, following in pairs
        if vertex != following
    )
    return f"[{','.join(written)}]"


def _on_one_line(vertices: list[tuple[int, int]]) -> bool:
    """Whether all vertices, in whole steps, are collinear."""
    (x0, y0), (x1, y1) = min(vertices), max(vertices)
    return all((x1 - x0) * (y - y0) == (y1 - y0) * (x - x0) for x, y in vertices)


def _thin_outline(
    low: tuple[int, int], high: tuple[int, int], corner: tuple[int, int]
) -> list[tuple[int, int]]:
    """Clockwise outline, one step wide and inside the image, of the line from `low` to `high`.

    Vertices may be repeated; the topmost-then-leftmost is the first.
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
def _whole_steps(steps: int, places: int, pad: bool) -> str:
    return _number(steps / 10**places, places, pad)


def _number(value: float, places: int, pad: bool) -> str:
    text = f"{value:.{places}f}"
    return text if pad or not places else text.rstrip("0").rstrip(".")
