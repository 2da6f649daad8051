"""Other notations for places that models were taught: objects, flat rings, per cent and others.

Everything here takes time linear in the text: what is handed to the JSON parser is closed and not
deeply nested, and each piece is parsed once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from seg_env.frames import Frame
from seg_env.types import Form

Vertices = list[list[float]]
"""Points ``[x, y]`` with their numbers as written, not yet in the unit frame."""

_MAX_DEPTH = 16  # Brackets in brackets; no notation in use has more than 6.
_MAX_VALUES = 64  # JSON values of one text that are looked at, the last ones.
_COUNTS: dict[Form, int] = {"point": 2, "bbox": 4}
_BRACKET = re.compile(r"[\[\]{}]")
_LANGUAGE = re.compile(r"[A-Za-z0-9_+-]*+\n")
_PLAIN = r"[+-]?+(?:[0-9]{1,32}+\.?+[0-9]{0,32}+|\.[0-9]{1,32}+)"
_TAGGED = re.compile(rf'\bx[0-9]{{0,4}}+="({_PLAIN})"\s*+y[0-9]{{0,4}}+="({_PLAIN})"', re.ASCII)
_PER_CENT = re.compile(rf"({_PLAIN})\s*+%\s*+,\s*+({_PLAIN})\s*+%", re.ASCII)
_ROUND = re.compile(rf"\(\s*+({_PLAIN}(?:\s*+,\s*+{_PLAIN})++)\s*+\)", re.ASCII)
_SIZES = (("width", "height"), ("w", "h"))
_NAMED = (
    ("x", "y"),
    ("x1", "y1", "x2", "y2"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("left", "top", "right", "bottom"),
)
"""Objects whose fields are the coordinates of a point or of a box."""


class Found(NamedTuple):
    """Places in a JSON value of a text."""

    start: int
    end: int
    rings: list[Vertices]
    name: str
    """The notation."""


def find_block(text: str) -> tuple[int, int] | None:
    """Start and end of what stands in the last fenced block (```` ``` ````) with a bracket."""
    if "```" not in text:
        return None
    pieces = text.split("```")
    end = len(text)
    for index in range(len(pieces) - 1, 0, -1):
        start = end - len(pieces[index])
        if index % 2 and any(bracket in pieces[index] for bracket in "[({"):
            language = _LANGUAGE.match(text, start, end)
            return (language.end() if language else start), end
        end = start - len("```")
    return None


def find_value(text: str, form: Form, frame: Frame) -> Found | None:
    """The last JSON value of a text that holds places of the form asked for, None without one.

    Several outlines or boxes in one value are all taken.
    """
    by_row = (frame.inner or frame).row_first
    for run in _closed_values(text)[::-1]:
        names: list[str] = []
        joined = ",".join(text[start:end] for start, end in run)
        value = _parse(f"[{joined}]", form, names, by_row)
        rings = _places(value, form)
        if rings and (names or form == "mask" or len(rings) > 1):
            several = f"{len(rings)} objects" if len(rings) > 1 and form == "bbox" else ""
            name = several or (names[-1] if names else "flat ring")
            return Found(run[0][0], run[-1][1], rings, name)
    return None


def rewrite(text: str, frame: Frame) -> tuple[str, str]:
    """Tags, per cent and round brackets as bracketed numbers, and the names of what changed."""
    swap = (frame.inner or frame).row_first
    limits = frame.limits

    def scaled(match: re.Match[str]) -> str:
        pair = (float(match[1 + axis]) * limits[axis] / 100 for axis in (0, 1))
        return ",".join(map(repr, pair))

    names = []
    for name, pattern, written in (
        ("x and y as attributes of a tag", _TAGGED, r"[\2%,\1%]" if swap else r"[\1%,\2%]"),
        ("per cent", _PER_CENT, scaled),
        ("round brackets", _ROUND, r"[\1]"),
    ):
        text, count = pattern.subn(written, text)
        names += [name] if count else []
    return text, ", ".join(names)


def _closed_values(text: str) -> list[list[tuple[int, int]]]:
    """Start and end of the outermost brackets that are closed and not too deep.

    Those with nothing but white space and commas between them are one value together.
    """
    found: list[list[tuple[int, int]]] = []
    depth = deepest = start = end = 0
    for match in _BRACKET.finditer(text):
        if match[0] in "[{":
            if not depth:
                start, deepest = match.start(), 0
            depth += 1
            deepest = max(deepest, depth)
        elif depth:
            depth -= 1
            if not depth and deepest <= _MAX_DEPTH:
                if not found or text[end:start].strip(", \t\r\n"):
                    found.append([])
                end = match.end()
                found[-1].append((start, end))
    return found[-_MAX_VALUES:]


def _parse(text: str, form: Form, names: list[str], by_row: bool) -> Any:
    """A JSON value with its objects replaced by the places in them, None if it is no JSON."""

    def unwrap(value: dict[str, Any]) -> Any:
        for fields in _NAMED:
            numbers = [value.get(field) for field in fields]
            if all(isinstance(number, float) for number in numbers):
                for size in _SIZES:
                    sides = [value[name] for name in size if isinstance(value.get(name), float)]
                    if len(numbers) == len(sides) == 2:
                        numbers += [numbers[0] + sides[0], numbers[1] + sides[1]]
                names.append(",".join(fields))
                if by_row:
                    for x in range(0, len(numbers), 2):
                        numbers[x : x + 2] = numbers[x + 1], numbers[x]
                return numbers
        lists = [(name, entry) for name, entry in value.items() if isinstance(entry, list)]
        lists = [pair for pair in lists if _places(pair[1], form)] or lists
        if not lists:
            return None
        names.append(ascii(lists[0][0][:32])[1:-1])
        return lists[0][1]

    try:
        return json.loads(
            text if '"' in text else text.replace("'", '"'),
            object_hook=unwrap,
            parse_int=float,
            parse_constant=lambda _: None,
        )
    except ValueError:
        return None


def _places(value: Any, form: Form) -> list[Vertices]:
    """The outlines, boxes or points in nested lists of numbers, as written."""
    return [
        [numbers[start : start + 2] for start in range(0, len(numbers), 2)]
        for numbers in _number_lists(value, join=form != "point")
        if (len(numbers) == _COUNTS[form] if form in _COUNTS else len(numbers) >= 6)
        and len(numbers) % 2 == 0
    ]


def _number_lists(value: Any, join: bool) -> Iterator[list[float]]:
    """Innermost lists of numbers, with `join` a list of pairs as one, in reading order."""
    todo = [value]
    while todo:
        entries = todo.pop()
        if not isinstance(entries, list) or not entries:
            continue
        if all(isinstance(entry, float) for entry in entries):
            yield entries
        elif join and all(
            isinstance(entry, list)
            and len(entry) == 2
            and isinstance(entry[0], float)
            and isinstance(entry[1], float)
            for entry in entries
        ):
            yield [number for pair in entries for number in pair]
        else:
            todo.extend(reversed(entries))
