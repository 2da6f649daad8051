"""How scripts end where something from outside is at fault; needs no deep-learning library."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from seg_env.errors import ExplainedError


@contextmanager
def brief_errors() -> Iterator[None]:
    """End the script with status 1 and one line in the place of a traceback."""
    try:
        yield
    except ExplainedError as error:
        raise SystemExit(f"error: {error}") from None
