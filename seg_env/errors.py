"""Errors whose message tells users all that they need to know."""

from __future__ import annotations


class ExplainedError(Exception):
    """Something from outside is at fault; the message says what, and how to fix it.

    Scripts print the message in one line instead of a traceback.
    """


class WrongOptionError(ExplainedError, ValueError):
    """An option has a value that it cannot have."""
