"""The slow half of `seg_env.grammar.decode`: what is usable in an answer that is not well formed.

The text is hostile until shown otherwise. It is read once from left to right, never recursively, in
time linear in its length, and no number in it decides how much is allocated. The innermost bracket
groups ``[...]`` are taken as vertices; the text between two of them says what lies between: another
vertex of the ring, a new ring, the end of the list, or damage.
"""

from __future__ import annotations

import re
import string

import numpy as np

from seg_env.frames import Frame
from seg_env.types import IssueKind, ParseIssue, Ring

ANSWER_LEADS = ("It is at", "It is found at", "Sure, you can find it at")
"""How an answer sentence may begin (SimpleSeg, arXiv 2601.19228, released data script)."""

MAX_CHARACTERS = 1 << 18
"""Characters of an answer that are read; a list still open there counts as truncated."""
MAX_VERTICES = 4096
"""Vertices read of one answer."""
MAX_RINGS = 256
"""Rings read of one answer."""
MAX_MAGNITUDE = 1e6
"""Numbers beyond are no coordinate in any frame: their vertex is dropped."""

_MAX_GROUPS = MAX_VERTICES + 1024  # bounds the work on groups that are no vertex, too
GROUP = re.compile(r"\[([^\[\]]*+)\]")
"""An innermost pair of brackets and what is between them."""
LENIENT_NUMBER = (
    r"([+-]?+(?:[0-9]{1,32}+\.?+[0-9]{0,32}+|\.[0-9]{1,32}+)(?:[eE][+-]?+[0-9]{1,3}+)?+)"
)
"""Regular expression of a coordinate in any usual notation."""
_VERTEX = re.compile(rf"\s*+{LENIENT_NUMBER}\s*+,\s*+{LENIENT_NUMBER}\s*+", re.ASCII)
_SEPARATOR = re.compile(r"\]*+,\[*+")
SPACE = string.whitespace
NUMBER_CHARACTERS = ".+-eE" + string.digits


def close_ring(points: list[list[float]]) -> Ring:
    """Make the ``(V, 2)`` array of one ring; many models repeat the first vertex at the end."""
    if len(points) > 3 and points[0] == points[-1]:
        points.pop()
    return np.array(points, dtype=np.float64)


def are_unit_numbers(rings: list[Ring]) -> bool:
    """True if the numbers can only be fractions of the image: all at most 1 and not all whole.

    In a frame of whole numbers such an outline would lie within a single pixel.
    """
    if not rings or max(ring.max() for ring in rings) > 1.0:
        return False
    return any((ring % 1.0).any() for ring in rings)


def salvage(text: str, frame: Frame) -> tuple[list[Ring], tuple[ParseIssue, ...]]:
    """Read what can be read of any text.

    Args:
        text: The answer.
        frame: Frame its numbers should be in.

    Returns:
        The rings with their numbers as written (not yet mapped to the unit frame), and the first
        fault of each kind in reading order.
    """
    reader = _Reader(frame.limits)
    if not text or text.isspace():
        reader.note(IssueKind.EMPTY, 0)
    else:
        reader.read(text[:MAX_CHARACTERS])
    if len(text) > MAX_CHARACTERS:
        reader.note_unread_rest()
    if frame.integer and are_unit_numbers(reader.rings):
        reader.note(IssueKind.WRONG_FRAME, 0, "fractions in a frame of whole numbers")
    issues = tuple(sorted(reader.issues.values(), key=lambda issue: issue.position))
    return ([] if IssueKind.WRONG_FRAME in reader.issues else reader.rings), issues


