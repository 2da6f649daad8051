"""Ranges of what stages are built with: it comes as JSON from a command line."""

from __future__ import annotations

from typing import cast


def check_whole(least: int, **values: object) -> None:
    """Check whole numbers.

    Args:
        least: The smallest that is allowed.
        **values: By name.

    Raises:
        ValueError: One is smaller, or no whole number.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name}={value!r}; use a whole number from {least}")


def check_between(least: float, most: float, **values: object) -> None:
    """Check numbers.

    Args:
        least: The smallest that is allowed.
        most: The largest that is allowed.
        **values: By name.

    Raises:
        ValueError: One is out of range, or no number.
    """
    for name, value in values.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and least <= cast("float", value) <= most):
            raise ValueError(f"{name}={value!r}; use a number from {least:g} to {most:g}")
