"""The slow half of reading answers: what is usable in one that is not well formed.

The text is hostile until shown otherwise. It is read once from left to right, never recursively, in
time linear in its length, and no number in it decides how much is allocated. In outlines the
innermost bracket groups ``[...]`` are taken as vertices; the text between two of them says what
lies between: another vertex of the ring, a new ring, the end of the list, or damage.

Of a text that marks its answer (in tags, or in a fenced block) only that counts. Of several lists
the last one that reads as what was asked for does. Where none does, or there are objects, the text
is read in the notations of `seg_env.grammar.forms`.
"""

from __future__ import annotations

import re
import string
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from seg_env.frames import Frame, find_marked
from seg_env.grammar.forms import Vertices, find_block, find_value, rewrite
from seg_env.types import Form, IssueKind, ParseIssue

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
_NOTHING = re.compile(rf"\s*+(?:(?:{'|'.join(ANSWER_LEADS)})\s*+)?+\[\s*+\]\s*+\.?+\s*+")
_SEPARATOR = re.compile(r"\]*+,\[*+")


def salvage(
    text: str, frame: Frame, form: Form = "mask"
) -> tuple[list[Vertices], tuple[ParseIssue, ...]]:
    """Read what can be read of any text.

    Returns:
        The vertices of each ring as written, and the first fault of each kind in reading order. A
        point is one ring with one vertex, a box is one ring with two opposite corners.
    """
    if not text or text.isspace():
        return [], (ParseIssue(IssueKind.EMPTY, 0, "''"),)
    whole = text[:MAX_CHARACTERS]
    marked = find_marked(whole)
    start, end = (marked.start, marked.end) if marked else (0, len(whole))
    reader = _read(whole[start:end], frame, form)
    found = dict(reader.issues)
    for kind, issue in reader.issues.items():
        if start or issue.position > len(whole):
            found[kind] = replace(issue, position=min(start + issue.position, len(whole)))
    if marked:
        if not whole[start:end].strip():
            found = {IssueKind.EMPTY: ParseIssue(IssueKind.EMPTY, start, "an empty answer")}
        if not marked.is_closed:
            detail = "the thoughts or the answer do not end"
            found.pop(IssueKind.EMPTY, None)
            found[IssueKind.TRUNCATED] = ParseIssue(IssueKind.TRUNCATED, len(whole), detail)
        if marked.words.strip() not in ("", "."):
            kind = IssueKind.SURROUNDING_TEXT
            found[kind] = ParseIssue(kind, start, "words outside of the answer")
    # That the text goes on behind what was read is implied by these.
    implied = {IssueKind.EMPTY, IssueKind.TRUNCATED, IssueKind.TOO_MANY_VERTICES}
    if len(text) > MAX_CHARACTERS and not found.keys() & implied:
        detail = f"only the first {MAX_CHARACTERS} characters are read"
        kind = IssueKind.SURROUNDING_TEXT
        found.setdefault(kind, ParseIssue(kind, MAX_CHARACTERS, detail))
    issues = tuple(sorted(found.values(), key=lambda issue: issue.position))
    return ([] if IssueKind.WRONG_FRAME in found else reader.rings), issues


def _read(text: str, frame: Frame, form: Form) -> _AnyReader:
    """Read a text without marks: its last fenced block if that holds an answer, else all of it."""
    if block := find_block(text):
        reader = _read_notations(text[block[0] : block[1]], frame, form)
        if reader.rings or not reader.issues:
            reader.issues = {
                kind: replace(issue, position=block[0] + issue.position)
                for kind, issue in reader.issues.items()
            }
            reader.note(IssueKind.SURROUNDING_TEXT, 0, quote=text)
            return reader
    return _read_notations(text, frame, form)