class _Reader:
    """State of one pass over one answer."""

    def __init__(self, limits: tuple[float, float]) -> None:
        self.rings: list[Ring] = []
        self.issues: dict[IssueKind, ParseIssue] = {}
        self._limits = limits
        self._ring: list[list[float]] = []
        self._vertices = 0
        self._full = False
        self._empty_list = False

    def note(self, kind: IssueKind, position: int, detail: str = "", quote: str = "") -> None:
        """Remember a fault, unless one of its kind is known; `quote` is text from the answer."""
        if kind not in self.issues:
            # In printable ASCII, because logs and reports would choke on some strings.
            self.issues[kind] = ParseIssue(kind, position, detail or ascii(quote[:16])[:78])

    def note_unread_rest(self) -> None:
        """Say that the text goes on behind the part that was read, unless that is implied."""
        implied = {IssueKind.EMPTY, IssueKind.TRUNCATED, IssueKind.TOO_MANY_VERTICES}
        if not self.issues.keys() & implied:
            detail = f"only the first {MAX_CHARACTERS} characters are read"
            self.note(IssueKind.SURROUNDING_TEXT, MAX_CHARACTERS, detail)

    def read(self, text: str) -> None:
        """Walk over the bracket groups of the text: find the list, take its vertices, see its end.

        Groups before the list are passed over as words; a list that closes without having given a
        vertex counts as words, too.
        """
        end, depth, started = 0, 0, False  # depth: brackets open around the next group
        for count, group in enumerate(GROUP.finditer(text), start=1):
            gap, content, position = text[end : group.start()], group[1], group.start()
            if started and gap not in (",", ", "):
                depth, started = self._cross(gap, depth, end)
                if not started and self._vertices:
                    break  # the list is complete; what follows is not part of the answer
            if not started:
                depth = gap.count("[", len(gap.rstrip("[" + SPACE)))
                started = depth > 0 or _VERTEX.fullmatch(content) is not None
                self._check_lead(gap, end)
            if started:
                self._take(content, depth, position)
            else:
                self._skip(content, position)
            end = group.end()
            if self._full or count == _MAX_GROUPS:
                self.note(IssueKind.TOO_MANY_VERTICES, position, "the rest is dropped")
                self._end_ring(position)
                return
        self._end_ring(end)
        if started or self._vertices:
            self._check_tail(text, end, depth)
        else:
            self._check_unread(text, end)

    def _check_lead(self, lead: str, position: int) -> None:
        """Judge the words before the list."""
        words = lead.rstrip("[" + SPACE).lstrip()
        if words and words not in ANSWER_LEADS:
            self.note(IssueKind.SURROUNDING_TEXT, position, quote=words)

    def _skip(self, content: str, position: int) -> None:
        """Pass over a group in the words before the list, such as the reference ``[1]``."""
        self._empty_list |= not content.strip()
        self.note(IssueKind.SURROUNDING_TEXT, position)

    def _cross(self, gap: str, depth: int, position: int) -> tuple[int, bool]:
        """Judge what stands between two groups, and end the ring where it says so.

        Returns:
            The depth of the next group and True, or the old depth and False if the list ended.
        """
        if gap in ("],[", "], ["):
            self._end_ring(position)
            return depth, True
        bare = "".join(gap.split())
        damaged, separator = bool(bare.strip("[],")), _SEPARATOR.fullmatch(bare)
        closing, bracket, rest = bare.partition("[")
        floor = depth - closing.count("]")  # brackets that stay open between the groups
        if damaged and not bare.strip("[]," + NUMBER_CHARACTERS):
            floor += bool(closing.strip("],"))  # a vertex that lost its "[": its "]" closes nothing
        if floor <= 0 and not separator:
            return depth, False
        if separator:
            new_ring = bare != ","
            if new_ring and floor <= 0:
                self.note(IssueKind.BAD_NESTING, position, "the list goes on after its end")
        elif damaged:
            new_ring = "]" in closing and bool(bracket)
            self.note(IssueKind.BAD_VERTEX, position, quote=gap)
        else:
            new_ring = bool(bare.strip(","))
            self.note(IssueKind.BAD_NESTING, position, quote=gap)
        if not new_ring:
            return depth, True
        self._end_ring(position)
        return max(0, max(0, floor) + len(bracket) + rest.count("[") - rest.count("]")), True

    def _take(self, content: str, depth: int, position: int) -> None:
        """Read one group that stands where a vertex should."""
        vertex = _VERTEX.fullmatch(content)
        is_empty_ring = depth == 1 and not content.strip()
        if depth != 2 and not is_empty_ring:
            self.note(IssueKind.BAD_NESTING, position, f"vertex at depth {depth + 1}, not 3")
        if is_empty_ring:
            self.note(IssueKind.TOO_FEW_VERTICES, position, "ring without vertices")
        elif vertex is None:
            kind = IssueKind.BAD_NUMBER if content.count(",") == 1 else IssueKind.BAD_VERTEX
            self.note(kind, position, quote=content)
        else:
            self._add(float(vertex[1]), float(vertex[2]), position)

    def _add(self, x: float, y: float, position: int) -> None:
        """Add a vertex of two floats (that may still be infinite) to the current ring."""
        (x_limit, y_limit), largest = self._limits, max(abs(x), abs(y))
        if largest > MAX_MAGNITUDE:
            self.note(IssueKind.BAD_NUMBER, position, "too large for a coordinate")
            return
        if self._vertices == MAX_VERTICES or len(self.rings) == MAX_RINGS:
            self._full = True
            return
        if not (0 <= x <= x_limit and 0 <= y <= y_limit):
            near = -x_limit <= x <= 2 * x_limit and -y_limit <= y <= 2 * y_limit
            kind = IssueKind.OUT_OF_RANGE if near else IssueKind.WRONG_FRAME
            self.note(kind, position, quote=f"{x:g}, {y:g}")
        self._vertices += 1
        self._ring.append([x, y])

    def _end_ring(self, position: int) -> None:
        if len(self._ring) >= 3:
            self.rings.append(close_ring(self._ring))
        elif self._ring:
            detail = f"ring with {len(self._ring)} of 3 vertices"
            self.note(IssueKind.TOO_FEW_VERTICES, position, detail)
        self._ring = []

    def _check_tail(self, text: str, end: int, depth: int) -> None:
        """Judge what follows the last vertex: closing brackets, then at most a full stop."""
        rest = text[end:].lstrip("]," + SPACE)
        run = text[end : len(text) - len(rest)]
        brackets = run[: run.rfind("]") + 1]
        closed = brackets.count("]")
        rest = text[end + len(brackets) :].strip()
        if closed < depth:
            self.note(IssueKind.TRUNCATED, len(text), f"brackets still open: {depth - closed}")
        elif rest not in ("", "."):
            self.note(IssueKind.SURROUNDING_TEXT, end + len(brackets), quote=rest)
        if closed > depth or "," in brackets:
            self.note(IssueKind.BAD_NESTING, end, quote=brackets)

    def _check_unread(self, text: str, end: int) -> None:
        """Judge a text in which no list of points was found up to `end` nor behind it."""
        words, bracket, rest = text[end:].partition("[")
        if self._empty_list:
            if text[end:].strip() not in ("", "."):
                self.note(IssueKind.SURROUNDING_TEXT, end, quote=text[end:])
        elif bracket and not rest.strip("[]," + NUMBER_CHARACTERS + SPACE):
            self._check_lead(words, end)
            self.note(IssueKind.TRUNCATED, len(text), "no complete vertex")
        else:
            self.note(IssueKind.NO_POLYGON, end)
