"""The slow half of reading points and boxes: what is usable in an answer that is not well formed.

The text is hostile until shown otherwise; see `seg_env.grammar.salvage`, which does the same for
outlines.
"""

from __future__ import annotations

import re
from itertools import islice

from seg_env.frames import Frame
from seg_env.grammar.salvage import (
    ANSWER_LEADS,
    GROUP,
    LENIENT_NUMBER,
    MAX_CHARACTERS,
    MAX_MAGNITUDE,
    NUMBER_CHARACTERS,
    SPACE,
)
from seg_env.types import IssueKind, ParseIssue

COUNTS = {"point": 2, "bbox": 4}
"""How many numbers an answer of each short form has."""

Numbers = list[float]
"""Coordinates as written, x and y in turn; empty for "no target"."""

_MAX_GROUPS = 64  # More bracket groups than that are an outline, or nothing at all.
_JOINTS = "[]," + SPACE
_ENTRY = rf"\s*+{LENIENT_NUMBER}\s*+"
_LISTS = {count: re.compile(",".join([_ENTRY] * count), re.ASCII) for count in COUNTS.values()}


def salvage_numbers(text: str, count: int, frame: Frame) -> tuple[Numbers, tuple[ParseIssue, ...]]:
    """Read what can be read of any text as one list of so many numbers.

    Args:
        text: The answer.
        count: 2 for a point, 4 for a box.
        frame: Frame its numbers should be in.

    Returns:
        The numbers as written (not mapped to the unit frame), empty if there is nothing usable, and
        the first fault of each kind in reading order.
    """
    reader = _Reader(count, frame)
    if not text or text.isspace():
        reader.note(IssueKind.EMPTY, 0)
        return [], reader.found()
    if len(text) > MAX_CHARACTERS:
        detail = f"only the first {MAX_CHARACTERS} characters are read"
        reader.note(IssueKind.SURROUNDING_TEXT, MAX_CHARACTERS, detail)
    numbers = reader.read(text[:MAX_CHARACTERS])
    return reader.checked(numbers), reader.found()


class _Reader:
    """State of one pass over one answer."""

    def __init__(self, count: int, frame: Frame) -> None:
        self._count, self._frame = count, frame
        self._issues: dict[IssueKind, ParseIssue] = {}

    def note(self, kind: IssueKind, position: int, detail: str = "", quote: str = "") -> None:
        """Remember a fault, unless one of its kind is known; `quote` is text from the answer."""
        if kind not in self._issues:
            self._issues[kind] = ParseIssue(kind, position, detail or ascii(quote[:16])[:78])

    def found(self) -> tuple[ParseIssue, ...]:
        """The faults in reading order."""
        return tuple(sorted(self._issues.values(), key=lambda issue: issue.position))

    def read(self, text: str) -> Numbers:
        """Find the one bracket group that can be meant, and judge what stands around it."""
        groups = list(islice(GROUP.finditer(text), _MAX_GROUPS + 1))
        written = [
            group for group in groups if not group[1].strip(",;" + SPACE + NUMBER_CHARACTERS)
        ]
        filled = [group for group in written if group[1].strip()]
        if not filled:
            return self._read_nothing(text, written)
        first, last = filled[0], filled[-1]
        fitting = [group for group in filled if _LISTS[self._count].fullmatch(group[1])]
        if len(fitting) == 1:
            chosen = fitting[0]
            if any(self._are_joined(text, chosen, other) for other in filled):
                self.note(IssueKind.BAD_NESTING, first.start(), "a list where one was asked for")
                return []
            self._judge_surroundings(text, chosen.start(), chosen.end())
            return self._numbers(chosen[1])
        corners = [_LISTS[2].fullmatch(group[1]) for group in filled]
        joined = len(filled) > 1 and self._are_joined(text, first, filled[1])
        if self._count == 4 and len(filled) == 2 and all(corners) and joined:
            self.note(IssueKind.BAD_NESTING, first.start(), "a box as two corners")
            self._judge_surroundings(text, first.start(), last.end())
            return [float(value) for pair in corners if pair for value in pair.groups()]
        if joined or len(fitting) > 1:
            self.note(IssueKind.BAD_NESTING, first.start(), "a list where one was asked for")
        elif first[1].count(",") == self._count - 1:
            self.note(IssueKind.BAD_NUMBER, first.start(), quote=first[1])
        else:
            self.note(IssueKind.BAD_VERTEX, first.start(), f"not {self._count} numbers")
        return []

    def _read_nothing(self, text: str, empty: list[re.Match[str]]) -> Numbers:
        """Judge a text without a bracket group of numbers."""
        words, bracket, rest = text.partition("[")
        odd = next((group for group in GROUP.finditer(text) if group[1].strip()), None)
        if odd is not None and odd[1].count(",") == self._count - 1:
            self.note(IssueKind.BAD_NUMBER, odd.start(), quote=odd[1])
        elif empty:  # "[]" says that there is no target, whatever else is said
            self._judge_surroundings(text, empty[0].start(), empty[0].end())
        elif bracket and not rest.strip("[]," + NUMBER_CHARACTERS + SPACE):
            self._judge_lead(words)
            self.note(IssueKind.TRUNCATED, len(text), "no closing bracket")
        else:
            self.note(IssueKind.NO_POLYGON, 0, "no numbers in brackets")
        return []

    @staticmethod
    def _are_joined(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
        """Whether two groups are different and nothing but punctuation stands between them."""
        low, high = sorted((one, other), key=lambda group: group.start())
        return low.start() != high.start() and not text[low.end() : high.start()].strip(_JOINTS)

    def _judge_surroundings(self, text: str, start: int, end: int) -> None:
        """Judge the words and brackets before and after the numbers."""
        before, after = text[:start], text[end:]
        self._judge_lead(before)
        rest = after.lstrip("]," + SPACE)
        if rest.strip() not in ("", "."):
            self.note(IssueKind.SURROUNDING_TEXT, len(text) - len(rest), quote=rest)
        run = before[len(before.rstrip("[" + SPACE)) :]
        closing = after[: len(after) - len(rest)]
        if "[" in run or "]" in closing or "," in closing:
            self.note(IssueKind.BAD_NESTING, start, "brackets or commas too many")

    def _judge_lead(self, lead: str) -> None:
        words = lead.rstrip("[" + SPACE).lstrip()
        if words and words not in ANSWER_LEADS:
            self.note(IssueKind.SURROUNDING_TEXT, 0, quote=words)

    def _numbers(self, content: str) -> Numbers:
        match = _LISTS[self._count].fullmatch(content)
        return [] if match is None else [float(value) for value in match.groups()]

    def checked(self, numbers: Numbers) -> Numbers:
        """The numbers if they can be meant as places in this frame; none otherwise."""
        if not numbers:
            return []
        if max(map(abs, numbers)) > MAX_MAGNITUDE:
            self.note(IssueKind.BAD_NUMBER, 0, "too large for a coordinate")
            return []
        for number, limit in zip(numbers, self._frame.limits * 2, strict=False):
            if not 0 <= number <= limit:
                near = -limit <= number <= 2 * limit
                kind = IssueKind.OUT_OF_RANGE if near else IssueKind.WRONG_FRAME
                self.note(kind, 0, quote=f"{number:g}")
        whole = all(number == int(number) for number in numbers)
        if self._frame.integer and max(numbers) <= 1.0 and not whole:
            self.note(IssueKind.WRONG_FRAME, 0, "fractions in a frame of whole numbers")
        return [] if IssueKind.WRONG_FRAME in self._issues else numbers
