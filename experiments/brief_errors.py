"""Errors of users as one line instead of a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from agents.loading_errors import CheckpointError


@contextmanager
def brief_errors() -> Iterator[None]:
    """End the script with status 1 and one line where a checkpoint cannot be opened."""
    try:
        yield
    except CheckpointError as error:
        raise SystemExit(f"error: {error}") from None
