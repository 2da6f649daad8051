"""Walking through a large JSON file without holding it in memory.

COCO's ``instances.json`` of RefCOCO is some 100 MB of polygons, half a gigabyte as Python objects.
Reading element by element keeps the peak at a few megabytes, and remembering where each element
lies lets a data set fetch the few it is asked for later.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

_CHUNK = 1 << 22
_BLANK = " \t\n\r"
_BYTE_ORDER_MARK = "\xef\xbb\xbf"
_decode_value = json.JSONDecoder().raw_decode

_OTHER = r'(?:[^{}"]++|"(?!(?:id|image_id|category_id)")[^"\\]*+")*+'
_FIELD = r'"(id|image_id|category_id)"[ \t\n\r]*:[ \t\n\r]*(-?[0-9]{1,18})(?![0-9.eE])'
_FLAT_RECORD = re.compile(
    rf"[ \t\n\r]*+(\{{{_OTHER}{_FIELD}{_OTHER}{_FIELD}{_OTHER}{_FIELD}{_OTHER}\}})"
)
"""A record without nested records or escapes in strings, which holds the three fields once each."""


class Element(NamedTuple):
    """One element of an array at the top level of the file."""

    key: str
    """Name of the array."""
    value: Any
    """The element, or of a skimmed record its three ids; text in it is unreliable, see `reread`."""
    offset: int
    """Where its text starts, in bytes."""
    text: str
    """Its text read as Latin-1, so that ``len(text)`` is its length in bytes."""

    def reread(self) -> Any:
        """The element with its strings read as UTF-8."""
        return json.loads(self.text.encode("latin-1"))


def walk_elements(path: Path, skim: str = "") -> Iterator[Element]:
    """Yield the elements of every array in the object at the top level of ``path``.

    Other values at the top level are passed over. An element is held only while it is visited.

    Args:
        path: The file.
        skim: Name of an array of which only ``id``, ``image_id`` and ``category_id`` are wanted.
            Where a record is plain enough, its numbers are then passed over without being parsed,
            in a third of the time; faults among them show when the record is read.

    Raises:
        ValueError: Not a JSON object; names the file and the byte.
    """
    with path.open("rb") as stream:
        window = _Window(stream, path)
        window.expect("{")
        if window.peek() == "}":
            return
        separator = ","
        while separator == ",":
            key = window.take().value
            if not isinstance(key, str):
                raise window.fault("expected a key in double quotes")
            window.expect(":")
            if window.peek() == "[":
                yield from _walk_array(window, key, skim=key == skim)
            else:
                window.take()
            separator = window.expect(",}")


def _walk_array(window: _Window, key: str, *, skim: bool) -> Iterator[Element]:
    window.expect("[")
    if window.peek() == "]":
        window.expect("]")
        return
    separator = ","
    while separator == ",":
        yield (window.skim(key) if skim else None) or window.take(key)
        separator = window.expect(",]")


class _Window:
    """The part of a file that is being looked at, as Latin-1: one character is one byte."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._text = ""
        self._start = 0  # byte of the file at which the text starts
        self._position = 0  # in the text
        self._grow()
        if self._text.startswith(_BYTE_ORDER_MARK):
            self._position = len(_BYTE_ORDER_MARK)

    def peek(self) -> str:
        """The next character that is not blank, or ``""`` at the end of the file."""
        while True:
            character = self._text[self._position : self._position + 1]
            if character and character not in _BLANK:
                return character
            if character:
                self._position += 1
            elif not self._grow():
                return ""

    def expect(self, allowed: str) -> str:
        """Take one of the ``allowed`` characters."""
        character = self.peek()
        if not character or character not in allowed:
            raise self.fault(f"expected one of {allowed!r}, found {character!r}")
        self._position += 1
        return character

    def take(self, key: str = "") -> Element:
        """Take one JSON value, reading on as long as it is not complete."""
        self.peek()
        while True:
            begin, end, failure = self._position, len(self._text), None
            try:
                value, end = _decode_value(self._text, begin)
            except (ValueError, RecursionError) as error:
                failure = error  # the file may simply go on after the window
            # Neither a failure nor a number that touches the end of the window is the last word.
            if end == len(self._text) and self._grow():
                continue
            if failure is not None:
                raise self.fault(getattr(failure, "msg", str(failure))) from failure
            self._position = end
            return Element(key, value, self._start + begin, self._text[begin:end])

    def skim(self, key: str) -> Element | None:
        """Take a plain record for its three ids, if one is here and complete."""
        match = _FLAT_RECORD.match(self._text, self._position)
        if match is None:
            return None
        ids = {match[2]: int(match[3]), match[4]: int(match[5]), match[6]: int(match[7])}
        if len(ids) < 3:
            return None
        self._position = match.end()
        return Element(key, ids, self._start + match.start(1), match[1])

    def fault(self, reason: str) -> ValueError:
        """The error of a file that is not what it should be at this place."""
        place = self._start + self._position
        return ValueError(f"{self._path} is not valid JSON near byte {place}: {reason}")

    def _grow(self) -> bool:
        """Drop what has been taken and read on; the window at least doubles.

        So a value of any length is read in time linear in it.
        """
        self._text = self._text[self._position :]
        self._start += self._position
        self._position = 0
        more = self._stream.read(max(_CHUNK, len(self._text)))
        self._text += more.decode("latin-1")
        return bool(more)
