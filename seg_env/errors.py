"""Errors whose message is all that there is to know."""

from __future__ import annotations


class ExplainedError(Exception):
    """Something from outside is at fault, and the message says what and how to mend it.

    Scripts print the message in one line in the place of a traceback.
    """


class WrongOptionError(ExplainedError, ValueError):
    """An option has a value that it cannot have."""
