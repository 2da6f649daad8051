"""Records of annotation files, and the `RecordError` of those that are broken."""

from __future__ import annotations

import gc
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from seg_env.geometry.limits import LimitError, check_limit, check_size

Id = int | str
"""The id of a record in a file of COCO's form."""
_INTEGER = re.compile(r"-?[0-9]{1,18}")
OnError = Literal["raise", "skip", "defer"]
"""Whether a broken record is an error when it is asked for, or left out when a data set is opened.

To skip, every annotation and the header of every image are read on opening; to defer, only what
opening finds broken is left out, and all else is an error when it is asked for. A broken file that
everything depends on (``instances.json``, ``refs(*).p``, a parquet file) is always an error: then
there is no record to leave out.
"""


class Fault(StrEnum):
    """Kinds of broken records, the keys of a data set's ``skipped``."""

    MALFORMED = "malformed record"
    MISSING_IMAGE = "missing photo"
    UNREADABLE_IMAGE = "unreadable photo"
    SIZE_MISMATCH = "size mismatch"
    """The image does not have the size that the annotations say."""
    OUTSIDE = "polygon outside the image"
    """A polygon lies beside the image, or reaches far out of it."""
    EMPTY = "empty segmentation"
    """An object that should be there fills no pixel."""
    LIMIT = LimitError.fault
    """Larger than is read, see `seg_env.geometry.limits`."""


class RecordError(ValueError):
    """A broken record; the message names file, record, offending value and what was expected."""

    def __init__(self, message: str, fault: Fault = Fault.MALFORMED) -> None:
        super().__init__(message)
        self.fault = fault


class Record(NamedTuple):
    """An object of JSON from outside; its fields are checked when they are asked for."""

    values: Any
    where: str
    """File and record, with which every error message starts."""

    @classmethod
    def parse(cls, text: object, where: str, encoding: str | None = None) -> Record:
        """Parse one JSON object; ``encoding`` is that of bytes, see `decode_text`."""
        if isinstance(text, bytes):
            text = decode_text(text, where, encoding)
        try:
            values = json.loads(text) if isinstance(text, str) else text
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise RecordError(f"{where}: expected an object {{...}}, got {describe(values)}")
        return cls(values, where)

    def __contains__(self, key: object) -> bool:
        return isinstance(self.values, dict) and key in self.values

    def get(self, key: str, default: Any = None) -> Any:
        """The value of ``key``, unchecked."""
        return self.values.get(key, default) if isinstance(self.values, dict) else default

    def integer(self, key: str) -> int:
        """An integer within 64 bits, which may be written as 60.0 or "60"."""
        value = self.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) and _INTEGER.fullmatch(value):
            value = int(value)
        if type(value) is not int or not -(2**63) <= value < 2**63 - 1:
            raise self.error(key, "must be an integer")
        return value

    def identifier(self, key: str) -> Id:
        """The id of a record: an integer as in `integer`, or any other text."""
        value = self.get(key)
        is_name = isinstance(value, str) and value.strip() and not _INTEGER.fullmatch(value)
        return str(value) if is_name else self.integer(key)

    def text(self, key: str) -> str:
        """A string."""
        value = self.get(key)
        if not isinstance(value, str):
            raise self.error(key, "must be a string")
        return value

    def items(self, key: str, default: object = None) -> list[Any]:
        """A list of anything."""
        value = default if self.get(key) is None else self.get(key)
        if not isinstance(value, list):
            raise self.error(key, "must be a list")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self.items(key)
        if not all(isinstance(each, str) for each in value):
            raise self.error(key, "must be a list of strings")
        return value

    def size(self, height: str = "height", width: str = "width") -> tuple[int, int]:
        """Height and width of an image, ``(H, W)``, from two fields."""
        size = self.integer(height), self.integer(width)
        what = f"{self.where}: {height} and {width} are {size}"
        if min(size) < 1:
            raise RecordError(f"{what}; each is at least 1")
        with located(what):
            check_size(size)
        return size

    def path(self, key: str) -> str:
        """The name of a file as a path that stays within the folder of images."""
        name = self.text(key)
        parts = PurePosixPath(name.replace("\\", "/"))
        if parts.is_absolute() or ".." in parts.parts or ":" in name or "\0" in name:
            raise RecordError(f"{self.where}: {key} {name[:80]!r} leads out of the image folder")
        return str(parts)

    def error(self, key: str, problem: str) -> RecordError:
        """The error of a field with a wrong value."""
        return RecordError(f"{self.where}: {key!r} {problem}, got {describe(self.get(key))}")


def decode_text(data: bytes, where: str, encoding: str | None = None) -> str:
    """Decode text that is UTF-8 or UTF-16, or in ``encoding``.

    UTF-16 needs a byte order mark, or to begin with a Latin character or sign, as JSON does.

    Raises:
        RecordError: It is none of these. Guessing would garble it.
    """
    usual = json.detect_encoding(data)
    for each in (usual, encoding) if encoding else (usual,):
        with suppress(UnicodeError):
            text = data.decode(each)
            if "\0" not in text:  # UTF-16 of another script may decode as UTF-8, with zeros
                return text
    raise RecordError(
        f"{where} is not text in {' or '.join(filter(None, ('UTF-8', encoding)))}; save it as "
        "UTF-8, or name its encoding by --encoding (encoding= in Python), such as gbk, shift_jis "
        "or cp1252"
    )


def read_json(
    path: Path,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
    encoding: str | None = None,
) -> Any:
    """Read a JSON file that a data set depends on; a `ValueError` if it is not JSON."""
    check_limit("file_bytes", size := path.stat().st_size, f"{path} has {size} bytes")
    text = decode_text(path.read_bytes(), str(path), encoding)
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error


def read_text(path: Path, encoding: str | None = None, limit: str = "label_bytes") -> str:
    """Read a text file, see `decode_text`; its bytes are checked against a limit."""
    with located(str(path)):
        check_limit(limit, size := path.stat().st_size, f"{size} bytes")
    return decode_text(path.read_bytes(), str(path), encoding)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Turn a `ValueError` of a block into a `RecordError` that starts with ``where``."""
    try:
        yield
    except ValueError as error:
        raise RecordError(f"{where}: {error}", getattr(error, "fault", Fault.MALFORMED)) from error


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause the collector while a large file is parsed; also a decorator.

    It would scan a million new containers again and again, which takes up to four times as long as
    building them, although none can be garbage yet.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def describe(value: object) -> str:
    """A value for an error message; containers, which may contain themselves, are only named."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**20):
        return repr(value)
    return f"a value of type {type(value).__name__}"