def _read_notations(text: str, frame: Frame, form: Form) -> _AnyReader:
    """Read a text in the grammar, then in other notations where that gives more."""
    plain = _read_lists(text, frame, form)
    # "[]" says that there is no target, whatever else is said.
    says_nothing = not plain.rings and plain.issues.keys() <= {IssueKind.SURROUNDING_TEXT}
    if (plain.is_usable and "{" not in text) or says_nothing:
        return plain
    other = _read_value(text, frame, form, plain)
    if other.is_usable:
        return other
    rewritten, names = rewrite(text, frame)
    if names:
        again = _read_lists(rewritten, frame, form)
        if not again.rings:
            again = _read_value(rewritten, frame, form, again)
        if again.rings:
            inner = again.issues.pop(IssueKind.OTHER_FORM, None)
            again.note(IssueKind.OTHER_FORM, 0, f"{names}, {inner.detail}" if inner else names)
            return again
    return other


def _read_lists(text: str, frame: Frame, form: Form) -> _AnyReader:
    """The last list that reads as what was asked for, else what the first one gives."""
    if form != "mask":
        numbers = _NumbersReader(frame, form)
        numbers.read(text)
        return numbers
    chosen = first = reader = _OutlineReader(frame)
    if _NOTHING.fullmatch(text):
        return first
    end, count = reader.read(text)
    while reader.ended:
        reader = _OutlineReader(frame)
        end, count = reader.read(text, end, count)
        if reader.is_usable and (reader.is_apart or not chosen.is_usable):
            chosen = reader
    chosen.finish(text)
    if chosen is not first:
        chosen.note(IssueKind.SURROUNDING_TEXT, 0, quote=text)
    return chosen


def _read_value(text: str, frame: Frame, form: Form, plain: _AnyReader) -> _AnyReader:
    """The places in the last JSON value that has some, unless it gives no more than `plain`."""
    found = find_value(text, form, frame)
    if found is None:
        return plain
    if found.rings == plain.rings:
        if "{" not in text[found.start : found.end]:
            return plain
        reader = plain
    else:
        reader = _OutlineReader(frame) if form == "mask" else _NumbersReader(frame, form)
        reader.take(found.rings, found.start)
        if (text[: found.start] + text[found.end :]).strip() not in ("", "."):
            reader.note(IssueKind.SURROUNDING_TEXT, 0, quote=text)
        if plain.rings and reader.rings and not reader.is_usable:
            return plain
    if reader.rings:
        reader.note(IssueKind.OTHER_FORM, found.start, found.name)
    return reader


