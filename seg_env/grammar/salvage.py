"""The slow half of reading answers: what is usable in one that is not well formed.

The text is hostile until shown otherwise. It is read once from left to right, never recursively, in
time linear in its length, and no number in it decides how much is allocated. In outlines the
innermost bracket groups ``[...]`` are taken as vertices; the text between two of them says what
lies between: another vertex of the ring, a new ring, the end of the list, or damage.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice

from seg_env.frames import Frame
from seg_env.types import Form, IssueKind, ParseIssue

Vertices = list[list[float]]
"""Points ``[x, y]`` with their numbers as written, not yet in the unit frame."""

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

_MAX_GROUPS = MAX_VERTICES + 1024  # Bounds the work on groups that are no vertex, too.
_SPACE = string.whitespace
_NUMBER_CHARACTERS = ".+-eE" + string.digits
_GROUP = re.compile(r"\[([^\[\]]*+)\]")  # An innermost pair of brackets.
_NUMBER = (  # A coordinate in any usual notation.
    r"\s*+([+-]?+(?:[0-9]{1,32}+\.?+[0-9]{0,32}+|\.[0-9]{1,32}+)(?:[eE][+-]?+[0-9]{1,3}+)?+)\s*+"
)
_LISTS = {count: re.compile(",".join([_NUMBER] * count), re.ASCII) for count in (2, 4)}
_VERTEX = _LISTS[2]
_SEPARATOR = re.compile(r"\]*+,\[*+")


def salvage(
    text: str, frame: Frame, form: Form = "mask"
) -> tuple[list[Vertices], tuple[ParseIssue, ...]]:
    """Read what can be read of any text.

    Returns:
        The vertices of each ring as written, and the first fault of each kind in reading order. Of
        a point that is one ring with one vertex, of a box one with two opposite corners.
    """
    reader = _READERS[form](frame)
    rings: list[Vertices] = []
    if not text or text.isspace():
        reader.note(IssueKind.EMPTY, 0)
    else:
        rings = reader.read(text[:MAX_CHARACTERS])
    # That the text goes on behind what was read is implied by these.
    implied = {IssueKind.EMPTY, IssueKind.TRUNCATED, IssueKind.TOO_MANY_VERTICES}
    if len(text) > MAX_CHARACTERS and not reader.issues.keys() & implied:
        detail = f"only the first {MAX_CHARACTERS} characters are read"
        reader.note(IssueKind.SURROUNDING_TEXT, MAX_CHARACTERS, detail)
    found = tuple(sorted(reader.issues.values(), key=lambda issue: issue.position))
    return ([] if IssueKind.WRONG_FRAME in reader.issues else rings), found


class _Reader:
    """The faults found in one pass over an answer."""

    def __init__(self, frame: Frame) -> None:
        self.issues: dict[IssueKind, ParseIssue] = {}
        self.frame = frame

    def note(self, kind: IssueKind, position: int, detail: str = "", quote: str = "") -> None:
        """Remember a fault, unless one of its kind is known; `quote` is text from the answer."""
        if kind not in self.issues:
            # In printable ASCII, because logs and reports would choke on some strings.
            self.issues[kind] = ParseIssue(kind, position, detail or ascii(quote[:16])[:78])

    def check_lead(self, lead: str, position: int = 0) -> None:
        """Judge the words before the numbers."""
        words = lead.rstrip("[" + _SPACE).lstrip()
        if words and words not in ANSWER_LEADS:
            self.note(IssueKind.SURROUNDING_TEXT, position, quote=words)

    def note_outside(
        self, numbers: Sequence[float], limits: Sequence[float], position: int = 0
    ) -> None:
        """Judge numbers outside the image: those up to one image size outside can be meant."""
        pairs = zip(numbers, limits, strict=True)
        near = all(-limit <= number <= 2 * limit for number, limit in pairs)
        kind = IssueKind.OUT_OF_RANGE if near else IssueKind.WRONG_FRAME
        self.note(kind, position, quote=", ".join(f"{number:g}" for number in numbers))

    def check_unread(self, text: str, position: int, what: str, nothing: str = "") -> None:
        """Judge text, from a position on, without anything that could be read."""
        words, bracket, rest = text[position:].partition("[")
        if bracket and not rest.strip("[]," + _NUMBER_CHARACTERS + _SPACE):
            self.check_lead(words, position)
            self.note(IssueKind.TRUNCATED, len(text), what)
        else:
            self.note(IssueKind.NO_POLYGON, position, nothing)


class _OutlineReader(_Reader):
    """State of one pass over an outline."""

    def __init__(self, frame: Frame) -> None:
        super().__init__(frame)
        self._rings: list[Vertices] = []
        self._ring: Vertices = []
        self._vertices = 0
        self._full = False
        self._empty_list = False

    def read(self, text: str) -> list[Vertices]:
        """Walk over the bracket groups of the text: find the list, take its vertices, see its end.

        Groups before the list are words, and so is a list that closes without giving a vertex.
        """
        end, depth, started = 0, 0, False  # depth: brackets open around the next group
        for count, group in enumerate(_GROUP.finditer(text), start=1):
            gap, content, position = text[end : group.start()], group[1], group.start()
            if started and gap not in (",", ", "):
                depth, started = self._cross(gap, depth, end)
                if not started and self._vertices:
                    break  # the list is complete; what follows is not part of the answer
            if not started:
                depth = gap.count("[", len(gap.rstrip("[" + _SPACE)))
                started = depth > 0 or _VERTEX.fullmatch(content) is not None
                self.check_lead(gap, end)
            if started:
                self._take(content, depth, position)
            else:  # a group in the words before the list, such as the reference "[1]"
                self._empty_list |= not content.strip()
                self.note(IssueKind.SURROUNDING_TEXT, position)
            end = group.end()
            if self._full or count == _MAX_GROUPS:
                self.note(IssueKind.TOO_MANY_VERTICES, position, "the rest is dropped")
                self._end_ring(position)
                return self._rings
        self._end_ring(end)
        if started or self._vertices:
            self._check_tail(text, end, depth)
        elif not self._empty_list:
            self.check_unread(text, end, "no complete vertex")
        elif text[end:].strip() not in ("", "."):
            self.note(IssueKind.SURROUNDING_TEXT, end, quote=text[end:])
        return self._rings

    def _cross(self, gap: str, depth: int, position: int) -> tuple[int, bool]:
        """Judge what stands between two groups, and end the ring where it says so.

        Returns:
            The depth of the next group, and whether the list goes on.
        """
        if gap in ("],[", "], ["):
            self._end_ring(position)
            return depth, True
        bare = "".join(gap.split())
        damaged, separator = bool(bare.strip("[],")), _SEPARATOR.fullmatch(bare)
        closing, bracket, rest = bare.partition("[")
        floor = depth - closing.count("]")  # brackets that stay open between the groups
        if damaged and not bare.strip("[]," + _NUMBER_CHARACTERS):
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
        if max(abs(x), abs(y)) > MAX_MAGNITUDE:
            self.note(IssueKind.BAD_NUMBER, position, "too large for a coordinate")
            return
        if self._vertices == MAX_VERTICES or len(self._rings) == MAX_RINGS:
            self._full = True
            return
        x_limit, y_limit = self.frame.limits
        if not (0 <= x <= x_limit and 0 <= y <= y_limit):
            self.note_outside((x, y), self.frame.limits, position)
        self._vertices += 1
        self._ring.append([x, y])

    def _end_ring(self, position: int) -> None:
        if len(self._ring) >= 3:
            self._rings.append(self._ring)
        elif self._ring:
            detail = f"ring with {len(self._ring)} of 3 vertices"
            self.note(IssueKind.TOO_FEW_VERTICES, position, detail)
        self._ring = []

    def _check_tail(self, text: str, end: int, depth: int) -> None:
        """Judge what follows the last vertex: closing brackets, then at most a full stop."""
        rest = text[end:].lstrip("]," + _SPACE)
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


class _NumbersReader(_Reader):
    """State of one pass over a point or a box."""

    def __init__(self, frame: Frame, count: int) -> None:
        super().__init__(frame)
        self._count = count

    def read(self, text: str) -> list[Vertices]:
        """The numbers, if there are some that can be meant as places in this frame."""
        numbers = self._find(text)
        if not numbers:
            return []
        if max(map(abs, numbers)) > MAX_MAGNITUDE:
            self.note(IssueKind.BAD_NUMBER, 0, "too large for a coordinate")
            return []
        for number, limit in zip(numbers, self.frame.limits * 2, strict=False):
            if not 0 <= number <= limit:
                self.note_outside([number], [limit])
        return [[numbers[start : start + 2] for start in range(0, self._count, 2)]]

    def _find(self, text: str) -> list[float]:
        """Find the one bracket group that can be meant, and judge what stands around it."""
        # More groups than that are an outline, or nothing at all.
        groups = islice(_GROUP.finditer(text), 65)
        written = [
            group for group in groups if not group[1].strip(",;" + _SPACE + _NUMBER_CHARACTERS)
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
            return [float(number) for number in chosen[1].split(",")]
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

    def _read_nothing(self, text: str, empty: list[re.Match[str]]) -> list[float]:
        """Judge a text without a bracket group of numbers."""
        odd = next((group for group in _GROUP.finditer(text) if group[1].strip()), None)
        if odd is not None and odd[1].count(",") == self._count - 1:
            self.note(IssueKind.BAD_NUMBER, odd.start(), quote=odd[1])
        elif empty:  # "[]" says that there is no target, whatever else is said
            self._judge_surroundings(text, empty[0].start(), empty[0].end())
        else:
            self.check_unread(text, 0, "no closing bracket", "no numbers in brackets")
        return []

    @staticmethod
    def _are_joined(text: str, one: re.Match[str], other: re.Match[str]) -> bool:
        """Whether two groups are different and nothing but punctuation stands between them."""
        low, high = sorted((one, other), key=lambda group: group.start())
        between = text[low.end() : high.start()]
        return low.start() != high.start() and not between.strip("[]," + _SPACE)

    def _judge_surroundings(self, text: str, start: int, end: int) -> None:
        """Judge the words and brackets before and after the numbers."""
        before, after = text[:start], text[end:]
        self.check_lead(before)
        rest = after.lstrip("]," + _SPACE)
        if rest.strip() not in ("", "."):
            self.note(IssueKind.SURROUNDING_TEXT, len(text) - len(rest), quote=rest)
        run = before[len(before.rstrip("[" + _SPACE)) :]
        closing = after[: len(after) - len(rest)]
        if "[" in run or "]" in closing or "," in closing:
            self.note(IssueKind.BAD_NESTING, start, "brackets or commas too many")


_READERS: dict[Form, Callable[[Frame], _OutlineReader | _NumbersReader]] = {
    "mask": _OutlineReader,
    "point": partial(_NumbersReader, count=2),
    "bbox": partial(_NumbersReader, count=4),
}
"""What reads each form of answer."""
