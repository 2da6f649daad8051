"""Fields of records in annotation files, and what is wrong with them, as a `RecordError`."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Literal

from seg_env.geometry.rle import MAX_PIXELS

OnError = Literal["raise", "skip"]
"""Whether a broken record is an error when it is asked for, or left out when a data set is opened.

Leaving out means looking at every annotation and at the header of every image first. A file that
everything hangs on (``instances.json``, ``refs(*).p``, a parquet file) is an error either way, for
then there is no record to leave out.
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


class RecordError(ValueError):
    """A broken record; the message names file, record, offending value and what was expected."""

    def __init__(self, message: str, fault: Fault = Fault.MALFORMED) -> None:
        """Describe the fault."""
        super().__init__(message)
        self.fault = fault


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

    It would look at a million new containers again and again, which takes up to four times as long
    as building them, and none can be garbage yet.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def parse_json_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parse one JSON object; errors start with ``where``."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where} is not valid JSON: {error}") from error
    if not isinstance(record, dict):
        raise RecordError(f"{where}: expected an object {{...}}, got {describe(record)}")
    return record


def integer(record: object, key: str, where: str) -> int:
    """The integer under ``key``, within 64 bits; errors start with ``where``."""
    value = record.get(key) if isinstance(record, dict) else None
    if type(value) is not int or not -(2**63) <= value < 2**63 - 1:
        raise RecordError(f"{where}: {key!r} must be an integer, got {describe(value)}")
    return value


def text_field(record: object, key: str, where: str) -> str:
    """The string under ``key``; errors start with ``where``."""
    value = record.get(key) if isinstance(record, dict) else None
    if not isinstance(value, str):
        raise RecordError(f"{where}: {key!r} must be a string, got {describe(value)}")
    return value


def size_field(
    record: object, where: str, keys: tuple[str, str] = ("height", "width")
) -> tuple[int, int]:
    """Height and width of an image, ``(H, W)``; errors start with ``where``."""
    size = integer(record, keys[0], where), integer(record, keys[1], where)
    if min(size) < 1 or size[0] * size[1] > MAX_PIXELS:
        raise RecordError(
            f"{where}: {keys[0]} and {keys[1]} are {size}; at least 1, together at most "
            f"{MAX_PIXELS} pixels are read"
        )
    return size


def relative_path(file_name: str, where: str) -> str:
    """The name of an image as a path that stays within the folder of images.

    Raises:
        RecordError: It is absolute or leads upwards.
    """
    parts = PurePosixPath(file_name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in file_name or "\0" in file_name:
        raise RecordError(f"{where}: file_name {file_name[:80]!r} leads out of the image folder")
    return str(parts)


def describe(value: object) -> str:
    """A value for an error message; containers, which may contain themselves, are only named."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 10**20):
        return repr(value)
    return f"a value of type {type(value).__name__}"
