"""What can be wrong with one record of a data set, and what is done about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Literal

OnError = Literal["raise", "skip"]
"""Whether a broken record is an error when it is asked for, or left out when a data set is opened.

Leaving out means looking at every annotation and at the header of every picture first. A file that
everything hangs on (``instances.json``, ``refs(*).p``, a parquet file) is an error either way, for
then there is no record to leave out.
"""


class Fault(StrEnum):
    """Kinds of broken records, the keys of a data set's ``skipped``."""

    MALFORMED = "malformed record"
    """Something is missing in the record, is not what it should be, or is no JSON at all."""
    MISSING_PHOTO = "missing photo"
    """There is no such picture."""
    UNREADABLE_PHOTO = "unreadable photo"
    """The picture is damaged, or of a format that is not read."""
    SIZE_MISMATCH = "size mismatch"
    """The picture is not of the size that the annotations say."""
    OUTSIDE = "polygon outside the image"
    """A polygon lies beside the picture, or reaches far out of it."""
    EMPTY = "empty segmentation"
    """An object that should be there fills not one pixel."""


class RecordError(ValueError):
    """A broken record; the message names file and record."""

    def __init__(self, message: str, fault: Fault = Fault.MALFORMED) -> None:
        """Describe the fault.

        Args:
            message: Names file, record, offending value and what was expected.
            fault: Its kind.
        """
        super().__init__(message)
        self.fault = fault


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put ``where`` (file and record) in front of the errors of a block; they stay of their kind.

    Raises:
        RecordError: The block raised a `ValueError`.
    """
    try:
        yield
    except ValueError as error:
        raise RecordError(f"{where}: {error}", fault_of(error)) from error


def fault_of(error: Exception) -> Fault:
    """The kind of an error that a loader raised for a record."""
    if isinstance(error, FileNotFoundError):
        return Fault.MISSING_PHOTO
    return error.fault if isinstance(error, RecordError) else Fault.MALFORMED


def check_on_error(on_error: str) -> None:
    """Refuse anything but the two values of `OnError`.

    Raises:
        ValueError: It is neither.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is unknown; use 'raise' or 'skip'")
