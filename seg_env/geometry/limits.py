"""How large data from outside may be: one table, checked before anything is allocated.

The variable ``SIMPLESEG_LIMITS="pixels=1e9 rings=50000"`` changes limits for every command and all
processes that it starts; `set_limits` does so from Python.
"""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple

from seg_env.errors import ExplainedError, WrongOptionError

VARIABLE = "SIMPLESEG_LIMITS"


class LimitError(ExplainedError, ValueError):
    """Something from outside exceeds a limit; the message names it and how to raise it."""

    fault = "exceeded limit"
    """The name under which data sets count it."""


class Limits(NamedTuple):
    """Upper bounds on what is read."""

    pixels: int = 178_956_970
    """Of an image or a mask; by default those at which Pillow refuses an image."""
    side: int = 1 << 17
    """Pixels along a side of an image in a file: rows and columns have a cost of their own."""
    crossings: int = 1 << 24
    """Columns that the edges of one record's polygons pass; COCO's largest objects have 100,000."""
    runs: int = 1 << 20
    """Run lengths of one record's mask."""
    painted: int = 1 << 32
    """Pixels of a file of ReasonSeg times its shapes, each of which is painted."""
    rings: int = 1 << 14
    """Rings of one outline; an answer has at most 256."""
    file_bytes: int = 1 << 30
    """Of a file of JSON; COCO's largest has 0.45e9."""
    label_bytes: int = 1 << 28
    """Of a file of LabelMe, which may keep the image itself in it."""
    config_bytes: int = 1 << 20
    """Of a file that names classes."""
    line_bytes: int = 1 << 26
    """Of a line of JSON lines."""
    pickle_bytes: int = 1 << 27
    """Of a file of references, several times the largest of RefCOCO."""
    containers: int = 1 << 22
    """Lists, dictionaries and marks of a pickle; the largest of RefCOCO has about a million."""
    objects: int = 1000
    """Objects that one reference names."""
    unfolding: int = 8
    """How many times its own size a file may unfold to: pickles can name one list many times."""
    rows: int = 1 << 24
    """Of a row group of parquet."""
    inflation: int = 64
    """How many times the size of its file, at least 1 MiB, a row group of parquet unfolds to."""


@cache
def limits() -> Limits:
    """The limits of this process."""
    found: dict[str, int] = {}
    for each in os.environ.get(VARIABLE, "").split():
        name, _, number = each.partition("=")
        try:
            found[name] = int(float(number))
        except (ValueError, OverflowError):
            found[name] = 0
        if name not in Limits._fields or found[name] < 1:
            raise WrongOptionError(
                f"{VARIABLE}: {each[:40]!r} is no limit; write NAME=NUMBER, a number from 1 and "
                f"one of {', '.join(Limits._fields)}"
            )
    return Limits(**found)


def set_limits(text: str) -> None:
    """Set limits as ``"pixels=1e9 rings=50000"``, for this process and those that it starts.

    Raises:
        WrongOptionError: A name is unknown, or a number is invalid.
    """
    os.environ[VARIABLE] = text
    limits.cache_clear()
    limits()


def check_limit(name: str, number: int, what: str) -> None:
    """Raise when a number exceeds the limit called ``name``.

    Raises:
        LimitError: It does; the message says ``what`` it is.
    """
    if number > (most := getattr(limits(), name)):
        raise LimitError(
            f"{what}; the limit is {most} {name}, which {VARIABLE}='{name}=NUMBER' changes"
        )


def check_size(size: tuple[int, int]) -> None:
    """Raise when an image or a mask of ``(H, W)`` is too large.

    Raises:
        LimitError: It has too many pixels, or a side that is too long.
    """
    what = f"{size[1]} x {size[0]} pixels (width x height)"
    check_limit("pixels", size[0] * size[1], what)
    check_limit("side", max(size), what)
