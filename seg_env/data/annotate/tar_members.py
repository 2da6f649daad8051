"""Reading tar archives from outside, one member after another, without trusting a word of them.

The standard library parses the headers; its `tarfile.TarFile` is not used because it reads extended
headers of any size into memory and takes some truncated archives for complete ones. Nothing is
ever extracted: names are names, never paths.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from seg_env.data.annotate.nouns import Reason

BLOCK = tarfile.BLOCKSIZE
LONGEST_NAME = 1 << 16
"""Bytes of an extended header that are read."""
MOST_RATIO = 20
"""A compressed archive may unpack to so many times its bytes; pictures hardly compress at all."""
SPARE = 1 << 26
"""Bytes that any compressed archive may unpack to."""
_CHUNK = 1 << 20
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.FIFOTYPE,
)


class Member(NamedTuple):
    """A file in an archive."""

    name: str
    """As the archive has it, checked to stay within a folder."""
    data: bytes
    """Its content."""


class _StopError(Exception):
    """The rest of an archive cannot be read."""

    def __init__(self, reason: Reason) -> None:
        self.reason = reason


class _Reader:
    """Reads forward only, and counts what it unpacks."""

    def __init__(self, file: IO[bytes], most: int | None) -> None:
        self._file, self._left = file, most

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes, all of them unless the archive ends."""
        if self._left is not None:
            self._left -= count
            if self._left < 0:
                raise _StopError(Reason.BOMB)
        try:
            return self._file.read(count)
        except EOFError as error:
            raise _StopError(Reason.TRUNCATED) from error
        except (gzip.BadGzipFile, zlib.error) as error:
            raise _StopError(Reason.CORRUPT) from error

    def content(self, size: int) -> bytes:
        """The content of a member, without the padding behind it."""
        data = self.read(size + -size % BLOCK)
        if len(data) < size:
            raise _StopError(Reason.TRUNCATED)
        return data[:size]

    def skip(self, size: int) -> None:
        """Pass over the content of a member."""
        left = size + -size % BLOCK
        while left > 0:
            got = len(self.read(min(left, _CHUNK)))
            if not got:
                raise _StopError(Reason.TRUNCATED)
            left -= got


def read_members(path: Path, most_bytes: Callable[[str], int]) -> Iterator[Member | Reason]:
    """The files of a tar archive, plain or compressed by gzip, in order.

    Args:
        path: The archive.
        most_bytes: How many bytes of a file of this name are wanted at most, 0 for none.

    Yields:
        Members that are wanted, and a reason for each that is left out for being too large, a link
        or device, or of a name that leads out; last, perhaps, why the rest could not be read.

    Raises:
        OSError: The file cannot be opened, or the disk fails.
    """
    with ExitStack() as stack:
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        most = None
        if file.read(2) == b"\x1f\x8b":
            most = MOST_RATIO * path.stat().st_size + SPARE
            file.seek(0)
            file = cast("IO[bytes]", stack.enter_context(gzip.GzipFile(fileobj=file)))
        else:
            file.seek(0)
        try:
            yield from _walk(_Reader(file, most), most_bytes)
        except _StopError as stop:
            yield stop.reason


def _walk(reader: _Reader, most_bytes: Callable[[str], int]) -> Iterator[Member | Reason]:
    given: dict[str, str] = {}  # what extended headers say about the next member
    while True:
        block = reader.read(BLOCK)
        if len(block) < BLOCK:
            raise _StopError(Reason.TRUNCATED)
        if not any(block):
            return
        header = _header(block)
        size = header.size
        if header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            if size > LONGEST_NAME:
                raise _StopError(Reason.CORRUPT)
            content = reader.content(size)
            is_name = header.type == tarfile.GNUTYPE_LONGNAME
            given |= {"path": _text(content.rstrip(b"\0"))} if is_name else _pax(content)
            continue
        if header.type in (tarfile.XGLTYPE, tarfile.GNUTYPE_LONGLINK):
            reader.skip(size)
            continue
        if header.type == tarfile.GNUTYPE_SPARSE or "GNU.sparse.major" in given:
            raise _StopError(Reason.CORRUPT)  # nobody stores pictures with holes
        name = given.get("path", header.name)
        size = _size(given.get("size", size))
        given = {}
        if header.type in _WITHOUT_CONTENT:
            yield Reason.NOT_A_FILE
        elif header.type not in _PLAIN:
            reader.skip(size if header.type != tarfile.DIRTYPE else 0)
        elif leads_out(name):
            reader.skip(size)
            yield Reason.UNSAFE_NAME
        elif (most := most_bytes(name)) and size <= most:
            yield Member(name, reader.content(size))
        else:
            reader.skip(size)
            if most:
                yield Reason.TOO_MANY_BYTES


def leads_out(name: str) -> bool:
    """Whether a name would, as a path, lead out of a folder."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.is_absolute() or ".." in path.parts or "\0" in name


def _header(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except (tarfile.HeaderError, ValueError) as error:
        raise _StopError(Reason.CORRUPT) from error
    if header.size < 0:
        raise _StopError(Reason.CORRUPT)
    return header


def _pax(content: bytes) -> dict[str, str]:
    """The records ``"<length> <key>=<value>"``, each on a line, of an extended header."""
    found: dict[str, str] = {}
    while content.strip(b"\0"):
        length, space, _ = content.partition(b" ")
        if not space or not length.isdigit() or len(length) > 6 or int(length) <= len(length) + 1:
            raise _StopError(Reason.CORRUPT)
        record, content = content[len(length) + 1 : int(length)], content[int(length) :]
        key, _, value = record.rstrip(b"\n").partition(b"=")
        found[_text(key)] = _text(value)
    return found


def _size(value: int | str) -> int:
    if isinstance(value, int):
        return value
    if not (value.isascii() and value.isdigit() and len(value) < 20):
        raise _StopError(Reason.CORRUPT)
    return int(value)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
