"""Answers of every form as text: a point ``[x,y]``, a box ``[x0,y0,x1,y1]``, or an outline.

Points and boxes are read under the promises that hold for outlines (see `seg_env.grammar.decode`):
any text is read, never recursively, in time linear in its length.
"""

from __future__ import annotations

import json
import re

import numpy as np
from numpy.typing import NDArray

from seg_env.frames import UNIT, AnswerFrame, Frame
from seg_env.grammar.numbers import COUNTS, Numbers, salvage_numbers
from seg_env.grammar.polygons import LEAD, MAX_DECIMALS, STRICT_NUMBER, decode
from seg_env.grammar.salvage import MAX_CHARACTERS
from seg_env.types import Form, IssueKind, ParseIssue, Prediction, Ring

_WELL_FORMED = {
    count: re.compile(
        rf"{LEAD}(?:(\[{STRICT_NUMBER}(?:, ?+{STRICT_NUMBER}){{{count - 1}}}\])|\[\s*+\])"
        r"\s*+\.?+\s*+"
    )
    for count in COUNTS.values()
}


def decode_answer(text: str, form: Form = "mask", frame: Frame = UNIT) -> Prediction:
    """Read an answer as what was asked for; never raises, whatever the text is.

    A point is ``[x,y]`` and a box ``[x0,y0,x1,y1]`` with the top left corner first; both may stand
    in one of the paper's answer sentences, and ``[]`` means "no target". Where the meaning is
    clear, damage is salvaged and reported: words around the numbers, brackets too many, a box as
    two corners or with its corners the other way round (``BAD_BOX``). What is of another form, such
    as an outline where a point was asked for, gives nothing but the issue (``BAD_NESTING`` for a
    list, ``BAD_VERTEX`` for another number of numbers). Numbers outside the image are treated as in
    `seg_env.grammar.decode`, which reads outlines.

    Args:
        text: Any string.
        form: What was asked for.
        frame: Frame the numbers are in.

    Returns:
        For a box, its corners as one ring, clockwise from the top left; for a point, no ring and
        ``point``. ``form`` says what the text was read as.
    """
    if form == "mask":
        return decode(text, frame)
    read = _read_well_formed(text, COUNTS[form], frame)
    numbers, issues = salvage_numbers(text, COUNTS[form], frame) if read is None else (read, ())
    if not numbers:
        return Prediction((), issues, text, form)
    points = frame.to_unit(np.array(numbers, dtype=np.float64).reshape(-1, 2))
    if form == "point":
        return Prediction((), issues, text, form, points[0])
    return _as_box(points, issues, text)


def read_answer(
    text: str, image_size: tuple[int, int], frame: AnswerFrame, form: Form = "mask"
) -> Prediction:
    """Read an answer in the frame of the policy that wrote it, location tokens included.

    Args:
        text: Any string.
        image_size: ``(H, W)`` of the image that it is about.
        frame: What its numbers mean.
        form: What was asked for.

    Raises:
        ValueError: The policy's processor would refuse such an image.
    """
    return decode_answer(frame.normalize(text, form), form, frame.for_image(image_size))


def _read_well_formed(text: str, count: int, frame: Frame) -> Numbers | None:
    """The numbers as written, none for "no target", or None if there may be something to report."""
    match = _WELL_FORMED[count].fullmatch(text) if len(text) <= MAX_CHARACTERS else None
    if match is None:
        return None
    numbers = [float(number) for number in json.loads(match[1])] if match[1] else []
    limits = frame.limits * (count // 2)
    if any(number > limit for number, limit in zip(numbers, limits, strict=False)):
        return None
    if numbers and frame.integer and max(numbers) <= 1.0:
        return None
    return numbers


def _as_box(corners: NDArray[np.float64], issues: tuple[ParseIssue, ...], text: str) -> Prediction:
    """A box from two opposite corners ``(2, 2)`` in the unit frame."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    fault = ""
    if (high <= low).any():
        fault = "a box without area"
    elif (corners[0] > corners[1]).any():
        fault = "the top left corner is not the first"
    if fault:
        issues = (*issues, ParseIssue(IssueKind.BAD_BOX, 0, fault))
    rings = () if (high <= low).any() else (ring_of_box(np.concatenate([low, high])),)
    return Prediction(rings, issues, text, "bbox")


def ring_of_box(box: NDArray[np.float64]) -> Ring:
    """The corners of ``(x0, y0, x1, y1)``, ``(4, 2)``, clockwise on screen from the top left."""
    x0, y0, x1, y1 = box.tolist()
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def encode_numbers(
    points: NDArray[np.float64], decimals: int = 3, *, frame: Frame = UNIT, pad: bool = False
) -> str:
    """Write a point ``[x,y]``, or the two corners of a box ``[x0,y0,x1,y1]``.

    Args:
        points: ``(1, 2)`` or ``(2, 2)`` in the unit frame; clipped to the image.
        decimals: Digits after the point, 1 to 9; ignored in frames of whole numbers.
        frame: Frame the numbers are written in.
        pad: Write a fixed number of decimals (``0.50``) in place of dropping trailing zeros.

    Raises:
        ValueError: `decimals` is out of range, or a coordinate is not finite.
    """
    if not 1 <= decimals <= MAX_DECIMALS:
        raise ValueError(f"decimals={decimals}, but allowed are 1 to {MAX_DECIMALS}")
    if not np.isfinite(points).all():
        raise ValueError("a coordinate is not finite; check where it came from")
    places = 0 if frame.integer else decimals
    numbers = frame.from_unit(points.clip(0.0, 1.0)).clip(0.0, frame.limits)
    written = [f"{number:.{places}f}" for number in numbers.ravel().tolist()]
    if places and not pad:
        written = [text.rstrip("0").rstrip(".") for text in written]
    return f"[{','.join(written)}]"