class _Reader:
    """The faults found in one pass over an answer."""

    def __init__(self, frame: Frame) -> None:
        self.issues: dict[IssueKind, ParseIssue] = {}
        self.frame = frame
        self.rings: list[Vertices] = []

    @property
    def is_usable(self) -> bool:
        """Whether there are places, and they can be meant in this frame."""
        return bool(self.rings) and IssueKind.WRONG_FRAME not in self.issues

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
        self._ring: Vertices = []
        self._vertices = 0
        self._full = False
        self._empty_list = False
        self._started = False
        self._end = self._depth = 0
        self.ended = False
        """Whether the list is complete, and there is more text behind it."""
        self.is_apart = False
        """Whether the list begins as one, or behind words: it is no piece of a damaged one."""

    def read(self, text: str, begin: int = 0, count: int = 0) -> tuple[int, int]:
        """Walk over bracket groups from a place on: find the list, take its vertices, see its end.

        Groups before the list are words, and so is a list that closes without giving a vertex.

        Returns:
            Where the last group ended, and how many groups of the text were looked at.
        """
        end, depth, started = begin, 0, False  # depth: brackets open around the next group
        for group in _GROUP.finditer(text, begin):
            gap, content, position = text[end : group.start()], group[1], group.start()
            if started and gap not in (",", ", "):
                depth, started = self._cross(gap, depth, end)
                if not started and self._vertices:
                    self.ended = True  # what follows is not part of this list
                    break
            count += 1
            if not started:
                depth = gap.count("[", len(gap.rstrip("[" + _SPACE)))
                started = depth > 0 or _VERTEX.fullmatch(content) is not None
                self.is_apart = depth > 1 or any(map(str.isalpha, gap))
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
                break
        self._end_ring(end)
        self._end, self._depth, self._started = end, depth, started
        return end, count

    def finish(self, text: str) -> None:
        """Judge what follows the list."""
        end = self._end
        if IssueKind.TOO_MANY_VERTICES in self.issues:
            return
        if self._started or self._vertices:
            self._check_tail(text, end, self._depth)
        elif not self._empty_list:
            self.check_unread(text, end, "no complete vertex")
        elif text[end:].strip() not in ("", "."):
            self.note(IssueKind.SURROUNDING_TEXT, end, quote=text[end:])

    def take(self, rings: list[Vertices], position: int) -> None:
        """Take outlines that were read already."""
        for ring in rings:
            for x, y in ring:
                self._add(x, y, position)
            self._end_ring(position)
        if self._full:
            self.note(IssueKind.TOO_MANY_VERTICES, position, "the rest is dropped")

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
        if self._vertices == MAX_VERTICES or len(self.rings) == MAX_RINGS:
            self._full = True
            return
        x_limit, y_limit = self.frame.limits
        if not (0 <= x <= x_limit and 0 <= y <= y_limit):
            self.note_outside((x, y), self.frame.limits, position)
        self._vertices += 1
        self._ring.append([x, y])

    def _end_ring(self, position: int) -> None:
        if len(self._ring) >= 3:
            self.rings.append(self._ring)
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

    def __init__(self, frame: Frame, form: Form) -> None:
        super().__init__(frame)
        self._count = 2 if form == "point" else 4

    def read(self, text: str) -> None:
        """Take the numbers, if there are some that can be meant as places in this frame."""
        numbers = self._find(text)
        if numbers:
            self._judge(numbers)

    def take(self, rings: list[Vertices], position: int) -> None:
        """Take places that were read already: of boxes what is around all, of points only one."""
        numbers = [number for vertex in rings[0] for number in vertex]
        if len(rings) > 1:
            if self._count == 2:
                self.note(IssueKind.BAD_NESTING, position, "a list where one was asked for")
                return
            corners = [vertex for ring in rings for vertex in ring]
            numbers = [pick(axis) for pick in (min, max) for axis in zip(*corners, strict=True)]
        self._judge(numbers)

    def _judge(self, numbers: list[float]) -> None:
        if max(map(abs, numbers)) > MAX_MAGNITUDE:
            self.note(IssueKind.BAD_NUMBER, 0, "too large for a coordinate")
            return
        for number, limit in zip(numbers, self.frame.limits * 2, strict=False):
            if not 0 <= number <= limit:
                self.note_outside([number], [limit])
        self.rings = [[numbers[start : start + 2] for start in range(0, self._count, 2)]]

    def _find(self, text: str) -> list[float]:
        """Find the last bracket group that can be meant, and judge what stands around it."""
        # More groups than that are an outline, or nothing at all.
        groups = deque(_GROUP.finditer(text), maxlen=65)
        written = [
            group for group in groups if not group[1].strip(",;" + _SPACE + _NUMBER_CHARACTERS)
        ]
        filled = [group for group in written if group[1].strip()]
        if not filled:
            return self._read_nothing(text, written)
        runs = [filled[:1]]  # of groups with nothing but punctuation between them
        for before, group in pairwise(filled):
            if text[before.end() : group.start()].strip("[]," + _SPACE):
                runs.append([])
            runs[-1].append(group)
        # Numbers together come before two corners, which may be pieces of an outline.
        for run in (run for size in (1, 2) for run in runs[::-1] if len(run) == size):
            patterns = [_LISTS[self._count]] if len(run) == 1 else [_LISTS[2]] * (self._count // 2)
            matches = [
                pattern.fullmatch(group[1])
                for pattern, group in zip(patterns, run, strict=False)
                if len(patterns) == len(run)
            ]
            if not matches or not all(matches):
                continue
            if len(run) == 2:
                self.note(IssueKind.BAD_NESTING, run[0].start(), "a box as two corners")
            self._judge_surroundings(text, run[0].start(), run[-1].end())
            return [float(value) for match in matches if match for value in match.groups()]
        first = filled[0]
        if len(runs[0]) > 1 or any(_LISTS[self._count].fullmatch(group[1]) for group in filled):
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


_AnyReader = _OutlineReader | _NumbersReader
